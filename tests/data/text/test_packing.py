"""Windows and batches: nothing is lost, nothing is read twice, and a step's batch follows from its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.text.packing import TextBatches, windows
from ssl_core.data.text.sequences import SPECIAL, gather
from ssl_core.models.text_windows import offsets_of

CLS, SEP = 900, 901


@dataclass(frozen=True)
class Numbered:
    """Texts of these lengths, whose tokens are numbered from 1000 on: each occurs once."""

    ids: np.ndarray
    offsets: np.ndarray


def numbered(lengths: list[int]) -> Numbered:
    offsets = offsets_of(np.array(lengths, dtype=np.int64))
    return Numbered(np.arange(1000, 1000 + offsets[-1], dtype=np.uint32), offsets)


def batches(store: Numbered, positions: np.ndarray | None = None, seed: int = 0, **more: int) -> TextBatches:
    if positions is None:
        positions = np.arange(len(store.offsets) - 1)
    sizes = {"max_length": 16, "batch_tokens": 64} | more
    return TextBatches(store, positions, cls_id=CLS, sep_id=SEP, seed=seed, **sizes)


def some(count: int = 200, longest: int = 40, seed: int = 0) -> Numbered:
    return numbered(np.random.default_rng(seed).integers(0, longest, count).tolist())


LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=30)


@given(lengths=LENGTHS, room=st.integers(1, 9))
def test_windows_hold_every_token_once_and_cut_as_late_as_they_can(lengths: list[int], room: int) -> None:
    store = numbered(lengths)
    expected = [
        (begin, min(room, stop - begin))
        for start, stop in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True)
        for begin in range(start, stop, room)
    ]
    starts, sizes = windows(store.offsets, np.arange(len(lengths)), room)
    assert list(zip(starts.tolist(), sizes.tolist(), strict=True)) == expected


def test_windows_of_some_texts_in_the_order_asked_for() -> None:
    starts, sizes = windows(numbered([3, 5, 0, 2]).offsets, np.array([3, 1, 2]), 4)
    assert (starts.tolist(), sizes.tolist()) == ([8, 3, 7], [2, 4, 1])


def test_gathered_sequences_are_framed() -> None:
    made = gather(numbered([3, 4, 2]).ids, np.array([7, 0, 4]), np.array([2, 3, 1]), CLS, SEP)
    assert made.ids.tolist() == [CLS, 1007, 1008, SEP, CLS, 1000, 1001, 1002, SEP, CLS, 1004, SEP]
    assert made.lengths.tolist() == [4, 5, 3]


@given(lengths=LENGTHS.filter(any), batch_tokens=st.integers(1, 200), seed=st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_reads_every_token_once(lengths: list[int], batch_tokens: int, seed: int) -> None:
    store = numbered(lengths)
    made = batches(store, seed=seed, batch_tokens=batch_tokens)
    for epoch in (0, 3):
        read = [made._read(epoch * made.per_epoch + part) for part in range(made.per_epoch)]
        tokens = np.concatenate([batch.ids.numpy() for batch in read])
        assert sorted(tokens[tokens >= 1000].tolist()) == store.ids.tolist()
        assert all(len(batch.lengths) > 0 for batch in read)
        assert sum(made.count(batch) for batch in read) == made.tokens
    made.close()


def test_a_sequence_is_one_window_of_one_text() -> None:
    store = some()
    made = batches(store)
    starts, sizes = windows(store.offsets, np.arange(200), 14)
    known = {(1000 + start, size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)}
    for step in range(made.per_epoch):
        batch = made.fetch(step)
        for row in batch.ids.split(batch.lengths.tolist()):
            assert (row[0], row[-1]) == (CLS, SEP)
            assert row[1:-1].tolist() == list(range(int(row[1]), int(row[1]) + len(row) - 2))
            known.remove((int(row[1]), len(row) - 2))
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist())
    assert not known
    made.close()


def test_batches_have_nearly_as_many_tokens_as_asked_for() -> None:
    made = batches(some(2000), batch_tokens=512)
    sizes = [len(made._read(step).ids) for step in range(made.per_epoch)]
    assert np.mean(sizes) == pytest.approx(512, rel=0.02)
    # A window goes to one side or the other of a cut, no more.
    assert max(abs(size - np.mean(sizes)) for size in sizes) <= 16
    assert made.maskable == pytest.approx((made.tokens - SPECIAL * len(made.starts)) / made.per_epoch)
    made.close()


def test_a_steps_batch_follows_from_seed_and_step() -> None:
    store = some()
    one, again, other = batches(store), batches(store), batches(store, seed=1)
    steps = [0, 1, 2, 5, one.per_epoch, 3 * one.per_epoch + 1]
    in_order = {step: one.fetch(step) for step in steps}
    for step in reversed(steps):  # whatever was fetched before, ahead or not
        assert again.fetch(step).ids.tolist() == in_order[step].ids.tolist()
        assert other.fetch(step).ids.tolist() != in_order[step].ids.tolist()
    assert in_order[0].ids.tolist() != in_order[one.per_epoch].ids.tolist()  # each epoch has an order of its own
    for made in (one, again, other):
        made.close()


def test_only_the_texts_asked_for_are_read() -> None:
    store = numbered([4, 4, 4, 4])
    made = batches(store, np.array([1, 3]), batch_tokens=1)
    read = np.concatenate([made.fetch(step).ids.numpy() for step in range(made.per_epoch)])
    assert made.per_epoch == 2
    assert sorted(read[read >= 1000].tolist()) == [1004, 1005, 1006, 1007, 1012, 1013, 1014, 1015]
    made.close()


def test_one_endless_text_is_many_windows_and_all_of_it_is_read() -> None:
    store = numbered([100_003])
    made = batches(store, max_length=128, batch_tokens=4096)
    assert (len(made.starts), made.lengths.min()) == (794, 100_003 - 793 * 126)
    read = np.concatenate([made._read(step).ids.numpy() for step in range(made.per_epoch)])
    assert np.array_equal(np.sort(read[read >= 1000]), store.ids)
    made.close()


def test_fewer_tokens_than_a_batch_are_one_batch() -> None:
    made = batches(numbered([2, 3]), batch_tokens=4096)
    assert (made.per_epoch, made.count(made.fetch(7))) == (1, 9)
    made.close()


def test_texts_without_a_token_are_left_out_and_nothing_else_is_no_corpus() -> None:
    made = batches(numbered([0, 2, 0]), batch_tokens=1)
    assert made.fetch(0).ids.tolist() == [CLS, 1000, 1001, SEP]
    made.close()
    with pytest.raises(ValueError, match="no text has a token"):
        batches(numbered([0, 0]))


def test_closing_while_a_batch_is_read_ahead() -> None:
    made = batches(some())
    made.fetch(0)
    made.close()
    made.close()
