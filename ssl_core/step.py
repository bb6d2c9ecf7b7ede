"""What a step's function sees and returns: ``run(ctx: StepContext) -> StepOutput``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import Approval, DatasetRef, Ref, RunContext, RunRequest, Verdict
from ssl_core.store import Checkpoints, Store


class Tracker(Protocol):
    """Where a step's parameters, curves and files go: an MLflow run, or nowhere in unit tests."""

    run_id: str
    url: str

    def params(self, values: Mapping[str, Any]) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def dataset(self, ref: DatasetRef, context: str) -> None: ...
    def artifact(self, path: Path, folder: str = "") -> str:
        """Log a file or folder below ``folder``; returns a browser link to it."""
        ...


class NoTracker:
    """A tracker that keeps what it was given in memory; for unit tests and library use without a server."""

    run_id = ""
    url = ""

    def __init__(self) -> None:
        self.logged_params: dict[str, Any] = {}
        self.logged_metrics: list[tuple[int, dict[str, float]]] = []
        self.logged_tags: dict[str, str] = {}
        self.logged_artifacts: list[str] = []

    def params(self, values: Mapping[str, Any]) -> None:
        self.logged_params |= dict(values)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.logged_metrics.append((step, dict(values)))

    def tags(self, values: Mapping[str, str]) -> None:
        self.logged_tags |= dict(values)

    def dataset(self, ref: DatasetRef, context: str) -> None:
        self.logged_tags[f"dataset.{context}"] = ref.tag or ref.revision

    def artifact(self, path: Path, folder: str = "") -> str:
        self.logged_artifacts.append(f"{folder}/{path.name}".lstrip("/"))
        return ""


class Bar(Protocol):
    """One progress bar. ``advance`` takes what to show beside it, for example ``loss="0.41"``."""

    def advance(self, amount: float = 1, **shown: object) -> None: ...


class Progress(Protocol):
    """Long work shows progress: bars on a terminal, a line now and then in a log."""

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[Bar]: ...
    def note(self, text: str) -> None: ...


class _SilentBar:
    def advance(self, amount: float = 1, **shown: object) -> None:
        pass


class NoProgress:
    """Shows nothing."""

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[Bar]:
        yield _SilentBar()

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Output:
    """A file or folder that a step made, relative to ``ctx.out``."""

    kind: str
    path: str


@dataclass
class StepOutput:
    """What a step returns; the executor turns each ``Output`` into an ``ArtifactRef`` when it publishes ``ctx.out``."""

    outputs: dict[str, Output | Ref] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    news: bool = True
    """False where nothing came of it that others should wake up for: no asset event is emitted."""
    verdict: Verdict | None = None
    alert: str = ""
    """What somebody has to be told of though the step went well, as ``cause: words`` (``data-bug: 40 samples of ...``).

    The same cause again is not told again; a run of the step without it closes the incident.
    """


@dataclass
class StepContext:
    """Everything a step may use. ``out`` is an empty local folder; what lies in it at the end is published."""

    project: ProjectConfig
    settings: Settings
    inputs: Mapping[str, Ref]
    run: RunContext
    key: str
    out: Path
    store: Store
    checkpoints: Checkpoints
    tracker: Tracker = field(default_factory=NoTracker)
    progress: Progress = field(default_factory=NoProgress)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set by SIGTERM and Ctrl-C: a loop saves a checkpoint and raises ``TryAgain`` within three seconds."""
    request: RunRequest | None = None
    """What the DAG run asks for; only ``resolve`` reads it."""
    approval: Approval | None = None
    """What a person answered to the gate's report; only ``promote`` reads it."""
    rollback_to: str = ""
    """The version to go back to, empty for the one before; only ``rollback`` reads it."""
    reason: str = ""
    """Why somebody goes back; only ``rollback`` reads it."""

    def fetch(self, name: str) -> Path:
        """A local, verified, read-only path of the content of input ``name`` (not for datasets: see ``data.reader``)."""
        return self.store.fetch(self.inputs[name])

    def input(self, name: str) -> Any:
        """The reference called ``name``; its type follows from the step table."""
        return self.inputs[name]


StepFunction = Callable[[StepContext], StepOutput]
