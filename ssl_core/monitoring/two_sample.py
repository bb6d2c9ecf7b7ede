"""Two samples of embeddings: do they come from one distribution? A classifier two-sample test, and the maximum mean discrepancy.

Both compare with the same statistic under random relabelling of the pooled samples, so their p-values are exact whatever the
distribution is: ``p = (1 + number of relabellings with a statistic as large) / (1 + B)`` (Phipson and Smyth 2010,
https://arxiv.org/abs/1603.05766).

Shapes: n reference samples, m of the window, N = n + m, D features, B relabellings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PERMUTATIONS = 500
FOLDS = 5
RIDGE = 0.1
"""Penalty of the classifier, as a share of the training samples (features have variance 1)."""
SCALE_SAMPLES = 1000
"""Samples from whose distances the kernel's scale is read, where it is fixed for many tests."""
FEWEST = 20
"""Samples on each side, at least: of fewer there is nothing to say."""


@dataclass(frozen=True)
class TwoSample:
    """What a test found. ``effect`` does not grow with the number of samples; ``p_value`` says whether it may be chance."""

    effect: float
    """Of the classifier test its AUC, 0.5 where the samples cannot be told apart; of MMD its unbiased square, about 0 there."""
    p_value: float
    null_95: float
    """What 95% of the relabellings stay below."""


def classifier_test(
    reference: np.ndarray, window: np.ndarray, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> TwoSample:
    """Can a classifier tell ``window`` ``(m, D)`` from ``reference`` ``(n, D)``? Cross-validated AUC, and its permutation null.

    Lopez-Paz and Oquab 2017, "Revisiting Classifier Two-Sample Tests", https://arxiv.org/abs/1610.06545. The classifier is ridge
    regression on the label: one factorisation serves all B relabellings, instead of B trainings. Sees shifts of the mean, in any
    direction; ``mmd_test`` sees the others. Raises ``ValueError`` for fewer than ``FEWEST`` samples on a side, or numbers that
    are not finite.
    """
    return judge(classifier_values(reference, window, permutations=permutations, seed=seed))


def classifier_values(
    reference: np.ndarray, window: np.ndarray, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Tensor:
    """The AUC of ``classifier_test``, and those of B relabellings: ``(1 + B,)``."""
    pooled, labels = _pool(reference, window, permutations, seed)
    spread = pooled.std(dim=0, correction=0)
    features = ((pooled - pooled.mean(dim=0)) / spread.clamp_min(1e-12))[:, spread > 1e-12 * spread.max()]
    fold = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(len(pooled)) % FOLDS)
    total, count = torch.zeros(labels.shape[1], dtype=torch.float64), torch.zeros(labels.shape[1], dtype=torch.float64)
    for number in range(FOLDS):
        held = fold == number
        scores = _ridge(features[~held], labels[~held], features[held])
        auc, known = _auc(scores, labels[held])
        total += auc
        count += known
    return total / count.clamp_min(1)


def mmd_test(
    reference: np.ndarray,
    window: np.ndarray,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    scale: float | None = None,
) -> TwoSample:
    """Squared maximum mean discrepancy of ``reference`` ``(n, D)`` and ``window`` ``(m, D)``, unbiased, and its permutation null.

    Gretton et al. 2012, "A Kernel Two-Sample Test", https://jmlr.org/papers/v13/gretton12a.html, equation 3:

        MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 * mean over i, j of k(x_i, y_j)

    with ``k(a, b) = exp(-|a - b|^2 / s)``, s the median squared distance of the pooled samples unless ``scale`` gives it: with
    one scale, values of many windows can be compared. Memory and time grow with N^2: give it a subsample. Raises as
    ``classifier_test``.
    """
    return judge(mmd_values(reference, window, permutations=permutations, seed=seed, scale=scale))


def mmd_values(
    reference: np.ndarray,
    window: np.ndarray,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    scale: float | None = None,
) -> Tensor:
    """The squared discrepancy of ``mmd_test``, and those of B relabellings: ``(1 + B,)``."""
    pooled, labels = _pool(reference, window, permutations, seed)
    n, m = len(reference), len(window)
    if permutations == 0:  # thousands of these make a threshold; the sums are float64 all the same
        pooled = pooled.float()
    squares = _square_distances(pooled)
    if scale is None:
        scale = _median_apart(squares)
    kernel = squares.mul_(-1 / (scale if scale > 0 else 1.0)).exp_().fill_diagonal_(0)
    if permutations == 0:
        within, across, theirs = (
            part.sum(dtype=torch.float64) for part in (kernel[:n, :n], kernel[:n, n:], kernel[n:, n:])
        )
        return (within / (n * (n - 1)) + theirs / (m * (m - 1)) - 2 * across / (n * m)).reshape(1)
    product = kernel @ labels
    within_window = (product * labels).sum(dim=0)
    across = product.sum(dim=0) - within_window
    within_reference = kernel.sum() - within_window - 2 * across
    return within_reference / (n * (n - 1)) + within_window / (m * (m - 1)) - 2 * across / (n * m)


def kernel_scale(samples: np.ndarray, seed: int = 0) -> float:
    """The median squared distance within ``samples`` ``(n, D)``, of at most ``SCALE_SAMPLES`` of them: a ``scale`` for many tests."""
    chosen = samples[subsample(len(samples), SCALE_SAMPLES, seed)].astype(np.float64)
    return _median_apart(_square_distances(torch.from_numpy(chosen)))


def judge(values: Tensor) -> TwoSample:
    """What ``(1 + B,)`` values say; the first is what was observed, the others the null.

    Of several draws that share no sample, give the mean of their values: it is exact too, as each relabelling relabels all draws.
    """
    observed, null = float(values[0]), values[1:]
    # Relabellings that come to the same number up to rounding are as large.
    as_large = int((null >= observed - 1e-12).sum())
    return TwoSample(observed, (1 + as_large) / (1 + len(null)), float(null.quantile(0.95)) if len(null) else observed)


def subsample(count: int, size: int, seed: int) -> np.ndarray:
    """Ascending positions of at most ``size`` of ``count`` samples."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:size])


def _pool(reference: np.ndarray, window: np.ndarray, permutations: int, seed: int) -> tuple[Tensor, Tensor]:
    """All samples, float64 ``(N, D)``, and labels ``(N, 1 + B)``, 1 = window: the true ones first, then relabellings."""
    if min(len(reference), len(window)) < FEWEST:
        raise ValueError(f"{len(reference)} and {len(window)} samples; at least {FEWEST} on each side can be compared")
    pooled = torch.from_numpy(np.concatenate([reference, window]).astype(np.float64, copy=False))
    if not torch.isfinite(pooled).all():
        raise ValueError("embeddings hold numbers that are not finite")
    labels = np.zeros((1 + permutations, len(pooled)))
    labels[:, len(reference) :] = 1
    labels[1:] = np.random.default_rng([seed, 0]).permuted(labels[1:], axis=1)
    return pooled, torch.from_numpy(labels.T.copy())


def _square_distances(samples: Tensor) -> Tensor:
    """``(N, N)`` of ``(N, D)``, the diagonal 0."""
    centred = samples - samples.mean(dim=0)  # nothing is lost to rounding where all samples lie far from 0
    norms = centred.square().sum(dim=1)
    squares = torch.addmm(norms[:, None] + norms, centred, centred.T, alpha=-2)
    return squares.clamp_min_(0).fill_diagonal_(0)


def _median_apart(squares: Tensor) -> float:
    return float(squares[*torch.triu_indices(len(squares), len(squares), 1)].median())


def _ridge(train: Tensor, labels: Tensor, held: Tensor) -> Tensor:
    """Scores of ``held`` ``(b, D)`` by ridge regression of labels ``(a, C)`` on ``train`` ``(a, D)``: ``(b, C)``."""
    mean = train.mean(dim=0)
    centred = train - mean
    penalty = RIDGE * len(train)
    if train.shape[1] <= len(train):
        inner = centred.T @ centred
        inner.diagonal().add_(penalty)
        weights = torch.cholesky_solve(centred.T @ labels, torch.linalg.cholesky(inner))
    else:
        outer = centred @ centred.T
        outer.diagonal().add_(penalty)
        weights = centred.T @ torch.cholesky_solve(labels, torch.linalg.cholesky(outer))
    return (held - mean) @ weights


def _auc(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """AUC of each column ``(b, C)``, ties counting half, and 1 where it is known; 0 and 0 where a column has one label only."""
    columns = scores.T.contiguous()
    ordered = columns.sort(dim=1).values
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    ranks = (below + up_to).to(torch.float64) / 2 + 0.5
    positive = labels.T
    ones = positive.sum(dim=1)
    pairs = ones * (len(labels) - ones)
    auc = ((ranks * positive).sum(dim=1) - ones * (ones + 1) / 2) / pairs.clamp_min(1)
    known = (pairs > 0).to(torch.float64)
    return auc * known, known
