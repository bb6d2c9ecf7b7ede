"""The report for a person: short, in words, and safe whatever names the data holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from ssl_core.contracts import ModelRef, Verdict
from ssl_core.registry.gate_report import summary
from ssl_core.registry.judge import Decision
from ssl_core.registry.slices import Slice
from tests.registry.test_judge import FINE, PERHAPS, WORSE, comparison, one

CHALLENGER = ModelRef(
    kind="registered-model", name="tiny", version="7", model_id="m", run_id="r", uri="u", sha256="s", producer="p"
)


def report(decision: Decision, champion: str | None = "6") -> str:
    text = summary(CHALLENGER, champion, "tiny@v3", decision)
    assert len(text.encode()) <= 4096
    return text


def decision(slices: list[Slice], reasons: list[str] | None = None, **more: Any) -> Decision:
    details = {"against": "champion", "comparison": asdict(comparison(0.05, 0.02, 0.08))}
    details |= {"slices": [s.as_dict() for s in slices]} | more
    return Decision(
        Verdict.PROMOTE, reasons or ["better than the champion"], {"ece": 0.03, "champion_ece": 0.02}, details
    )


def test_it_says_who_and_why_and_how_much() -> None:
    text = report(decision([], vault=asdict(FINE)))
    lines = text.splitlines()
    assert lines[0] == "# PROMOTE: tiny version 7"
    assert lines[2] == "Challenger trained on tiny@v3; champion version 6."
    assert "- **better than the champion**" in lines
    assert "| accuracy on 450 test samples | 0.9000 | 0.8500 |" in lines
    assert "| calibration error (ECE) | 0.030 | 0.020 |" in lines
    assert any(line.startswith("| accuracy on 450 vault samples |") for line in lines)
    assert "no champion yet" in report(decision([]), champion=None)


def test_the_slices_that_matter_come_first() -> None:
    slices = [one(f"label={i}", FINE) for i in range(30)]
    slices += [one("window=v2", FINE), one("label=bad", WORSE, adjusted=0.01), one("source=s", PERHAPS, listed=True)]
    slices += [one("label=few", None), one("label=none", None, listed=True)]
    rows = [line for line in report(decision(slices)).splitlines() if line.startswith("| ") and "=" in line]
    assert [row.split(" | ")[0] for row in rows[:4]] == [
        "| source=s (protected)", "| label=none (protected)", "| label=bad", "| window=v2",
    ]  # fmt: skip
    assert len(rows) == 8
    assert "**worse**" in rows[2]
    assert "insufficient" in rows[1]
    assert "26 more slices in gate.json, 2 too small to tell" in report(decision(slices))


@pytest.mark.parametrize(
    "name", ["label=a|b\n# c", "label=`x`<script>", "label=" + "ä" * 500, "label=[x](javascript:y)"]
)
def test_names_from_data_are_no_markup(name: str) -> None:
    text = report(decision([one(name, WORSE, adjusted=0.01)], [f"worse on {name}"]))
    row = next(line for line in text.splitlines() if line.startswith("| label=") and "**worse**" in line)
    assert row.count("|") == 6
    assert "<script>" not in text
    assert "](" not in text


def test_many_long_reasons_leave_room_for_the_tables() -> None:
    reasons = [f"{i} " + "because " * 100 for i in range(40)]
    text = report(decision([one("label=bad", WORSE, adjusted=0.01)], reasons))
    assert "- and more, see gate.json" in text
    assert "| label=bad |" in text
    assert "| accuracy on 450 test samples |" in text
