"""What a project's models have forgotten: quality of each model version on each test window, R[version, window].

A window is what one dataset version brought (``first_version`` of the manifest), by its labelled test samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One model version: the dataset version that it was made from, and its quality on test samples, aligned with the windows."""

    version: str
    dataset: int
    """N of ``<name>@vN``: the newest window that it has seen."""
    quality: np.ndarray
    """float64 ``(M,)`` in [0, 1] of each test sample."""


@dataclass(frozen=True)
class Matrix:
    """R, with what is read off its last row (Lopez-Paz and Ranzato 2017, https://arxiv.org/abs/1706.08840, section 2)."""

    versions: list[str]
    windows: list[int]
    counts: list[int]
    """Test samples a window."""
    values: np.ndarray
    """float64 ``(V, W)``: mean quality."""
    learned: list[int]
    """For each window, the row that saw it first; -1: none of them."""
    average: float
    """ACC: mean of the last row over the windows that it has seen."""
    backward_transfer: float | None
    """BWT: mean change on the windows that an earlier row had learned, from then to the last row; negative is forgetting."""
    worst_window: int | None
    """The window with the lowest change."""
    worst_change: float | None

    def as_dict(self) -> dict[str, Any]:
        raise NotImplementedError


def forgetting_matrix(rows: Sequence[Row], windows: np.ndarray) -> Matrix:
    """``rows`` in the order in which they were champions, the challenger last; ``windows`` ``(M,)``: the window of each sample."""
    raise NotImplementedError
