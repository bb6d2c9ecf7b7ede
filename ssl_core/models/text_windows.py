"""Long texts as overlapping windows, and windows as batches in order of length: how every text is scored and embedded.

Shapes: n texts, W windows, T tokens, K values for each text. Token positions count in the memory-mapped store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core.data.text.sequences import SPECIAL, Sequences, gather

BATCH_TOKENS = 8192
"""Tokens scored at once, special tokens included."""


@dataclass(frozen=True)
class Windows:
    """W windows of n texts; those of one text stand side by side, in reading order."""

    rows: np.ndarray
    """int64 ``(W,)``: which of the n texts each window is of."""
    starts: np.ndarray
    """int64 ``(W,)``: its first token."""
    lengths: np.ndarray
    """int64 ``(W,)``: how many tokens it has, special tokens not counted."""

    def __len__(self) -> int:
        return len(self.rows)

    def sequences(self, ids: np.ndarray, chosen: np.ndarray, cls_id: int, sep_id: int) -> Sequences:
        """The windows ``chosen`` ``(m,)`` as ``[CLS] tokens [SEP]``, in that order."""
        return gather(ids, self.starts[chosen], self.lengths[chosen], cls_id, sep_id)

    def by_length(self, batch_tokens: int = BATCH_TOKENS) -> Iterator[np.ndarray]:
        """All windows, shortest first, in batches of at most ``batch_tokens`` tokens (a longer window is alone)."""
        order = np.argsort(self.lengths, kind="stable")
        first = total = 0
        for place, length in enumerate(self.lengths[order] + SPECIAL):
            if place > first and total + length > batch_tokens:
                yield order[first:place]
                first, total = place, 0
            total += int(length)
        if len(order):
            yield order[first:]


def cut(offsets: np.ndarray, positions: np.ndarray, room: int, stride: int) -> Windows:
    """The texts at ``positions`` ``(n,)`` as windows of at most ``room`` tokens; text i is tokens ``offsets[i]`` to ``offsets[i + 1]``.

    A text that fits is one window. A longer one gets as few windows as share at least ``stride`` tokens with their
    neighbours, all full and evenly spread: none is a rest of three words whose scores would count like the others'.
    """
    if not 0 <= stride < room:
        raise ValueError(f"windows of {room} tokens cannot share {stride}")
    begin = np.asarray(offsets[positions], dtype=np.int64)
    length = np.asarray(offsets[np.asarray(positions) + 1], dtype=np.int64) - begin
    count = np.maximum(1, -(-(length - stride) // (room - stride)))
    rows = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(rows)) - np.repeat(count.cumsum() - count, count)
    spare = np.maximum(length - room, 0)
    # The n-th of c windows starts at n / (c - 1) of what does not fit into one, rounded down.
    starts = begin[rows] + number * spare[rows] // np.maximum(count[rows] - 1, 1)
    return Windows(rows, starts, np.minimum(length, room)[rows])


def values_of_windows(
    ids: np.ndarray, windows: Windows, cls_id: int, sep_id: int, values: Callable[[Sequences], Tensor]
) -> np.ndarray:
    """float32 ``(W, K)``: ``values(sequences) -> (m, K)`` of every window, in the order of ``windows``; W is at least 1."""
    parts = np.empty((0, 0), dtype=np.float32)
    for chosen in windows.by_length():
        got = values(windows.sequences(ids, chosen, cls_id, sep_id)).float().cpu().numpy()
        if not parts.size:
            parts = np.empty((len(windows), got.shape[1]), dtype=np.float32)
        parts[chosen] = got
    return parts


def mean_by_text(windows: Windows, values: np.ndarray) -> np.ndarray:
    """float32 ``(n, K)``: each text's mean of its windows' ``values`` ``(W, K)``."""
    count = np.bincount(windows.rows)
    if len(count) == len(windows):
        return values
    sums = np.add.reduceat(values.astype(np.float64), count.cumsum() - count, axis=0)
    return (sums / count[:, None]).astype(np.float32)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 ``(n + 1,)``: where each of n texts of so many tokens begins, and the end of the last."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[torch.device]:
    """Eval mode without gradients; gives the device that the module is on, and leaves the mode as it was."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield next(module.parameters()).device
    finally:
        module.train(was_training)
