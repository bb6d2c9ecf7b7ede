"""Records of windows: written once, read in order; what holds a retraining back; which windows are no measure of quiet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ssl_core.config.monitor import MonitorConfig
from ssl_core.data.windows import Window
from ssl_core.errors import CheckFailed
from ssl_core.monitoring.document import DriftReport, Finding, Kind, Reference, Rule
from ssl_core.monitoring.document import Window as Described
from ssl_core.monitoring.record import Records, WindowRecord, held_back, restless
from ssl_core.store import Store

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def record(
    number: int, score: float | None = 0.5, *, kind: Kind = "quiet", alarm: bool = False, days_ago: float | None = None
) -> WindowRecord:
    at = NOW - timedelta(days=days_ago or 0)
    report = DriftReport(
        project="tiny", champion_version="1", encoder_version="1", dataset=f"tiny@v{number}", at=at.isoformat(timespec="seconds"),
        window=Described(name=f"v{number}", rows=100), reference=Reference(rows=500), alarm=alarm, retrain=days_ago is not None,
        rule=Rule(k=2, m=5, false_alarms=2, calibrated_by="resampling", windows_used=0), finding=Finding(kind=kind, reasons=[]),
    )  # fmt: skip
    return WindowRecord(run_id="r", number=number, score=score, report=report)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(Store(tmp_path.as_uri(), tmp_path / "cache"), "tiny")


def add(records: Records, one: WindowRecord, champion: str = "1") -> WindowRecord:
    return records.add(champion, Window(f"v{one.number}", one.number, np.zeros(0)), one)


def test_the_first_record_of_a_window_stays(records: Records) -> None:
    for number in (10, 2, 9):
        add(records, record(number))
    assert [one.number for one in records.of("1")] == [2, 9, 10]
    assert add(records, record(9, score=3)).score == 0.5
    assert records.of("2") == []
    assert sorted(records.all()) == ["1"]


def test_a_record_that_cannot_be_read_is_named(records: Records, tmp_path: Path) -> None:
    add(records, record(2))
    path = tmp_path / "monitor/tiny/1/v2.json"
    path.write_text("{")
    with pytest.raises(CheckFailed, match="no record of a window") as caught:
        records.of("1")
    assert caught.value.place.endswith("v2.json")


def test_cool_down_and_cap() -> None:
    config = MonitorConfig(cooldown_days=2, retrains_per_month=2)
    assert held_back({}, config, NOW) == ""
    assert "cool-down" in held_back({"1": [record(2, days_ago=1)]}, config, NOW)
    assert "1.0 days" in held_back({"1": [record(2, days_ago=1)]}, config, NOW)
    assert held_back({"1": [record(2, days_ago=3)]}, config, NOW) == ""
    of_two = {"1": [record(2, days_ago=20)], "2": [record(3, days_ago=10)]}
    assert held_back(of_two, config, NOW).startswith("cap: 2 retrainings in 30 days")
    assert held_back({"1": [record(2, days_ago=31)], "2": [record(3, days_ago=10)]}, config, NOW) == ""
    assert held_back({}, MonitorConfig(retrains_per_month=0), NOW).startswith("cap: 0")


def test_windows_behind_an_alarm_and_broken_ones_are_no_measure_of_quiet() -> None:
    mine = [
        record(2, 1.5), record(3), record(4), record(5), record(6),  # one that exceeded alone, long before
        record(7, 1.2), record(8, None, kind="cannot-tell"), record(9, 2.0, alarm=True, kind="covariate-shift"),
        record(10, 3.0, kind="data-bug"),
    ]  # fmt: skip
    assert restless({"1": mine}, m=5) == {7, 9, 10}
    assert restless({"1": mine}, m=7) == {2, 7, 9, 10}
