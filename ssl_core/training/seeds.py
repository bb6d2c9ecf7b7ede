"""Several seeds of one recipe: each trained and measured, and the middle one kept.

The best of several is luck that does not come again; the middle one stands for what the recipe gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.contracts import DatasetRef
from ssl_core.data.table import SampleTable
from ssl_core.evaluation.metrics import class_quality, classes_quality, label_spread, number_quality
from ssl_core.step import Tracker
from ssl_core.training.bench import Bench

_LEAST = 1e-7


@dataclass(frozen=True)
class Trial:
    """The model of one seed."""

    seed: int
    val_quality: float | None
    """Mean quality on the labelled samples of split val; None where it has none."""
    loss: float
    """On the labels that it was trained on."""

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "val_quality": self.val_quality, "loss": round(self.loss, 6)}


def middle(trials: Sequence[Trial]) -> int:
    """The position of the median: ordered from worst to best by quality on val, then by loss, then by seed.

    Of an even number it is the lower one of the two in the middle.
    """
    order = sorted(
        range(len(trials)),
        key=lambda i: (-math.inf if (q := trials[i].val_quality) is None else q, -trials[i].loss, trials[i].seed),
    )
    return order[(len(order) - 1) // 2]


def quality(bench: Bench, model: Any, positions: np.ndarray) -> float | None:
    """The mean quality (see ``evaluation.metrics``) of the model's answers on labelled samples; None for none."""
    table = bench.table
    if len(positions) == 0:
        return None
    scores = bench.scores(model, positions)
    if table.label_type == "class":
        return float(class_quality(scores, table.labels[positions]).mean())
    if table.label_type == "classes":
        return float(classes_quality(scores, table.targets[positions]).mean())
    spread = label_spread(table.targets[table.positions("train", labelled=True)])
    return float(number_quality(scores, table.targets[positions], spread).mean())


def loss(bench: Bench, model: Any, positions: np.ndarray) -> float:
    """What the model's answers lack of the labels at ``positions``, and of no other: mean cross-entropy, or squared error."""
    whole = bench.table
    own = SampleTable(whole.manifest.iloc[positions], whole.classes, whole.label_type)
    scores = bench.scores(model, positions).astype(np.float64)
    if own.label_type == "number":
        return float(((scores - own.targets) ** 2).mean())
    p = np.clip(scores, _LEAST, 1 - _LEAST)
    if own.label_type == "class":
        return float(-np.log(p[np.arange(len(p)), own.labels]).mean())
    return float(-(own.targets * np.log(p) + (1 - own.targets) * np.log(1 - p)).mean())


class SeedTracker:
    """A tracker in which the curves of one seed have names of their own."""

    def __init__(self, inner: Tracker, seed: int) -> None:
        self._inner, self._suffix = inner, f"_seed_{seed}"
        self.run_id, self.url = inner.run_id, inner.url

    def params(self, values: Mapping[str, Any]) -> None:
        self._inner.params(values)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._inner.metrics({f"{name}{self._suffix}": value for name, value in values.items()}, step)

    def tags(self, values: Mapping[str, str]) -> None:
        self._inner.tags(values)

    def dataset(self, ref: DatasetRef, context: str) -> None:
        self._inner.dataset(ref, context)

    def artifact(self, path: Path, folder: str = "") -> str:
        return self._inner.artifact(path, folder)
