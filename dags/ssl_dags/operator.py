"""One step of the table as one Airflow task: spec in, job run, result checked, references out."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
)
from airflow.sdk.log import mask_secret
from pydantic import ValidationError

from ssl_core.config.load import load_project, local_paths
from ssl_core.config.project import ProjectConfig
from ssl_core.config.runner import RunnerConfig, containers, runner_kind
from ssl_core.config.settings import Settings
from ssl_core.contracts import (
    RESULT_BYTES_LIMIT,
    Approval,
    ArtifactRef,
    ModelRef,
    Ref,
    RunContext,
    RunRequest,
    StepResult,
    StepSpec,
    StepStatus,
)
from ssl_core.errors import StepError, UserError
from ssl_core.pipeline import Step, get_step, skip_reason
from ssl_dags.credentials import with_connections
from ssl_dags.forms import overrides
from ssl_dags.links import MLFLOW_RUN, MlflowRunLink, ReportLink
from ssl_dags.notify import finding, gate_said, run_url
from ssl_dags.runners.base import CannotStart, Finished, Job, Runner, Unavailable
from ssl_dags.runners.local import LocalRunner

APPROVE = "approve"  # the task that asks a person; it makes no artifact
_LAST_WORDS = 40
_ERROR_STARTS = ("error: ", "check failed: ", "try again: ")
_FAILED_CHECK = 3
_FINDS = ("monitor",)  # steps that may ask to tell somebody though they went well; silence ends it
_NO_RETRY = (2, _FAILED_CHECK)
_NOT_MASKED = ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0")  # no secrets, and words that logs are full of
# XCom of `resolve` beside its result: where the steps of this run run, which files of this machine they read, and how long a
# person is waited for.
PLACE = "place"
# A task that is in none of these will not run again by itself.
_LIVE = ("scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule", "deferred", "None", "")


class StepOperator(BaseOperator):
    """Does ``step`` for ``project``; its return value is the ``StepResult``, references only.

    What to do comes from the run itself: ``resolve`` froze the configuration, earlier tasks made the artifacts. The project
    file is read by ``resolve`` alone, so that an edit never changes a run in progress.

    ``takes``: the artifacts that the step reads. ``announces``: the artifact whose reference the asset event carries; without news there is none, and the task is skipped.
    """

    operator_extra_links = (MlflowRunLink(), ReportLink())
    ui_color = "#e8f1fb"

    def __init__(
        self, *, step: str, takes: list[str], project: str, project_file: str, announces: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.takes = takes
        self.project = project
        self.project_file = project_file
        self.announces = announces
        self._runner: Runner | None = None
        self._stopped = False
        self._place = RunnerConfig()

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        self.links: dict[str, str] = {}
        settings = Settings()
        artifacts = self._artifacts(context)
        if reason := skip_reason(get_step(self.step), artifacts):
            raise AirflowSkipException(reason)
        try:
            spec = self._spec(context, settings, artifacts)
        except StepError as error:
            raise AirflowFailException(str(error)) from None
        words: deque[str] = deque(maxlen=_LAST_WORDS)

        def on_line(line: str) -> None:
            words.append(line)
            if line.strip().startswith(f"{MLFLOW_RUN}: "):  # known before the end, for a task that fails
                self.links[MLFLOW_RUN] = line.partition(": ")[2].strip()
            (self.log.error if line.startswith(_ERROR_STARTS) else self.log.info)("%s", line)

        finished = self._run(spec, context, settings, on_line)
        result = self._judge(finished, _reason(words))
        self._show(result)
        return self._announce(result, context)

    def on_kill(self) -> None:
        self._stopped = True
        if self._runner is not None:
            self._runner.kill()

    # ---- in

    def _artifacts(self, context: Mapping[str, Any]) -> dict[str, Ref]:
        """What the tasks before this one made, by name."""
        artifacts: dict[str, Ref] = {}
        order = [t for t in context["dag"].topological_sort() if t.task_id in self.get_flat_relative_ids(upstream=True)]
        for task in order:
            value = context["ti"].xcom_pull(task_ids=task.task_id) if task.task_id != APPROVE else None
            if value is not None:  # a skipped task made nothing
                artifacts |= StepResult.model_validate(value).outputs
        return artifacts

    def _spec(self, context: Mapping[str, Any], settings: Settings, artifacts: dict[str, Ref]) -> StepSpec:
        ti, dag_run = context["ti"], context["dag_run"]
        run = RunContext(
            run_id=f"{ti.dag_id}/{ti.run_id}",
            user=dag_run.triggering_user_name or str(getattr(dag_run.run_type, "value", dag_run.run_type)),
            orchestrator="airflow",
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            try_number=ti.try_number,
            url=run_url(settings, ti.dag_id, ti.run_id),
        )
        if self.step == "resolve":
            project, request = self._asked(context)
            place = {
                "runner": project.runner.model_dump(exclude_defaults=True),
                "reads": _local_data(project),
                "approval_hours": project.promotion.approval_hours,
            }
            ti.xcom_push(PLACE, place)
            self._place = project.runner
            return StepSpec(step=self.step, project=project.model_dump(mode="json"), run=run, request=request)
        config = artifacts["config"]
        assert isinstance(config, ArtifactRef)
        if missing := [name for name in self.takes if name not in artifacts]:
            raise UserError(f"nothing before it made {', '.join(missing)}", place=f"{ti.dag_id}: {self.step}")
        return StepSpec(
            step=self.step,
            config=config,
            inputs={n: artifacts[n] for n in (*self.takes, *get_step(self.step).optional) if n in artifacts},
            run=run,
            **self._from_people(context),
        )

    def _from_people(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What people said in this run, beside the trigger form: the answer to the gate's report; where to go back to, and why."""
        if self.step == "promote":
            answer = context["ti"].xcom_pull(task_ids=APPROVE)
            return {"approval": Approval.model_validate(answer) if answer is not None else None}
        if self.step == "rollback":
            conf = context["dag_run"].conf or {}
            return {"rollback_to": str(conf.get("to") or ""), "reason": str(conf.get("reason") or "")}
        return {}

    def _asked(self, context: Mapping[str, Any]) -> tuple[ProjectConfig, RunRequest]:
        """The project with what the trigger form changed, and which dataset and encoder the run asks for."""
        template = context["ti"].dag_id.partition(".")[2]
        conf = dict(context["dag_run"].conf or {})
        path = Path(self.project_file)
        changes = overrides(conf, load_project(path), template)
        for key, value in changes.items():
            self.log.info("%s = %s, for this run only", key, value)
        project = load_project(path, changes, given_by="trigger form")
        if project.name != self.project:
            raise UserError(f"is '{project.name}', but this DAG is of {self.project}", place=f"{path}: name")
        request = RunRequest(
            template=template,
            dataset=str(conf.get("dataset") or "latest"),
            encoder_version=str(conf.get("encoder_version") or ""),
            woken_by=_newest_encoder(context) if template == "finetune" else "",
            drift=_newest_drift(context) if template == "finetune" else "",
        )
        return project, request

    # ---- the job

    def _run(self, spec: StepSpec, context: Mapping[str, Any], settings: Settings, on_line: Any) -> Finished:
        ti = context["ti"]
        public, secret = with_connections(*settings.job_environment())
        for name, value in secret.items():
            if name not in _NOT_MASKED:
                mask_secret(value)
        labels = {
            "ssl.dag_id": ti.dag_id,
            "ssl.run_id": ti.run_id,
            "ssl.task_id": ti.task_id,
            "ssl.map_index": str(ti.map_index),
            "ssl.try": str(ti.try_number),
            "ssl.spec": _digest(spec),
        }
        place = ti.xcom_pull(task_ids="resolve", key=PLACE) or {} if self.step != "resolve" else {}
        step = get_step(self.step)
        job = Job(
            self.step,
            spec.model_dump_json(),
            environment=public,
            secrets=secret,
            labels=labels,
            reads=tuple(place.get("reads", ())) if "data" in step.config else (),
        )
        chosen = self._place if self.step == "resolve" else RunnerConfig.model_validate(place.get("runner", {}))
        self._runner = make_runner(settings, chosen, step, ti)
        if self._stopped:
            raise AirflowRescheduleException(datetime.now(UTC))
        try:
            return self._runner.run(job, on_line)
        except CannotStart as error:
            raise AirflowFailException(f"the job cannot be started: {error}") from None
        except Unavailable as error:
            if self._stopped:
                raise AirflowRescheduleException(datetime.now(UTC)) from None
            raise AirflowException(str(error)) from None

    # ---- out

    def _judge(self, finished: Finished, reason: str) -> StepResult:
        """The result, checked against its contract; or the exception that tells Airflow whether to try again."""
        code = finished.exit_code
        if code not in (0, _FAILED_CHECK):
            if self._stopped:  # the platform goes down: no try is lost by that
                self.log.info("stopped; the task goes on from what is done when Airflow is back")
                raise AirflowRescheduleException(datetime.now(UTC))
            text = finished.cause or reason or f"the job ended with {_code(code)}"
            raise (AirflowFailException if code in _NO_RETRY else AirflowException)(text)
        if code == _FAILED_CHECK and finished.result is None:
            raise AirflowFailException(reason or "check failed, and there is no report of it; the lines above say more")
        result = self._read(finished.result)
        if code == _FAILED_CHECK or result.status is StepStatus.CHECK_FAILED:
            self._show(result)
            raise AirflowFailException(reason or f"check failed: {result.summary}")
        return result

    def _read(self, document: bytes | None) -> StepResult:
        if document is None:
            raise AirflowException("the job ended well but wrote no result")
        if len(document) > 2 * RESULT_BYTES_LIMIT:  # indented JSON; the executor holds the limit itself
            raise AirflowException(f"the job's result has {len(document)} bytes; references only may cross")
        try:
            result = StepResult.model_validate_json(document)
        except ValidationError as error:
            raise AirflowException(f"the job's result is not one: {error.errors()[0]['msg']}") from None
        step = get_step(self.step)
        missing = set(step.outputs) - set(result.outputs) if result.status is StepStatus.DONE else set()
        if result.step != self.step or missing:
            raise AirflowException(
                f"the job's result is of step {result.step}, without {', '.join(sorted(missing)) or 'faults'}"
            )
        return result

    def _show(self, result: StepResult) -> None:
        self.links = dict(result.links)
        for line in result.summary.splitlines():
            self.log.info("%s", line)
        took = "unchanged, done before" if result.cached else f"{result.seconds:.1f} s"
        self.log.info("%s: %s", self.step, took)
        for title, url in result.links.items():
            self.log.info("%s: %s", title, url)

    def _announce(self, result: StepResult, context: Mapping[str, Any]) -> dict[str, Any]:
        value = result.model_dump(mode="json")
        ti = context["ti"]
        if result.verdict is not None and result.news:
            gate_said(ti.dag_id, ti.run_id, ti.task_id, result)
        if result.alert or self.step in _FINDS:
            finding(ti.dag_id, ti.run_id, ti.task_id, result.alert)
        if not self.announces:
            return value
        if not result.news:
            ti.xcom_push("return_value", value)
            first_line = result.summary.partition("\n")[0]
            raise AirflowSkipException(f"no news, so nobody is woken: {first_line}")
        reference = result.outputs.get(self.announces) or self._artifacts(context)[self.announces]
        for asset in self.outlets:
            if isinstance(asset, Asset):
                context["outlet_events"][asset].extra = reference.model_dump(mode="json")
        return value


def make_runner(settings: Settings, chosen: RunnerConfig, step: Step, ti: Any) -> Runner:
    """The runner that the project names, else the platform settings."""
    if runner_kind(chosen, settings) == "local":
        return LocalRunner(settings.job_interpreter)
    from ssl_dags.runners.containers import Plan
    from ssl_dags.runners.docker import DockerRunner

    options = containers(chosen, settings)
    return DockerRunner(Plan(options, settings, trains=step.pool == "gpu"), _lives(ti))


def _lives(ti: Any) -> Callable[[Mapping[str, str]], bool]:
    """Whether the task instance that a container's labels name may still want it, as Airflow knows it."""

    def lives(labels: Mapping[str, str]) -> bool:
        dag_id, run_id, task_id = (labels.get(f"ssl.{name}", "") for name in ("dag_id", "run_id", "task_id"))
        states = ti.get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=[run_id]).get(run_id, {})
        index = labels.get("ssl.map_index", "-1")
        name = task_id if index == "-1" else f"{task_id}_{index}"  # as Airflow names mapped ones
        return str(states.get(name, "removed")) in _LIVE

    return lives


def _digest(spec: StepSpec) -> str:
    """Of all that a step is asked for, whichever try asks."""
    same = spec.model_copy(update={"run": spec.run.model_copy(update={"try_number": 1})})
    return hashlib.sha256(same.model_dump_json().encode()).hexdigest()[:16]


def _local_data(project: ProjectConfig) -> list[str]:
    """What of this machine the project's data comes from: nothing where it is a sample or lies in S3."""
    return [str(path) for path in local_paths(project)]


def _newest_encoder(context: Mapping[str, Any]) -> str:
    """The newest encoder version among the events that woke the run: events coalesce, so there may be several."""
    versions = []
    for event in _events(context):
        try:
            versions.append(int(ModelRef.model_validate(event.extra).version))
        except (ValidationError, ValueError):  # another asset's event, or one made by hand
            continue
    return str(max(versions)) if versions else ""


def _newest_drift(context: Mapping[str, Any]) -> str:
    """The SHA-256 of the newest drift report among the events that woke the run; empty where none did."""
    found: list[tuple[str, str]] = []
    for event in _events(context):
        try:
            report = ArtifactRef.model_validate(event.extra)
        except ValidationError:
            continue
        if report.kind.startswith("drift"):
            found.append((str(getattr(event, "timestamp", "")), report.sha256))
    return sorted(found, key=lambda one: one[0])[-1][1] if found else ""


def _events(context: Mapping[str, Any]) -> Iterator[Any]:
    for events in (context.get("triggering_asset_events") or {}).values():
        yield from events


def _reason(words: deque[str]) -> str:
    """What the job said in the end: from its error line on, else nothing."""
    lines = list(words)
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith(_ERROR_STARTS):
            return "\n".join(lines[index:])
    return ""


def _code(code: int) -> str:
    if code in (-9, 137):
        return "SIGKILL: out of memory, or ended from outside"
    return f"signal {-code}" if code < 0 else f"exit code {code}; the lines above say why"
