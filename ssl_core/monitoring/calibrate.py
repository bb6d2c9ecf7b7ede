"""Where "different" begins: thresholds that keep the user's budget of false alarms, from windows in which nothing had changed.

Such windows are the project's own old ones, where there are enough: what changes from day to day without harm is in them. Else
parts of the reference stand for windows. Both are compared as a new window is: the same number of samples on each side, and none
on both. What resampling cannot show is told in the report: parts of one pile are more alike than days are.

AUC and MMD are one score, so that two tests do not alarm twice as often: how many of its standard deviations (of the resampled
values) each lies above its mean, and of these the larger. Its threshold gives one for each test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssl_core.config.monitor import MonitorConfig
from ssl_core.monitoring.alarm import shared_part, threshold, window_rate, windows_needed
from ssl_core.monitoring.detect import Sizes
from ssl_core.monitoring.two_sample import FEWEST, classifier_values, mmd_values

RESAMPLES = 1000
"""Parts of the reference that stand for windows."""
FOR_THE_SPREAD = 200
"""So many do where only the spread is read from them, and the threshold from old windows."""
FEWEST_WINDOWS = 30
"""Of an own history, at least; more where the budget asks for more."""


@dataclass(frozen=True)
class Thresholds:
    """What a window's AUC and MMD are held against."""

    auc: float
    mmd: float
    by: Literal["history", "resampling"]
    windows: int
    """Stable windows that they were read from."""
    rate: float
    """The chance that an unchanged window exceeds."""

    def score(self, auc: float, mmd: float) -> float:
        """The larger of both, each as a share of what its threshold lies above chance: more than 1 exceeds."""
        return max((auc - 0.5) / (self.auc - 0.5), mmd / self.mmd)


@dataclass(frozen=True)
class Replay:
    """A comparison of sizes that all old windows can be compared in, and their values ``(W, 2)``: AUC and MMD."""

    sizes: Sizes
    values: np.ndarray


def resample(
    reference: np.ndarray, groups: np.ndarray, sizes: Sizes, scale: float, *, count: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """AUC and MMD ``(count, 2)`` of one part of ``reference`` ``(N, D)`` against another, each one draw of ``sizes``.

    Near-duplicates (equal ``groups`` ``(N,)``) stay on one side, as they come in one window.
    """
    generator = np.random.default_rng([seed, 3])
    _, group = np.unique(groups, return_inverse=True)
    values = np.empty((count, 2))
    for number in range(count):
        order = np.lexsort((generator.random(len(group)), generator.random(len(group))[group]))
        values[number] = _values(reference[order[-sizes.n :]], reference[order[: sizes.m]], scale, number)
    return values


def replay(
    reference: np.ndarray,
    versions: np.ndarray,
    old: Mapping[int, np.ndarray],
    m: int,
    most: int,
    scale: float,
    *,
    fewest: int,
    needed: int,
    seed: int = 0,
) -> Replay | None:
    """Compares old windows as if they came now: version number to embeddings, each with the ``reference`` of the other versions.

    ``versions`` ``(N,)`` are the reference's. All are compared in one size: at most ``m`` samples of the window, as many as the
    ``needed``-th largest has, with at most ``most`` of the reference. None where fewer than ``needed`` have ``fewest`` samples
    and leave half of the reference.
    """
    n = min(most, len(reference) // 2)
    others = {number: np.flatnonzero(versions != number) for number in old}
    usable = [number for number in sorted(old) if len(others[number]) >= n]
    counts = sorted((len(old[number]) for number in usable), reverse=True)
    if needed < 1 or len(counts) < needed or counts[needed - 1] < max(fewest, FEWEST) or n < FEWEST:
        return None
    m = min(m, counts[needed - 1])
    generator = np.random.default_rng([seed, 4])
    values = [
        _values(
            reference[np.sort(generator.permutation(others[number])[:n])],
            old[number][np.sort(generator.permutation(len(old[number]))[:m])],
            scale,
            number,
        )
        for number in usable
        if len(old[number]) >= m
    ]
    return Replay(Sizes(n, m), np.asarray(values))


def needed_windows(config: MonitorConfig) -> int:
    """How many stable windows an own history must have."""
    return max(FEWEST_WINDOWS, windows_needed(window_rate(config.false_alarms, config.alarm_windows, config.windows)))


def set_thresholds(
    resampled: np.ndarray, sizes: Sizes, reference: int, config: MonitorConfig, history: np.ndarray | None = None
) -> Thresholds:
    """Thresholds from ``resampled`` values ``(R, 2)`` of single draws, or from those of old windows where ``history`` has them.

    No threshold lies below what matters: ``min_auc``, and the MMD of a window of which the same share is wholly new. A share a
    that a classifier always recognises makes the AUC 1/2 + a/2, and the MMD about ``a^2 / e``: e^-1 is what the kernel gives two
    samples at its scale, which is their median distance. ``reference`` is the number of reference samples.
    """
    draws = 1 if history is not None else sizes.draws
    pool = np.random.default_rng(5).integers(0, len(resampled), (len(resampled), draws))
    stable = resampled[pool].mean(axis=1) if draws > 1 else resampled
    centre, spread = stable.mean(axis=0), np.maximum(stable.std(axis=0), 1e-9)
    shared = draws * shared_part(reference, sizes.n, sizes.m)  # each draw of one window shares with each of the other
    rate = window_rate(config.false_alarms, config.alarm_windows, config.windows, shared)
    seen = stable if history is None else history
    # Where windows share much, the rate is smaller, and a history that is just long enough for the plain one has to do.
    rate = max(rate, 1 / (len(seen) + 1))
    level = threshold(((seen - centre) / spread).max(axis=1), rate)
    auc, mmd = centre + level * spread
    share = 2 * config.min_auc - 1
    return Thresholds(
        max(float(auc), config.min_auc, 0.5 + 1e-6), max(float(mmd), share**2 / np.e, 1e-9),
        "resampling" if history is None else "history", len(seen), rate,
    )  # fmt: skip


def _values(reference: np.ndarray, window: np.ndarray, scale: float, seed: int) -> tuple[float, float]:
    return (
        float(classifier_values(reference, window, permutations=0, seed=seed)[0]),
        float(mmd_values(reference, window, permutations=0, seed=seed, scale=scale)[0]),
    )
