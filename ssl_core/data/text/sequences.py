"""Token sequences as everything that reads texts takes them: one after the other, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SPECIAL = 2
"""Tokens that every sequence has beside its text's: [CLS] before and [SEP] after."""


@dataclass(frozen=True)
class Sequences:
    """N sequences of T tokens in all, special tokens included: ``[CLS] a b [SEP] [CLS] c [SEP]`` has N = 2, T = 7."""

    ids: Tensor
    """int64 ``(T,)``."""
    lengths: Tensor
    """int64 ``(N,)``, on the CPU; they sum to T."""

    def to(self, device: torch.device | str) -> Sequences:
        """The ids on ``device``; the lengths stay on the CPU, where shapes are decided."""
        return Sequences(self.ids.to(device, non_blocking=True), self.lengths)

    @property
    def positions(self) -> Tensor:
        """int64 ``(T,)``: each token's place in its own sequence, from 0, on the device of ``ids``."""
        starts = torch.repeat_interleave(self.lengths.cumsum(0) - self.lengths, self.lengths)
        return (torch.arange(len(self.ids)) - starts).to(self.ids.device)

    @property
    def rows(self) -> Tensor:
        """int64 ``(T,)``: which sequence each token belongs to, on the device of ``ids``."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths).to(self.ids.device)


def gather(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, cls_id: int, sep_id: int) -> Sequences:
    """``[CLS] ids[start : start + length] [SEP]`` for each of N windows, one after the other."""
    sizes = lengths + SPECIAL
    ends = sizes.cumsum()
    tokens = np.empty(int(sizes.sum()), dtype=np.int64)
    inside = np.ones(len(tokens), dtype=bool)
    inside[ends - sizes] = inside[ends - 1] = False
    tokens[ends - sizes], tokens[ends - 1] = cls_id, sep_id
    # A token's place in the store: its place here, moved by what its window is moved.
    places = (np.arange(len(tokens)) + np.repeat(starts - (ends - sizes + 1), sizes))[inside]
    tokens[inside] = ids[places]
    return Sequences(torch.from_numpy(tokens), torch.from_numpy(sizes))
