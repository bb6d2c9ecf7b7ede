"""Which side of train, val, test and vault a sample is on: a hash range of its group, nothing else.

The side depends on the group's identity and the configured shares alone, so it is the same on every machine and never
changes as data is added, and near-duplicates (one group) are never split apart.
"""

from __future__ import annotations

import hashlib

from ssl_core.config.data import SplitConfig

SIDES = ("train", "val", "test", "vault")


def side(group: str, config: SplitConfig) -> str:
    """The side of ``group``: its position in [0, 1) among the cumulated shares of ``SIDES``."""
    position = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8]) / 2**64
    edge = 0.0
    for name in SIDES[:-1]:
        edge += getattr(config, name)
        if position < edge:
            return name
    return SIDES[-1]
