"""``ssl-core step NAME``: one step, as every runner calls it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click
from pydantic import ValidationError

from ssl_core.cli.common import load_settings, stderr_console
from ssl_core.cli.execute import execute
from ssl_core.cli.progress import make_progress
from ssl_core.cli.step_files import step_from_files, write_result
from ssl_core.config.load import find_project
from ssl_core.contracts import StepResult, StepSpec
from ssl_core.errors import CheckFailed, TryAgain, UserError, did_you_mean
from ssl_core.pipeline import STEPS

_PR_SET_PDEATHSIG = 1


@click.command()
@click.argument("name")
@click.option("--project", metavar="FILE", help="The project file; with --results.")
@click.option(
    "--results", metavar="DIR", help="Folder of result files, one a step: earlier ones are read, NAME's is written."
)
def step(name: str, project: str | None, results: str | None) -> None:
    """Do step NAME.

    Reads one JSON document, the step spec, from the environment variable SSL_STEP_SPEC (or from the file that
    SSL_STEP_SPEC=@PATH names) and writes one, the result, to SSL_RESULT_PATH, or prints it where that is unset.

    With --project and --results, as `dvc repro` calls it, both come from files: the inputs are what the steps before NAME
    left in that folder, and its own result joins them. A local MLflow server is started where none is configured.
    """
    end_with_parent()
    known_step(name)
    progress = make_progress(stderr_console())
    if project is not None or results is not None:
        if not project or not results:
            raise UserError("--project FILE and --results DIR go together", place=f"ssl-core step {name}")
        settings = load_settings()
        file = find_project(project, settings.projects_dir)
        result = step_from_files(name, file, Path(results), settings, progress)
        progress.note(f"{name}: {(result.summary.strip().splitlines() or ['done'])[0].lstrip('# ')}")
        return
    spec = read_spec(name)
    try:
        result = execute(spec, load_settings(), progress)
    except CheckFailed as error:
        if error.result is not None:
            hand_over(error.result)
        raise
    hand_over(result)


def known_step(name: str) -> None:
    """Raises ``UserError``, with the near miss, for a name that is not in the table."""
    known = [step.name for step in STEPS]
    if name not in known:
        raise UserError(f"no step called '{name}'{did_you_mean(name, known)} (there: {', '.join(known)})", place="NAME")


def end_with_parent() -> None:
    """A job whose runner was killed must not train on: the kernel then sends it SIGTERM (Linux; ``SSL_PARENT_PID``)."""
    parent = os.environ.get("SSL_PARENT_PID", "")
    if not parent or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it died before the kernel knew
        raise TryAgain("the runner that started this step is gone", place="SSL_PARENT_PID")


def read_spec(name: str) -> StepSpec:
    """The spec in ``SSL_STEP_SPEC``, which must be for the step ``name``."""
    text = os.environ.get("SSL_STEP_SPEC", "")
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", place=f"SSL_STEP_SPEC={text}") from error
    if not text:
        raise UserError(
            "is not set", place="SSL_STEP_SPEC", next_step="a runner sets it; people use: ssl-core run PROJECT"
        )
    try:
        spec = StepSpec.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(": ".join(filter(None, (_dotted(e["loc"]), e["msg"]))) for e in error.errors()[:5])
        raise UserError(f"not a step spec: {problems}", place="SSL_STEP_SPEC") from error
    if spec.step != name:
        raise UserError(f"the spec is for step '{spec.step}', not '{name}'", place="SSL_STEP_SPEC: step")
    return spec


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def hand_over(result: StepResult) -> None:
    """Writes the result to ``SSL_RESULT_PATH``, or prints it."""
    path = os.environ.get("SSL_RESULT_PATH")
    if path:
        write_result(result, Path(path))
    else:
        sys.stdout.write(result.model_dump_json(indent=1) + "\n")
