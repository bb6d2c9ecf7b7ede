"""Following a project through Airflow: which run, what is told, and what happens when something is away or fails."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_core.errors import CheckFailed, StepError, TryAgain, UserError
from ssl_core.services import follow
from ssl_core.services.follow import Follower, Run, Task


class Airflow:
    """A stand-in for the REST API: each run succeeds at the first look, unless it is told otherwise."""

    url = "http://airflow"

    def __init__(self) -> None:
        self.paused: set[str] = set()
        self.shown = True
        self.errors: list[dict[str, str]] = []
        self.active: dict[str, list[str]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.states: dict[str, list[str]] = {}
        self.task_states: dict[str, str] = {}
        self.log: list[str] = []
        self.triggered: list[str] = []
        self.unpaused: list[str] = []
        self.away = 0

    def get(self, path: str, **query: Any) -> Any:
        if self.away:
            self.away -= 1
            raise TryAgain("Airflow does not answer")
        parts = path.split("/")
        if path == "dags":
            dag_id = query["dag_id_pattern"]
            return {"dags": [{"dag_id": dag_id, "is_paused": dag_id in self.paused}] if self.shown else []}
        if path == "importErrors":
            return {"import_errors": self.errors}
        if path == "assets/events":
            found = self.events.get(query["source_dag_id"], [])
            if found == ["queued"]:
                self.events[query["source_dag_id"]] = []
                raise TryAgain("Airflow answers 500")
            return {"asset_events": found}
        if path == "assets":
            return {"assets": [{"id": 7, "name": query["name_pattern"]}]}
        if parts[-1] == "dagRuns":
            return {"dag_runs": [{"dag_run_id": run} for run in self.active.get(parts[1], [])]}
        if parts[-1] == "taskInstances":
            state = self.task_states.get(parts[1], "success")
            return {"task_instances": [
                {"task_id": "resolve", "state": state, "try_number": 1, "duration": 1.5, "start_date": "2026-01-01"}
            ]}  # fmt: skip
        if parts[-1] == "return_value":
            links = {"Model": f"http://mlflow/{parts[1]}"}
            return {"value": {"step": "resolve", "key": "k", "status": "done", "summary": "did it", "links": links}}
        states = self.states.get(parts[1], ["success"])
        return {"state": states.pop(0) if len(states) > 1 else states[0]}

    def post(self, path: str, body: Any) -> Any:
        dag_id = path.split("/")[1]
        self.triggered.append(dag_id)
        assert body == {"logical_date": None, "conf": {}}
        return {"dag_run_id": f"manual {dag_id}"}

    def patch(self, path: str, body: Any) -> Any:
        self.unpaused.append(path.split("/")[1])

    def task_log(self, *where: Any) -> list[str]:
        return self.log


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.ended: list[tuple[str, str]] = []
        self.lines: list[str] = []
        self.notes: list[str] = []

    def run_started(self, run: Run) -> None:
        self.runs.append(run)

    def line(self, run: Run, task: str, text: str) -> None:
        self.lines.append(text)

    def task_ended(self, run: Run, task: Task) -> None:
        self.ended.append((run.dag_id, task.state))

    def run_ended(self, run: Run) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tick(self, run: Run) -> None: ...


@pytest.fixture
def airflow(monkeypatch) -> Airflow:
    monkeypatch.setattr(follow, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(follow, "_LOG_SECONDS", 0.0)
    return Airflow()


def walk(airflow: Airflow) -> tuple[list[Run], Seen, list[str]]:
    seen, healed = Seen(), []
    runs = Follower(airflow, "tiny", seen, lambda: healed.append("x"), address="http://here/").chain()  # type: ignore[arg-type]
    return runs, seen, healed


def woke(dag_id: str) -> dict[str, Any]:
    return {
        "created_dagruns": [{"dag_id": "other.one", "run_id": "no"}, {"dag_id": dag_id, "run_id": f"woken {dag_id}"}]
    }


def test_what_nobody_started_is_triggered_in_order(airflow):
    runs, seen, _ = walk(airflow)
    assert airflow.triggered == ["tiny.ingest", "tiny.pretrain", "tiny.finetune"]
    assert [run.how for run in runs] == ["triggered"] * 3
    assert seen.ended == [("tiny.ingest", "success"), ("tiny.pretrain", "success"), ("tiny.finetune", "success")]
    assert runs[0].url == "http://here/dags/tiny.ingest/runs/manual%20tiny.ingest"
    assert runs[0].tasks["resolve"].result.summary == "did it"


def test_what_a_run_woke_is_followed_and_not_triggered_again(airflow):
    airflow.events = {"tiny.ingest": [woke("tiny.pretrain")], "tiny.pretrain": [woke("tiny.finetune")]}
    runs, _, _ = walk(airflow)
    assert airflow.triggered == ["tiny.ingest"]
    assert [(run.run_id, run.how) for run in runs[1:]] == [
        ("woken tiny.pretrain", "woken"), ("woken tiny.finetune", "woken"),
    ]  # fmt: skip


def test_what_goes_on_already_is_followed(airflow):
    airflow.active = {"tiny.ingest": ["oldest", "newer"]}
    runs, _, _ = walk(airflow)
    assert (runs[0].run_id, runs[0].how) == ("oldest", "found")
    assert "tiny.ingest" not in airflow.triggered


def test_an_event_that_cannot_be_shown_yet_is_asked_for_again(airflow):
    airflow.events = {"tiny.ingest": ["queued"]}
    runs, seen, healed = walk(airflow)
    assert len(runs) == 3
    assert not healed
    assert not seen.notes


def test_an_outage_is_mended_and_the_walk_goes_on(airflow):
    airflow.away = 2
    runs, seen, healed = walk(airflow)
    assert len(runs) == 3
    assert len(healed) == 2
    assert "does not answer" in seen.notes[0]


def test_a_service_that_does_not_start_at_once_gets_another_chance(airflow):
    airflow.away = 2
    tries = []

    def heal() -> None:
        tries.append("x")
        if len(tries) == 1:
            raise TryAgain("Airflow's scheduler ended: out of memory")

    seen = Seen()
    assert len(Follower(airflow, "tiny", seen, heal).chain()) == 3  # type: ignore[arg-type]
    assert len(tries) == 2
    assert any("out of memory" in note for note in seen.notes)


def test_a_paused_dag_is_unpaused_and_said_so(airflow):
    airflow.paused = {"tiny.pretrain"}
    _, seen, _ = walk(airflow)
    assert airflow.unpaused == ["tiny.pretrain"]
    assert "tiny.pretrain was paused" in seen.notes[0]


def test_a_project_that_airflow_cannot_read_is_told_in_its_own_words(airflow):
    airflow.shown = False
    airflow.errors = [
        {"filename": "other.yaml.py", "stack_trace": "not ours"},
        {"filename": "tiny.yaml.py", "stack_trace": "tiny.yaml:3: pretrain.epoch: unknown key\n"},
    ]
    with pytest.raises(UserError, match=r"tiny\.yaml:3: pretrain\.epoch: unknown key"):
        walk(airflow)


def test_a_project_that_never_appears_is_given_up(airflow, monkeypatch):
    monkeypatch.setattr(follow, "_APPEAR_SECONDS", 0.05)
    airflow.shown = False
    with pytest.raises(TryAgain, match=r"does not show tiny\.ingest"):
        walk(airflow)


def test_a_failed_run_ends_the_walk_with_the_tasks_own_words(airflow):
    airflow.states = {"tiny.pretrain": ["running", "failed"]}
    airflow.task_states = {"tiny.pretrain": "failed"}
    airflow.log = ["    step 1", "check failed: it collapsed", "  next: lower the rate", "::group::Post Execute"]
    with pytest.raises(StepError, match=r"tiny\.pretrain failed in resolve: check failed: it collapsed") as raised:
        walk(airflow)
    assert "lower the rate" in str(raised.value)
    assert raised.value.place == "http://here/dags/tiny.pretrain/runs/manual%20tiny.pretrain"
    assert "tiny.finetune" not in airflow.triggered


def test_a_running_tasks_lines_come_once_and_without_airflows_own(airflow):
    airflow.states = {"tiny.ingest": ["running", "running", "running", "success"]}
    airflow.task_states = {"tiny.ingest": "running"}
    airflow.log = [
        "::group::Pre Execute",
        "DAG bundles loaded: projects",
        "    epoch 1  loss 2.0",
        "    epoch 2  loss 1.9",
    ]
    _, seen, _ = walk(airflow)
    assert seen.lines == ["    epoch 1  loss 2.0", "    epoch 2  loss 1.9"]


def test_the_links_lead_to_the_lineage_picture_and_the_newest_model(airflow):
    seen = Seen()
    follower = Follower(airflow, "tiny", seen, lambda: None, address="http://here")  # type: ignore[arg-type]
    assert follower.links(follower.chain()) == {
        "Asset graph": "http://here/assets/7", "Model": "http://mlflow/tiny.finetune",
    }  # fmt: skip


def test_a_run_that_waits_for_a_person_is_not_waited_for(airflow):
    airflow.states = {"tiny.finetune": ["running"] * 50}
    airflow.task_states = {"tiny.finetune": "awaiting_input"}
    with pytest.raises(CheckFailed, match=r"tiny\.finetune waits for a person") as error:
        walk(airflow)
    assert "/dags/tiny.finetune/runs/manual%20tiny.finetune/tasks/resolve/required_actions" in error.value.next_step
