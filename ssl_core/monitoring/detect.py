"""Has the world moved? Two-sample tests on embeddings, on subsamples of one size, so that time is bounded and effects compare.

A *draw* is n samples of the reference and m of the window. Where there is enough, several draws that share no sample are averaged.
The reference's samples are drawn anew for each window: two windows then share few of them, and do not err together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ssl_core.monitoring.two_sample import (
    FEWEST,
    PERMUTATIONS,
    TwoSample,
    classifier_values,
    judge,
    mmd_values,
)

MOST_DRAWS = 10


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small matrices: several threads would mostly wait for each other, and sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Sizes:
    """Samples of the reference and of the window in one draw, and how many draws."""

    n: int
    m: int
    draws: int = 1


def choose_sizes(reference: int, window: int, most: int) -> Sizes | None:
    """Sizes of at most ``most`` a side for so many samples; None where they are too few to be compared.

    The reference keeps room for a window of its own: thresholds come from comparing one part of it with another, in these sizes.
    """
    m = min(most, window, reference // 2)
    if m < FEWEST:
        return None
    n = min(most, reference - m)
    return Sizes(n, m, max(1, min(MOST_DRAWS, reference // (n + m), window // m)))


@dataclass(frozen=True)
class Found:
    """Both tests, each the mean over all draws."""

    auc: TwoSample
    mmd: TwoSample


def compare(
    reference: np.ndarray,
    window: np.ndarray,
    sizes: Sizes,
    scale: float,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Found:
    """Tests of ``window`` ``(M, D)`` against ``reference`` ``(N, D)``; ``scale`` is the kernel's, the same for all windows."""
    generator = np.random.default_rng([seed, 2])
    mine = generator.permutation(len(reference))[: sizes.draws * sizes.n].reshape(sizes.draws, sizes.n)
    theirs = generator.permutation(len(window))[: sizes.draws * sizes.m].reshape(sizes.draws, sizes.m)
    values: list[tuple[torch.Tensor, torch.Tensor]] = []
    for draw in range(sizes.draws):
        x, y = reference[np.sort(mine[draw])], window[np.sort(theirs[draw])]
        own = seed + 1_000_003 * draw
        values.append((
            classifier_values(x, y, permutations=permutations, seed=own),
            mmd_values(x, y, permutations=permutations, seed=own, scale=scale),
        ))  # fmt: skip
    aucs, mmds = zip(*values, strict=True)
    return Found(judge(torch.stack(aucs).mean(dim=0)), judge(torch.stack(mmds).mean(dim=0)))
