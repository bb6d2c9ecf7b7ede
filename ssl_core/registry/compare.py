"""Two models on the same samples: a paired test, and the paired bootstrap interval of the difference in mean quality.

Quality (``evaluation.metrics``) is in [0, 1] for each sample; where a sample has one class it is right or wrong, and its mean
the accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssl_core.evaluation.metrics import HEADLINES, classes_quality, number_quality
from ssl_core.evaluation.predictions import Predictions

_Z = 1.959964 + 0.841621  # two-sided 5% level, 80% power
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
    only_first: int
    """Samples on which the first model is better: that it alone has right, where they are right or wrong."""
    only_second: int
    p_value: float
    """Of ``test``, two-sided."""
    detectable: float
    """The smallest true difference that this test would have seen with 80% power, given how the two differ."""
    only_in_one: int
    """Samples that one of the two test sets lacks; they are left out."""
    headline: str = "accuracy"
    """What the mean quality is called."""
    test: str = "McNemar"


def compare(first: Predictions, second: Predictions, *, resamples: int, seed: int) -> Comparison:
    """Compares on the samples that both hold, matched by ``sample_id``; the first one's labels count.

    One class a sample: McNemar 1947 (https://doi.org/10.1007/BF02295996): under equal accuracy, the samples that only one
    model has right fall to either side like a fair coin. The interval is the percentile bootstrap over samples; its resampled
    differences follow from how many samples of each of three kinds (only first, only second, no difference) are drawn: one
    multinomial draw a resample, whatever ``n``.

    Several classes, or numbers: the same bootstrap over the paired differences themselves, and a sign-flip test (Fisher 1935):
    under equal quality, each difference is as likely with the other sign.

    Raises ``ValueError`` where the two have no sample in common, or judge labels of different types.
    """
    if first.label_type != second.label_type:
        raise ValueError(f"predictions of {first.label_type} and of {second.label_type} cannot be compared")
    rows = {sample: i for i, sample in enumerate(second.sample_ids)}
    pairs = [(i, rows[sample]) for i, sample in enumerate(first.sample_ids) if sample in rows]
    if not pairs:
        raise ValueError("no sample in common")
    mine, theirs = (np.asarray(side) for side in zip(*pairs, strict=True))
    better, other = first.quality[mine], _quality_of(second, theirs, first, mine)
    gaps = better - other
    n, b, c = len(pairs), int((gaps > 0).sum()), int((gaps < 0).sum())
    random = np.random.default_rng(seed)
    one_class = first.label_type == "class"
    means = _resampled_counts(n, b, c, resamples, random) if one_class else _resampled(gaps, resamples, random)
    low, high = np.quantile(means, [0.025, 0.975])
    spread = np.sqrt(max(b + c, 1)) / n if one_class else gaps.std() / np.sqrt(n)
    return Comparison(
        n=n, first=float(better.mean()), second=float(other.mean()), difference=float(gaps.mean()),
        low=float(low), high=float(high), only_first=b, only_second=c,
        p_value=_mcnemar(b, c) if one_class else _sign_flips(gaps, random), detectable=float(_Z * spread),
        only_in_one=len(first.sample_ids) + len(second.sample_ids) - 2 * n,
        headline=HEADLINES[first.label_type], test="McNemar" if one_class else "sign-flip",
    )  # fmt: skip


def _quality_of(judged: Predictions, rows: np.ndarray, truth: Predictions, at: np.ndarray) -> np.ndarray:
    """The quality of ``judged`` on the labels of ``truth``: two models may number their classes differently."""
    if truth.label_type == "number":
        assert truth.targets is not None
        assert truth.spread is not None
        return number_quality(judged.scores[rows], truth.targets[at], truth.spread)
    if truth.label_type == "class":
        says, is_ = (np.asarray(p.classes, dtype=object) for p in (judged, truth))
        return (says[judged.predicted[rows]] == is_[truth.labels[at]]).astype(np.float64)
    assert truth.targets is not None
    scores = np.zeros((len(rows), len(truth.classes)), dtype=np.float32)
    for column, name in enumerate(truth.classes):
        if name in judged.classes:
            scores[:, column] = judged.scores[rows, judged.classes.index(name)]
    return classes_quality(scores, truth.targets[at])


def _mcnemar(b: int, c: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


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
