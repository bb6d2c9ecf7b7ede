"""From the token store to batches: long texts as windows, about equally many tokens a step, nothing padded.

Shapes: T tokens of N windows in a batch, W windows in all.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np

from ssl_core.data.text.sequences import SPECIAL, Sequences, gather


class Store(Protocol):
    """What packing asks of ``data.text.tokens.Tokens``."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...


class TextBatches:
    """Batches of about ``batch_tokens`` tokens from the texts at ``positions`` of a token store, special tokens included.

    A text of more than ``max_length - 2`` tokens becomes several windows, side by side and the last as short as it comes:
    every token is in exactly one. Texts without a token are left out. The windows' order is a seeded permutation per
    epoch, cut into ``per_epoch`` batches of as nearly as possible the same number of tokens, so an epoch reads everything
    once. Within a batch the shortest come first, which is how the encoder wants them. A step's batch depends on (seed, step)
    alone, so the step number is all that a resume has to know.

    One thread reads the next batch while the device works on this one.
    """

    def __init__(
        self,
        store: Store,
        positions: np.ndarray,
        *,
        max_length: int,
        batch_tokens: int,
        cls_id: int,
        sep_id: int,
        seed: int,
    ) -> None:
        self._ids, self._seed = store.ids, seed
        self._special = cls_id, sep_id
        self.starts, self.lengths = windows(store.offsets, positions, max_length - SPECIAL)
        if len(self.starts) == 0:
            raise ValueError("no text has a token")
        self.tokens = int(self.lengths.sum()) + SPECIAL * len(self.lengths)
        """Of one epoch, special tokens included."""
        self.per_epoch = min(max(1, round(self.tokens / batch_tokens)), len(self.starts))
        self._ahead: tuple[int, Future[Sequences]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._order = lru_cache(maxsize=2)(self._permutation)

    @property
    def maskable(self) -> float:
        """Tokens of a batch that are not special, in the mean."""
        return float(self.lengths.sum()) / self.per_epoch

    def windows_of(self, step: int) -> np.ndarray:
        """Which windows step ``step`` takes, shortest first, ``(N,)``."""
        epoch, part = divmod(step, self.per_epoch)
        order, cuts = self._order(epoch)
        chosen = order[cuts[part] : cuts[part + 1]]
        return chosen[np.argsort(self.lengths[chosen], kind="stable")]

    def fetch(self, step: int) -> Sequences:
        """The sequences of step ``step``, on the CPU, where they are masked."""
        batch = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._reader.submit(self._read, step + 1))
        return batch

    def count(self, batch: Sequences) -> int:
        """Its tokens, special tokens included."""
        return len(batch.ids)

    def close(self) -> None:
        """Ends the reading thread."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows in the order of an epoch, and where its batches begin and end, ``(per_epoch + 1,)``."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self.starts))
        ends = np.cumsum(self.lengths[order] + SPECIAL)
        cuts = np.searchsorted(ends, self.tokens * np.arange(1, self.per_epoch) / self.per_epoch, side="right")
        # A batch holds one window at least, however long its neighbours are.
        number = np.arange(1, self.per_epoch)
        cuts = np.maximum.accumulate(np.maximum(cuts, number) - number) + number
        cuts = np.minimum(cuts, len(order) - self.per_epoch + number)
        return order, np.concatenate([[0], cuts, [len(order)]])

    def _read(self, step: int) -> Sequences:
        chosen = self.windows_of(step)
        return gather(self._ids, self.starts[chosen], self.lengths[chosen], *self._special)


def windows(offsets: np.ndarray, positions: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths ``(W,)`` of the windows of the texts at ``positions``, at most ``room`` tokens each, in reading order.

    Text i is the tokens ``offsets[i]`` to ``offsets[i + 1]``; a text without a token has no window.
    """
    begin = np.asarray(offsets[positions], dtype=np.int64)
    length = np.asarray(offsets[np.asarray(positions) + 1], dtype=np.int64) - begin
    count = -(-length // room)
    number = np.arange(int(count.sum())) - np.repeat(count.cumsum() - count, count)
    starts = np.repeat(begin, count) + number * room
    return starts, np.minimum(np.repeat(begin + length, count) - starts, room)
