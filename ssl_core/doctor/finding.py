"""What a check is and what it finds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from ssl_core.config.settings import Settings
from ssl_core.errors import StepError

Status = Literal["ok", "warning", "failed", "skipped"]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """``found`` is the telling fact; ``cause`` and ``mend`` say what is wrong and which command or setting mends it."""

    status: Status
    found: str = ""
    cause: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Check:
    """``seconds``: how long it may take; ``unanswered``: the mend where nothing answers in that time."""

    name: str
    look: Callable[[Settings], Finding]
    seconds: float
    unanswered: str


@dataclass(frozen=True)
class Answer:
    """A finding with the name of its check and the seconds it took."""

    name: str
    status: Status
    found: str
    cause: str
    mend: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ok(found: str) -> Finding:
    return Finding("ok", found)


def skipped(found: str) -> Finding:
    return Finding("skipped", found)


def warning(cause: str, mend: str, found: str = "") -> Finding:
    return Finding("warning", found, cause, mend)


def failed(cause: str, mend: str, found: str = "") -> Finding:
    return Finding("failed", found, cause, mend)


def of_error(error: StepError) -> Finding:
    """What a part of the platform says is wrong, as a finding."""
    return failed(f"{error.place}: {error.cause}" if error.place else error.cause, error.next_step)


def worst(problems: list[Finding], found: str) -> Finding:
    """One finding of several: failed where one of them is, with all causes and the mends in the same order; else ok."""
    if not problems:
        return ok(found)
    status: Status = "failed" if any(p.status == "failed" for p in problems) else "warning"
    mends = dict.fromkeys(p.mend for p in problems)
    return Finding(status, found, "; ".join(dict.fromkeys(p.cause for p in problems)), "; ".join(mends))


class Once(Generic[T]):
    """A value that several checks need: made by the first that asks, while the others wait for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]
