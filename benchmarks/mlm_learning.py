"""What masked language modelling brings to a text classifier, with few labels and with all: three seeds, 95% intervals.

    .venv/bin/python benchmarks/mlm_learning.py [--cells NAME ...] [--seeds 0 1 2] [--quick] [--out benchmarks/results]

Data: ``sample://reviews``. Movie snippets carry labels; a fifth of them is the test split. The tokenizer and every pretraining
see all other texts of all four domains, and no text of the test split: what a model is judged on, it has not read, with or
without labels. Labels: 10% and 100% of those in split train; a seed's 10% are the same for all methods.

- ``tfidf``, ``tfidf-characters``, ``label-spreading``: the classical baselines of ``ssl_core/evaluation/text_baselines.py``; they may
  use the unlabeled texts too, for their vocabulary and weights. *The best of them on test* is what is compared with.
- ``random``: a BERT of random weights, fine-tuned.
- ``mlm``: the same BERT from the same tokenizer and seed, pretrained from scratch, then fine-tuned.
- ``minilm``: the public weights ``sample://minilm``, fine-tuned.
- ``minilm-adapted``: these weights, adapted to the texts by masked language modelling, then fine-tuned.

Everything runs by the platform's own steps and functions: ingest, tokenize, pretrain, ``train_classifier``. Recipes (``RECIPES`` and
``TASKS``) were chosen on labels of split train that were held out, with ``--held-out`` and ``--set``; that way the test split is
not looked at. A cell is one method, seed and budget. Its answers are written as soon as it is done, a killed pretraining goes on
from its checkpoint, and the next call takes up what is missing; cells of another recipe are not taken.

Intervals: two-level bootstrap over seeds and test texts, as in ``evaluation.json``; differences are paired, cell by cell. Writes
``mlm-learning.json`` and ``mlm-learning.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from threadpoolctl import threadpool_limits

from ssl_core.config.project import TextProject
from ssl_core.config.settings import Settings, usable_cpus
from ssl_core.contracts import ArtifactRef, DatasetRef, Ref, RunContext, StepResult, StepStatus
from ssl_core.data import ingest
from ssl_core.data.budgets import nested_draws
from ssl_core.data.table import SampleTable
from ssl_core.data.text import pretrained, tokenize
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.tokens import Tokens, open_tokens
from ssl_core.evaluation.metrics import Bootstrap
from ssl_core.evaluation.text_baselines import TextBaselines
from ssl_core.models.text_encoder import TextEncoder
from ssl_core.models.text_weights import TextInfo, build, load_encoder, random_encoder
from ssl_core.pipeline import digest, source_digest
from ssl_core.step import NoProgress, Output, StepContext, StepOutput
from ssl_core.store import Store, path_sha256
from ssl_core.tasks.text_classification import train_classifier
from ssl_core.training import pretrain
from ssl_core.training.text_bench import texts_at

ROOT = Path(__file__).parent.parent
SHARES = {"10%": 0.1, "100%": 1.0}
SPLIT = {"train": 0.79, "val": 0.005, "test": 0.2, "vault": 0.005}
"""Nothing is promoted here, and val is only for the gauges: both are as small as they may be."""
HELD_OUT = 1500
CLASSICAL = ("tfidf", "tfidf-characters", "label-spreading")
NETWORKS = ("random", "mlm", "minilm", "minilm-adapted")
WRITTEN = {
    "random": "random weights, fine-tuned",
    "mlm": "masked language modelling from scratch, fine-tuned",
    "minilm": "public weights (MiniLM), fine-tuned",
    "minilm-adapted": "public weights, adapted, fine-tuned",
}

RECIPES: dict[str, dict[str, Any]] = {
    "mlm": {
        "tokenizer": {"kind": "wordpiece", "size": 8000},
        "encoder": {"layers": 2, "hidden": 128, "max_length": 128},
        "objective": {"name": "mlm"},
        "pretrain": {"epochs": 30, "batch_tokens": 1024, "learning_rate": 2e-3},
    },
    "minilm-adapted": {
        "encoder": {"init_from": "sample://minilm", "max_length": 128},
        "objective": {"name": "mlm"},
        "pretrain": {"epochs": 1, "batch_tokens": 2048, "learning_rate": 2e-4},
    },
}
"""Parts of a project file; ``random`` and ``minilm`` have the encoder of the line that they are compared with."""
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "random": {share: {"epochs": 4, "encoder_learning_rate": 5e-4} for share in SHARES},
    "mlm": {share: {"epochs": 4, "encoder_learning_rate": 5e-4} for share in SHARES},
    "minilm": {"10%": {"epochs": 5, "encoder_learning_rate": 5e-5}, "100%": {"epochs": 2, "encoder_learning_rate": 5e-5}},
    "minilm-adapted": {"10%": {"epochs": 5, "encoder_learning_rate": 5e-5}, "100%": {"epochs": 2, "encoder_learning_rate": 5e-5}},
}  # fmt: skip
QUICK = {
    "mlm": {"pretrain": {"epochs": 1, "batch_tokens": 8192}},
    "minilm-adapted": {"encoder": {"init_from": None, "layers": 2, "hidden": 64}, "pretrain": {"epochs": 1, "batch_tokens": 8192}},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", metavar="NAME", help=f"methods, or METHOD-SHARE-SEED: of {', '.join((*CLASSICAL[:1], *NETWORKS))}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument(
        "--held-out", action="store_true", help="judge on held-out labels of split train, to choose recipes; no file"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE", help="another recipe: mlm.pretrain.epochs=20 mlm.10%%.epochs=6")  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: small networks, hardly any training, no file"
    )
    parser.add_argument(
        "--home", type=Path, help="where datasets, encoders and answers are kept; default: in the cache"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        quick = arguments.quick
        home = Path(scratch) if quick else arguments.home or Settings().cache / "mlm-learning"
        lab = Lab(home, arguments.threads, held_out=arguments.held_out, quick=quick)
        for change in arguments.set:
            lab.change(change)
        seeds = arguments.seeds[:1] if quick else arguments.seeds
        answers = run(lab, seeds, arguments.cells)
        document = describe(lab, answers, seeds) | {"seconds_of_this_call": round(time.monotonic() - began, 1)}
        show(document)
    if quick or arguments.held_out:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "mlm-learning.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(arguments.out / "mlm-learning.png", document)


def run(lab: Lab, seeds: Sequence[int], wanted: Sequence[str] | None) -> dict[tuple[str, str, int], dict[str, Any]]:
    """All cells that are done, those of ``wanted`` (all, if None) after they were made: (method, share, seed) to what ``Lab`` says."""
    found = {}
    for method in ("classical", *NETWORKS):
        for share in SHARES:
            for seed in seeds:
                asked = wanted is None or {method, f"{method}-{share}-{seed}", f"{method}-{share}"} & set(wanted)
                asked = asked or (method == "classical" and wanted is not None and "tfidf" in wanted)
                if asked or lab.is_done(method, share, seed):
                    found[method, share, seed] = lab.cell(method, share, seed)
    return found


# ---- steps and cells


_STEPS: dict[str, Callable[[StepContext], StepOutput]] = {
    "ingest": ingest.run, "tokenize": tokenize.run, "pretrain": pretrain.run,
}  # fmt: skip
_READS = {"ingest": ("data",), "tokenize": ("tokenizer", "encoder"), "pretrain": ("encoder", "objective", "pretrain")}
"""What of a project decides what a step makes."""


class Lab:
    """Datasets, encoders and answers in one folder; all that is there already is not made again."""

    def __init__(self, home: Path, threads: int, *, held_out: bool = False, quick: bool = False) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(home=home, store="", data_repo="", dvc_remote="")
        self.store = Store(self.settings.store_url, self.settings.cache)
        self.threads, self.held_out, self.quick = threads, held_out, quick
        self.recipes, self.tasks = deepcopy(RECIPES), deepcopy(TASKS)
        if quick:
            for method, parts in QUICK.items():
                for section, values in parts.items():
                    self.recipes[method][section] |= values
            self.tasks = {method: {share: {"epochs": 1} for share in SHARES} for method in TASKS}
        torch.set_num_threads(threads)

    def change(self, text: str) -> None:
        """``METHOD.SECTION.KEY=VALUE`` of ``RECIPES``, or ``METHOD.SHARE.KEY=VALUE`` of ``TASKS``."""
        path, _, value = text.partition("=")
        method, section, *keys = path.split(".")
        target = self.tasks[method][section] if section in SHARES else self.recipes[method].setdefault(section, {})
        for key in keys[:-1]:
            target = target.setdefault(key, {})
        try:
            target[keys[-1]] = json.loads(value)
        except ValueError:
            target[keys[-1]] = value

    def project(self, method: str, seed: int = 0, task: Mapping[str, Any] | None = None) -> TextProject:
        """What a team would write to get this encoder and this fine-tuning."""
        recipe = deepcopy(self.recipes["minilm-adapted" if method.startswith("minilm") else "mlm"])
        recipe["pretrain"] |= {"seed": seed, "threads": self.threads}
        return TextProject.model_validate({
            "name": "mlm-learning", "modality": "text", "data": {"source": "sample://reviews", "split": SPLIT}, **recipe,
            "task": {"name": "text-classification", "seed": seed, **(task or {})},
        })  # fmt: skip

    # -- the platform's steps, kept by what they follow from, but for the code: a changed comment is no reason to begin anew

    def _key(self, name: str, project: TextProject, inputs: Mapping[str, Ref]) -> str:
        config = project.model_dump(mode="json", include=set(_READS[name]))
        config.get("pretrain", {}).pop("threads", None)
        return digest([name, config, {one: ref.sha256 for one, ref in inputs.items()}])

    def step(self, name: str, project: TextProject, inputs: dict[str, Ref]) -> dict[str, Ref]:
        """The outputs of a step; with checkpoints, so that it goes on where it was killed."""
        key = self._key(name, project, inputs)
        if found := self.store.result(project.name, name, key):
            return found.outputs
        began = time.monotonic()
        checkpoints = self.store.checkpoints(project.name, name, key)
        with self.store.scratch() as scratch:
            out = scratch / "out"
            out.mkdir()
            made = _STEPS[name](StepContext(
                project=project, settings=self.settings, inputs=inputs, run=RunContext(run_id="benchmark"), key=key, out=out,
                store=self.store, checkpoints=checkpoints,
            ))  # fmt: skip
            folder = self.store.folder(project.name, name, key)
            outputs = {
                one: ArtifactRef(
                    kind=ref.kind, uri=f"{folder}/out/{ref.path}", sha256=path_sha256(out / ref.path), producer=f"{name}/{key}"
                )
                if isinstance(ref, Output)
                else ref
                for one, ref in made.outputs.items()
            }  # fmt: skip
            seconds = round(time.monotonic() - began, 1)
            self.store.publish(
                project.name,
                StepResult(step=name, key=key, status=StepStatus.DONE, outputs=outputs, metrics=made.metrics, summary=made.summary, seconds=seconds),
                out,
            )  # fmt: skip
        checkpoints.clear()
        print(
            f"{name}, seed {project.pretrain.seed}: {seconds} s. {made.summary.splitlines()[0] if made.summary else ''}",
            flush=True,
        )
        return outputs

    @cached_property
    def dataset(self) -> DatasetRef:
        candidate = self.step("ingest", self.project("mlm"), {})["candidate"]
        assert isinstance(candidate, DatasetRef)
        return candidate

    def tokenizer(self, method: str) -> Ref:
        return self.step("tokenize", self.project(method), {"dataset": self.dataset})["tokenizer"]

    def encoder_folder(self, method: str, seed: int) -> Path:
        """Of ``mlm`` or ``minilm-adapted``: the encoder that the pretrain step made."""
        inputs = {"dataset": self.dataset, "tokenizer": self.tokenizer(method)}
        return self.store.fetch(self.step("pretrain", self.project(method, seed), inputs)["encoder"])

    def pretraining(self, method: str, seed: int) -> dict[str, float] | None:
        """What a pretraining that is done measured of itself."""
        project, inputs = self.project(method, seed), {"dataset": self.dataset, "tokenizer": self.tokenizer(method)}
        made = self.store.result(project.name, "pretrain", self._key("pretrain", project, inputs))
        return None if made is None else {"seconds": made.seconds} | {k: round(v, 4) for k, v in made.metrics.items()}

    def encoder(self, method: str, seed: int) -> tuple[TextEncoder, TextInfo, Tokenizer]:
        """What the method begins to fine-tune from."""
        project = self.project(method, seed)
        if method in ("mlm", "minilm-adapted"):
            network, _, info, tokenizer = load_encoder(self.encoder_folder(method, seed))
            return network, info, tokenizer
        tokenizer = Tokenizer.load(self.store.fetch(self.tokenizer(method)))
        source = project.encoder.init_from if method == "minilm" else None
        network, _, _ = build(
            project.encoder, tokenizer, seed, None if source is None else pretrained.find(source, self.settings)
        )
        info = TextInfo.of(project.encoder, network)
        # A seed gives pretraining's own first weights: ``mlm`` differs from ``random`` by nothing but what it learned.
        return (random_encoder(info, tokenizer, seed) if method == "random" else network.eval()), info, tokenizer

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        return _tokens(self, tokenizer.digest, tokenizer)

    # -- labels

    @cached_property
    def table(self) -> SampleTable:
        """Splits and labels of all texts."""
        return self.tokens(Tokenizer.load(self.store.fetch(self.tokenizer("mlm")))).table

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the labelled movies that may be trained on, and of those that are judged on."""
        train = self.table.positions("train", labelled=True)
        if not self.held_out:
            return train, self.table.positions("test", labelled=True)
        order = np.random.default_rng(0).permutation(train)
        return np.sort(order[HELD_OUT:]), np.sort(order[:HELD_OUT])

    def drawn(self, share: str, seed: int) -> np.ndarray:
        """Positions of the labels of one budget; the same for all methods."""
        train = self.sides[0]
        if SHARES[share] == 1:
            return train
        count = round(SHARES[share] * len(train))
        return np.sort(train[nested_draws(self.table.labels[train], [count], seed + 1, 0)[seed][count]])

    # -- cells

    def _path(self, method: str, share: str, seed: int) -> Path:
        task = self.tasks.get(method, {}).get(share)
        recipe = None if method == "classical" else self.project(method, seed, task).model_dump(mode="json")
        if recipe is not None:
            recipe["pretrain"].pop("threads")
            if method in ("random", "minilm"):
                del recipe["pretrain"], recipe["objective"]
        key = digest([recipe, self.held_out, HELD_OUT if self.held_out else 0])[:12]
        return Path(self.settings.home) / "cells" / f"{method}-{share}-{seed}-{key}.json"

    def is_done(self, method: str, share: str, seed: int) -> bool:
        return self._path(method, share, seed).is_file()

    def cell(self, method: str, share: str, seed: int) -> dict[str, Any]:
        """``right``: for each of the methods that it stands for, a string of 0 and 1, one for each text that is judged on."""
        path = self._path(method, share, seed)
        if not path.is_file():
            found = self.classical(share, seed) if method == "classical" else self.network(method, share, seed)
            found |= {"code": source_digest(), "threads": self.threads}
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(found), encoding="utf-8")
            temporary.replace(path)
            shown = ", ".join(f"{name} {text.count('1') / len(text):.4f}" for name, text in found["right"].items())
            print(f"{method}, {share}, seed {seed}: {shown} ({found['seconds']} s)", flush=True)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def classical(self, share: str, seed: int) -> dict[str, Any]:
        began = time.monotonic()
        baselines, train = _baselines(self)
        labels = np.full(len(train), -1, dtype=np.int64)
        drawn = self.drawn(share, seed)
        labels[np.searchsorted(train, drawn)] = self.table.labels[drawn]
        with threadpool_limits(self.threads):
            said = baselines.predictions(labels[None])
        truth = self.table.labels[self.sides[1]]
        return {"right": {name: bits(rows[0] == truth) for name, rows in said.items()}, "labels": len(drawn), "seconds": round(time.monotonic() - began, 1)}  # fmt: skip

    def network(self, method: str, share: str, seed: int) -> dict[str, Any]:
        network, info, tokenizer = self.encoder(method, seed)
        tokens = self.tokens(tokenizer)
        began = time.monotonic()
        drawn, judged = self.drawn(share, seed), self.sides[1]
        task = self.project(method, seed, self.tasks[method][share]).task
        model, record = train_classifier(network, info, tokenizer, tokens, drawn, task, threads=self.threads)
        said = model.predict_tokens(tokens.ids, tokens.offsets, judged).argmax(axis=1)
        return {
            "right": {method: bits(said == self.table.labels[judged])}, "labels": len(drawn), "steps": record["steps"],
            "loss": round(record["loss"], 4), "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip


@cache
def _tokens(lab: Lab, digest_of_tokenizer: str, tokenizer: Tokenizer) -> Tokens:
    return open_tokens(lab.dataset, lab.settings, tokenizer, progress=NoProgress())


@cache
def _baselines(lab: Lab) -> tuple[TextBaselines, np.ndarray]:
    """Fitted on all texts of split train, labelled or not; and the positions of those."""
    train = lab.table.positions("train")
    if lab.held_out:
        train = np.setdiff1d(train, lab.sides[1])
    folder = lab.tokens(Tokenizer.load(lab.store.fetch(lab.tokenizer("mlm")))).folder
    return TextBaselines(texts_at(folder, train), texts_at(folder, lab.sides[1])), train


def bits(right: np.ndarray) -> str:
    return "".join("01"[int(one)] for one in right)


# ---- figures


def describe(lab: Lab, answers: Mapping[tuple[str, str, int], Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:  # fmt: skip
    """The document: figures of all methods that have every seed, and the differences that the goals are about."""
    rows = []
    for share in SHARES:
        tables: dict[str, np.ndarray] = {}
        for method in ("classical", *NETWORKS):
            cells = [answers.get((method, share, seed)) for seed in seeds]
            whole = [one for one in cells if one is not None]
            if len(whole) == len(seeds):
                tables |= {name: np.stack([table(one["right"][name]) for one in whole]) for name in whole[0]["right"]}
        if tables:
            rows.append(_row(share, tables, next(one["labels"] for key, one in answers.items() if key[1] == share)))
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "threads": lab.threads, "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "transformers", "numpy", "scikit-learn")} | {"python": platform.python_version()},
        "code": sorted({one["code"] for one in answers.values()}),
        "data": {
            "source": "sample://reviews", "split": SPLIT, "texts": len(lab.table), "pretraining_texts": len(lab.table.positions("train")),
            "labelled_movies": len(lab.sides[0]), "judged_on": len(lab.sides[1]),
            "side": "labels of split train that were held out" if lab.held_out else "split test",
        },
        "recipes": lab.recipes, "tasks": lab.tasks, "seeds": list(seeds), "budgets": rows,
        "seconds": {f"{method} {share}": [answers[method, share, seed]["seconds"] for seed in seeds if (method, share, seed) in answers] for method in ("classical", *NETWORKS) for share in SHARES},
        "pretraining": {method: [made for seed in seeds if (made := lab.pretraining(method, seed))] for method in ("mlm", "minilm-adapted")},
    }  # fmt: skip


def _row(share: str, tables: dict[str, np.ndarray], labels: int) -> dict[str, Any]:
    seeds, texts = next(iter(tables.values())).shape
    boot = Bootstrap(seeds, texts)
    best = max((name for name in CLASSICAL if name in tables), key=lambda name: tables[name].mean(), default=None)
    pairs = [("mlm", "random"), ("minilm-adapted", "tfidf"), ("minilm-adapted", best), ("minilm-adapted", "minilm"), ("mlm", best), ("minilm", best)]  # fmt: skip
    return {
        "share": share,
        "labels": labels,
        "best_classical": best,
        "accuracy": {
            name: boot.interval(one).as_dict() | {"by_seed": [round(float(x), 4) for x in one.mean(axis=1)]}
            for name, one in tables.items()
        },
        "differences": {
            f"{first} minus {second}": boot.difference(tables[first], tables[second]).as_dict()
            for first, second in dict.fromkeys(pairs)
            if first in tables and second in tables
        },
    }


def table(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8) == ord("1")


def show(document: dict[str, Any]) -> None:
    """A line for each method and each difference."""
    for row in document["budgets"]:
        print(f"{row['labels']:,} labels ({row['share']}), judged on {document['data']['judged_on']:,} texts")
        for name, one in (row["accuracy"] | row["differences"]).items():
            print(f"  {name:32} {one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]  {one.get('by_seed', '')}")


def draw(path: Path, document: dict[str, Any]) -> None:
    """Accuracy by method and budget, with intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = document["budgets"]
    names = [
        name
        for name in ("tfidf", "tfidf-characters", *NETWORKS)
        if rows and all(name in row["accuracy"] for row in rows)
    ]
    colours = dict(zip(("tfidf", "tfidf-characters", *NETWORKS), ("#999999", "#5F5F5F", "#D55E00", "#0072B2", "#56B4E9", "#009E73"), strict=True))  # fmt: skip
    labels = {"tfidf": "TF-IDF + logistic regression", "tfidf-characters": "the same with characters", **WRITTEN}
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        ones = [row["accuracy"][name] for row in rows]
        means = np.array([one["mean"] for one in ones])
        errors = [means - [one["low"] for one in ones], np.array([one["high"] for one in ones]) - means]
        axes.bar(np.arange(len(rows)) + number * width, means, width * 0.92, yerr=errors, capsize=2, color=colours[name], label=labels[name])  # fmt: skip
    axes.set_xticks(
        np.arange(len(rows)) + 0.4 - width / 2, [f"{row['labels']:,} labels ({row['share']})" for row in rows]
    )
    axes.set_ylim(0.5, None)
    axes.set_ylabel(f"accuracy on {document['data']['judged_on']:,} movie snippets")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
