"""One step from result files to a result file, as `dvc repro` calls it: files stand where Airflow has XCom.

A folder holds one ``StepResult`` a step, of one project and one store. Each step reads what those before it wrote there.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from ssl_core.cli.common import new_run
from ssl_core.cli.execute import execute, frozen_project
from ssl_core.config.load import load_project
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import ArtifactRef, ModelRef, Ref, RunContext, StepResult, StepSpec, StepStatus
from ssl_core.errors import CheckFailed, UserError
from ssl_core.modalities import noun
from ssl_core.pipeline import Step, get_step, producer, skip_reason
from ssl_core.step import Progress
from ssl_core.store import Store


def step_from_files(name: str, project: Path, results: Path, settings: Settings, progress: Progress) -> StepResult:
    """Does step ``name`` with what earlier steps wrote into ``results``, and writes its own result there.

    A step that has nothing to do writes a result as well (``SKIPPED``), because DVC wants every output. One that fails leaves
    none, so that nobody takes an old one for its; a failed check leaves its report.

    Raises:
        UserError: an earlier result is missing, damaged, of another project or of another store.
        CheckFailed, TryAgain: see ``ssl_core.errors``.
    """
    config = load_project(project)
    try:
        step = get_step(name, config.modality)
    except KeyError:
        raise UserError(
            f"a project on {noun(config.modality)} has no step '{name}'",
            place=str(project),
            next_step="make docs writes a dvc.yaml that fits the project it names",
        ) from None
    target = results / f"{name}.json"
    _same_project(results, config)
    if step.name == "resolve":
        _forget(target)
        spec = StepSpec(step=name, project=config.model_dump(mode="json"), run=_context())
        return _execute(spec, settings, progress, target)
    resolved = _read(results, get_step("resolve"))
    frozen = _frozen(resolved, results, settings)
    artifacts = _artifacts(step, results)
    _forget(target)
    if step.name in ("tokenize", "pretrain") and (reused := _reusable(frozen, settings, progress)):
        artifacts["registered_encoder"] = reused
    if reason := skip_reason(step, artifacts):
        result = StepResult(
            step=name,
            key="",
            status=StepStatus.SKIPPED,
            outputs=_instead(step, artifacts),
            summary=f"skipped: {reason}",
            run_id=resolved.run_id,
        )
        write_result(result, target)
        return result
    if missing := [wanted for wanted in step.inputs if wanted not in artifacts]:
        raise UserError(
            f"{name} needs {', '.join(missing)}, which nothing before it made",
            place=str(results),
            next_step=_redo(producer(missing[0])),
        )
    spec = StepSpec(
        step=name,
        config=frozen,
        inputs={n: artifacts[n] for n in (*step.inputs, *step.optional) if n in artifacts},
        run=_context(resolved.run_id),
    )
    return _execute(spec, settings, progress, target)


def write_result(result: StepResult, path: Path) -> None:
    """Writes the result in one piece: a reader sees all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(result.model_dump_json(indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot be written: {error.strerror}", place=str(path)) from error


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", place=str(path)) from error


def _execute(spec: StepSpec, settings: Settings, progress: Progress, target: Path) -> StepResult:
    from ssl_core.registry.server import ensure_server

    ensure_server(settings, progress.note)
    try:
        result = execute(spec, settings, progress)
    except CheckFailed as error:
        if isinstance(error.result, StepResult):
            write_result(error.result, target)
            progress.note(error.result.summary)
        raise
    # Whether it was done now or before is nothing that the steps after it should be done again for.
    write_result(result.model_copy(update={"cached": False}), target)
    return result


def _context(run_id: str = "") -> RunContext:
    """One id for the whole walk: the one that resolve began with."""
    context = new_run().model_copy(update={"orchestrator": "dvc"})
    return context.model_copy(update={"run_id": run_id}) if run_id else context


# ---- what earlier steps left


def _read(results: Path, step: Step) -> StepResult:
    path = results / f"{step.name}.json"
    try:
        result = StepResult.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"the result of {step.name} is not there", place=str(path), next_step=f"{_redo(step)} first"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", place=str(path)) from error
    except ValidationError as error:
        raise UserError(
            f"is not a step result: {error.errors()[0]['msg']}",
            place=str(path),
            next_step=f"remove it and {_redo(step)} again",
        ) from error
    if result.step != step.name or (result.status is StepStatus.DONE and set(step.outputs) - set(result.outputs)):
        raise UserError(
            f"is not a result of {step.name}", place=str(path), next_step=f"remove it and {_redo(step)} again"
        )
    if result.status is StepStatus.CHECK_FAILED:
        raise UserError(
            f"{step.name} did not pass its check",
            place=str(path),
            next_step=f"read its summary, mend the cause and {_redo(step)} again",
        )
    return result


def _redo(step: Step) -> str:
    return f"run {step.name} (dvc repro {step.name})"


def _artifacts(step: Step, results: Path) -> dict[str, Ref]:
    """What the makers of the step's inputs made, or handed on in place of it."""
    artifacts: dict[str, Ref] = {}
    for maker in {producer(name).name: producer(name) for name in step.inputs}.values():
        artifacts |= _read(results, maker).outputs
    return artifacts


def _instead(step: Step, artifacts: dict[str, Ref]) -> dict[str, Ref]:
    """What a skipped step hands on: where pretraining is left out, the encoder that is reused."""
    return {n: r for n, r in artifacts.items() if n == "registered_encoder" and step.template == "pretrain"}


def _reusable(config: ArtifactRef, settings: Settings, progress: Progress) -> ModelRef | None:
    """The encoder that ``pretrain.when`` lets this run reuse.

    Asked here again: DVC runs resolve when the project file changes, but data change without it.
    """
    from ssl_core.registry.client import connect, mlflow_errors
    from ssl_core.registry.resolve import reusable_encoder
    from ssl_core.registry.server import ensure_server

    ensure_server(settings, progress.note)
    store = Store(settings.store_url, settings.cache)
    with mlflow_errors(settings):
        return reusable_encoder(connect(settings), store, frozen_project(store, config))


def _same_project(results: Path, project: ProjectConfig) -> None:
    """A folder is one project's: another one's results would be taken for its own."""
    try:
        outputs = StepResult.model_validate_json((results / "resolve.json").read_bytes()).outputs
    except (OSError, ValidationError):  # none yet, or one that says nothing
        return
    config = outputs.get("config")
    name = config.uri.partition("/")[0] if isinstance(config, ArtifactRef) else project.name
    if name != project.name:
        raise UserError(
            f"holds the results of {name}, not of {project.name}",
            place=str(results),
            next_step="give another --results",
        )


def _frozen(resolved: StepResult, results: Path, settings: Settings) -> ArtifactRef:
    """The configuration of this run, in the store that the settings name."""
    config = resolved.outputs.get("config")
    if not isinstance(config, ArtifactRef):
        raise UserError(
            "names no configuration",
            place=str(results / "resolve.json"),
            next_step=f"remove it and {_redo(get_step('resolve'))} again",
        )
    store = Store(settings.store_url, settings.cache)
    if not store.exists(config.uri):
        raise UserError(
            f"these results are of another store than {store.url}",
            place=str(results),
            next_step="set SSL_HOME (or SSL_STORE) as it was, or start over in this one: dvc repro --force",
        )
    return config
