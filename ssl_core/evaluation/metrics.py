"""Numbers that describe predictions, and the bootstrap that says how sure they are.

Whatever labels are, each prediction has a *quality* in [0, 1], and its mean is the headline of a report. So one paired
bootstrap, one gate and one table serve all three:

* class (one class a sample): 1 where the class is right, else 0. The mean is the accuracy;
* classes (any number of them): the Jaccard index of the predicted set (probability at least 0.5) and the true one,
  ``|A & B| / |A | B|``, and 1 where both are empty. Exact sets would forgive nothing, single cells too much: with rare
  classes an empty prediction has nearly every cell right;
* number: ``max(0, 1 - |error| / spread)``, spread = the distance between the 5th and the 95th percentile of the training
  labels. It has no unit, so that ``promotion.margin`` means the same for every project, and one wild sample cannot decide
  a comparison. Errors beyond the spread are rare, so the mean is all but ``1 - MAE / spread``.

Shapes: M test samples, K classes, B draws of labels, R resamples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ssl_core.data.table import LabelType

Array = np.ndarray

CONFIDENCE = 0.95
CALIBRATION_BINS = 15
CLASSES_FROM = 0.5
"""Probability from which a class is among those predicted."""

HEADLINES: dict[LabelType, str] = {"class": "accuracy", "classes": "Jaccard index", "number": "closeness"}
"""What the mean quality is called in front of people."""


# ---- of each prediction


def class_quality(scores: Array, labels: Array) -> Array:
    """1 where the most probable class of ``(M, K)`` is the label of ``(M,)``, else 0; float64 ``(M,)``."""
    return (scores.argmax(axis=1) == labels).astype(np.float64)


def classes_quality(scores: Array, targets: Array) -> Array:
    """Jaccard index of the predicted and the true set of classes, both ``(M, K)``; float64 ``(M,)``."""
    predicted, true = scores >= CLASSES_FROM, targets > 0
    either = (predicted | true).sum(axis=1)
    return np.where(either > 0, (predicted & true).sum(axis=1) / np.maximum(either, 1), 1.0)


def number_quality(scores: Array, targets: Array, spread: float) -> Array:
    """``max(0, 1 - |error| / spread)`` of numbers ``(M, 1)``; float64 ``(M,)``. Raises ``ValueError`` where ``spread`` is not positive."""
    if not spread > 0:
        raise ValueError(f"a spread must be positive, not {spread}")
    error = np.abs(scores[:, 0].astype(np.float64) - targets[:, 0])
    return np.maximum(1 - error / spread, 0.0)


def label_spread(numbers: Array) -> float:
    """The distance between the 5th and the 95th percentile of training labels; where these are one, of all; never 0."""
    low, first, last, high = np.quantile(np.asarray(numbers, dtype=np.float64), [0, 0.05, 0.95, 1])
    return float(last - first) or float(high - low) or 1.0


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


def describe(scores: Array, truth: Array, interval: Interval, label_type: LabelType = "class") -> dict[str, Any]:
    """Everything that the report says about one model's predictions.

    Args:
        scores: ``(M, K)`` probabilities, or numbers ``(M, 1)``.
        truth: labels ``(M,)`` for class; targets ``(M, K)`` for classes, ``(M, 1)`` for number.
        interval: of the mean quality, the headline.
        label_type: what the labels are.

    JSON values: ``n``, ``headline`` (its name), ``quality``, ``low``, ``high``, and what is usual for the type of label.
    What is not defined for these samples, such as R2 where all numbers are equal, is None.
    """
    head = {
        "n": len(truth),
        "headline": HEADLINES[label_type],
        "quality": interval.mean,
        "low": interval.low,
        "high": interval.high,
    }
    details = {"class": _describe_class, "classes": _describe_classes, "number": _describe_number}[label_type]
    return head | details(scores, truth)


def _describe_class(scores: Array, labels: Array) -> dict[str, Any]:
    matrix = confusion(labels, scores.argmax(axis=1), scores.shape[1])
    return {
        "accuracy": accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "ece": expected_calibration_error(scores, labels),
        "confusion": matrix.tolist(),
    }


def _describe_classes(scores: Array, targets: Array) -> dict[str, Any]:
    predicted, true = scores >= CLASSES_FROM, targets > 0
    hits = (predicted & true).sum(axis=0)
    total = predicted.sum(axis=0) + true.sum(axis=0)  # F1 = 2 hits / total
    occurs = total > 0
    return {
        "micro_f1": float(2 * hits.sum() / total.sum()) if occurs.any() else 1.0,
        "macro_f1": float((2 * hits[occurs] / total[occurs]).mean()) if occurs.any() else 1.0,
        "subset_accuracy": float((predicted == true).all(axis=1).mean()),
        "jaccard": float(classes_quality(scores, targets).mean()),
        "counts": [
            {"true": int(t), "predicted": int(p), "both": int(b)}
            for t, p, b in zip(true.sum(axis=0), predicted.sum(axis=0), hits, strict=True)
        ],
    }


def _describe_number(scores: Array, targets: Array) -> dict[str, Any]:
    from scipy.stats import rankdata

    predicted, true = scores[:, 0].astype(np.float64), targets[:, 0].astype(np.float64)
    error = predicted - true
    variation = float(((true - true.mean()) ** 2).sum())
    ranks = rankdata(predicted), rankdata(true)
    ranked = len(true) > 1 and all(np.ptp(one) > 0 for one in ranks)
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1 - float((error**2).sum()) / variation if variation > 0 else None,
        "spearman": float(np.corrcoef(*ranks)[0, 1]) if ranked else None,
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
