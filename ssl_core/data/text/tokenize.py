"""The ``tokenize`` step: a tokenizer learned from the training texts, or a checkpoint's, and how well it fits the corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.config.project import ProjectConfig, TextProject
from ssl_core.contracts import DatasetRef
from ssl_core.errors import TryAgain
from ssl_core.step import Output, StepContext, StepOutput

if TYPE_CHECKING:
    from ssl_core.data.text.tokenizer import Tokenizer
    from ssl_core.data.text.tokens import Tokens

REPORT_FILE = "report.json"
FOLDER = "tokenizer"
_SPLITS = ("train", "val")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_MANY_UNKNOWN = 0.01


@dataclass(frozen=True)
class Fit:
    """How a tokenizer fits the texts of one split."""

    texts: int
    words: int
    """What stands between spaces, and each character of a script without spaces."""
    tokens: int
    fertility: float
    """Tokens a word: 1 where each word is one token."""
    unknown_rate: float
    """Share of the tokens that are the unknown token: what they stood for is lost."""
    spelled_rate: float
    """Share of the tokens that are single bytes in place of a character that the vocabulary lacks (Unigram)."""
    longest: int
    """Tokens of the longest text."""
    windowed: int
    """Texts longer than the encoder sees at once; they are seen window by window."""


def fingerprint(project: ProjectConfig) -> str:
    """Changes when the tokenizer files of a local ``encoder.init_from`` do."""
    assert isinstance(project, TextProject)
    source = project.encoder.init_from
    if source is None:
        return ""
    if "://" in source or source.startswith("models:"):
        from ssl_core.data.text import pretrained

        return pretrained.fingerprint(source)
    from ssl_core.config.settings import expand

    contents = [(name, expand(source) / name) for name in _TOKENIZER_FILES]
    listing = [[name, hashlib.sha256(path.read_bytes()).hexdigest()] for name, path in contents if path.is_file()]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def run(ctx: StepContext) -> StepOutput:
    """Makes ``tokenizer/``: the tokenizer's files and ``report.json``. Only the texts of split train teach it.

    Raises:
        UserError: there is nothing to learn from, no room for the alphabet, or ``encoder.init_from`` has no fit tokenizer.
        TryAgain: told to stop, or storage failed; the next call goes on with the texts that are tokenized.
    """
    from ssl_core.data.reader import fetch
    from ssl_core.data.text.tokens import open_tokens

    project = ctx.project
    assert isinstance(project, TextProject)
    dataset: DatasetRef = ctx.input("dataset")
    folder = fetch(dataset, ctx.settings, ctx.progress)
    tokenizer, origin = _from_checkpoint(ctx, project) if project.encoder.init_from else _learn(ctx, project, folder)
    tokens = open_tokens(dataset, ctx.settings, tokenizer, progress=ctx.progress, stop=ctx.stop)
    fits = measure(tokens, tokenizer, project.encoder.max_length)
    resolved = {
        "kind": tokenizer.kind, "size": tokenizer.size, "added": len(project.tokenizer.added), "max_length": project.encoder.max_length,
        **origin,
    }  # fmt: skip
    report = {**resolved, "digest": tokenizer.digest, "splits": {name: asdict(fit) for name, fit in fits.items()}}
    out = ctx.out / FOLDER
    tokenizer.save(out, max_length=project.encoder.max_length)
    (out / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    ctx.tracker.params({"resolved": resolved})
    metrics: dict[str, float] = {"size": tokenizer.size}
    for name, fit in fits.items():
        metrics |= {
            f"{key}_{name}": float(getattr(fit, key))
            for key in ("tokens", "fertility", "unknown_rate", "longest", "windowed")
        }
    ctx.tracker.metrics(metrics)
    link = ctx.tracker.artifact(out / REPORT_FILE)
    return StepOutput(
        outputs={"tokenizer": Output("tokenizer", FOLDER)},
        metrics=metrics,
        links={"Tokenizer report": link} if link else {},
        summary=summary(tokenizer, origin, fits, project.encoder.max_length),
    )


def measure(tokens: Tokens, tokenizer: Tokenizer, max_length: int) -> dict[str, Fit]:
    """How the tokenizer fits train and val; reads texts and tokens once, a block at a time. Test and vault are not looked at."""
    from ssl_core.data.text.tokens import in_split

    side = np.full(len(tokens), -1, dtype=np.int8)
    for number, split in enumerate(_SPLITS):
        side[in_split(tokens.folder, split)] = number
    words = _words(tokens.folder, side)
    count, total, unknown, spelled, longest, windowed = np.zeros((6, len(_SPLITS)), dtype=np.int64)
    row = 0
    for ids, lengths in tokens.blocks():
        sides = side[row : row + len(lengths)]
        row += len(lengths)
        owner = np.repeat(sides, lengths)
        is_unknown, is_spelled = ids == tokenizer.unk_id, np.isin(ids, tokenizer.fallback_ids)
        for number in range(len(_SPLITS)):
            mine = lengths[sides == number]
            count[number] += len(mine)
            total[number] += mine.sum()
            longest[number] = max(longest[number], mine.max(initial=0))
            windowed[number] += (mine > max_length - 2).sum()
            unknown[number] += (is_unknown & (owner == number)).sum()
            spelled[number] += (is_spelled & (owner == number)).sum()
    return {
        split: Fit(
            texts=int(count[number]),
            words=int(words[number]),
            tokens=int(total[number]),
            fertility=round(int(total[number]) / max(1, int(words[number])), 4),
            unknown_rate=round(int(unknown[number]) / max(1, int(total[number])), 6),
            spelled_rate=round(int(spelled[number]) / max(1, int(total[number])), 6),
            longest=int(longest[number]),
            windowed=int(windowed[number]),
        )
        for number, split in enumerate(_SPLITS)
    }


def _words(folder: Path, side: np.ndarray) -> np.ndarray:
    """Words of the texts of each split, whose number ``side`` ``(N,)`` gives for each text; -1 is looked at not at all."""
    from ssl_core.data.text.tokens import read_texts
    from ssl_core.data.text.words import split_words

    words = np.zeros(len(_SPLITS), dtype=np.int64)
    row = 0
    for _, texts, _ in read_texts(folder):
        for text in texts:
            if side[row] >= 0:
                words[side[row]] += len(split_words(text))
            row += 1
    return words


def summary(tokenizer: Tokenizer, origin: dict[str, Any], fits: dict[str, Fit], max_length: int) -> str:
    """A few lines of Markdown for people."""
    first = fits.get("train") or next(iter(fits.values()))
    lines = [
        f"**{tokenizer.kind} tokenizer, {tokenizer.size:,} tokens**, {origin['how']}; {first.fertility:.2f} tokens a word, "
        f"{first.unknown_rate:.2%} unknown."
    ]
    for name, fit in fits.items():
        lines.append(
            f"- {name}: {fit.texts:,} texts, {fit.tokens:,} tokens, {fit.fertility:.2f} tokens a word, {fit.unknown_rate:.2%} unknown; "
            f"the longest has {fit.longest:,} tokens; {fit.windowed:,} exceed {max_length} and are seen window by window"
        )
    if origin.get("note"):
        lines.append(f"- {origin['note']}")
    if max(fit.unknown_rate for fit in fits.values()) > _MANY_UNKNOWN:
        lines.append("- many unknown tokens: `tokenizer.kind: bpe` knows every character")
    return "\n".join(lines)


def _from_checkpoint(ctx: StepContext, project: TextProject) -> tuple[Tokenizer, dict[str, Any]]:
    from ssl_core.data.text.pretrained import find
    from ssl_core.data.text.tokenizer import Tokenizer

    source = str(project.encoder.init_from)
    tokenizer = Tokenizer.load(find(source, ctx.settings))
    before = tokenizer.size
    tokenizer.add_words(project.tokenizer.added)
    origin: dict[str, Any] = {"how": f"taken from {source}", "source": source, "new_tokens": tokenizer.size - before}
    if tokenizer.size > before:
        origin["note"] = (
            f"{tokenizer.size - before:,} added words are new to the checkpoint; their embeddings start untrained"
        )
    return tokenizer, origin


def _learn(ctx: StepContext, project: TextProject, folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    from ssl_core.data.text import training

    config = project.tokenizer
    chosen = training.sample(_train_texts(ctx, folder))
    words = training.count_words(chosen.texts, config)
    auto = config.size == "auto"
    # Added words are those of the team: they take no place from what the corpus has earned.
    size = training.advise_size(words, config, chosen.every) + len(config.added) if auto else int(config.size)
    with ctx.progress.bar(f"learn {config.kind} tokens", None) as bar:
        tokenizer = training.train(chosen.texts, config, size=size)
        bar.advance()
    frequent = training.frequent_words(words, config, chosen.every)
    origin: dict[str, Any] = {
        "how": f"learned from {len(chosen.texts):,} training texts"
        + ("" if chosen.every == 1 else f" (every {chosen.every}th of {chosen.seen:,})"),
        "advised": auto,
        "wanted_size": size,
        "sampled_texts": len(chosen.texts),
        "train_texts": chosen.seen,
        "distinct_words": len(words),
        "frequent_words": frequent,
    }
    notes = []
    if auto:
        notes.append(
            f"size {size:,} was advised: {frequent:,} of {len(words):,} distinct words occur {training.SEEN_ENOUGH} times or more"
            + ("" if chosen.every == 1 else " in the whole corpus, by the sample")
            + ", "
            f"and a size is at least {training.SMALLEST:,} and at most {training.LARGEST[config.kind]:,}"
        )
    if tokenizer.size < size:
        notes.append(f"the texts had only {tokenizer.size:,} tokens to teach, {size:,} were wanted")
    if notes:
        origin["note"] = "; ".join(notes)
    return tokenizer, origin


def _train_texts(ctx: StepContext, folder: Path) -> Iterator[str]:
    """The texts of split train, with a bar over all."""
    from ssl_core.data.text.tokens import in_split, read_texts

    is_train = in_split(folder, "train")
    row = 0
    with ctx.progress.bar("read texts", len(is_train), "texts") as bar:
        for _, texts, _ in read_texts(folder):
            if ctx.stop.is_set():
                raise TryAgain("stopped while reading texts", next_step="run the same command again")
            yield from (text for number, text in enumerate(texts, start=row) if is_train[number])
            row += len(texts)
            bar.advance(len(texts))
