"""Whole DAG runs in one process: Airflow's database, XCom, assets and callbacks are real; the jobs are a small program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import delete, select

from ssl_core.contracts import RESULT_BYTES_LIMIT, StepResult, StepSpec, StepStatus
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


@pytest.fixture
def run(load, write_project, jobs, monkeypatch) -> Callable[..., Run]:
    """``run("ingest", conf={...})``: a run of the DAG whose jobs return good results, but for what the test has changed."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # dag.test() sleeps whenever nothing but a state passes on
    write_project("tiny", limits={"retries": 0})
    bag = load()

    def run(template: str, **conf: Any) -> Run:
        dag = bag.dags[f"tiny.{template}"]
        for task_id in dag.task_dict:
            if not (jobs.folder / f"{task_id}.result").exists():
                jobs.returns(result(task_id, template))
        return Run(dag, conf)

    return run


@pytest.mark.parametrize(
    ("template", "asset", "artifact"),
    [("ingest", "tiny/dataset", "dataset"), ("pretrain", "tiny/encoder", "registered_encoder"), ("finetune", "tiny/model", "registered_model")],
)  # fmt: skip
def test_a_run_goes_from_resolve_to_its_asset(run, jobs, template, asset, artifact):
    done = run(template)
    assert done.state == "success"
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
