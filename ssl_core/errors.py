"""The errors a step may end with, and the exit codes that tell a runner who must act.

A message says the cause, the place (file and key) and the next step. These errors are shown without a traceback;
any other exception is a defect and keeps its own.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_NAMES_SHOWN = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean `x`?`` for the near miss among ``known``, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean `{close[0]}`?" if close else ""


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


class StepError(Exception):
    """A step that ended for a known reason.

    ``place`` names the file and key (or the address) at fault, ``next_step`` the command or edit that mends it.
    """

    exit_code = 1

    def __init__(self, cause: str, *, place: str = "", next_step: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.place = place
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [f"{self.place}: {self.cause}" if self.place else self.cause]
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


class UserError(StepError):
    """The user's configuration or input is wrong: exit code 2, never retried."""

    exit_code = 2


class CheckFailed(StepError):
    """The data or the model did not pass a check: exit code 3, never retried.

    ``output`` is the step's ``StepOutput``: the report is published and named in the result all the same, with the
    status ``check-failed``, which is never taken from the cache.
    """

    exit_code = 3

    def __init__(self, cause: str, *, place: str = "", next_step: str = "", output: Any = None) -> None:
        super().__init__(cause, place=place, next_step=next_step)
        self.output = output
        self.result: Any = None
        """The published ``StepResult``, set by the executor."""


class TryAgain(StepError):
    """Storage or tracking cannot be reached, or the process was told to stop: exit code 75, retried."""

    exit_code = 75


class Stopped(BaseException):
    """SIGTERM, on its way out of whatever runs; no ``except Exception`` of a library may take it for a fault of its own.

    Becomes ``TryAgain`` where a step or the command ends.
    """

    def as_error(self) -> TryAgain:
        return TryAgain("stopped by SIGTERM", next_step="run the same command again; it goes on from what is done")
