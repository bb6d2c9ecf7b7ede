"""What was found in each window, written once: the same window never makes a second alarm, and the rule reads the ones before.

A record lies at ``<store>/monitor/<project>/<champion version>/<window>.json``, made by exclusive create.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import Field, ValidationError

from ssl_core.config.monitor import MonitorConfig
from ssl_core.contracts import Record
from ssl_core.data.windows import Window
from ssl_core.errors import CheckFailed
from ssl_core.monitoring.document import DriftReport
from ssl_core.store import Store

_MONTH = timedelta(days=30)


class WindowRecord(Record):
    """One window's report, and what the next windows need to know beside it."""

    run_id: str = Field(
        description="The run that found it: a second try of this run is no second alarm, and no lost one"
    )
    number: int = Field(description="Of the dataset version")
    score: float | None = Field(description="More than 1 exceeds; None: not judged")
    unusable: int | None = Field(
        default=None,
        description="Files that the source held and nobody could use, in all, at this version; None: not known",
    )
    report: DriftReport


class Records:
    """The records of one project."""

    def __init__(self, store: Store, project: str) -> None:
        self._store, self._uri = store, f"monitor/{project}"

    def of(self, champion: str) -> list[WindowRecord]:
        """A champion's, in the order of the windows. Raises ``CheckFailed`` for one that cannot be read."""
        folder = f"{self._uri}/{champion}"
        found = [self._read(f"{folder}/{name}") for name in self._store.names(folder) if _is_record(name)]
        return sorted(found, key=lambda one: one.number)

    def all(self) -> dict[str, list[WindowRecord]]:
        """By champion."""
        return {champion: self.of(champion) for champion in self._store.names(self._uri)}

    def add(self, champion: str, window: Window, record: WindowRecord) -> WindowRecord:
        """Writes the record; returns what is on record then, which is another's where that one was faster."""
        uri = f"{self._uri}/{champion}/{window.name}.json"
        if self._store.create(uri, record.model_dump_json(indent=1).encode()):
            return record
        return self._read(uri)

    def _read(self, uri: str) -> WindowRecord:
        raw = self._store.read(uri)
        try:
            return WindowRecord.model_validate_json(raw or b"")
        except ValidationError:
            raise CheckFailed(
                "this is no record of a window that this release can read",
                place=self._store.path(uri),
                next_step="remove it: the window is judged again",
            ) from None


def _is_record(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def counts(record: WindowRecord) -> bool:
    """Whether the rule counts a window: it was judged, and its data was not broken, which says nothing of the world."""
    return record.score is not None and record.report.finding.kind != "data-bug"


def restless(records: dict[str, list[WindowRecord]], m: int) -> set[int]:
    """Numbers of windows that no threshold must be read from: broken ones, and those that an alarm was raised for.

    One that exceeded alone stays: without these, thresholds would sink from year to year.
    """
    found: set[int] = set()
    for mine in records.values():
        judged = [one for one in mine if counts(one)]
        found |= {one.number for one in mine if one.report.finding.kind == "data-bug"}
        for place, one in enumerate(judged):
            if one.report.alarm:
                found |= {past.number for past in judged[max(0, place - m + 1) : place + 1] if (past.score or 0) > 1}
    return found


def held_back(records: dict[str, list[WindowRecord]], config: MonitorConfig, now: datetime | None = None) -> str:
    """Why no retraining may start now: the cool-down, or the most of a month; empty: it may."""
    now = now or datetime.now(UTC)
    starts = sorted(_time(one) for mine in records.values() for one in mine if one.report.retrain)
    if starts and (rest := starts[-1] + timedelta(days=config.cooldown_days) - now) > timedelta(0):
        return (
            f"cool-down: the last retraining was started {_day(starts[-1])}, the next may start in {rest.total_seconds() / 86_400:.1f} days "
            f"(monitor.cooldown_days: {config.cooldown_days:g})"
        )
    recent: Sequence[datetime] = [start for start in starts if now - start < _MONTH]
    if len(recent) >= config.retrains_per_month:
        return (
            f"cap: {len(recent)} retrainings in 30 days (monitor.retrains_per_month: {config.retrains_per_month}); "
            "a person decides whether another one helps"
        )
    return ""


def _time(record: WindowRecord) -> datetime:
    return datetime.fromisoformat(record.report.at)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
