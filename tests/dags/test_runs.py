"""Whole DAG runs in one process: Airflow's database, XCom, assets and callbacks are real; the jobs are a small program."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import handle_event_submit
from airflow.models.variable import Variable
from airflow.models.xcom import XComModel
from airflow.sdk import timezone
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from sqlalchemy import delete, select
from sqlalchemy.orm import joinedload

from ssl_core.contracts import RESULT_BYTES_LIMIT, Approval, StepResult, StepSpec, StepStatus, Verdict
from tests.dags.results import reference, result

SECRET = "wJalrXUtnFEMIbPxRfiCY"
# Keeps its spec, prints, writes the result that lies there for its step, and ends as told.
JOB = """
import os, shutil, sys
folder, step = os.environ["SSL_FAKE_JOBS"], sys.argv[4]
told = os.path.join(folder, step)
shutil.copy(os.environ["SSL_STEP_SPEC"][1:], told + ".spec")
print(step, "works with", os.environ.get("AWS_SECRET_ACCESS_KEY", "no key"))
if os.path.exists(told + ".result"):
    shutil.copy(told + ".result", os.environ["SSL_RESULT_PATH"])
if os.path.exists(told + ".ends"):
    code, words = open(told + ".ends").read().split(" ", 1)
    print(words)
    sys.exit(int(code))
"""

pytestmark = [
    pytest.mark.usefixtures("database"),
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated"),
]


class Jobs:
    """What the jobs of a run return, and what they were given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def returns(self, outcome: StepResult) -> None:
        (self.folder / f"{outcome.step}.result").write_text(outcome.model_dump_json(indent=1))

    def ends(self, step: str, code: int, words: str) -> None:
        (self.folder / f"{step}.ends").write_text(f"{code} {words}")

    def spec(self, step: str) -> StepSpec:
        return StepSpec.model_validate_json((self.folder / f"{step}.spec").read_text())

    def started(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.spec")}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str], str]) -> Jobs:
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.setenv("SSL_FAKE_JOBS", str(folder))
    monkeypatch.setenv("SSL_JOB_PYTHON", program(JOB))
    return Jobs(folder)


class Run:
    """One DAG run, as the database has it."""

    def __init__(self, dag: Any, conf: dict[str, Any]) -> None:
        with create_session() as session:
            session.execute(delete(AssetEvent))
            session.execute(delete(HITLDetail))
        run = dag.test(run_conf=conf)
        self.state = str(run.state.value)
        with create_session() as session:
            self.states = {ti.task_id: str(ti.state) for ti in run.get_task_instances(session=session)}
            self.xcom: dict[str, dict[str, Any]] = {}
            for row in session.scalars(select(XComModel).where(XComModel.run_id == run.run_id)):
                self.xcom.setdefault(row.task_id, {})[row.key] = XComModel.deserialize_value(row)
            rows = session.execute(
                select(AssetModel.name, AssetEvent.extra).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            )
            self.events = dict(rows.all())
            self.incidents = {v.key: json.loads(v.val) for v in session.scalars(select(Variable))}


@pytest.fixture
def run(load, write_project, jobs, monkeypatch) -> Callable[..., Run]:
    """``run("ingest", conf={...})``: a run of the DAG whose jobs return good results, but for what the test has changed."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # dag.test() sleeps whenever nothing but a state passes on
    write_project("tiny", limits={"retries": 0}, promotion={"approval_hours": 5})
    with create_session() as session:
        session.execute(delete(Variable))
    bag = load()

    def run(template: str, **conf: Any) -> Run:
        dag = bag.dags[f"tiny.{template}"]
        for task_id in set(dag.task_dict) - {"approve"}:
            if not (jobs.folder / f"{task_id}.result").exists():
                jobs.returns(result(task_id, template))
        return Run(dag, conf)

    return run


@pytest.mark.parametrize(
    ("template", "asset", "artifact"),
    [("ingest", "tiny/dataset", "dataset"), ("pretrain", "tiny/encoder", "registered_encoder"), ("finetune", "tiny/model", "registered_model"),
     ("monitor", "tiny/drift", "drift")],
)  # fmt: skip
def test_a_run_goes_from_resolve_to_its_asset(run, jobs, template, asset, artifact):
    done = run(template)
    assert done.state == "success"
    assert done.states.pop("approve", "skipped") == "skipped", "nobody has to be asked"
    assert set(done.states.values()) == {"success"}
    assert done.events == {asset: reference(artifact).model_dump(mode="json")}
    for task_id, values in done.xcom.items():
        assert StepResult.model_validate(values["return_value"]) == result(task_id, template)
        assert len(json.dumps(values["return_value"])) <= RESULT_BYTES_LIMIT
        assert f"http://mlflow/{task_id}" in values.values()
        assert f"http://report/{task_id}" in values.values()
    assert set(done.xcom) == set(done.states) == jobs.started()
    first, rest = jobs.spec("resolve"), jobs.started() - {"resolve"}
    assert first.project["name"] == "tiny"
    assert first.request.template == template
    assert {jobs.spec(step).config for step in rest} == {reference("config")}


@pytest.mark.parametrize("template", ["rollback", "fire-drill"])
def test_what_announces_nothing_ends_well_too(run, jobs, template):
    done = run(template, **({"to": "1", "reason": "slow"} if template == "rollback" else {}))
    assert (done.state, done.events, jobs.started()) == ("success", {}, {"resolve", template})
    assert jobs.spec(template).rollback_to == ("1" if template == "rollback" else "")


def test_no_news_wakes_nobody(run, jobs):
    jobs.returns(result("publish", news=False, summary="unchanged: tiny@v1"))
    done = run("ingest")
    assert done.state == "success"
    assert done.states == {"resolve": "success", "ingest": "success", "validate": "success", "publish": "skipped"}
    assert done.events == {}
    assert StepResult.model_validate(done.xcom["publish"]["return_value"]).outputs["dataset"] == reference("dataset")


def test_a_dataset_that_fails_its_check_stops_there_with_a_report(run, jobs, capfd, caplog, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    jobs.returns(result("validate", status=StepStatus.CHECK_FAILED, outputs={}, summary="3 of 9 failed"))
    jobs.ends("validate", 3, f"check failed: 3 of 9 expectations failed, not {SECRET}")
    done = run("ingest")
    assert done.state == "failed"
    assert done.states == {
        "resolve": "success",
        "ingest": "success",
        "validate": "failed",
        "publish": "upstream_failed",
    }
    assert done.events == {}
    assert "return_value" not in done.xcom["validate"]
    assert "http://report/validate" in done.xcom["validate"].values()
    shown = "".join(capfd.readouterr())
    assert "check failed: 3 of 9 expectations failed" in shown
    assert "notice: tiny.ingest validate: step-failed: check failed: 3 of 9" in caplog.text
    # A job that prints its secrets: a task's log is masked by its supervisor, which this process has not (test_operator.py).
    assert f"works with {SECRET}" in shown
    assert SECRET not in caplog.text
    assert SECRET not in json.dumps(done.xcom)


def test_without_labels_there_is_nothing_to_fine_tune(run, jobs):
    resolved = result("resolve", "finetune")
    jobs.returns(
        resolved.model_copy(update={"outputs": resolved.outputs | {"dataset": reference("dataset", labelled=0)}})
    )
    done = run("finetune")
    assert done.state == "success"
    assert {state for task, state in done.states.items() if task != "resolve"} == {"skipped"}
    assert done.events == {}
    assert jobs.started() == {"resolve"}


def test_a_reused_encoder_wakes_nobody(run, jobs):
    resolved = result("resolve", "pretrain")
    again = resolved.outputs | {"registered_encoder": reference("registered_encoder")}
    jobs.returns(resolved.model_copy(update={"outputs": again}))
    done = run("pretrain")
    assert done.states == {"resolve": "success", "pretrain": "skipped", "register-encoder": "skipped"}
    assert done.events == {}


def test_the_trigger_form_reaches_resolve(run, jobs):
    done = run("finetune", dataset="v2", encoder_version="7", overrides={"task": {"labels": 20}})
    assert done.state == "success"
    spec = jobs.spec("resolve")
    assert (spec.request.dataset, spec.request.encoder_version) == ("v2", "7")
    assert spec.project["task"]["labels"] == 20


def test_a_wrong_trigger_stops_at_resolve(run, jobs, capfd):
    done = run("finetune", overrides={"task": {"label": 20}})
    assert done.state == "failed"
    assert done.states["resolve"] == "failed"
    assert jobs.started() == set()
    assert "did you mean `labels`" in "".join(capfd.readouterr())


# ---- a person between gate and promote

REPORT = "# NEEDS_HUMAN: tiny version 3\n\n- too few samples {{ 1 + 1 }}\n\n| | challenger | champion |\n|---|---|---|\n| accuracy | 0.91 | 0.90 |"


@pytest.fixture
def answer(monkeypatch, caplog) -> Callable[..., list[dict[str, Any]]]:
    """``answer("Promote", comment="fine")``: what is said as soon as the run waits; ``answer(None)``: nobody does, until the time is over."""

    def will(option: str | None, **given: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def waited(seconds: float) -> None:
            with create_session() as session:
                waiting = select(TaskInstance).where(TaskInstance.state == "awaiting_input")
                found = session.scalars(waiting.options(joinedload(TaskInstance.hitl_detail))).first()
                if found is None:
                    return
                detail = found.hitl_detail
                asked.append(
                    {
                        "subject": detail.subject,
                        "body": detail.body,
                        "options": detail.options,
                        "wait": found.trigger_timeout,
                    }
                )
                if option is None:
                    found.trigger_timeout = timezone.utcnow() - timedelta(seconds=1)
                    session.commit()
                    SchedulerJobRunner.check_awaiting_input_timeouts(SimpleNamespace(log=logging.getLogger("test")))
                    return
                # As the API's PATCH does it.
                detail.responded_by = {"id": "7", "name": "ada"}
                detail.responded_at = timezone.utcnow()
                detail.chosen_options, detail.params_input = [option], given
                session.flush()
                handle_event_submit(
                    TriggerEvent(detail.as_resume_event_payload()), task_instance=found, session=session
                )

        monkeypatch.setattr("time.sleep", waited)
        return asked

    return will


@pytest.mark.parametrize(
    ("option", "given", "approval"),
    [
        ("Promote", {"comment": "fine"}, Approval(answer="approve", user="ada", comment="fine")),
        (None, {}, Approval(answer="expired")),
    ],
    ids=["promote", "nobody"],
)
def test_a_person_is_asked_and_the_answer_reaches_promote(run, jobs, answer, caplog, option, given, approval):
    jobs.returns(result("gate", verdict=Verdict.NEEDS_HUMAN, summary=REPORT))
    jobs.returns(result("promote", news=option == "Promote", summary="as the person said"))
    asked = answer(option, **given)
    done = run("finetune")
    assert done.state == "success"
    assert done.states["approve"] == "success"
    assert done.states["promote"] == ("success" if option == "Promote" else "skipped")
    assert jobs.spec("promote").approval == approval
    (question,) = asked[:1]
    assert question["subject"] == "Promote the challenger of tiny?"
    assert question["options"] == ["Promote", "Decline"]
    assert question["body"].startswith(REPORT), "as it is: what a job says is no template"
    assert "ssl-core promote tiny --approve ffffffffffff" in question["body"]
    assert "http://report/gate" in question["body"]
    assert timedelta(hours=4) < question["wait"] - timezone.utcnow() <= timedelta(hours=5)
    assert "notice: tiny.finetune gate: gate: # NEEDS_HUMAN: tiny version 3" in caplog.text
    told = "notice: tiny.finetune approve: expired: nobody answered in time; turned down: NEEDS_HUMAN: tiny version 3"
    assert (told in caplog.text) is (option is None)


# ---- incidents, in Airflow's own database


def test_a_step_that_fails_again_is_told_once_and_its_end_too(run, jobs, caplog):
    """Opened and closed by a task's callbacks, from one worker's process to the next; the rules are in test_notify.py."""
    for drift in (3, 4):
        jobs.ends("monitor", 3, f"check failed: {drift} of 9 columns are not there")
        caplog.clear()
        done = run("monitor")
        assert ("notice: tiny.monitor monitor: step-failed: check failed" in caplog.text) is (drift == 3)
        assert ("told before" in caplog.text) is (drift != 3)
    ((key, incidents),) = done.incidents.items()
    assert key == "ssl_incidents.tiny.monitor.monitor"
    ((cause, incident),) = incidents.items()
    assert cause == "step-failed: check failed: # of # columns are not there"
    assert (incident["count"], incident["reason"]) == (2, "check failed: 3 of 9 columns are not there")
    (jobs.folder / "monitor.ends").unlink()
    jobs.returns(result("monitor", news=False, alert="data-bug: camera-2 sends black images"))
    caplog.clear()
    done = run("monitor")
    assert done.states["monitor"] == "skipped", "and that is well, too"
    assert list(done.incidents["ssl_incidents.tiny.monitor.monitor"]) == ["finding: data-bug"]
    assert "notice: tiny.monitor monitor: fine-again: since" in caplog.text
    assert "2 times: check failed: 3 of 9" in caplog.text
    assert "notice: tiny.monitor monitor: finding: data-bug: camera-2 sends black images" in caplog.text
