"""Batches are random, of about equal length, and every text has its turn."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.models.text_windows import cut, offsets_of
from ssl_core.tasks.text_batches import Order


def order(lengths: np.ndarray, batch_size: int = 4, seed: int = 0, room: int = 10) -> Order:
    return Order(cut(offsets_of(lengths), np.arange(len(lengths)), room, 2), batch_size, seed)


@pytest.mark.parametrize(("count", "size"), [(1, 4), (9, 4), (64, 8), (333, 32)])
def test_an_epoch_holds_each_text_once(count: int, size: int) -> None:
    one = order(np.random.default_rng(0).integers(1, 50, count), size)
    for epoch in range(3):
        batches = one.epoch(epoch)
        assert len(batches) == one.per_epoch == -(-count // size)
        assert sorted(one.windows.rows[np.concatenate(batches)].tolist()) == list(range(count))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1


def test_windows_of_a_long_text_take_turns() -> None:
    one = order(np.array([3, 42, 3, 20]))
    assert np.bincount(one.windows.rows).tolist() == [1, 5, 1, 3]
    seen = [np.concatenate(one.epoch(epoch)) for epoch in range(5)]
    assert sorted({int(w) for epoch in seen for w in epoch}) == list(range(10))
    assert {tuple(one.windows.rows[np.sort(epoch)]) for epoch in seen} == {(0, 1, 2, 3)}


def test_steps_follow_from_their_number() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 50)
    every = list(order(lengths).steps(0, 40))
    assert len(every) == 40
    for start, stop in ((0, 5), (13, 14), (12, 26), (39, 40), (7, 7)):
        part = list(order(lengths).steps(start, stop))
        assert [a.tolist() for a in part] == [b.tolist() for b in every[start:stop]]
    assert [a.tolist() for a in order(lengths, seed=1).steps(0, 13)] != [b.tolist() for b in every[:13]]
    assert [a.tolist() for a in every[:13]] != [b.tolist() for b in every[13:26]]


def test_texts_of_a_batch_are_of_about_equal_length_and_partners_change() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1024)
    one = order(lengths, 32, room=200)

    def filled(batches: list[np.ndarray]) -> float:
        sizes = [one.windows.lengths[batch] for batch in batches]
        return sum(s.sum() for s in sizes) / sum(s.max() * len(s) for s in sizes)

    shuffled = np.array_split(np.random.default_rng(0).permutation(1024), 32)
    assert filled(list(shuffled)) < 0.55
    assert filled(one.epoch(0)) > 0.85, "few padding tokens"
    means = [one.windows.lengths[batch].mean() for batch in one.epoch(0)]
    assert abs(np.corrcoef(np.arange(32), means)[0, 1]) < 0.5, "not from short to long"
    first = {row: set(batch.tolist()) for batch in one.epoch(0) for row in batch.tolist()}
    again = [len(set(batch.tolist()) & first[row]) for batch in one.epoch(1) for row in batch.tolist()]
    assert np.mean(again) < 8, "of 32 texts of a batch, few were together before"
