"""The DAG templates, rendered for one project from the step table: ingest, pretrain, finetune, monitor, rollback, fire-drill."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, CronTriggerTimetable, get_parsing_context

from ssl_core.config.load import load_project
from ssl_core.config.project import ProjectConfig
from ssl_core.errors import UserError
from ssl_core.pipeline import Step, get_step, producer, steps_for
from ssl_dags import notify
from ssl_dags.approval import GateApprovalOperator
from ssl_dags.docs import APPROVE_DOC, cron_of, dag_doc, step_doc
from ssl_dags.forms import form
from ssl_dags.operator import APPROVE, StepOperator

TEMPLATES = ("ingest", "pretrain", "finetune", "monitor", "rollback", "fire-drill")
# The last task of a template makes the artifact that wakes the next one.
_ANNOUNCES = {
    "publish": "dataset",
    "register-encoder": "registered_encoder",
    "promote": "registered_model",
    "monitor": "drift",
}
_ASSETS = {"dataset": "dataset", "registered_encoder": "encoder", "registered_model": "model", "drift": "drift"}
_START = datetime(2025, 1, 1, tzinfo=UTC)  # schedules count from their last tick on, never from here: no catch-up
_LONGEST_RETRY_WAIT = timedelta(minutes=30)


def render(project_file: str) -> dict[str, DAG]:
    """The DAGs of a project file by id. A broken file raises ``UserError``, which the UI shows as the file's import error.

    In a worker a broken, missing or renamed project does not matter: a run in progress has its configuration in the store.
    """
    path = Path(project_file)
    running = get_parsing_context().dag_id
    project: ProjectConfig | None
    try:
        project = load_project(path)
        _name_is_free(project.name, path)
    except UserError:
        if not running:
            raise
        project = None
    of_run = running.partition(".")[0] if running else ""
    if project is None or (running and project.name != of_run):
        project = ProjectConfig.model_validate({"name": of_run, "data": {"source": "sample://digits"}})
    ids = {f"{project.name}.{template}": template for template in TEMPLATES}
    # A task's process builds its own DAG only.
    return {dag_id: build(project, template, path) for dag_id, template in ids.items() if running in (None, dag_id)}


def build(project: ProjectConfig, template: str, project_file: Path) -> DAG:
    """One template as the DAG ``<project>.<template>``."""
    with DAG(
        dag_id=f"{project.name}.{template}",
        description=project.description or None,
        doc_md=dag_doc(project, template, project_file),
        schedule=schedule(project, template),
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        tags=["ssl", template, project.name, *project.tags],
        params=form(project, template),
        dagrun_timeout=timedelta(hours=run_hours(project, template)),
        on_failure_callback=notify.run_failed,
        default_args={
            "owner": project.owner or "ssl",
            "retries": project.limits.retries,
            "retry_delay": timedelta(seconds=project.limits.retry_seconds),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": max(_LONGEST_RETRY_WAIT, timedelta(seconds=project.limits.retry_seconds)),
            "execution_timeout": timedelta(hours=project.limits.step_hours),
            "on_failure_callback": notify.step_failed,
            "on_success_callback": notify.step_fine,
            "on_skipped_callback": notify.step_fine,
        },
    ) as dag:
        tasks = {step.name: _task(step, project, project_file) for step in steps_of(template, project.modality)}
        for before, after in edges(template, project.modality):
            if (before, after) == ("gate", "promote"):  # a person stands between
                approve = GateApprovalOperator.of(project, task_id=APPROVE, doc_md=APPROVE_DOC)
                tasks[before] >> approve >> tasks[after]
            else:
                tasks[before] >> tasks[after]
    return dag


def run_hours(project: ProjectConfig, template: str) -> float:
    """How long a run may take: the hours in which it waits for a person do not count against it."""
    return project.limits.run_hours + (project.promotion.approval_hours if template == "finetune" else 0)


def steps_of(template: str, modality: str) -> list[Step]:
    """``resolve``, then the rows of the table that belong to the template, as the modality has them."""
    return [get_step("resolve"), *(step for step in steps_for(modality) if step.template == template)]


def edges(template: str, modality: str) -> list[tuple[str, str]]:
    """Who waits for whom within a template: the table's references, without those that another path implies."""
    steps = steps_of(template, modality)
    inside = {step.name for step in steps}
    needs = {step.name: {producer(name).name for name in step.inputs} & inside - {step.name} for step in steps}
    for name in inside - {"resolve"}:
        needs[name].add("resolve")

    def before(name: str) -> set[str]:
        return set().union(*({n} | before(n) for n in needs[name])) if needs[name] else set()

    implied = {name: set().union(*(before(n) for n in needs[name])) if needs[name] else set() for name in inside}
    return sorted((n, name) for name in inside for n in needs[name] - implied[name])


def asset(project: str, artifact: str) -> Asset:
    """``<project>/dataset``, ``/encoder``, ``/model`` or ``/drift``."""
    name = f"{project}/{_ASSETS[artifact]}"
    return Asset(name=name, uri=f"ssl://{name}", group="ssl")


def schedule(project: ProjectConfig, template: str) -> Any:
    """What starts a template: its cron, an asset that wakes it, either, or only a person."""
    cron = cron_of(project, template)
    wakes: Any = None
    if template == "monitor" or (template == "pretrain" and project.pretrain.when in ("first", "always")):
        wakes = asset(project.name, "dataset")
    elif template == "finetune":
        wakes = asset(project.name, "registered_encoder") | asset(project.name, "drift")
    if cron is None:
        return wakes
    timetable = CronTriggerTimetable(cron, timezone=project.schedule.timezone)
    return timetable if wakes is None else AssetOrTimeSchedule(timetable=timetable, assets=wakes)


def _task(step: Step, project: ProjectConfig, project_file: Path) -> StepOperator:
    announces = _ANNOUNCES.get(step.name, "")
    return StepOperator(
        task_id=step.name,
        step=step.name,
        takes=list(step.inputs),
        project=project.name,
        project_file=str(project_file),
        announces=announces,
        outlets=[asset(project.name, announces)] if announces else [],
        pool=step.pool or "default_pool",
        # Whether or not a person had to be asked; without labels it skips itself.
        trigger_rule="none_failed" if step.name == "promote" else "all_success",
        doc_md=step_doc(step),
    )


def _name_is_free(name: str, path: Path) -> None:
    """Two files with one name would take turns in the UI; the first in the alphabet keeps it."""
    for other in sorted(path.parent.glob("*.y*ml")):
        if other == path:
            return
        try:
            found = re.search(r"^name:\s*[\"']?([\w-]+)", other.read_text(encoding="utf-8", errors="replace"), re.M)
        except OSError:
            continue
        if found and found[1] == name:
            raise UserError(f"the name '{name}' is taken by {other.name}", place=f"{path}: name")
