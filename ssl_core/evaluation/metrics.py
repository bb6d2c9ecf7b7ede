"""Numbers that describe predictions, and the bootstrap that says how sure they are.

Shapes: M test samples, K classes, B draws of labels, R resamples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray

CONFIDENCE = 0.95
CALIBRATION_BINS = 15


# ---- of one set of predictions


def confusion(labels: Array, predicted: Array, classes: int) -> Array:
    """Counts ``(K, K)``: row = true class, column = predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(matrix: Array) -> float:
    """Share of samples on the diagonal of a confusion matrix."""
    return float(np.trace(matrix) / matrix.sum())


def balanced_accuracy(matrix: Array) -> float:
    """Mean recall of the classes that occur among the labels: each class counts the same, however rare."""
    support = matrix.sum(axis=1)
    return float((np.diag(matrix)[support > 0] / support[support > 0]).mean())


def macro_f1(matrix: Array) -> float:
    """Mean F1 of the classes that occur among labels or predictions."""
    hits, total = np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def expected_calibration_error(scores: Array, labels: Array, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their sizes.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. ``scores`` are probabilities ``(M, K)``.
    """
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(which, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def describe(scores: Array, labels: Array, interval: Interval) -> dict[str, Any]:
    """Everything that the report says about one model's predictions; ``interval`` is that of its accuracy."""
    matrix = confusion(labels, scores.argmax(axis=1), scores.shape[1])
    return {
        "n": len(labels),
        "accuracy": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "ece": expected_calibration_error(scores, labels),
        "confusion": matrix.tolist(),
    }


# ---- intervals


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% percentile interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Bootstrap:
    """Two-level bootstrap of a mean over draws of labels (rows) and test samples (columns).

    Each resample draws rows and columns with replacement, independently: the pigeonhole bootstrap (Owen 2007,
    https://arxiv.org/abs/0712.1111), which is mildly conservative for crossed random effects. The weights are
    made once: everything that one instance judges is judged on the same resamples, so the interval of a difference is
    that of the paired difference. A table of one row is resampled over test samples alone.
    """

    def __init__(self, draws: int, samples: int, *, resamples: int = 2000, seed: int = 0) -> None:
        if min(draws, samples) < 1:
            raise ValueError("a bootstrap needs at least one draw and one sample")
        generator = np.random.default_rng(seed)
        self._rows = generator.multinomial(draws, np.full(draws, 1 / draws), size=resamples) / draws
        self._columns = generator.multinomial(samples, np.full(samples, 1 / samples), size=resamples) / samples

    def interval(self, table: Array) -> Interval:
        """Mean and interval of ``table`` ``(B, M)``, for example 1 where a prediction is right and 0 where not."""
        table = np.asarray(table, dtype=np.float64)
        if table.shape != (self._rows.shape[1], self._columns.shape[1]):
            raise ValueError(f"made for {self._rows.shape[1]} x {self._columns.shape[1]}, got {table.shape}")
        means = np.einsum("rm,rm->r", self._rows @ table, self._columns)
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(float(table.mean()), float(low), float(high))

    def difference(self, first: Array, second: Array) -> Interval:
        """Paired interval of ``first - second``, cell by cell."""
        return self.interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))
