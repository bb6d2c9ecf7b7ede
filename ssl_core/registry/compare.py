"""Two models on the same samples: a paired test, and the paired bootstrap interval of the difference in mean quality.

Quality (``evaluation.metrics``) is in [0, 1] for each sample; where a sample has one class it is right or wrong, and its mean
the accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from ssl_core.data.table import LabelType
from ssl_core.evaluation.metrics import HEADLINES
from ssl_core.evaluation.predictions import Predictions, paired_quality

LEVEL = 0.05
_Z = 1.959964 + 0.841621  # two-sided 5% level, 80% power
_Z_FLOOR = 2.575829  # one-sided 0.5% level
_Z_CEILING = 3.290527  # one-sided 0.05% level
_FLIPS = 10_000
_BLOCK = 4_000_000  # cells of a table of draws in memory at once


@dataclass(frozen=True)
class Comparison:
    """``difference`` = mean quality of the first minus the second, with its 95% interval ``low`` to ``high``."""

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    floor: float
    """Lower end of the one-sided 99.5% interval: a true difference below it would hardly ever have looked like this."""
    ceiling: float
    """Upper end of the one-sided 99.95% interval: to turn something down for lack of gain takes more than to keep it waiting."""
    only_first: int
    """Samples on which the first model is better: that it alone has right, where they are right or wrong."""
    only_second: int
    p_value: float
    """Of ``test``, two-sided."""
    detectable: float
    """The smallest true difference that this test would have seen with 80% power, given how the two differ."""
    only_in_one: int = 0
    """Samples that one of the two test sets lacks; they are left out."""
    headline: str = "accuracy"
    """What the mean quality is called."""
    test: str = "McNemar"

    @property
    def better(self) -> bool:
        """The first is better for sure: interval and test agree, which matters where a handful of samples differ."""
        return self.low > 0 and self.p_value < LEVEL

    @property
    def worse(self) -> bool:
        """The first is worse for sure."""
        return self.high < 0 and self.p_value < LEVEL


def compare(first: Predictions, second: Predictions, *, resamples: int, seed: int) -> Comparison:
    """Compares on the samples that both hold, matched by ``sample_id``; the first one's labels count.

    Raises ``ValueError`` where the two have no sample in common, or judge labels of different types.
    """
    if first.label_type != second.label_type:
        raise ValueError(f"predictions of {first.label_type} and of {second.label_type} cannot be compared")
    mine, theirs = paired_quality(first, second)
    found = compare_quality(mine, theirs, first.label_type, resamples=resamples, seed=seed)
    return replace(found, only_in_one=len(first.sample_ids) + len(second.sample_ids) - 2 * found.n)


def compare_quality(
    first: np.ndarray, second: np.ndarray, label_type: LabelType, *, resamples: int, seed: int
) -> Comparison:
    """Compares the quality of two models' answers on the same samples, float64 ``(n,)`` each.

    One class a sample: the exact McNemar test (1947, https://doi.org/10.1007/BF02295996): under equal accuracy, the samples
    that only one model has right fall to either side like a fair coin. The interval is the percentile bootstrap over samples;
    its resampled differences follow from how many samples of each of three kinds (only first, only second, no difference)
    are drawn: one multinomial draw a resample, whatever ``n``. ``floor`` and ``ceiling`` are score bounds of Tango 1998
    (https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B), which hold where a bootstrap does not: two
    models that never differ on 50 samples may still differ on 1 in 10.

    Several classes, or numbers: the same bootstrap over the paired differences themselves, and a sign-flip test (Fisher 1935):
    under equal quality, each difference is as likely with the other sign. ``floor`` and ``ceiling`` are normal bounds after one
    sample of the largest difference was added on each side, for the same reason.

    Raises ``ValueError`` where there is no sample.
    """
    n = len(first)
    if n == 0:
        raise ValueError("no sample to compare on")
    gaps = first - second
    b, c = int((gaps > 0).sum()), int((gaps < 0).sum())
    random = np.random.default_rng(seed)
    one_class = label_type == "class"
    means = _resampled_counts(n, b, c, resamples, random) if one_class else _resampled(gaps, resamples, random)
    low, high = np.quantile(means, [0.025, 0.975])
    spread = np.sqrt(max(b + c, 1)) / n if one_class else gaps.std() / np.sqrt(n)
    return Comparison(
        n=n, first=float(first.mean()), second=float(second.mean()), difference=float(gaps.mean()),
        low=float(low), high=float(high), floor=_score_bound(n, b, c, _Z_FLOOR) if one_class else _normal_bound(gaps, _Z_FLOOR),
        ceiling=-_score_bound(n, c, b, _Z_CEILING) if one_class else -_normal_bound(-gaps, _Z_CEILING),
        only_first=b, only_second=c, p_value=_mcnemar(b, c) if one_class else _sign_flips(gaps, random),
        detectable=float(_Z * spread), headline=HEADLINES[label_type], test="McNemar" if one_class else "sign-flip",
    )  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the same order: at most one in twenty families has any below 0.05 by chance.

    Holm 1979, https://www.jstor.org/stable/4615733: the k-th smallest of m times ``m - k + 1``, never below the one before.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def _score_bound(n: int, b: int, c: int, z: float) -> float:
    """The difference ``(b - c) / n`` minus what chance may add: where Tango's score statistic reaches ``z``."""

    def score(delta: float) -> float:
        # p: the most likely share of "only second" where the true difference is delta.
        half = -b - c + (2 * n - b + c) * delta
        p = (sqrt(max(0.0, half * half + 8 * n * c * delta * (1 - delta))) - half) / (4 * n)
        variance = n * (2 * p + delta * (1 - delta))
        return (b - c - n * delta) / sqrt(variance) if variance > 0 else 0.0

    low, high = -1.0, (b - c) / n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > z else (low, middle)
    return (low + high) / 2


def _normal_bound(gaps: np.ndarray, z: float) -> float:
    n = len(gaps) + 2
    mean = gaps.sum() / n
    variance = max(0.0, float((gaps**2).sum() + 2) / n - mean**2)
    return float(mean - z * np.sqrt(variance / n))


def _mcnemar(b: int, c: int) -> float:
    """Both tails of a fair coin, which are alike."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def _resampled_counts(n: int, b: int, c: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    draws = random.multinomial(n, [b / n, c / n, (n - b - c) / n], size=resamples)
    return np.asarray((draws[:, 0] - draws[:, 1]) / n)


def _resampled(gaps: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    n = len(gaps)
    block = max(1, _BLOCK // n)
    parts = [
        gaps[random.integers(0, n, (min(block, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return np.concatenate(parts)


def _sign_flips(gaps: np.ndarray, random: np.random.Generator) -> float:
    """Two-sided p-value of the mean gap, the observed signs counted as one of the draws."""
    differing = gaps[gaps != 0]
    if not len(differing):
        return 1.0
    seen, as_far = abs(differing.sum()), 0
    block = max(1, _BLOCK // len(differing))
    for start in range(0, _FLIPS, block):
        signs = random.integers(0, 2, (min(block, _FLIPS - start), len(differing)), dtype=np.int8) * 2 - 1
        as_far += int((np.abs(signs @ differing) >= seen * (1 - 1e-12)).sum())
    return (as_far + 1) / (_FLIPS + 1)
