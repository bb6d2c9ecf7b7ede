"""Trained on movies, asked about something else: what is lost, what 200 labels bring back, and what is forgotten for it.

    .venv/bin/python benchmarks/mlm_domain_shift.py [--methods mlm minilm-adapted] [--seeds 0 1 2] [--quick] [--out benchmarks/results]

Data, encoders and recipes are those of ``mlm_learning.py``, made here where they are not there yet (give both the same ``--home``). The
sentences of all four domains of ``sample://reviews`` carry ratings: above zero is positive, as for the movies. No text of split test, of any
domain, was read in pretraining; the other texts of the three new domains were, without labels.

Each model learns from all movie labels of split train. *Zero-shot*, it is asked about the test texts of each domain. Then it is fine-tuned
again with 200 labels of Amazon reviews (others for each seed, the same for all methods), and asked again:
- ``amazon``: on these 200 alone;
- ``amazon+movies``: on these and as many movie labels (replay);
- ``amazon-only``: for comparison the pretrained encoder that has seen no movie label, on the 200 alone.
TF-IDF with logistic regression: on movies; on movies and the 200 together; on the 200 alone.

Figures are accuracies with 95% intervals from a two-level bootstrap over seeds and test texts; gains (on Amazon) and what is forgotten (on
movies) are differences to the same seed's zero-shot model, text by text. Writes ``mlm-domain-shift.json``; a seed's answers are written
as soon as they are there, and the next call takes up what is missing.
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
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor
from mlm_learning import NETWORKS, ROOT, Lab, bits, table
from threadpoolctl import threadpool_limits

from ssl_core.config.settings import Settings, usable_cpus
from ssl_core.data.budgets import nested_draws
from ssl_core.data.samples.snippets import reviews
from ssl_core.data.table import SampleTable
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.evaluation.metrics import Bootstrap
from ssl_core.evaluation.text_baselines import TextBaselines
from ssl_core.pipeline import digest, source_digest
from ssl_core.tasks.text_classification import train_classifier
from ssl_core.training.text_bench import texts_at

DOMAINS = ("movies", "amazon", "tweets", "nyt")
LABELS = 200
CLASSES = ["negative", "positive"]
AGAIN: dict[str, dict[str, Any]] = {
    "mlm": {"epochs": 6},
    "minilm": {"epochs": 5, "encoder_learning_rate": 5e-5},
    "minilm-adapted": {"epochs": 5, "encoder_learning_rate": 5e-5},
    "random": {"epochs": 6},
}
"""How a model is fine-tuned again; chosen, as the recipes of ``mlm_learning.py``, on labels of split train that were held out."""
ZERO_SHOT, REPLAY, ALONE = "zero-shot", "amazon+movies", "amazon-only"
ARMS = (ZERO_SHOT, "amazon", REPLAY, ALONE)


class ShiftLab(Lab):
    """The same folder, with labels of all four domains."""

    @cached_property
    def rated(self) -> SampleTable:
        """The dataset's rows with a label each: only the movies carry theirs in the dataset."""
        numbers = dict.fromkeys(DOMAINS, 0)
        labels = {}
        for review in reviews(self.settings.cache):
            numbers[review.domain] += 1
            labels[f"{review.domain}-{numbers[review.domain]:05d}"] = review.label
        manifest = self.table.manifest.copy()
        manifest["label"] = manifest["source"].map(labels)
        return SampleTable(manifest, CLASSES)

    def domain(self, name: str, split: str) -> np.ndarray:
        """Positions of the texts of a domain in a split; with ``held_out``, split test is a fifth of train in its place."""
        here = self.rated.manifest["source"].str.startswith(f"{name}-").to_numpy()
        if not self.held_out:
            return np.flatnonzero(here & (self.rated.manifest["split"].to_numpy() == split))
        train = np.flatnonzero(here & (self.rated.manifest["split"].to_numpy() == "train"))
        order = np.random.default_rng(0).permutation(train)
        cut = len(train) // 5
        return np.sort(order[:cut] if split == "test" else order[cut:])

    def drawn_from(self, name: str, count: int, seed: int) -> np.ndarray:
        """Positions of so many labels of a domain, in its classes' shares."""
        train = self.domain(name, "train")
        return np.sort(train[nested_draws(self.rated.labels[train], [count], seed + 1, 1)[seed][count]])

    def answers(self, method: str, seed: int) -> dict[str, Any]:
        """``right``: arm to domain to a string of 0 and 1, one for each test text."""
        recipe = (
            None
            if method == "tfidf"
            else self.project(method, seed, self.tasks[method]["100%"]).model_dump(mode="json")
        )
        if recipe is not None:
            recipe["pretrain"].pop("threads")
        key = digest([recipe, AGAIN.get(method), LABELS, self.held_out])[:12]
        path = Path(self.settings.home) / "shift" / f"{method}-{seed}-{key}.json"
        if not path.is_file():
            began = time.monotonic()
            right = self.tfidf(seed) if method == "tfidf" else self.network_shift(method, seed)
            found = {
                "right": right,
                "seconds": round(time.monotonic() - began, 1),
                "code": source_digest(),
                "threads": self.threads,
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(found), encoding="utf-8")
            temporary.replace(path)
            for arm, by_domain in right.items():
                shown = ", ".join(f"{name} {text.count('1') / len(text):.4f}" for name, text in by_domain.items())
                print(f"{method}, seed {seed}, {arm}: {shown}", flush=True)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def network_shift(self, method: str, seed: int) -> dict[str, dict[str, str]]:
        network, info, tokenizer = self.encoder(method, seed)
        tokens = self.tokens(tokenizer)
        texts = _Rated(tokens.ids, tokens.offsets, self.rated)
        tests = {name: self.domain(name, "test") for name in DOMAINS}

        def judge(model: Any) -> dict[str, str]:
            return {
                name: bits(
                    model.predict_tokens(texts.ids, texts.offsets, rows).argmax(axis=1) == self.rated.labels[rows]
                )
                for name, rows in tests.items()
            }

        def train(encoder: Any, rows: np.ndarray, recipe: Mapping[str, Any]) -> Any:
            task = self.project(method, seed, recipe).task
            return train_classifier(encoder, info, tokenizer, texts, np.sort(rows), task, threads=self.threads)[0]

        again = {"epochs": 1} if self.quick else AGAIN[method]
        few, replay = self.drawn_from("amazon", LABELS, seed), self.drawn_from("movies", LABELS, seed)
        base = train(network, self.domain("movies", "train"), self.tasks[method]["100%"])
        return {
            ZERO_SHOT: judge(base),
            "amazon": judge(train(base.encoder, few, again)),
            REPLAY: judge(train(base.encoder, np.concatenate([few, replay]), again)),
            ALONE: judge(train(network, few, again)),
        }

    def tfidf(self, seed: int) -> dict[str, dict[str, str]]:
        """Words and pairs of words; vocabulary and weights from all texts of split train, of all domains."""
        tests = {name: self.domain(name, "test") for name in DOMAINS}
        train = np.sort(np.concatenate([self.domain(name, "train") for name in DOMAINS]))
        folder = self.tokens(Tokenizer.load(self.store.fetch(self.tokenizer("mlm")))).folder
        joined = np.concatenate(list(tests.values()))
        movies, few = self.domain("movies", "train"), self.drawn_from("amazon", LABELS, seed)
        with threadpool_limits(self.threads):
            baselines = TextBaselines(texts_at(folder, train), texts_at(folder, joined))
            draws = np.full((3, len(train)), -1, dtype=np.int64)
            for row, rows in zip(draws, (movies, np.concatenate([movies, few]), few), strict=True):
                row[np.searchsorted(train, rows)] = self.rated.labels[rows]
            said = baselines.predictions(draws)["tfidf"]
        ends = np.cumsum([len(rows) for rows in tests.values()])[:-1]
        right = {}
        for arm, row in zip((ZERO_SHOT, REPLAY, ALONE), said, strict=True):
            right[arm] = {
                name: bits(part == self.rated.labels[rows])
                for (name, rows), part in zip(tests.items(), np.split(row, ends), strict=True)
            }
        return right


class _Rated:
    """Tokens with the labels of all domains: what ``train_classifier`` asks of texts."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, rated: SampleTable) -> None:
        self.ids, self.offsets, self.table = ids, offsets, rated


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["mlm", "minilm-adapted"], choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument(
        "--held-out", action="store_true", help="judge on held-out texts of split train, to choose recipes; no file"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: small networks, hardly any training, no file"
    )
    parser.add_argument("--home", type=Path, help="that of mlm_learning.py; default: in the cache, as there")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        quick = arguments.quick
        home = Path(scratch) if quick else arguments.home or Settings().cache / "mlm-learning"
        lab = ShiftLab(home, arguments.threads, held_out=arguments.held_out, quick=quick)
        seeds = arguments.seeds[:1] if quick else arguments.seeds
        methods = ["tfidf", *arguments.methods]
        found = {method: [lab.answers(method, seed) for seed in seeds] for method in methods}
        document = describe(lab, found, seeds)
        show(document)
    if not (quick or arguments.held_out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "mlm-domain-shift.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def describe(lab: ShiftLab, found: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int]) -> dict[str, Any]:
    """Accuracies by method, arm and domain, gains on Amazon and what is forgotten on movies."""
    boots = {name: Bootstrap(len(seeds), len(lab.domain(name, "test"))) for name in DOMAINS}
    figures: dict[str, Any] = {}
    for method, ones in found.items():
        tables = {
            arm: {name: np.stack([table(one["right"][arm][name]) for one in ones]) for name in DOMAINS}
            for arm in ARMS
            if arm in ones[0]["right"]
        }
        figures[method] = {
            arm: {
                "accuracy": {
                    name: boots[name].interval(rows).as_dict()
                    | {"by_seed": [round(float(x), 4) for x in rows.mean(axis=1)]}
                    for name, rows in by_domain.items()
                },
                "gain": boots["amazon"].difference(by_domain["amazon"], tables[ZERO_SHOT]["amazon"]).as_dict(),
                "forgotten": boots["movies"].difference(tables[ZERO_SHOT]["movies"], by_domain["movies"]).as_dict(),
            }
            for arm, by_domain in tables.items()
        }
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "threads": lab.threads, "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "transformers", "numpy", "scikit-learn")} | {"python": platform.python_version()},
        "code": sorted({one["code"] for ones in found.values() for one in ones}),
        "labels": LABELS,
        "judged_on": {name: len(lab.domain(name, "test")) for name in DOMAINS},
        "recipes": lab.recipes, "tasks": {method: lab.tasks[method]["100%"] for method in found if method in lab.tasks}, "again": AGAIN,
        "seeds": list(seeds),
        "figures": figures,
        "seconds": {method: [one["seconds"] for one in ones] for method, ones in found.items()},
    }  # fmt: skip


def show(document: dict[str, Any]) -> None:
    """A line for each method and arm."""
    print(f"{document['labels']} Amazon labels; test texts: {document['judged_on']}")
    for method, arms in document["figures"].items():
        for arm, one in arms.items():
            cells = "  ".join(
                f"{name} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for name, v in one["accuracy"].items()
            )
            gain, lost = one["gain"], one["forgotten"]
            print(f"{method:15} {arm:14} {cells}  gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
                f"  forgotten {lost['mean']:+.3f} [{lost['low']:+.3f}, {lost['high']:+.3f}]")  # fmt: skip


if __name__ == "__main__":
    main()
