"""Two models on the same samples: exact McNemar test, and the paired bootstrap interval of the difference in accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssl_core.evaluation.predictions import Predictions

_Z = 1.959964 + 0.841621  # two-sided 5% level, 80% power


@dataclass(frozen=True)
class Comparison:
    """``difference`` = accuracy of the first minus the second, with its 95% interval ``low`` to ``high``."""

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    """Samples that only the first model has right."""
    only_second: int
    p_value: float
    """Exact McNemar test, two-sided."""
    detectable: float
    """The smallest true difference that this test would have seen with 80% power, given how often the two disagree."""
    only_in_one: int
    """Samples that one of the two test sets lacks; they are left out."""


def compare(first: Predictions, second: Predictions, *, resamples: int, seed: int) -> Comparison:
    """Compares on the samples that both hold, matched by ``sample_id``; the first one's labels count.

    McNemar 1947 (https://doi.org/10.1007/BF02295996): under equal accuracy, the samples that only one model has right
    fall to either side like a fair coin. The interval is the percentile bootstrap over samples. Its resampled differences
    follow from how many samples of each of three kinds (only first, only second, no difference) are drawn: one multinomial
    draw a resample, whatever ``n``. Raises ``ValueError`` where the two have no sample in common.
    """
    from scipy.stats import binomtest

    rows = {sample: i for i, sample in enumerate(second.sample_ids)}
    pairs = [(i, rows[sample]) for i, sample in enumerate(first.sample_ids) if sample in rows]
    if not pairs:
        raise ValueError("no sample in common")
    mine, theirs = (np.asarray(side) for side in zip(*pairs, strict=True))
    truth = _names(first, first.labels)[mine]
    right = _names(first, first.predicted)[mine] == truth
    other = _names(second, second.predicted)[theirs] == truth
    n, b, c = len(pairs), int((right & ~other).sum()), int((other & ~right).sum())
    draws = np.random.default_rng(seed).multinomial(n, [b / n, c / n, (n - b - c) / n], size=resamples)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return Comparison(
        n=n, first=float(right.mean()), second=float(other.mean()), difference=(b - c) / n, low=float(low), high=float(high),
        only_first=b, only_second=c, p_value=float(binomtest(b, b + c).pvalue) if b + c else 1.0,
        detectable=float(_Z * np.sqrt(max(b + c, 1)) / n),
        only_in_one=len(first.sample_ids) + len(second.sample_ids) - 2 * n,
    )  # fmt: skip


def _names(predictions: Predictions, positions: np.ndarray) -> np.ndarray:
    """Class names: two models may number their classes differently."""
    return np.asarray(predictions.classes, dtype=object)[positions]
