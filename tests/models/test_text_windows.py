"""Long texts are read to their end, in windows that count the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_core.models.text_windows import BATCH_TOKENS, cut, mean_by_text, offsets_of, values_of_windows


def test_windows_by_hand() -> None:
    offsets = offsets_of(np.array([3, 10, 4, 0]))
    assert offsets.tolist() == [0, 3, 13, 17, 17]
    windows = cut(offsets, np.arange(4), room=4, stride=1)
    assert windows.rows.tolist() == [0, 1, 1, 1, 2, 3]
    assert windows.starts.tolist() == [0, 3, 6, 9, 13, 17], "ten tokens: 0-3, 3-6, 6-9"
    assert windows.lengths.tolist() == [3, 4, 4, 4, 4, 0]
    chosen = windows.sequences(np.arange(100, 117), np.array([5, 2, 0]), cls_id=1, sep_id=2)
    assert chosen.ids.tolist() == [1, 2, 1, 106, 107, 108, 109, 2, 1, 100, 101, 102, 2]
    assert chosen.lengths.tolist() == [2, 6, 5]


def test_windows_cover_every_token_are_full_and_share_enough() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = int(rng.integers(1, 20))
        stride = int(rng.integers(0, room))
        lengths = rng.integers(0, 100, 5)
        offsets = offsets_of(lengths)
        windows = cut(offsets, np.array([4, 0, 2]), room, stride)
        for row, text in enumerate([4, 0, 2]):
            mine = windows.rows == row
            starts, sizes = windows.starts[mine] - offsets[text], windows.lengths[mine]
            seen = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, sizes, strict=True)])
            assert np.array_equal(np.unique(seen), np.arange(lengths[text]))
            assert (sizes == min(room, lengths[text])).all()
            assert (starts[:-1] + sizes[:-1] - starts[1:] >= stride).all()
            assert (len(starts) - 1) * (room - stride) + stride < max(lengths[text], 1) or len(starts) == 1, (
                "as few as can be"
            )


def test_windows_that_share_all_of_themselves_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="cannot share"):
        cut(np.array([0, 9]), np.array([0]), 4, 4)


def test_batches_hold_each_window_once_in_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(0, 120, 500)
    windows = cut(offsets_of(lengths), np.arange(500), 126, 0)
    batches = list(windows.by_length(1000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert (np.diff(windows.lengths[np.concatenate(batches)]) >= 0).all()
    assert all((windows.lengths[batch] + 2).sum() <= 1000 for batch in batches)
    assert len(batches) <= (lengths + 2).sum() // 800 + 1, "batches are about full"
    alone = cut(np.array([0, BATCH_TOKENS * 2]), np.array([0]), BATCH_TOKENS * 2, 0)
    assert [batch.tolist() for batch in alone.by_length()] == [[0]]


def test_a_text_has_the_mean_of_its_windows() -> None:
    lengths = np.array([2, 9, 3])
    ids = np.arange(14)
    windows = cut(offsets_of(lengths), np.arange(3), 3, 0)
    values = values_of_windows(
        ids,
        windows,
        0,
        0,
        lambda batch: torch.stack([part.sum() for part in batch.ids.split(batch.lengths.tolist())])[:, None],
    )
    assert values[:, 0].tolist() == [1, 2 + 3 + 4, 5 + 6 + 7, 8 + 9 + 10, 11 + 12 + 13]
    assert mean_by_text(windows, values)[:, 0].tolist() == [1, 18, 36]
