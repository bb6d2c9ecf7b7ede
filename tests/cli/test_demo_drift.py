"""How the demo of drift goes on from where it stands, and that it does not end well without an alarm."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ssl_core.cli import demo_drift
from ssl_core.config.settings import Settings
from ssl_core.errors import CheckFailed
from ssl_core.services.follow import Run, Task


class Told:
    """Stands for the follower: what it was asked to run, in order; ``alarm`` is the window whose monitor has news."""

    def __init__(self, alarm: int | None) -> None:
        self.alarm, self.ran, self.windows = alarm, [], 0  # type: ignore[var-annotated]

    def chain(self) -> list[Run]:
        self.ran.append("chain")
        return []

    def one(self, template: str, after: Run | None = None) -> Run:
        self.ran.append(template)
        run = Run(f"digits-live.{template}", "r", "woken", "")
        if template == "monitor":
            state = "success" if self.windows == self.alarm else "skipped"
            run.tasks["monitor"] = Task("monitor", state, 1, 1.0)
        return run


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    def played(versions: int, alarm: int | None, *, alarmed_before: bool = False) -> list[str]:
        told = Told(alarm)
        monkeypatch.setattr(demo_drift, "_versions", lambda settings: versions)
        monkeypatch.setattr(demo_drift, "has_champion", lambda settings, name: versions > 0)
        monkeypatch.setattr(demo_drift, "_alarmed", lambda settings: alarmed_before)
        monkeypatch.setattr(demo_drift.live_digits, "arrive", lambda data, window: setattr(told, "windows", window))
        demo_drift._play(Settings(home=tmp_path), told, Console(file=StringIO()))  # type: ignore[arg-type]
        return told.ran

    return played


def test_from_nothing_to_the_alarm_at_the_last_window(play: Any) -> None:
    assert play(0, 5) == ["chain", *["ingest", "monitor"] * 5, "finetune"]


def test_it_goes_on_with_the_newest_window(play: Any) -> None:
    assert play(4, 5) == [*["ingest", "monitor"] * 3, "finetune"]


def test_an_alarm_that_was_raised_before_leaves_the_fine_tuning(play: Any) -> None:
    assert play(6, None, alarmed_before=True) == ["ingest", "monitor", "finetune"]


def test_without_an_alarm_it_does_not_end_well(play: Any) -> None:
    with pytest.raises(CheckFailed, match="no alarm was raised"):
        play(0, None)
