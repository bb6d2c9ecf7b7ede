"""One step, wherever it runs: key, cache, MLflow run, function, publication."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from ssl_core.config.load import parse_project
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import RESULT_BYTES_LIMIT, ArtifactRef, Ref, StepResult, StepSpec, StepStatus
from ssl_core.data.lock import file_lock
from ssl_core.errors import CheckFailed, Stopped, UserError
from ssl_core.modalities import noun
from ssl_core.pipeline import Step, get_step, step_key
from ssl_core.step import NoProgress, Output, Progress, StepContext, StepOutput
from ssl_core.store import Store, path_sha256

_GRACE_SECONDS = 3.0
_LONGEST_STEP_SECONDS = 7 * 86_400.0


def execute(spec: StepSpec, settings: Settings, progress: Progress | None = None) -> StepResult:
    """Does one step, or returns its record where a cached one holds.

    Raises:
        CheckFailed: a check said no; the error's ``result`` is the published ``StepResult`` with the report.
        UserError, TryAgain: see ``ssl_core.errors``.
    """
    store = Store(settings.store_url, settings.cache)
    project = parse_project(spec.project) if spec.config is None else frozen_project(store, spec.config)
    try:
        step = get_step(spec.step, project.modality)
    except KeyError:
        raise UserError(
            f"no step called '{spec.step}' in a project on {noun(project.modality)}", place="SSL_STEP_SPEC: step"
        ) from None
    if missing := [name for name in step.inputs if name not in spec.inputs]:
        raise UserError(f"{step.name} needs {', '.join(missing)}", place="SSL_STEP_SPEC: inputs")
    progress = progress or NoProgress()
    extra = _call(step.fingerprint, project) if step.fingerprint else ""
    if not step.cached:
        extra = f"{spec.run.run_id}/{spec.run.try_number}/{time.time_ns()}"
    key = step_key(step, project, spec.inputs, extra=extra)
    if not step.cached:
        return _fresh(step, key, spec, project, settings, store, progress)
    # Two runs of one project at once do a step once: the second waits, then finds the record.
    lock = settings.cache / "locks" / f"{step.name}-{key}"
    with file_lock(lock, timeout=_LONGEST_STEP_SECONDS, note=progress.note, purpose=step.name):
        earlier = _earlier(store, project, step, key, settings)
        return earlier or _fresh(step, key, spec, project, settings, store, progress)


def frozen_project(store: Store, config: Ref) -> ProjectConfig:
    """The configuration that ``resolve`` froze."""
    return parse_project(json.loads(store.fetch(config).read_bytes()), place="the run's frozen configuration")


def _earlier(store: Store, project: ProjectConfig, step: Step, key: str, settings: Settings) -> StepResult | None:
    result = store.result(project.name, step.name, key)
    if result is None or result.status is not StepStatus.DONE:
        return None
    if step.verify and not _call(step.verify, result, settings):
        return None
    return result.model_copy(update={"cached": True})


def _fresh(
    step: Step, key: str, spec: StepSpec, project: ProjectConfig, settings: Settings, store: Store, progress: Progress
) -> StepResult:
    from ssl_core.registry.tracking import open_run

    started, clock = datetime.now(UTC), time.monotonic()
    checkpoints = store.checkpoints(project.name, step.name, key)

    def finish(out: Path, output: StepOutput, status: StepStatus) -> StepResult:
        result = StepResult(
            step=step.name,
            key=key,
            status=status,
            outputs=_references(output.outputs, out, f"{step.name}/{key}", store.folder(project.name, step.name, key)),
            metrics=output.metrics,
            links=output.links,
            summary=output.summary,
            news=output.news,
            verdict=output.verdict,
            alert=output.alert,
            run_id=spec.run.run_id,
            started_at=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
        )
        size = len(result.model_dump_json().encode())
        if size > RESULT_BYTES_LIMIT:
            raise ValueError(
                f"the result of {step.name} has {size} bytes; at most {RESULT_BYTES_LIMIT} cross a step boundary"
            )
        store.publish(project.name, result, out)
        return result

    with store.scratch() as scratch, stoppable(step.resumable) as stop:
        out = scratch / "out"
        out.mkdir()
        with open_run(settings, project, step, key, spec.run, spec.inputs) as tracker:
            if tracker.url and spec.run.orchestrator == "airflow":  # the task links to it, however it ends
                progress.note(f"MLflow run: {tracker.url}")
            context = StepContext(
                project=project,
                settings=settings,
                inputs=spec.inputs,
                run=spec.run,
                key=key,
                out=out,
                store=store,
                checkpoints=checkpoints,
                tracker=tracker,
                progress=progress,
                stop=stop,
                request=spec.request,
                approval=spec.approval,
                rollback_to=spec.rollback_to,
                reason=spec.reason,
            )
            try:
                output: StepOutput = _call(step.function, context)
            except CheckFailed as error:
                report = error.output if isinstance(error.output, StepOutput) else StepOutput(summary=str(error))
                error.result = finish(out, _with_link(report, tracker.url), StepStatus.CHECK_FAILED)
                raise
        result = finish(out, _with_link(output, tracker.url), StepStatus.DONE)
    checkpoints.clear()
    return result


def _with_link(output: StepOutput, url: str) -> StepOutput:
    if url:
        output.links = {"MLflow run": url, **output.links}
    return output


def _references(outputs: Mapping[str, Output | Ref], out: Path, producer: str, folder: str) -> dict[str, Ref]:
    refs: dict[str, Ref] = {}
    for name, made in outputs.items():
        if not isinstance(made, Output):
            refs[name] = made
            continue
        refs[name] = ArtifactRef(
            kind=made.kind, uri=f"{folder}/out/{made.path}", sha256=path_sha256(out / made.path), producer=producer
        )
    return refs


def _call(function: str, *arguments: Any) -> Any:
    module, name = function.split(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found(*arguments)


@contextmanager
def stoppable(resumable: bool) -> Iterator[threading.Event]:
    """SIGTERM ends the step with ``TryAgain``; Ctrl-C with ``KeyboardInterrupt``.

    A resumable step is asked first, through the event, and has three seconds for a last checkpoint.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if received and received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped

    def ask(number: int, frame: FrameType | None) -> None:
        first = not received
        received.append(number)
        stop.set()
        if resumable and first:
            signal.setitimer(signal.ITIMER_REAL, _GRACE_SECONDS)
        else:
            end(number, frame)

    previous = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
    previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, end)
    try:
        yield stop
    except Stopped as stopped:
        raise stopped.as_error() from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
