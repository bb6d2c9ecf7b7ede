"""Losses that no single promotion shows."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.contracts import RunContext, Verdict
from ssl_core.registry import promote
from ssl_core.registry.compare import Comparison, compare_quality
from ssl_core.registry.creep import findings
from tests.registry.conftest import World
from tests.registry.test_gate import answered


def compared(n: int, b: int, c: int) -> Comparison:
    first, second = np.ones(n), np.ones(n)
    second[:b], first[b : b + c] = 0, 0
    return compare_quality(first, second, "class", resamples=500, seed=0)


def test_only_a_sure_loss_beyond_what_is_tolerated_counts() -> None:
    lost, little, chance = compared(200, 0, 12), compared(2000, 0, 12), compared(200, 4, 8)
    found = findings({(1, "3"): lost, (2, "4"): little, (3, "5"): chance}, 0.02)
    assert [f.about for f in found] == ["window=v1"]
    assert found[0].verdict is Verdict.NEEDS_HUMAN
    assert found[0].text.startswith("forgotten since version 3 learned window v1 (p = 0.00146")
    assert findings({}, 0.02) == []


def test_two_small_losses_are_seen_together(world: World) -> None:
    """Each version loses four of 100 on the first window and wins much on what is new."""
    right = np.arange(100) < 100
    world.promote(world.gate(world.register("a", right=100, n=100, predictions=answered(right)))[1])
    for number, name in enumerate("bc", start=2):
        right = np.ones(100 * number + 100, bool)
        right[: 4 * (number - 1)] = False
        report, given = world.gate(
            world.register(name, right=int(right.sum()), n=len(right), dataset=number, predictions=answered(right))
        )
        if name == "b":
            assert report.verdict is Verdict.NEEDS_HUMAN, "four points on the champion's own windows"
            promote.decide(world.settings, "tiny", given["gate_report"].sha256, "PROMOTED", RunContext(run_id="r"))
    assert report.champion_version == "2"
    assert any(reason.startswith("forgotten since version 1 learned window v1") for reason in report.reasons)
    assert report.metrics["worst_window_change"] == pytest.approx(-0.08)
    assert report.details["forgetting"]["windows"] == [1, 2, 3]
    assert "| change on older windows since they were learned | -0.0" in report.summary_md
