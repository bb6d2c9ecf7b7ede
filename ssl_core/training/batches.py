"""Batches of pixels: which rows a step takes, and how they reach the device."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

_RESIDENT_SHARE = 0.4
"""The whole training set moves onto a GPU where it takes at most this share of the free memory."""
_RESIDENT_CPU_BYTES = 1 << 30
"""Up to here the training set is copied into memory; above, batches are read from the memory map."""


class Feed(Protocol):
    """Where a training loop gets its batches from. A step's batch follows from the step number alone."""

    per_epoch: int

    def fetch(self, step: int) -> Any:
        """The batch of a step, on the device."""
        ...

    def count(self, batch: Any) -> int:
        """How many samples (or tokens) it holds, for the throughput."""
        ...

    def close(self) -> None: ...


class Batches:
    """Uint8 batches ``(N, C, H, W)`` of the rows ``positions`` of ``pixels``, on ``device``.

    The order is a seeded permutation per epoch and the last partial batch is dropped; a set smaller than a batch is
    taken whole. A step's batch depends on (seed, step) alone, so the step number is all that a resume has to know.

    A set that fits lies on the device as a whole. Otherwise one thread reads the next batch while the device works on
    this one.
    """

    def __init__(self, pixels: np.ndarray, positions: np.ndarray, batch_size: int, seed: int, device: str) -> None:
        self.size = min(batch_size, len(positions))
        self.per_epoch = max(1, len(positions) // self.size)
        self._pixels, self._positions, self._seed, self._device = pixels, positions, seed, torch.device(device)
        self._resident: torch.Tensor | None = None
        self._ahead: tuple[int, Future[torch.Tensor]] | None = None
        self._reader: ThreadPoolExecutor | None = None
        if self._fits(len(positions) * int(np.prod(pixels.shape[1:]))):
            self._resident = torch.from_numpy(np.ascontiguousarray(pixels[positions])).to(self._device)
        else:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _fits(self, size: int) -> bool:
        if self._device.type == "cuda":
            return size <= _RESIDENT_SHARE * torch.cuda.mem_get_info(self._device)[0]
        return size <= _RESIDENT_CPU_BYTES

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._positions))

    def rows(self, step: int) -> np.ndarray:
        """Which of ``positions`` (as indices into it) step ``step`` takes, ``(N,)``."""
        epoch, part = divmod(step, self.per_epoch)
        return self._order(epoch)[part * self.size : (part + 1) * self.size]

    def fetch(self, step: int) -> torch.Tensor:
        """The pixels of step ``step``, uint8 ``(N, C, H, W)`` on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(self.rows(step)).to(self._device)]
        assert self._reader is not None
        batch = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._reader.submit(self._read, step + 1))
        return batch.to(self._device, non_blocking=True)

    def count(self, batch: torch.Tensor) -> int:
        """Its images."""
        return len(batch)

    def _read(self, step: int) -> torch.Tensor:
        wanted = self._positions[self.rows(step)]
        order = np.argsort(wanted)  # ascending reads are sequential on the disk
        batch = np.empty((len(wanted), *self._pixels.shape[1:]), dtype=np.uint8)
        batch[order] = self._pixels[wanted[order]]
        tensor = torch.from_numpy(batch)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def close(self) -> None:
        """Ends the reading thread."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
