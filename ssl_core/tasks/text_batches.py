"""Which windows of which texts each step trains on: random, of about equal length, and known from (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssl_core.models.text_windows import Windows

POOL_BATCHES = 8
"""Texts are sorted by length inside random pools of so many batches: the smaller, the more random and the more padding."""


@dataclass(frozen=True)
class Order:
    """Batches of about ``batch_size`` texts, whose sizes differ by at most one within an epoch.

    An epoch holds every text once, by one of its windows; the windows of a long text take turns from epoch to epoch, from a
    random one on, so that all are seen in the end and a long text counts as much as a short one. Plain shuffled order:
    where classes are of unequal size, ``task.class_weights`` says whether they are to count the same.
    """

    windows: Windows
    batch_size: int
    seed: int

    @property
    def texts(self) -> int:
        return int(self.windows.rows[-1]) + 1

    @property
    def per_epoch(self) -> int:
        """Steps."""
        return -(-self.texts // self.batch_size)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The windows of each step of an epoch, ``(about batch_size,)`` each."""
        rng = np.random.default_rng([self.seed, number])
        windows = self._turn(number)
        order = rng.permutation(self.texts)
        pools = np.array_split(order, -(-self.texts // (self.batch_size * POOL_BATCHES)))
        lengths = self.windows.lengths[windows]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = np.array_split(windows[order], self.per_epoch)
        return [batches[i] for i in rng.permutation(len(batches))]

    def steps(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The windows of the steps ``start`` to ``stop``."""
        per_epoch = self.per_epoch
        for number in range(start // per_epoch, -(-stop // per_epoch)):
            first = number * per_epoch
            yield from self.epoch(number)[max(0, start - first) : stop - first]

    def _turn(self, number: int) -> np.ndarray:
        """int64 ``(texts,)``: the window by which each text takes part in an epoch."""
        count = np.bincount(self.windows.rows)
        first = count.cumsum() - count
        begin = np.random.default_rng([self.seed, 0, 1]).integers(0, count)
        return first + (begin + number) % count
