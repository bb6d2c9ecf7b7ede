"""From texts to the first step of pretraining: speed of tokenising, peak memory, and how soon training begins.

    .venv/bin/python benchmarks/mlm_tokenizing.py [--quick] [--sizes 10 100 1000] [--out benchmarks/results/mlm-tokenizing.json]

*Speed*: ``open_tokens``, which the steps ``tokenize`` and ``pretrain`` call, from the shards of a dataset version to the checked store
on disk; beside it the recipe of transformers' ``run_mlm``: ``AutoTokenizer(...)(texts, ...)``, the fast tokenizer on all cores, 1,000
texts at a time. Same texts, same tokenizer, each turn a process of its own, in turns; seconds are without imports. The recipe has its
texts in memory, and what it makes is dropped, not written.
*Memory*: the whole step ``tokenize`` (fetch, learning the tokenizer, tokenising, report) in a fresh process for each size: peak of the
sum over the process and its children of their proportional set sizes (Pss), libraries included.
*First step*: ``prepare`` and ``fit`` of the step ``pretrain`` (two layers of 128 features, 4,096 tokens a step, the trial of precisions
included) in a fresh process, from the call to the end of the first optimiser step, imports done before.

The texts follow the 23,703 snippets of ``sample://reviews``: each begins as one of them, has as many words as one of them, and after
a word comes what follows one of its occurrences. Words that occur once there are put together from two such, so the number of
different words goes on growing with the corpus, as in natural text. No two texts are the same. They are written by ``write_dataset``,
as ingest writes them, with addresses, splits and labels as ingest gives them; its search for near-duplicates is left out.
MB are a million bytes of UTF-8.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import processor

from ssl_core.config.project import TextProject
from ssl_core.config.settings import Settings
from ssl_core.contracts import ArtifactRef, DatasetRef, RunContext
from ssl_core.pipeline import source_digest
from ssl_core.step import Bar, NoProgress, StepContext
from ssl_core.store import Store, path_sha256

ROOT = Path(__file__).parent.parent
SEED = 0
GOALS = {"mb_per_minute": 100.0, "memory_spread": 1.2, "first_step_seconds": 5.0}
RECIPE_BATCH = 1000
LOOK_SECONDS = 0.05
"""Between two looks at the memory."""
_CHUNK = 20_000
_TOKENIZER = "reviews/tokenize/benchmark/out/tokenizer"


# ---- the corpus


def compose(snippets: list[tuple[str, str | None]], megabytes: float) -> dict[str, tuple[str, str | None]]:
    """Sample id to text and label of as many texts as make ``megabytes``; see the head of this file."""
    import numpy as np

    random = np.random.default_rng(SEED)
    split = [text.split() for text, _ in snippets]
    lengths = np.asarray([len(words) for words in split])
    begins = lengths.cumsum() - lengths
    vocabulary, ids, counts = np.unique([word for words in split for word in words], return_inverse=True, return_counts=True)  # fmt: skip
    places, first = np.argsort(ids, kind="stable"), counts.cumsum() - counts
    words, once = vocabulary.astype(object), counts == 1
    heads, tails = (
        np.asarray([cut(word) for word in vocabulary[once].tolist()], dtype=object)
        for cut in (lambda word: word[: (len(word) + 1) // 2], lambda word: word[len(word) // 2 :])
    )
    made: dict[str, tuple[str, str | None]] = {}
    left = megabytes * 1e6
    while True:
        chosen, wanted = random.integers(len(split), size=_CHUNK), random.choice(lengths, _CHUNK)
        place = begins[chosen]
        drawn = np.empty((_CHUNK, wanted.max()), dtype=np.int64)
        for step in range(wanted.max()):
            drawn[:, step] = ids[place]
            again = ids[place]
            place = (places[first[again] + random.integers(counts[again])] + 1) % len(ids)
        flat = drawn[np.arange(wanted.max()) < wanted[:, None]]
        spelled, rare = words[flat], once[flat]
        spelled[rare] = random.choice(heads, rare.sum()) + random.choice(tails, rare.sum())
        end = 0
        for number, length in zip(chosen.tolist(), wanted.tolist(), strict=True):
            text = " ".join(spelled[end : end + length])
            end += length
            data = text.encode()
            sample_id = hashlib.sha256(b"text\n" + data).hexdigest()
            if sample_id not in made:
                made[sample_id] = text, snippets[number][1]
                left -= len(data)
                if left <= 0:
                    return made


def make(home: Path, megabytes: float) -> dict[str, Any]:
    """A dataset version of ``compose``'s texts, where DVC would keep it; its reference in ``ref.json``."""
    import pandas as pd

    from ssl_core.data.dataset import write_dataset
    from ssl_core.data.samples.snippets import reviews
    from ssl_core.data.splits import side
    from ssl_core.data.text.kind import letters

    made = compose([(r.text, r.label if r.domain == "movies" else None) for r in reviews()], megabytes)
    ids = sorted(made)
    texts = [made[sample_id][0] for sample_id in ids]
    sizes = [len(text.encode()) for text in texts]
    shares = _project().data.split
    manifest = pd.DataFrame(
        {
            "sample_id": ids, "split": [side(sample_id, shares) for sample_id in ids], "group": ids,
            "label": [made[sample_id][1] for sample_id in ids], "source": [f"texts.jsonl:{row}" for row in range(len(ids))],
            "arrived_at": pd.Timestamp(2026, 1, 1, tz=dt.UTC), "first_version": 1,
            "characters": [len(text) for text in texts], "words": [len(text.split()) for text in texts], "bytes": sizes,
            "letters": [letters(text) for text in texts],
        }
    )  # fmt: skip
    del made
    folder, objects = home / "dataset", Settings(home=home).cache / "files" / "md5"
    info = write_dataset(
        folder, manifest, texts.__getitem__, name="reviews", modality="text", classes=["negative", "positive"]
    )
    digest = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    listing = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        listing.append({"md5": md5, "relpath": path.name})
        (objects / md5[:2]).mkdir(parents=True, exist_ok=True)
        path.rename(objects / md5[:2] / md5[2:])
    packed = json.dumps(listing).encode()
    address = hashlib.md5(packed, usedforsecurity=False).hexdigest() + ".dir"
    (objects / address[:2]).mkdir(exist_ok=True)
    (objects / address[:2] / address[2:]).write_bytes(packed)
    ref = DatasetRef(
        kind="dataset", name="reviews", tag="reviews@v1", revision="0" * 40, path="reviews/data", md5=address,
        remote=str(Settings(home=home).cache), sha256=digest, producer="ingest/benchmark", rows=info.rows, labelled=info.labelled,
        classes=len(info.classes),
    )  # fmt: skip
    (home / "ref.json").write_text(ref.model_dump_json())
    return {"texts": len(texts), "mb": round(sum(sizes) / 1e6, 3), "characters_a_text": round(sum(map(len, texts)) / len(texts), 1)}  # fmt: skip


# ---- what is measured, each in a process of its own


class Clock(NoProgress):
    """Remembers how long each bar was shown."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[Bar]:
        started = time.perf_counter()
        with super().bar(title, total, unit) as bar:
            yield bar
        self.seconds[title] = round(time.perf_counter() - started, 2)


def tokenize(home: Path) -> dict[str, Any]:
    """The step ``tokenize``; what it makes is published as the executor would."""
    from ssl_core.data.text.tokenize import run

    context, clock = _context(home), Clock()
    context.progress = clock
    started = time.perf_counter()
    metrics = run(context).metrics
    seconds = time.perf_counter() - started
    target = Path(context.store.path(_TOKENIZER))
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(context.out / "tokenizer", target)
    shutil.rmtree(context.out)
    return {"seconds": round(seconds, 2), "parts": clock.seconds, "metrics": metrics}


def ours(home: Path) -> dict[str, Any]:
    """The store, made anew."""
    from ssl_core.data.text.tokenizer import Tokenizer
    from ssl_core.data.text.tokens import open_tokens

    context = _context(home)
    shutil.rmtree(context.settings.cache / "tokens", ignore_errors=True)
    tokenizer = Tokenizer.load(Path(context.store.path(_TOKENIZER)))
    started = time.perf_counter()
    tokens = open_tokens(context.input("dataset"), context.settings, tokenizer)
    return {"seconds": time.perf_counter() - started, "tokens": len(tokens.ids)}


def recipe(home: Path) -> dict[str, Any]:
    """The same texts through transformers; its two special tokens a text are not counted."""
    from transformers import AutoTokenizer

    from ssl_core.data.reader import fetch
    from ssl_core.data.text.tokens import read_texts

    context = _context(home)
    tokenizer = AutoTokenizer.from_pretrained(context.store.path(_TOKENIZER))
    texts = [text for _, part, _ in read_texts(fetch(context.input("dataset"), context.settings)) for text in part]
    started, tokens = time.perf_counter(), 0
    for begin in range(0, len(texts), RECIPE_BATCH):
        rows = tokenizer(texts[begin : begin + RECIPE_BATCH], return_special_tokens_mask=True)["input_ids"]
        tokens += sum(map(len, rows)) - 2 * len(rows)
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


class FirstStep(Exception):
    """The first step is done."""


class Feed:
    """Batches that say when the second one is asked for."""

    def __init__(self, batches: Any) -> None:
        self._batches, self.per_epoch = batches, batches.per_epoch
        self.count, self.close = batches.count, batches.close

    def fetch(self, step: int) -> Any:
        if step == 1:
            raise FirstStep
        return self._batches.fetch(step)


def first_step(home: Path) -> dict[str, Any]:
    """``pretrain`` on the tokens that are there, up to the end of its first step."""
    from transformers import BertForMaskedLM  # noqa: F401

    from ssl_core.training.loop import fit
    from ssl_core.training.runtime import resolve_runtime
    from ssl_core.training.state import CheckpointFiles
    from ssl_core.training.text_pretrain import prepare

    context = _context(home)
    config = context.project.pretrain
    started = time.perf_counter()
    runtime = resolve_runtime(config)
    made = prepare(context, context.input("dataset"), runtime)
    ready = time.perf_counter() - started
    with suppress(FirstStep):
        fit(
            made.objective, Feed(made.batches), config, made.runtime or runtime, monitor=made.monitor,
            checkpoints=CheckpointFiles(context.checkpoints, context.store.scratch, "benchmark", context.progress.note),
            tracker=context.tracker, progress=context.progress, stop=context.stop, unit=made.unit,
        )  # fmt: skip
    return {"seconds": round(time.perf_counter() - started, 2), "prepare_seconds": round(ready, 2), "data": made.data}


CHILDREN = {"tokenize": tokenize, "ours": ours, "recipe": recipe, "first-step": first_step}


def _project() -> TextProject:
    """A tokenizer and a small network of the corpus's own: nothing is taken from a checkpoint."""
    return TextProject.model_validate(
        {
            "name": "reviews", "modality": "text", "data": {"source": "sample://reviews"},
            "encoder": {"layers": 2, "hidden": 128, "max_length": 128}, "objective": {"name": "mlm"},
            "pretrain": {"epochs": 1, "batch_tokens": 4096},
        }
    )  # fmt: skip


def _context(home: Path) -> StepContext:
    settings = Settings(home=home)
    store = Store(settings.store_url, settings.cache)
    inputs: dict[str, Any] = {"dataset": DatasetRef.model_validate_json((home / "ref.json").read_bytes())}
    tokenizer = Path(store.path(_TOKENIZER))
    if tokenizer.exists():
        inputs["tokenizer"] = ArtifactRef(
            kind="tokenizer", uri=_TOKENIZER, sha256=path_sha256(tokenizer), producer="tokenize/benchmark"
        )
    out = home / "out"
    out.mkdir(exist_ok=True)
    return StepContext(
        project=_project(), settings=settings, inputs=inputs, run=RunContext(run_id="benchmark"), key="benchmark", out=out,
        store=store, checkpoints=store.checkpoints("reviews", "pretrain", "benchmark"),
    )  # fmt: skip


# ---- the whole


def start(name: str, home: Path, *more: str) -> dict[str, Any]:
    """Runs a part of this file in a fresh process; its result, with the peak of its memory in MiB."""
    command = [sys.executable, __file__, "--child", name, str(home), *more]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, ended = [0.0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            sizes = [_pss(pid) for pid in _family(child.pid)]
            peak[:] = max(peak, [sum(sizes) / 1024, len(sizes)])

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = child.communicate()
    ended.set()
    watcher.join()
    if child.returncode:
        sys.exit(f"{shlex.join(command)} failed")
    return {**json.loads(output.splitlines()[-1]), "peak_mib": round(peak[0], 1), "processes_at_peak": peak[1]}


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    except OSError:  # ended meanwhile
        pass
    return found


def _pss(pid: int) -> int:
    """KiB of a process, what it shares with others divided among them; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def compare(home: Path, megabytes: float, turns: int) -> dict[str, Any]:
    """MB a minute of both sides, a turn each and so on."""
    rates: dict[str, list[float]] = {"ours": [], "recipe": []}
    tokens = set()
    for _ in range(turns):
        for name, found in rates.items():
            turn = start(name, home)
            found.append(round(megabytes / turn["seconds"] * 60, 1))
            tokens.add(turn["tokens"])
    if len(tokens) != 1:
        sys.exit(f"the sides made different numbers of tokens: {tokens}")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "mb": megabytes, "tokens": tokens.pop(), "mb_per_minute": medians, "turns": rates,
        "ratio": round(medians["ours"] / medians["recipe"], 2),
        "lowest_ratio": round(min(a / b for a, b in zip(rates["ours"], rates["recipe"], strict=True)), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[10, 100, 1000], help="MB of text, ascending")
    parser.add_argument("--speed-size", type=float, default=100, help="MB that speed is compared on, one of the sizes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for 3 GB of files; default: the system's temporary one")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 1 and 3 MB, one turn, no file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mlm-tokenizing.json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, home, *more = arguments.child
        found = make(Path(home), float(more[0])) if name == "make" else CHILDREN[name](Path(home))
        print(json.dumps(found))
        return
    if arguments.quick:
        arguments.sizes, arguments.speed_size, arguments.turns = [1, 3], 3, 1
    began, load = time.monotonic(), os.getloadavg()[0]
    rows, speed = [], {}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            home = Path(scratch)
            row = {name: value for name, value in start("make", home, str(size)).items() if "peak" not in name}
            row |= {"tokenize": start("tokenize", home), "first_step": start("first-step", home)}
            print(
                f"{row['mb']:,.0f} MB, {row['texts']:,} texts: tokenize {row['tokenize']['seconds']} s, peak "
                f"{row['tokenize']['peak_mib']} MiB; first step after {row['first_step']['seconds']} s", flush=True,
            )  # fmt: skip
            rows.append(row)
            if size == arguments.speed_size:
                speed = compare(home, row["mb"], arguments.turns)
                print(f"{speed['mb_per_minute']} MB a minute, ratio {speed['ratio']} (lowest turn {speed['lowest_ratio']})", flush=True)  # fmt: skip
    peaks = [row["tokenize"]["peak_mib"] for row in rows]
    reached = {
        "mb_per_minute": speed["mb_per_minute"]["ours"] if speed else None,
        "memory_spread": round(max(peaks) / min(peaks), 3),
        "first_step_seconds": max(row["first_step"]["seconds"] for row in rows),
    }
    document = {
        "what": "texts of a dataset version to the memory-mapped store of tokens, and from there to the first step of pretraining",
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": len(os.sched_getaffinity(0)), "system": platform.platform(), "load_before": round(load, 2)},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "transformers", "tokenizers", "pyarrow", "numpy")} | {"python": platform.python_version(), "code": source_digest()},
        "seed": SEED, "speed": speed, "sizes": rows, "reached": reached, "goals": GOALS,
        "passed": {
            name: value is not None and (value >= GOALS[name] if name == "mb_per_minute" else value <= GOALS[name])
            for name, value in reached.items()
        },
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print(json.dumps({name: document[name] for name in ("reached", "goals", "passed")}, indent=1))
    print(f"{document['seconds']} s")
    if not arguments.quick:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
