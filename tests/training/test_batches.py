"""Which rows a step takes, and that both ways of fetching them give the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_core.training import batches as module
from ssl_core.training.batches import Batches

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)


def test_an_epoch_takes_each_row_at_most_once_and_drops_the_rest() -> None:
    batches = Batches(PIXELS, np.arange(50), 16, 0, "cpu")
    assert (batches.size, batches.per_epoch) == (16, 3)
    epochs = [np.concatenate([batches.rows(3 * epoch + part) for part in range(3)]) for epoch in range(2)]
    assert all(len(set(epoch.tolist())) == 48 for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert set(np.concatenate(epochs).tolist()) == set(range(50)), "the dropped rows are others in each epoch"


def test_small_set_is_one_batch() -> None:
    batches = Batches(PIXELS, np.arange(5), 16, 0, "cpu")
    assert (batches.size, batches.per_epoch) == (5, 1)
    assert sorted(batches.rows(7).tolist()) == [0, 1, 2, 3, 4]


def test_order_follows_from_seed_and_step_alone() -> None:
    first, second, other = (Batches(PIXELS, np.arange(50), 16, seed, "cpu") for seed in (3, 3, 4))
    assert np.array_equal(first.rows(10), second.rows(10))
    assert not np.array_equal(first.rows(10), other.rows(10))


@pytest.mark.parametrize("steps", [range(7), [4, 5, 2, 3, 9]])
def test_read_ahead_equals_resident(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    positions = np.array([49, 3, 7, 11, 30, 31, 2, 19, 23, 40])
    resident = Batches(PIXELS, positions, 4, 0, "cpu")
    monkeypatch.setattr(module, "_RESIDENT_CPU_BYTES", 0)
    mapped = Batches(PIXELS, positions, 4, 0, "cpu")
    for step in steps:
        expected = torch.from_numpy(PIXELS[positions[resident.rows(step)]])
        assert torch.equal(resident.fetch(step), expected)
        assert torch.equal(mapped.fetch(step), expected)
    mapped.close()


def test_reading_fault_reaches_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESIDENT_CPU_BYTES", 0)
    batches = Batches(PIXELS, np.array([1, 2, 99]), 3, 0, "cpu")
    with pytest.raises(IndexError):
        batches.fetch(0)
    batches.close()
