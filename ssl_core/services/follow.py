"""Takes a project through its DAGs in Airflow and tells what happens: what `ssl-core demo` shows.

A run that another one woke is followed; one that goes on already is followed as well; only otherwise is one triggered. So a
demo that was interrupted, or started twice, picks up where things are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from ssl_core.contracts import StepResult
from ssl_core.errors import CheckFailed, StepError, TryAgain, UserError
from ssl_core.services.api import AirflowApi

CHAIN = ("ingest", "pretrain", "finetune")
_ASKS = "awaiting_input"
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
_ACTIVE = ("queued", "running")
_APPEAR_SECONDS = 90.0
_WAKE_SECONDS = 20.0
_POLL_SECONDS = 1.0
_LOG_SECONDS = 2.0
_LOOK_SECONDS = 5.0
_AWAY_SECONDS = 300.0
_NOISE = re.compile(
    r"^(::|DAG bundles loaded|Filling up the DagBag|Worker startup parse|Pushing xcom|Task instance is)"
)


@dataclass
class Task:
    """A task of a followed run, as it stands."""

    name: str
    state: str
    tries: int
    seconds: float | None
    result: StepResult | None = None


@dataclass
class Run:
    """A followed DAG run. ``how``: triggered, woken or found."""

    dag_id: str
    run_id: str
    how: str
    url: str
    state: str = "queued"
    tasks: dict[str, Task] = field(default_factory=dict)


class View(Protocol):
    """Where the story is shown."""

    def run_started(self, run: Run) -> None: ...
    def line(self, run: Run, task: str, text: str) -> None:
        """One line that a running task has printed."""
        ...

    def task_ended(self, run: Run, task: Task) -> None: ...
    def run_ended(self, run: Run) -> None: ...
    def note(self, text: str) -> None: ...
    def tick(self, run: Run) -> None:
        """Called at every look, for what moves."""
        ...


class Follower:
    """Follows the chain of ``project``. ``heal`` starts again what has died and waits for it; called when in doubt.

    ``address`` is where a browser finds Airflow, where that differs from the API's.
    """

    def __init__(
        self, api: AirflowApi, project: str, view: View, heal: Callable[[], None], *, address: str = ""
    ) -> None:
        self._api, self._project, self._view, self._heal = api, project, view, heal
        self._address = (address or api.url).rstrip("/")
        self._looked = time.monotonic()

    def chain(self) -> list[Run]:
        """Every template once, in order. Raises ``StepError`` with the failed task's own words where a run fails."""
        runs: list[Run] = []
        for template in CHAIN:
            runs.append(self.one(template, after=runs[-1] if runs else None))
        return runs

    def one(self, template: str, after: Run | None = None) -> Run:
        """One run of a template to its end: the one that ``after`` woke, else one that goes on, else a new one.

        Raises ``StepError`` with the failed task's own words where it fails.
        """
        dag_id = f"{self._project}.{template}"
        self._wait_for_dag(dag_id)
        run = self._begin(dag_id, after)
        self._view.run_started(run)
        self._follow(run)
        self._view.run_ended(run)
        if run.state != "success":
            raise self._failure(run)
        return run

    def links(self, runs: list[Run]) -> dict[str, str]:
        """Title to address of what a person wants to see after the chain: the lineage picture, and the model in MLflow."""
        name = f"{self._project}/model"
        assets = self._ask(lambda: self._api.get("assets", name_pattern=name, limit=50))["assets"]
        found: dict[str, str] = {}
        for asset in assets:
            if asset["name"] == name:
                found["Asset graph"] = f"{self._address}/assets/{asset['id']}"
        for result in (task.result for run in runs for task in run.tasks.values() if task.result is not None):
            found |= {title: url for title, url in result.links.items() if title in ("Encoder", "Model")}
        return found

    # ---- which run

    def _begin(self, dag_id: str, before: Run | None) -> Run:
        if before is not None and (woken := self._woken(dag_id, before)):
            return self._run(dag_id, woken, "woken")
        active = self._ask(lambda: self._api.get(f"dags/{dag_id}/dagRuns", state=list(_ACTIVE), order_by="run_after"))
        if active["dag_runs"]:
            return self._run(dag_id, active["dag_runs"][0]["dag_run_id"], "found")
        made = self._ask(lambda: self._api.post(f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": {}}))
        return self._run(dag_id, made["dag_run_id"], "triggered")

    def _woken(self, dag_id: str, before: Run) -> str | None:
        """The run of ``dag_id`` that the run before it woke; None where it had no news to tell."""
        deadline = time.monotonic() + _WAKE_SECONDS
        while time.monotonic() < deadline:
            try:
                events = self._api.get("assets/events", source_dag_id=before.dag_id, source_run_id=before.run_id)[
                    "asset_events"
                ]
            except TryAgain:  # Airflow 3.3 answers 500 for an event whose run is queued and has no start yet
                time.sleep(_POLL_SECONDS)
                continue
            for event in events:
                for created in event["created_dagruns"]:
                    if created["dag_id"] == dag_id:
                        return str(created["run_id"])
            if not events:  # written together with the end of the task that has news
                return None
            time.sleep(_POLL_SECONDS)
        return None  # nobody waits for that asset, for example with `pretrain.when: manual`

    def _run(self, dag_id: str, run_id: str, how: str) -> Run:
        return Run(dag_id, run_id, how, f"{self._address}/dags/{quote(dag_id)}/runs/{quote(run_id, safe='')}")

    def _wait_for_dag(self, dag_id: str) -> None:
        """Until Airflow has read the project file. Raises ``UserError`` with the file's own error where it is broken."""
        deadline = time.monotonic() + _APPEAR_SECONDS
        while True:
            found = self._ask(lambda: self._api.get("dags", dag_id_pattern=dag_id, limit=50, exclude_stale=True))[
                "dags"
            ]
            dag = next((d for d in found if d["dag_id"] == dag_id), None)
            if dag is not None:
                if dag["is_paused"]:
                    self._view.note(f"{dag_id} was paused; it is unpaused, or its run would wait for ever")
                    self._ask(lambda: self._api.patch(f"dags/{dag_id}", {"is_paused": False}))
                return
            for error in self._ask(lambda: self._api.get("importErrors"))["import_errors"]:
                if re.match(rf"{re.escape(self._project)}\.ya?ml\.py$", error["filename"]):
                    raise UserError(f"Airflow cannot read the project:\n{error['stack_trace'].strip()}")
            if time.monotonic() > deadline:
                raise TryAgain(
                    f"Airflow does not show {dag_id} after {_APPEAR_SECONDS:.0f} s",
                    next_step="is there a project file of that name in SSL_PROJECTS_DIR? ssl-core logs dag-processor",
                )
            time.sleep(_POLL_SECONDS)

    # ---- to its end

    def _follow(self, run: Run) -> None:
        base = f"dags/{run.dag_id}/dagRuns/{quote(run.run_id, safe='')}"
        seen: dict[tuple[str, int], int] = {}
        log_at = 0.0
        while True:
            now = self._ask(lambda: self._api.get(base))
            tasks = self._ask(lambda: self._api.get(f"{base}/taskInstances", limit=100))["task_instances"]
            run.state = now["state"]
            for raw in sorted(tasks, key=lambda t: t["start_date"] or "~"):
                self._update(run, base, raw)
            running = next((t for t in run.tasks.values() if t.state == "running"), None)
            if running is not None and time.monotonic() > log_at:
                log_at = time.monotonic() + _LOG_SECONDS
                for line in self._new_lines(run, running, seen):
                    self._view.line(run, running.name, line)
            self._view.tick(run)
            if run.state in ENDED:
                return
            if running is None and (asks := next((t for t in run.tasks.values() if t.state == _ASKS), None)):
                raise self._waits(run, asks)
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._looked = time.monotonic()
                self._mend()
            time.sleep(_POLL_SECONDS)

    def _update(self, run: Run, base: str, raw: dict[str, Any]) -> None:
        name, state = raw["task_id"], raw["state"] or "waiting"
        known = run.tasks.get(name)
        task = Task(name, state, raw["try_number"], raw["duration"])
        if known is not None and known.state == state and known.tries == task.tries:
            known.seconds = task.seconds
            return
        if known is not None and state == "up_for_retry":
            self._view.note(f"{run.dag_id} {name} failed and is tried again (try {task.tries} ended)")
        run.tasks[name] = task
        if state in ("success", "skipped"):
            task.result = self._result(base, name)
        if state in ENDED:
            self._view.task_ended(run, task)

    def _result(self, base: str, task: str) -> StepResult | None:
        try:
            value = self._ask(lambda: self._api.get(f"{base}/taskInstances/{task}/xcomEntries/return_value"))["value"]
            return StepResult.model_validate_json(value) if isinstance(value, str) else StepResult.model_validate(value)
        except (UserError, ValueError):  # a skipped task has none
            return None

    def _new_lines(self, run: Run, task: Task, seen: dict[tuple[str, int], int]) -> Iterator[str]:
        try:
            lines = self._api.task_log(run.dag_id, run.run_id, task.name, max(task.tries, 1))
        except StepError:  # no log yet
            return
        key = (task.name, task.tries)
        for line in lines[seen.get(key, 0) :]:
            if line.strip() and not _NOISE.match(line):
                yield line
        seen[key] = len(lines)

    def _waits(self, run: Run, asks: Task) -> StepError:
        """A person may take days: the run waits, and we do not."""
        gate = run.tasks.get("gate")
        said = gate.result.summary.partition("\n")[0] if gate and gate.result else "a decision is needed"
        return CheckFailed(
            f"{run.dag_id} waits for a person: {said}",
            place=run.url,
            next_step=f"answer at {run.url}/tasks/{asks.name}/required_actions, or as its log says with ssl-core promote; "
            "then run the same command again",
        )

    def _failure(self, run: Run) -> StepError:
        failed = next((t for t in run.tasks.values() if t.state == "failed"), None)
        if failed is None:
            return StepError(f"{run.dag_id} {run.state}", place=run.url)
        try:
            lines = self._api.task_log(run.dag_id, run.run_id, failed.name, max(failed.tries, 1))
        except StepError:
            lines = []
        said = [n for n, line in enumerate(lines) if line.startswith(("error: ", "check failed: ", "try again: "))]
        words = [line for line in lines[said[-1] :] if not _NOISE.match(line)][:6] if said else ["its log says why"]
        return StepError(
            f"{run.dag_id} failed in {failed.name}: " + "\n".join(words),
            place=run.url,
            next_step="mend it and run the same command again; what is done is not done again",
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Asks until it is answered: a service that died is started again, and nothing of the run is lost by that."""
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                return question()
            except TryAgain as error:
                if time.monotonic() > deadline:
                    raise
                self._view.note(f"{error.cause}; looking after the services")
                self._mend()
                time.sleep(_POLL_SECONDS)

    def _mend(self) -> None:
        try:
            self._heal()
        except TryAgain as error:  # it may start at the next look
            self._view.note(str(error))
