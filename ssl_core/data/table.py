"""The rows of a dataset version: which split and which label each sample has, whatever a sample is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from ssl_core.data.splits import SIDES

if TYPE_CHECKING:
    import pandas as pd

LabelType = Literal["class", "classes", "number"]


@dataclass(frozen=True)
class SampleTable:
    """The manifest of one dataset version, N rows, with what is asked of it most."""

    manifest: pd.DataFrame
    classes: list[str]
    label_type: LabelType = "class"
    """class: one class a sample; classes: any number of them (the manifest's label is a JSON list); number: a quantity."""

    def __len__(self) -> int:
        return len(self.manifest)

    @cached_property
    def labels(self) -> np.ndarray:
        """``(N,)`` int64; -1 where there is no label.

        class: positions in ``classes``. classes, number: strata to draw label budgets by, equal numbers for samples that
        stand for each other: the rarest class that a sample has (or none of them), the fifth of the labels its number is in.
        """
        known = self.manifest["label"].notna().to_numpy()
        if self.label_type == "class":
            return self._positions(known)
        labels = np.full(len(self.manifest), -1, dtype=np.int64)
        values = self.targets[known]
        if not known.any():
            return labels
        if self.label_type == "number":
            edges = np.quantile(values[:, 0], [0.2, 0.4, 0.6, 0.8])
            labels[known] = np.searchsorted(edges, values[:, 0], side="right")
        else:
            order = np.argsort(values.sum(axis=0), kind="stable")  # rarest class first
            has = values[:, order] > 0
            labels[known] = np.where(has.any(axis=1), order[has.argmax(axis=1)], values.shape[1])
        return labels

    @property
    def strata(self) -> list[str]:
        """What the numbers of ``labels`` stand for, in words."""
        if self.label_type == "class":
            return self.classes
        if self.label_type == "classes":
            return [*self.classes, "none of them"]
        return ["lowest fifth", "second fifth", "middle fifth", "fourth fifth", "highest fifth"]

    @cached_property
    def targets(self) -> np.ndarray:
        """float32 ``(N, K)``: 1 for each class that a sample has, else 0; with numbers ``(N, 1)``. NaN where there is no label."""
        known = self.manifest["label"].notna().to_numpy()
        width = 1 if self.label_type == "number" else len(self.classes)
        targets = np.full((len(self.manifest), width), np.nan, dtype=np.float32)
        if self.label_type == "class":
            targets[known] = np.eye(width, dtype=np.float32)[self.labels[known]]
            return targets
        texts = self.manifest["label"].to_numpy()[known]
        if self.label_type == "number":
            targets[known, 0] = np.asarray([float(text) for text in texts], dtype=np.float32)
            return targets
        place = {name: i for i, name in enumerate(self.classes)}
        rows = np.zeros((len(texts), width), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for name in json.loads(text):
                row[place[name]] = 1
        targets[known] = rows
        return targets

    def positions(self, split: str, labelled: bool | None = None) -> np.ndarray:
        """Rows of a split, ascending, ``(n,)`` int64; all of them, or only those with (True) or without (False) a label."""
        if split not in SIDES:
            raise ValueError(f"{split!r} is not a split: {', '.join(SIDES)}")
        chosen = self.manifest["split"].to_numpy() == split
        if labelled is not None:
            chosen &= self.manifest["label"].notna().to_numpy() == labelled
        return np.flatnonzero(chosen)

    def _positions(self, known: np.ndarray) -> np.ndarray:
        import pandas as pd

        labels = self.manifest["label"]
        numbers = pd.Index(self.classes, dtype=object).get_indexer(pd.Index(labels.astype(object))).astype(np.int64)
        unknown = labels[(numbers < 0) & known].unique()
        if len(unknown):  # silence would turn labelled samples into unlabeled ones
            raise ValueError(f"labels outside the dataset's classes: {', '.join(map(repr, unknown[:5]))}")
        return numbers
