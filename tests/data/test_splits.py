"""Sides follow from the group alone: right shares, and nothing ever moves."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_core.config.data import SplitConfig
from ssl_core.data.splits import SIDES, side

_GROUPS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]


def test_shares_are_those_asked_for() -> None:
    config = SplitConfig(train=0.6, val=0.1, test=0.2, vault=0.1)
    counts = Counter(side(group, config) for group in _GROUPS)
    for name in SIDES:
        expected = getattr(config, name)
        deviation = (expected * (1 - expected) / len(_GROUPS)) ** 0.5
        assert counts[name] / len(_GROUPS) == pytest.approx(expected, abs=4 * deviation)


def test_the_side_does_not_follow_the_order_of_sample_ids() -> None:
    """Shards are in the order of sample_ids; a split that followed it would put a split in one shard."""
    config = SplitConfig()
    first, last = sorted(_GROUPS)[:2000], sorted(_GROUPS)[-2000:]
    for part in (first, last):
        assert sum(side(group, config) == "train" for group in part) / len(part) == pytest.approx(0.7, abs=0.05)


@given(st.text(), st.floats(0.1, 0.6), st.floats(0.02, 0.1), st.floats(0.02, 0.1))
def test_the_side_is_the_range_that_holds_the_hash(group: str, train: float, val: float, vault: float) -> None:
    config = SplitConfig(train=train, val=val, test=1 - train - val - vault, vault=vault)
    position = int(hashlib.sha256(f"split:{group}".encode()).hexdigest()[:16], 16) / 2**64
    edges = [train, train + val, 1 - vault]
    assert SIDES.index(side(group, config)) in {
        sum(position >= e for e in edges),
        sum(position > e + 1e-12 for e in edges),
    }


def test_known_sides_stay() -> None:
    """Pinned: another hash or another order of the ranges would move every sample of every published dataset."""
    sides = [side(group, SplitConfig()) for group in _GROUPS[:40]]
    assert hashlib.sha256(",".join(sides).encode()).hexdigest()[:12] == "73eed5fb23a0"
