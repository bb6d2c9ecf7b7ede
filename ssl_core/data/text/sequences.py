"""Token sequences as everything that reads texts takes them: one after the other, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
