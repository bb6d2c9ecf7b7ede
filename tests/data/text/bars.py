"""Progress that remembers what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Bars:
    def __init__(self) -> None:
        self.sums: dict[str, tuple[float | None, float]] = {}
        self.notes: list[str] = []

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[_Bar]:
        bar = _Bar()
        yield bar
        self.sums[title] = (total, bar.done)

    def note(self, text: str) -> None:
        self.notes.append(text)


class _Bar:
    done = 0.0

    def advance(self, amount: float = 1, **shown: object) -> None:
        self.done += amount
