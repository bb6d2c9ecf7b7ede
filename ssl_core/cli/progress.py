"""Progress for people: live bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ssl_core.step import Bar, Progress

_LINE_EVERY_SECONDS = 5.0


def make_progress(console: Console) -> Progress:
    """Bars where ``console`` is a terminal, else lines."""
    return TerminalProgress(console) if console.is_terminal else LineProgress(console)


class _TerminalBar:
    def __init__(self, progress: RichProgress, title: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total, shown="")

    def advance(self, amount: float = 1, **shown: object) -> None:
        self._progress.advance(self._task, amount)
        if shown:
            self._progress.update(self._task, shown=_fields(shown))


class TerminalProgress:
    """A live bar with rate, elapsed time and ETA; it leaves the screen when done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[Bar]:
        columns = (
            TextColumn("    {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as progress:
            yield _TerminalBar(progress, title, total)

    def note(self, text: str) -> None:
        self._console.print(f"    {text}", style="dim", highlight=False, markup=False)


class _LineBar:
    def __init__(self, console: Console, title: str, total: float | None, unit: str) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._done = 0.0
        self._start = self._last = time.monotonic()

    def advance(self, amount: float = 1, **shown: object) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_SECONDS:
            return
        self._last = now
        elapsed = now - self._start
        of, eta = "", ""
        if self._total:
            of = f"/{self._total:g}"
            eta = f"  ETA {max(0.0, elapsed * (self._total / self._done - 1)):.0f} s" if self._done else ""
        self._console.print(
            f"    {self._title} {self._done:g}{of} {self._unit}  {elapsed:.0f} s{eta}  {_fields(shown)}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


class LineProgress:
    """At most one line every five seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[Bar]:
        yield _LineBar(self._console, title, total, unit)

    def note(self, text: str) -> None:
        self._console.print(f"    {text}", highlight=False, markup=False, soft_wrap=True)


def _fields(shown: dict[str, object]) -> str:
    return "  ".join(f"{name} {value}" for name, value in shown.items())
