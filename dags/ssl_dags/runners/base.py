"""What a runner is: it takes a job to its end somewhere, and can stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """One step to be done: ``ssl-core step NAME`` with this spec in this environment."""

    step: str
    spec: str
    """The ``StepSpec`` as JSON."""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables that must not be shown anywhere."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Which DAG, run, task, map index and try it is for: how a retry finds what an earlier one left."""
    reads: tuple[str, ...] = ()
    """Folders and files of this machine that it reads, beside the platform's own: a local data source."""


@dataclass(frozen=True)
class Finished:
    """How a job ended. ``result`` is the document it wrote, unchecked; None where it wrote none."""

    exit_code: int
    result: bytes | None
    cause: str = ""
    """What the runner knows about a bad end that the job could not say itself, with the mend."""


class CannotStart(Exception):
    """There is no such program, image or right: trying again changes nothing. The text names the mend."""


class Unavailable(Exception):
    """What jobs run on does not answer: trying again may help."""


class Runner(Protocol):
    """A local process, a container, a pod: made for one job, by the operator, in the worker."""

    def run(self, job: Job, on_line: Callable[[str], None]) -> Finished:
        """Runs the job to its end, hands over each line it prints as it comes, and returns how it ended."""
        ...

    def kill(self) -> None:
        """Ends the job, wherever ``run`` is; Airflow kills the worker five seconds after it asked for this."""
        ...
