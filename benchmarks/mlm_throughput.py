"""Masked language modelling on short texts: our pretraining beside a plain transformers ``Trainer`` recipe, in one run.

    .venv/bin/python benchmarks/mlm_throughput.py [--device cuda] [--quick] [--out benchmarks/results/mlm-throughput.json]

The recipe: ``BertForMaskedLM`` (a head for every token), ``DataCollatorForLanguageModeling``, ``Trainer``; *line by line*, padded to
the longest text of its batch, and *grouped*: all tokens one after the other, cut into blocks of 128. Ours is what ``pretrain`` runs:
packed batches, attention per text, the head at the hidden tokens. The same on both sides: texts (the 23,703 snippets of
``sample://reviews``, tokenised before the clock starts), tokenizer, first weights, masking (15%; 80/10/10), AdamW, decay, clipping,
learning rate, tokens a step, threads, precision; dropout is off on both. Tokens are real ones, special tokens included, padding not.

Each contender is a process of its own, and they take turns, so a busy machine hurts all alike; figures are medians over the turns.
The recipe is fastest with few texts a step, because logits of all tokens fill the memory (line by line, 4,096 tokens a step would
be 12 GB of them); so every side runs at several sizes of step, and ratios are given at equal ones and between each side's fastest.
*Torch's products* is ours without the one part that depends on the processor's maker (``ssl_core/models/dense.py``).

Learning: two layers of 128 features, a constant rate after the warm-up; each side trains for the same time on its own clock, and
the loss on the same hidden tokens of 512 held-out texts is taken at equal numbers of tokens (not on the clock).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from scipy import stats

from ssl_core.config.objectives import MaskingConfig
from ssl_core.config.settings import Settings
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.samples.snippets import reviews
from ssl_core.data.text.packing import TextBatches, windows
from ssl_core.data.text.sequences import gather
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train as train_tokenizer
from ssl_core.models.optim import adamw, parameter_groups, set_rates
from ssl_core.models.text_encoder import split
from ssl_core.models.text_windows import offsets_of
from ssl_core.objectives.masking import Masker
from ssl_core.objectives.mlm import MLM
from ssl_core.pipeline import source_digest
from ssl_core.training.loop import setup, train_step
from ssl_core.training.memory import keep_freed_memory
from ssl_core.training.runtime import Precision, Runtime

ROOT = Path(__file__).parent.parent
VOCABULARY = 30_522
MAX_LENGTH = 128
RATE = 0.15
DECAY = 0.01
LEARNING_RATE, WARMUP = 1e-3, 40
HELD_OUT = 512
MARK = 30_000
"""Tokens between two looks at the loss."""
SIDES = ("ours", "line-by-line", "grouped")
TORCH = "ours, torch's products"


@dataclass(frozen=True)
class Case:
    """One size of network."""

    layers: int
    hidden: int
    batches: tuple[int, ...]
    """Tokens a step."""
    goals: tuple[float, float] | None = None
    """Least ratio to the recipe line by line, and grouped."""

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.hidden}"


CPU_CASES = (
    Case(2, 128, (256, 1024, 4096), (5.0, 3.0)),
    Case(4, 256, (256, 1024, 4096), (4.0, 2.2)),
    Case(12, 768, (1024,)),
)
GPU_CASES = (Case(2, 128, (4096, 16_384)), Case(4, 256, (4096, 16_384)), Case(12, 768, (4096, 16_384)))
MOST_LINES = {"cpu": 1024, "cuda": 16_384}
"""Tokens a step that are padded line by line, at most: their logits must fit into memory."""
LEARNING, LEARNING_BATCH = CPU_CASES[0], 1024


@dataclass(frozen=True)
class Job:
    """What a process is to run."""

    side: str
    case: Case
    batch_tokens: int
    seed: int
    folder: Path
    device: str
    precision: Precision
    threads: int


@dataclass(frozen=True)
class Corpus:
    """Tokens of texts, for ``TextBatches``."""

    ids: np.ndarray
    offsets: np.ndarray


# ---- the corpus, made once


def prepare(folder: Path) -> dict[str, Any]:
    """Tokenizer, tokens of the training texts and held-out texts with their masks, as files in ``folder``."""
    texts = [review.text for review in reviews(Settings().cache)]
    tokenizer = train_tokenizer(texts, TokenizerConfig(size=VOCABULARY))
    tokenizer.save(folder / "tokenizer", max_length=MAX_LENGTH)
    held = np.zeros(len(texts), dtype=bool)
    held[np.random.default_rng(0).choice(len(texts), HELD_OUT, replace=False)] = True
    ids, lengths = tokenizer.encode_flat([text for text, out in zip(texts, held, strict=True) if not out])
    np.savez(folder / "train.npz", ids=ids, offsets=offsets_of(lengths))
    ids, held_lengths = tokenizer.encode_flat([text for text, out in zip(texts, held, strict=True) if out])
    starts, sizes = windows(offsets_of(held_lengths), np.arange(HELD_OUT), MAX_LENGTH - 2)
    whole = gather(ids, starts, sizes, tokenizer.cls_id, tokenizer.sep_id)
    masker = Masker(MaskingConfig(rate=RATE), tokenizer)
    every = whole.lengths.numpy()
    masked = masker(whole.ids.numpy(), every, masker.count(every), np.random.default_rng(0))
    np.savez(
        folder / "held.npz",
        inputs=masked.inputs,
        lengths=every,
        positions=masked.positions,
        targets=masked.targets,
    )
    return {
        "texts": len(texts), "held_out": HELD_OUT, "train_tokens": int(lengths.sum()) + 2 * len(lengths),
        "tokens_a_text": round(float(lengths.mean()) + 2, 1), "longest_text": int(lengths.max()) + 2,
        "tokenizer": f"WordPiece of {tokenizer.size:,} tokens; the network has {VOCABULARY:,}",
    }  # fmt: skip


def new_model(job: Job, tokenizer: Tokenizer) -> Any:
    """A ``BertForMaskedLM`` whose weights follow from the seed."""
    from transformers import BertConfig, BertForMaskedLM

    case = job.case
    torch.manual_seed(job.seed)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=case.hidden, num_hidden_layers=case.layers,
            num_attention_heads=case.hidden // 64, intermediate_size=4 * case.hidden, max_position_embeddings=MAX_LENGTH,
            pad_token_id=tokenizer.pad_id, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


class HeldOut:
    """Loss on the held-out texts, by the library's forward, whoever trained the weights."""

    def __init__(self, folder: Path) -> None:
        data = np.load(folder / "held.npz")
        lengths = data["lengths"]
        rows, places = (
            np.repeat(np.arange(len(lengths)), lengths),
            np.concatenate([np.arange(size) for size in lengths]),
        )
        self.ids = torch.zeros((len(lengths), int(lengths.max())), dtype=torch.int64)
        self.ids[rows, places] = torch.from_numpy(data["inputs"].astype(np.int64))
        self.filled = torch.zeros_like(self.ids)
        self.filled[rows, places] = 1
        self.labels = torch.full_like(self.ids, -100)
        asked = data["positions"]
        self.labels[rows[asked], places[asked]] = torch.from_numpy(data["targets"].astype(np.int64))

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        was, total, count = model.training, 0.0, 0
        model.eval()
        for part in torch.arange(len(self.ids)).split(64):
            width = int(self.filled[part].sum(1).max())
            ids, filled, labels = (t[part, :width].to(model.device) for t in (self.ids, self.filled, self.labels))
            hidden = int((labels >= 0).sum())
            total += float(model(input_ids=ids, attention_mask=filled, labels=labels).loss) * hidden
            count += hidden
        model.train(was)
        return total / count


# ---- a process for each side


class Turns:
    """Lets a training loop run when the parent says so, and tells the parent how far it came.

    The parent sends ``(seconds, tokens)``: train until so many tokens of this turn are read, or so many seconds gone; at least one
    step. Then the loop stands still. The answer: tokens and seconds of the turn, steps, and the loss on held-out texts if wanted.
    """

    def __init__(self, link: Connection, loss: Callable[[], float], device: str) -> None:
        self._link, self._loss, self._device = link, loss, device
        self._tokens = self._steps = 0
        self._limits: tuple[float, int, bool] | None = None
        self._clock = 0.0

    def before_step(self) -> bool:
        """Waits for a turn if there is none; False: there will be none any more."""
        if self._limits is None:
            self._limits = self._link.recv()
            if self._limits is None:
                return False
            self._tokens = self._steps = 0
            self._clock = time.perf_counter()
        return True

    def after_step(self, tokens: int) -> None:
        assert self._limits is not None
        self._tokens += tokens
        self._steps += 1
        seconds, most, look = self._limits
        if self._tokens < most and time.perf_counter() - self._clock < seconds:
            return
        if self._device == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - self._clock
        loss = self._loss() if look else None
        self._link.send({"tokens": self._tokens, "seconds": spent, "steps": self._steps, "loss": loss})
        self._limits = None


def work(job: Job, link: Connection) -> None:
    """The body of a process."""
    torch.set_num_threads(job.threads)
    (ours if job.side.startswith("ours") else recipe)(job, link)


def ours(job: Job, link: Connection) -> None:
    """What ``training.text_pretrain`` and ``training.loop.fit`` do, without checkpoints and gauges."""
    keep_freed_memory()
    torch.backends.mkldnn.enabled = job.side != TORCH
    tokenizer = Tokenizer.load(job.folder / "tokenizer")
    data = np.load(job.folder / "train.npz")
    corpus = Corpus(data["ids"], data["offsets"])
    model = new_model(job, tokenizer)
    batches = TextBatches(
        corpus, np.arange(len(corpus.offsets) - 1), max_length=MAX_LENGTH, batch_tokens=job.batch_tokens,
        cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, seed=job.seed,
    )  # fmt: skip
    masker = Masker(MaskingConfig(rate=RATE), tokenizer)
    objective = MLM(*split(model), masker, count=round(RATE * batches.maskable)).train()
    accelerator = setup(Runtime(job.device, job.precision, job.threads))
    objective.to(accelerator.device)
    optimizer = adamw(parameter_groups(objective, LEARNING_RATE, DECAY))
    prepared = accelerator.prepare_optimizer(optimizer)
    held = HeldOut(job.folder)
    turns, step = Turns(link, lambda: held.loss(model), job.device), 0
    while turns.before_step():
        set_rates(optimizer, min(1.0, step / WARMUP))
        *_, tokens, _ = train_step(step, objective, prepared, batches, accelerator, job.seed)
        step += 1
        turns.after_step(tokens)
    batches.close()


def recipe(job: Job, link: Connection) -> None:
    """The transformers recipe (``run_mlm.py`` of its examples), on texts that are tokenised already."""
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(job.folder / "tokenizer")
    data = np.load(job.folder / "train.npz")
    ids = data["ids"].tolist()
    ends = data["offsets"].tolist()
    rows = [
        [tokenizer.cls_token_id, *ids[a:b][: MAX_LENGTH - 2], tokenizer.sep_token_id]
        for a, b in itertools.pairwise(ends)
    ]
    if job.side == "grouped":
        flat = [token for row in rows for token in row]
        rows = [flat[i : i + MAX_LENGTH] for i in range(0, len(flat) - MAX_LENGTH + 1, MAX_LENGTH)]
    mean = sum(map(len, rows)) / len(rows)
    examples: Any = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    model = new_model(job, Tokenizer.load(job.folder / "tokenizer"))
    held = HeldOut(job.folder)
    turns = Turns(link, lambda: held.loss(model), job.device)

    class TakesTurns(TrainerCallback):
        seen = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if not turns.before_step():
                os._exit(0)  # a Trainer that is stopped would save, log and wait

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            turns.after_step(state.num_input_tokens_seen - self.seen)
            self.seen = state.num_input_tokens_seen

    arguments = TrainingArguments(
        output_dir=str(job.folder / "trainer"), per_device_train_batch_size=max(1, round(job.batch_tokens / mean)),
        max_steps=10**9, learning_rate=LEARNING_RATE, lr_scheduler_type="constant_with_warmup", warmup_steps=WARMUP,
        weight_decay=DECAY, bf16=job.precision == "bfloat16", use_cpu=job.device == "cpu", seed=job.seed, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, include_num_input_tokens_seen="non_padding",
    )  # fmt: skip
    Trainer(
        model=model, args=arguments, train_dataset=examples, callbacks=[TakesTurns()],
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=RATE),
    ).train()  # fmt: skip


class Side:
    """A process and the link to it."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def turn(self, seconds: float = float("inf"), tokens: int = 1 << 62, look: bool = False) -> dict[str, Any]:
        self._link.send((seconds, tokens, look))
        answer: dict[str, Any] = self._link.recv()
        return answer

    def close(self) -> None:
        self._link.send(None)
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


# ---- speed

Make = Callable[[str, Case, int, int], Side]
"""Starts a side: its name, the network, tokens a step, seed."""


def speed(case: Case, make: Make, device: str, turns: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of each side at each size of step, taking turns."""
    wanted = [
        (name, batch)
        for batch in case.batches
        for name in SIDES
        if name != "line-by-line" or batch <= MOST_LINES[device]
    ]
    if device == "cpu":
        wanted.append((TORCH, case.batches[-1]))
    sides = {(name, batch): make(name, case, batch, 0) for name, batch in wanted}
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in sides}
    try:
        for side in sides.values():
            side.turn(seconds=seconds / 2)  # kernels are made, memory is taken
        for _ in range(turns):
            for key, side in sides.items():
                done = side.turn(seconds=seconds)
                rates[key].append(done["tokens"] / done["seconds"])
    finally:
        for side in sides.values():
            side.close()
    fastest = {
        name: max((key for key in rates if key[0] == name), key=lambda key: statistics.median(rates[key]))
        for name in (*SIDES, TORCH)
        if any(key[0] == name for key in rates)
    }
    table = [
        {"side": name, "batch_tokens": batch, "tokens_per_second": round(statistics.median(values)), "by_turn": [round(v) for v in values]}
        for (name, batch), values in rates.items()
    ]  # fmt: skip
    ratios = [
        {"ours": list(mine), "recipe": list(other)} | _ratio(rates[mine], rates[other])
        for mine, other in [
            *((("ours", batch), (name, batch)) for name, batch in rates if name in SIDES[1:]),
            *((fastest[name], fastest[other]) for name in fastest if name not in SIDES[1:] for other in SIDES[1:]),
        ]
    ]
    lowest = [
        min(r["median"] for r in ratios if r["recipe"][0] == name and r["ours"][0] == "ours") for name in SIDES[1:]
    ]
    return {
        "name": case.name, "layers": case.layers, "hidden": case.hidden, "tokens_per_second": table, "ratios": ratios,
        "lowest_ratio": dict(zip(SIDES[1:], lowest, strict=True)),
        "goals": dict(zip(SIDES[1:], case.goals, strict=True)) if case.goals else None,
        "reached": all(a >= b for a, b in zip(lowest, case.goals, strict=True)) if case.goals else None,
    }  # fmt: skip


def _ratio(mine: list[float], other: list[float]) -> dict[str, float]:
    """Of turns side by side."""
    values = [a / b for a, b in zip(mine, other, strict=True)]
    return {"median": round(statistics.median(values), 2), "lowest_turn": round(min(values), 2)}


# ---- learning


def learn(make: Make, seed: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Loss on held-out texts of each side after every ``MARK`` tokens, until each has trained for ``seconds``."""
    sides = {name: make(name, LEARNING, LEARNING_BATCH, seed) for name in SIDES}
    curves: dict[str, dict[str, list[float]]] = {name: {"tokens": [], "seconds": [], "loss": []} for name in sides}
    try:
        running = dict(sides)
        while running:
            for name, side in list(running.items()):
                curve = curves[name]
                tokens, spent = (curve[key][-1] if curve[key] else 0 for key in ("tokens", "seconds"))
                done = side.turn(tokens=MARK * (len(curve["tokens"]) + 1) - int(tokens), look=True)
                curve["tokens"].append(tokens + done["tokens"])
                curve["seconds"].append(round(spent + done["seconds"], 2))
                curve["loss"].append(round(done["loss"], 4))
                if curve["seconds"][-1] >= seconds:
                    del running[name]
    finally:
        for side in sides.values():
            side.close()
    return curves


def compare_learning(by_seed: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Loss at equal time (curves interpolated), and of ours and the recipe line by line at equal tokens."""
    at_time: dict[str, list[float]] = {name: [] for name in SIDES}
    at_tokens: dict[str, list[float]] = {"ours": [], "line-by-line": []}
    reach = min(len(curves["line-by-line"]["loss"]) for curves in by_seed)
    for curves in by_seed:
        for name in SIDES:
            at_time[name].append(float(np.interp(seconds, curves[name]["seconds"], curves[name]["loss"])))
        for name, values in at_tokens.items():
            # The mean of the last three looks: one look is a single point of a noisy curve.
            values.append(float(np.mean(curves[name]["loss"][max(0, reach - 3) : reach])))
    difference = [a - b for a, b in zip(at_tokens["ours"], at_tokens["line-by-line"], strict=True)]
    return {
        "equal_time": {"seconds": seconds, "loss": {name: interval(values) for name, values in at_time.items()}},
        "equal_tokens": {
            "tokens": reach * MARK,
            "loss": {name: interval(values) for name, values in at_tokens.items()},
            "ours_minus_line_by_line": interval(difference),
        },
    }


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95% t-interval over seeds."""
    mean = statistics.mean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else None
    bounds = {} if half is None else {"low": round(mean - half, 4), "high": round(mean + half, 4)}
    return {"mean": round(mean, 4)} | bounds | {"by_seed": [round(value, 4) for value in values]}


# ---- the whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: in bfloat16, larger batches")
    parser.add_argument("--sizes", nargs="*", default=["2x128", "4x256", "12x768"], help="layers x features")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn; one step at least")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the learning curves; none: speed only"
    )
    parser.add_argument("--learn-seconds", type=float, default=120.0, help="that each side trains, for each seed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="a smoke test: one short turn each, no learning, no file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mlm-throughput.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.turns, arguments.seconds, arguments.seeds = arguments.sizes[:1], 1, 1.0, []
    device, precision = arguments.device, "bfloat16" if arguments.device == "cuda" else "float32"
    cases = [case for case in (CPU_CASES if device == "cpu" else GPU_CASES) if case.name in arguments.sizes]
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(folder)
        print(", ".join(f"{key} {value}" for key, value in data.items()), flush=True)

        def make(side: str, case: Case, batch: int, seed: int) -> Side:
            return Side(Job(side, case, batch, seed, folder, device, precision, arguments.threads))

        results = []
        for case in cases:
            results.append(speed(case, make, device, arguments.turns, arguments.seconds))
            show(results[-1])
        curves = []
        for seed in arguments.seeds:
            curves.append(learn(make, seed, arguments.learn_seconds))
            print(
                f"seed {seed}: "
                + "; ".join(
                    f"{n} {c['loss'][-1]} after {c['tokens'][-1]:,} tokens, {c['seconds'][-1]} s"
                    for n, c in curves[-1].items()
                ),
                flush=True,
            )
    document = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": torch.cuda.get_device_name() if device == "cuda" else processor(), "cpus": os.cpu_count(), "system": platform.platform(), "load_before": round(load, 2)},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "transformers", "accelerate", "numpy")} | {"python": platform.python_version(), "code": source_digest()},
        "device": device, "precision": precision, "threads": arguments.threads, "seeds": arguments.seeds, "data": data,
        "recipe": {"masking_rate": RATE, "max_length": MAX_LENGTH, "optimizer": "AdamW, fused", "learning_rate": LEARNING_RATE, "weight_decay": DECAY, "dropout": 0.0},
        "turns": arguments.turns, "turn_seconds": arguments.seconds, "learning_batch_tokens": LEARNING_BATCH,
        "speed": results,
        "learning": (compare_learning(curves, arguments.learn_seconds) | {"curves": curves}) if curves else None,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    if document["learning"]:
        print(json.dumps({key: document["learning"][key] for key in ("equal_time", "equal_tokens")}, indent=1))
    print(f"{document['seconds']} s")
    if not arguments.quick:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    print(result["name"])
    for row in result["tokens_per_second"]:
        print(f"  {row['side']}, {row['batch_tokens']:,} a step: {row['tokens_per_second']:,} tokens/s")
    for row in result["ratios"]:
        (mine, size), (other, other_size) = row["ours"], row["recipe"]
        print(f"  {mine} at {size:,} / {other} at {other_size:,}: {row['median']} (lowest turn {row['lowest_turn']})")
    print(f"  lowest ratios {result['lowest_ratio']}, goals {result['goals']}", flush=True)


if __name__ == "__main__":
    main()
