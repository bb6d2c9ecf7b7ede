from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
)
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.log import mask_logs
from structlog.testing import capture_logs

from ssl_core.config.runner import RunnerConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import RESULT_BYTES_LIMIT, Approval, ModelRef, StepResult, StepSpec, StepStatus, Verdict
from ssl_core.pipeline import get_step, steps_for
from ssl_dags.operator import _lives, make_runner
from ssl_dags.runners.base import CannotStart, Finished, Job, Unavailable
from ssl_dags.runners.docker import DockerRunner
from ssl_dags.runners.local import LocalRunner
from ssl_dags.templates import TEMPLATES
from tests.dags.results import before, reference, result

STEPS = steps_for("image")

SECRET = "wJalrXUtnFEMIbPxRfiCY"


class Runner:
    """A runner whose job prints ``lines``, writes ``document`` and ends with ``code``."""

    def __init__(self, document: StepResult | bytes | None, code: int = 0, lines: tuple[str, ...] = ()) -> None:
        self.document = document.model_dump_json(indent=1).encode() if isinstance(document, StepResult) else document
        self.code, self.lines = code, lines
        self.jobs: list[Job] = []
        self.killed = False
        self.cause = ""
        self.meanwhile: Any = lambda: None

    @property
    def spec(self) -> StepSpec:
        (job,) = self.jobs
        return StepSpec.model_validate_json(job.spec)

    def run(self, job: Job, on_line: Any) -> Finished:
        self.jobs.append(job)
        for line in self.lines:
            on_line(line)
        self.meanwhile()
        return Finished(self.code, self.document, self.cause)

    def kill(self) -> None:
        self.killed = True


class Task:
    """One try of a task, and what came of it."""

    def __init__(self, operator: Any, xcoms: Mapping[str, Any], runner: Runner, **given: Any) -> None:
        self.operator, self.runner = operator, runner
        self.pushed: dict[str, Any] = {}
        self.events = OutletEventAccessors()
        self.log: list[str] = []
        dag = operator.dag
        self.context = {
            "dag": dag,
            "ti": SimpleNamespace(
                dag_id=dag.dag_id,
                run_id="manual__1",
                task_id=operator.task_id,
                try_number=given.get("try_number", 1),
                map_index=-1,
                xcom_pull=lambda task_ids, key="return_value": xcoms.get(
                    task_ids if key == "return_value" else f"{task_ids}:{key}"
                ),
                xcom_push=self.pushed.__setitem__,
            ),
            "dag_run": SimpleNamespace(
                conf=given.get("conf", {}), triggering_user_name=given.get("user", "ada"), run_type="manual"
            ),
            "outlet_events": self.events,
            "triggering_asset_events": given.get("woken", {}),
        }

    def run(self) -> Any:
        with capture_logs() as lines:
            try:
                return self.operator.execute(self.context)
            finally:
                self.log = [line["event"] % line.get("positional_args", ()) for line in lines]

    def links(self) -> dict[str, str]:
        return {link.name: link.get_link(self.operator, ti_key=None) for link in self.operator.operator_extra_links}

    def announced(self) -> dict[str, Any]:
        return {asset.name: self.events[asset].extra for asset in self.events}


@pytest.fixture(autouse=True)
def _outside_airflow(monkeypatch):
    """Airflow lets its own task process call ``execute``, and nobody else."""
    monkeypatch.setattr("airflow.sdk.bases.operator.ExecutorSafeguard.test_mode", True)


@pytest.fixture
def make_task(make_dag, monkeypatch):
    """``make_task("gate", code=1)``: a task of its DAG, all before it done, whose job ends as told."""

    def make(
        step: str, document: Any = "good", *, code: int = 0, lines=(), changed=None, template="", **given: Any
    ) -> Task:
        template = template or get_step(step).template
        dag = make_dag(template, **given.pop("sections", {}))
        runner = Runner(result(step, template) if document == "good" else document, code, lines)
        monkeypatch.setattr("ssl_dags.operator.make_runner", lambda *given: runner)
        xcoms = before(dag, step, **(changed or {})) | {"resolve:place": given.pop("place", None)}
        xcoms |= {"approve": given.pop("people", None)}
        return Task(dag.task_dict[step], xcoms, runner, **given)

    return make


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What people were told by ``gate_said`` and ``finding``; "" is that all is well."""
    calls: list[str] = []
    monkeypatch.setattr("ssl_dags.operator.gate_said", lambda dag, run, task, gate: calls.append(gate.summary))
    monkeypatch.setattr("ssl_dags.operator.finding", lambda dag, run, task, alert: calls.append(alert))
    return calls


# ---- how a job's end becomes a task's


def test_a_job_that_went_well_returns_its_references(make_task):
    task = make_task("pretrain", lines=("epoch 1", "epoch 2"))
    value = task.run()
    assert value == result("pretrain").model_dump(mode="json")
    assert json.loads(json.dumps(value)) == value
    assert [line for line in task.log if line.startswith("epoch")] == ["epoch 1", "epoch 2"]
    assert "pretrain did well" in task.log
    assert task.links() == {"MLflow run": "http://mlflow/pretrain", "Report": "http://report/pretrain"}


@pytest.mark.parametrize(
    ("code", "lines", "again", "said"),
    [
        (1, ("Traceback (most recent call last):", "ZeroDivisionError"), True, "exit code 1; the lines above say why"),
        (2, ("reading", "error: data.source: no such folder", "  next: mend it"), False, "error: data.source: no such folder\n  next: mend it"),
        (2, (), False, "exit code 2"),
        (75, ("try again: MLflow does not answer",), True, "try again: MLflow does not answer"),
        (75, (), True, "exit code 75"),
        (-9, ("epoch 3",), True, "SIGKILL: out of memory, or ended from outside"),
        (137, (), True, "SIGKILL"),
        (-15, (), True, "signal 15"),
        (127, (), True, "exit code 127"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("document", ["good", None], ids=["with result", "without"])
def test_an_exit_code_says_whether_trying_again_can_help(make_task, code, lines, again, said, document):
    task = make_task("pretrain", document, code=code, lines=lines)
    with pytest.raises(AirflowException) as error:
        task.run()
    assert isinstance(error.value, AirflowFailException) is not again
    assert said in str(error.value)
    assert task.announced() == {}


def failed(step: str = "validate", **changes: Any) -> StepResult:
    return result(step, status=StepStatus.CHECK_FAILED, outputs={}, summary="3 of 9 expectations failed", **changes)


def test_a_failed_check_is_final_and_links_to_its_report(make_task):
    task = make_task("validate", failed(), code=3, lines=("check failed: 3 of 9 expectations failed", "  next: look"))
    with pytest.raises(AirflowFailException) as error:
        task.run()
    assert str(error.value) == "check failed: 3 of 9 expectations failed\n  next: look"
    assert task.links() == {"MLflow run": "http://mlflow/validate", "Report": "http://report/validate"}
    assert "3 of 9 expectations failed" in task.log


def test_a_failed_check_whose_job_said_nothing_is_told_by_its_summary(make_task):
    with pytest.raises(AirflowFailException, match="3 of 9 expectations failed"):
        make_task("validate", failed(), code=3).run()


def test_a_failed_check_without_a_report_is_final_too(make_task):
    task = make_task("validate", None, code=3, lines=("check failed: 3 of 9 expectations failed",))
    with pytest.raises(AirflowFailException, match="3 of 9 expectations failed"):
        task.run()
    assert task.links() == {"MLflow run": "", "Report": ""}


def test_a_failed_check_is_no_success_whatever_the_exit_code(make_task):
    with pytest.raises(AirflowFailException, match="3 of 9 expectations failed"):
        make_task("validate", failed()).run()


def test_the_last_error_is_the_reason(make_task):
    lines = ("error: the first, which was dealt with", "going on", "error: the last", "  next: mend it")
    with pytest.raises(AirflowFailException) as error:
        make_task("pretrain", code=2, lines=lines).run()
    assert str(error.value) == "error: the last\n  next: mend it"


BAD_RESULTS = {
    "none": (None, "wrote no result"),
    "empty": (b"", "is not one"),
    "no JSON": (b"\xff\xfe{", "is not one"),
    "a list": (b"[]", "is not one"),
    "a word too much": (result("pretrain").model_dump_json()[:-1].encode() + b', "secret": 1}', "is not one"),
    "another step's": (result("register-encoder"), "of step register-encoder"),
    "without outputs": (result("pretrain", outputs={}), "without encoder"),
    "too large": (result("pretrain", summary="x" * 3 * RESULT_BYTES_LIMIT), "bytes"),
}


@pytest.mark.parametrize(("document", "said"), BAD_RESULTS.values(), ids=BAD_RESULTS.keys())
def test_a_result_is_checked_before_anybody_may_use_it(make_task, document, said):
    task = make_task("pretrain", document)
    with pytest.raises(AirflowException, match=said) as error:
        task.run()
    assert not isinstance(error.value, AirflowFailException), "a defect, perhaps of one try"
    assert task.pushed == {}


def test_a_program_that_is_not_there_is_nothing_to_try_again(make_task):
    task = make_task("pretrain")
    task.runner.meanwhile = lambda: (_ for _ in ()).throw(CannotStart("No such file or directory: '/no/python'"))
    with pytest.raises(AirflowFailException) as error:
        task.run()
    assert "/no/python" in str(error.value)


def test_what_was_done_before_says_so(make_task):
    task = make_task("pretrain", result("pretrain", cached=True))
    task.run()
    assert "pretrain: unchanged, done before" in task.log


# ---- stopped from outside


def test_a_stop_reaches_the_job(make_task):
    task = make_task("pretrain", None, code=-15)
    task.runner.meanwhile = task.operator.on_kill
    with pytest.raises(AirflowRescheduleException):  # to be run again, and not at the price of a try
        task.run()
    assert task.runner.killed


def test_a_stop_before_the_job_was_started_starts_none(make_task):
    task = make_task("pretrain")
    task.operator.on_kill()
    with pytest.raises(AirflowRescheduleException):
        task.run()
    assert task.runner.jobs == []


# ---- nothing to do


@pytest.mark.parametrize("step", [step.name for step in STEPS if step.needs_labels])
def test_without_labels_there_is_nothing_to_fine_tune(make_task, step):
    resolved = result("resolve", "finetune")
    resolved = resolved.model_copy(update={"outputs": resolved.outputs | {"dataset": reference("dataset", labelled=0)}})
    task = make_task(step, changed={"resolve": resolved})
    with pytest.raises(AirflowSkipException, match="no labels yet"):
        task.run()
    assert task.runner.jobs == []
    assert task.announced() == {}


@pytest.mark.parametrize("step", ["pretrain"])
def test_a_reused_encoder_is_not_pretrained_again(make_task, step):
    resolved = result("resolve", "pretrain")
    resolved = resolved.model_copy(
        update={"outputs": resolved.outputs | {"registered_encoder": reference("registered_encoder")}}
    )
    with pytest.raises(AirflowSkipException, match="reused"):
        make_task(step, changed={"resolve": resolved}).run()


# ---- who is woken


@pytest.mark.parametrize(
    ("step", "asset", "artifact"),
    [
        ("publish", "dataset", "dataset"), ("register-encoder", "encoder", "registered_encoder"), ("promote", "model", "registered_model"),
        ("monitor", "drift", "drift"),
    ],
)  # fmt: skip
def test_the_event_carries_the_reference(make_task, told, step, asset, artifact):
    task = make_task(step)
    assert task.run()
    assert task.announced() == {f"tiny/{asset}": reference(artifact).model_dump(mode="json")}


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("step", ["publish", "register-encoder", "promote", "monitor"])
@pytest.mark.parametrize("summary", ["unchanged: tiny@v1\nmore", ""])
def test_without_news_nobody_is_woken_and_the_result_is_kept(make_task, step, summary):
    task = make_task(step, result(step, news=False, summary=summary))
    with pytest.raises(AirflowSkipException, match="no news") as error:
        task.run()
    assert summary.partition("\n")[0] in str(error.value)
    assert task.pushed == {"return_value": result(step, news=False, summary=summary).model_dump(mode="json")}
    assert task.announced() == {}
    assert task.links()["MLflow run"] == f"http://mlflow/{step}"


@pytest.mark.parametrize("step", ["resolve", "ingest", "validate"])
def test_other_steps_announce_nothing(make_task, step):
    task = make_task(step, template="ingest")
    task.run()
    assert task.announced() == {}


# ---- what a job gets


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("step", [step.name for step in STEPS if step.name != "resolve"])
def test_a_job_gets_the_frozen_configuration_and_exactly_its_inputs(make_task, step):
    task = make_task(step, try_number=2)
    task.run()
    spec = task.runner.spec
    assert spec.step == step
    assert spec.project == {}
    assert spec.config == reference("config")
    assert spec.inputs == {name: reference(name) for name in get_step(step, "image").inputs}
    assert spec.request is None
    run = spec.run
    assert (run.run_id, run.user, run.orchestrator) == (f"{run.dag_id}/manual__1", "ada", "airflow")
    assert (run.dag_id, run.task_id, run.try_number) == (f"tiny.{get_step(step).template}", step, 2)
    assert task.runner.jobs[0].step == step
    labels = dict(task.runner.jobs[0].labels)
    assert labels.pop("ssl.spec")
    assert labels == {
        "ssl.dag_id": run.dag_id, "ssl.run_id": "manual__1", "ssl.task_id": step, "ssl.map_index": "-1", "ssl.try": "2",
    }  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_resolve_gets_the_project_and_what_the_run_asks_for(make_task, template):
    task = make_task("resolve", template=template, sections={"description": "Digits", "pretrain": {"epochs": 9}})
    task.run()
    spec = task.runner.spec
    assert spec.config is None
    assert spec.inputs == {}
    assert spec.project["name"] == "tiny"
    assert spec.project["description"] == "Digits"
    assert spec.project["pretrain"]["epochs"] == 9
    assert spec.request.model_dump() == {
        "template": template,
        "dataset": "latest",
        "encoder_version": "",
        "woken_by": "",
        "drift": "",
    }


def test_the_trigger_form_holds_for_this_run(make_task):
    conf = {"dataset": "v2", "encoder_version": "7", "task.labels": "50", "overrides": {"evaluate": {"draws": 5}}}
    task = make_task("resolve", template="finetune", conf=conf)
    task.run()
    spec = task.runner.spec
    assert (spec.request.dataset, spec.request.encoder_version) == ("v2", "7")
    assert spec.project["task"]["labels"] == 50
    assert spec.project["evaluate"]["draws"] == 5
    assert "task.labels = 50, for this run only" in task.log
    assert "evaluate.draws = 5, for this run only" in task.log


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"task.label": "50"}, "did you mean `task.labels`"),
        ({"overrides": {"pretrain": {"epochs": -1}}}, "trigger form: pretrain.epochs"),
        ({"overrides": {"name": "other"}}, "this DAG is of tiny"),
    ],
)
def test_a_wrong_trigger_is_final_and_names_the_key(make_task, conf, said):
    task = make_task("resolve", template="finetune", conf=conf)
    with pytest.raises(AirflowFailException) as error:
        task.run()
    assert said in str(error.value)
    assert task.runner.jobs == []


@pytest.mark.usefixtures("told")
def test_a_project_file_that_broke_stops_resolve_and_nothing_else(make_task, projects):
    """A run in progress has its configuration in the store."""
    for text in ("name: [", "name: other\ndata: {source: sample://digits}\n", None):
        for step in (step.name for step in STEPS):
            task = make_task(step, template=get_step(step).template or "pretrain")
            path = projects / "tiny.yaml"
            path.unlink() if text is None else path.write_text(text)
            if step == "resolve":
                with pytest.raises(AirflowFailException, match=r"tiny\.yaml"):
                    task.run()
                assert task.runner.jobs == []
            else:
                task.run()
                assert task.runner.spec.config == reference("config")


def test_an_input_that_nobody_made_is_named(make_task):
    """A task of a run whose earlier task was marked as success by hand."""
    task = make_task("register-encoder", changed={"pretrain": result("pretrain", outputs={})})
    with pytest.raises(AirflowFailException, match="nothing before it made encoder"):
        task.run()


def test_who_has_triggered_it_or_what(make_task):
    task = make_task("pretrain", user=None)
    task.run()
    assert task.runner.spec.run.user == "manual"


def events(*extras: Any) -> list[SimpleNamespace]:
    return [SimpleNamespace(extra=extra) for extra in extras]


def encoder(version: str) -> dict[str, Any]:
    return reference("registered_encoder", version=version).model_dump(mode="json")


def test_the_newest_of_the_encoders_that_woke_the_run(make_task):
    """Events coalesce, in any order; ten is newer than nine; anybody may post an event."""
    garbage = [None, {}, {"version": "99"}, "text", encoder("8") | {"version": "newest"}, encoder("8") | {"more": 1}]
    woken = {"tiny/encoder": events(encoder("9"), encoder("10"), *garbage), "other": events(encoder("2"))}
    task = make_task("resolve", template="finetune", woken=woken)
    task.run()
    assert task.runner.spec.request.woken_by == "10"
    assert ModelRef.model_validate(encoder("10")).version == "10"


@pytest.mark.parametrize("woken", [{}, None, {"tiny/encoder": events({"from_rest_api": True})}])
def test_nothing_woke_it(make_task, woken):
    task = make_task("resolve", template="finetune", woken=woken)
    task.run()
    assert task.runner.spec.request.woken_by == ""


def drift(sha256: str) -> dict[str, Any]:
    return reference("drift").model_dump(mode="json") | {"sha256": sha256}


def test_the_newest_of_the_drifts_that_woke_the_run(make_task):
    news = [
        SimpleNamespace(extra=drift("b" * 64), timestamp="2026-01-02"),
        SimpleNamespace(extra=drift("a" * 64), timestamp="2026-01-01"),
        SimpleNamespace(extra=reference("model").model_dump(mode="json"), timestamp="2026-01-03"),
        SimpleNamespace(extra={"from_rest_api": True}, timestamp="2026-01-04"),
    ]
    task = make_task("resolve", template="finetune", woken={"tiny/drift": news, "tiny/encoder": events(encoder("9"))})
    task.run()
    assert (task.runner.spec.request.drift, task.runner.spec.request.woken_by) == ("b" * 64, "9")


def test_a_rollback_knows_where_to_and_why(make_task):
    task = make_task("rollback", conf={"to": "3", "reason": "it is slow"})
    task.run()
    assert (task.runner.spec.rollback_to, task.runner.spec.reason) == ("3", "it is slow")
    task = make_task("rollback", conf={"to": None})
    task.run()
    assert (task.runner.spec.rollback_to, task.runner.spec.reason) == ("", "")


@pytest.mark.parametrize("step", ["promote", "gate"])
def test_the_answer_of_a_person_reaches_promote_and_no_other(make_task, told, step):
    answer = {"answer": "decline", "user": "ada", "comment": "not yet"}
    task = make_task(step, people=answer)
    task.run()
    assert task.runner.spec.approval == (Approval(**answer) if step == "promote" else None)


def test_where_nobody_was_asked_promote_has_no_answer(make_task):
    task = make_task("promote")
    task.run()
    assert task.runner.spec.approval is None


def test_a_dataset_wakes_pretraining_without_a_word(make_task):
    woken = {"tiny/dataset": events(reference("dataset").model_dump(mode="json"))}
    task = make_task("resolve", template="pretrain", woken=woken)
    task.run()
    assert task.runner.spec.request.woken_by == ""


# ---- secrets


def test_secrets_reach_the_job_and_nothing_else(make_task, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("SSL_WEBHOOK_URL", "http://hooks/token-of-the-hook")
    monkeypatch.setenv("MY_DATABASE_PASSWORD", "not-for-jobs")
    task = make_task("publish", lines=("uploading",))
    value = task.run()
    (job,) = task.runner.jobs
    assert job.secrets == {"AWS_SECRET_ACCESS_KEY": SECRET}
    # What a task's supervisor does to each line of its log.
    assert mask_logs(None, "info", {"event": f"key={SECRET}"}) == {"event": "key=***"}
    handed_over = json.dumps([dict(job.environment), job.spec, dict(job.labels), value, task.log, task.announced()])
    for text in (repr(job), repr(task.operator), handed_over):
        assert SECRET not in text
        assert "token-of-the-hook" not in text
        assert "not-for-jobs" not in text
    assert job.environment["SSL_HOME"].endswith("/home")
    assert {"SSL_STORE", "MLFLOW_TRACKING_URI"} <= set(job.environment)


# ---- the gate


@pytest.mark.parametrize(
    ("verdict", "summary", "news", "tells"),
    [
        (Verdict.PROMOTE, "PROMOTE: better by 3 points", True, True),
        (Verdict.REJECT, "REJECT: worse by 3 points", True, True),
        (Verdict.NEEDS_HUMAN, "NEEDS_HUMAN: too few samples", True, True),
        (Verdict.REJECT, "REJECT: already decided in ledger entry 2: REJECTED for tiny@v1 and this recipe", False, False),
        (Verdict.NEEDS_HUMAN, "NEEDS_HUMAN: already decided in ledger entry 2: EXPIRED for tiny@v1 and this recipe", False, False),
    ],
)  # fmt: skip
def test_each_decision_of_the_gate_is_told_once(make_task, told, verdict, summary, news, tells):
    task = make_task("gate", result("gate", verdict=verdict, summary=summary, news=news))
    assert task.run()["verdict"] == verdict
    assert told == ([summary] if tells else [])


def test_steps_without_a_verdict_tell_nobody(make_task, told):
    make_task("evaluate").run()
    assert told == []


@pytest.mark.parametrize("news", [True, False])
@pytest.mark.parametrize("alert", ["data-bug: camera-2 sends black images", ""])
def test_what_the_monitor_finds_is_told_whether_or_not_it_wakes_a_retraining(make_task, told, news, alert):
    task = make_task("monitor", result("monitor", news=news, alert=alert))
    if news:
        task.run()
    else:
        with pytest.raises(AirflowSkipException):
            task.run()
    assert told == [alert]
    assert set(task.announced()) == ({"tiny/drift"} if news else set())


def test_the_link_to_mlflow_is_there_however_the_task_ends(make_task):
    task = make_task(
        "pretrain", None, code=75, lines=["    MLflow run: http://mlflow/#/runs/1", "try again: it is away"]
    )
    with pytest.raises(AirflowException, match="it is away"):
        task.run()
    assert task.operator.links == {"MLflow run": "http://mlflow/#/runs/1"}


# ---- where it runs


def chosen_for(task: Task, monkeypatch: pytest.MonkeyPatch) -> tuple[RunnerConfig, Any]:
    asked: list[Any] = []
    runner = task.runner
    monkeypatch.setattr(
        "ssl_dags.operator.make_runner", lambda settings, chosen, step, ti: asked.append(chosen) or runner
    )
    task.run()
    return asked[0], runner.jobs[0]


def test_resolve_freezes_where_the_steps_of_a_run_run(make_task, monkeypatch, tmp_path):
    data = {"source": str(tmp_path), "labels": str(tmp_path / "labels.csv")}
    task = make_task(
        "resolve", template="ingest", sections={"runner": {"kind": "docker", "memory": "2g"}, "data": data}
    )
    chosen, job = chosen_for(task, monkeypatch)
    assert chosen == RunnerConfig(kind="docker", memory="2g")
    place = json.loads(json.dumps(task.pushed["place"]))
    assert place == {
        "runner": {"kind": "docker", "memory": "2g"},
        "reads": [str(tmp_path), str(tmp_path / "labels.csv")],
        "approval_hours": 72,
    }
    assert job.reads == ()


def test_the_form_may_change_where_one_run_runs(make_task, monkeypatch):
    task = make_task(
        "resolve", template="pretrain", conf={"overrides": {"runner.memory": "4g"}}, sections={"runner": "docker"}
    )
    assert chosen_for(task, monkeypatch)[0] == RunnerConfig(kind="docker", memory="4g")


@pytest.mark.parametrize(("step", "reads"), [("ingest", ("/images",)), ("validate", ())])
def test_later_steps_take_it_from_there_and_only_ingest_sees_the_source(make_task, monkeypatch, step, reads):
    task = make_task(step, place={"runner": {"kind": "docker"}, "reads": ["/images"]})
    chosen, job = chosen_for(task, monkeypatch)
    assert chosen == RunnerConfig(kind="docker")
    assert job.reads == reads


def test_the_kind_of_runner_follows_the_choice(monkeypatch, tmp_path):
    settings = Settings(home=tmp_path)
    assert isinstance(make_runner(settings, RunnerConfig(), get_step("pretrain"), None), LocalRunner)
    for step, gpus in (("pretrain", 2), ("validate", 0)):
        runner = make_runner(settings, RunnerConfig(kind="docker", gpus=2), get_step(step), None)
        assert isinstance(runner, DockerRunner)
        assert runner._plan.gpus == gpus, "only steps that train get GPUs"


@pytest.mark.parametrize(
    ("states", "lives"),
    [
        ({"r": {"pretrain": "running"}}, True),
        ({"r": {"pretrain": "up_for_retry"}}, True),
        ({"r": {"pretrain": None}}, True),
        ({"r": {"pretrain": "failed"}}, False),
        ({"r": {"pretrain": "success"}}, False),
        ({}, False),
    ],
)
def test_airflow_knows_whether_a_container_is_still_wanted(states, lives):
    asked: list[Any] = []
    ti = SimpleNamespace(get_task_states=lambda **given: asked.append(given) or states)
    labels = {"ssl.dag_id": "d", "ssl.run_id": "r", "ssl.task_id": "pretrain"}
    assert _lives(ti)(labels) is lives
    assert asked == [{"dag_id": "d", "task_ids": ["pretrain"], "run_ids": ["r"]}]


def test_a_mapped_task_is_asked_for_by_its_index():
    ti = SimpleNamespace(get_task_states=lambda **given: {"r": {"pretrain_0": "success", "pretrain_1": "running"}})
    labels = {"ssl.dag_id": "d", "ssl.run_id": "r", "ssl.task_id": "pretrain"}
    assert not _lives(ti)(labels | {"ssl.map_index": "0"})
    assert _lives(ti)(labels | {"ssl.map_index": "1"})


def test_the_tries_of_a_task_ask_for_the_same_and_a_changed_run_for_something_else(make_task):
    def label(**given: Any) -> str:
        task = make_task("pretrain", **given)
        task.run()
        return task.runner.jobs[0].labels["ssl.spec"]

    other = result("resolve", "pretrain", outputs={"config": reference("other"), "dataset": reference("dataset")})
    assert label() == label(try_number=2)
    assert label() != label(changed={"resolve": other})


def test_an_engine_that_is_away_is_tried_again(make_task):
    task = make_task("pretrain")
    task.runner.meanwhile = lambda: (_ for _ in ()).throw(Unavailable("no engine"))
    with pytest.raises(AirflowException, match="no engine") as error:
        task.run()
    assert not isinstance(error.value, AirflowFailException)
    task.operator._stopped = False
    task.runner.meanwhile = lambda: (task.operator.on_kill(), (_ for _ in ()).throw(Unavailable("no engine")))[1]
    with pytest.raises(AirflowRescheduleException):
        task.run()


def test_what_the_runner_knows_of_a_bad_end_is_told(make_task):
    task = make_task("pretrain", None, code=137)
    task.runner.cause = "out of memory"
    with pytest.raises(AirflowException, match="out of memory"):
        task.run()


def test_secrets_of_connections_reach_the_job_and_are_masked(make_task, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SSL_S3", json.dumps({"conn_type": "aws", "login": "key", "password": SECRET}))
    task = make_task("pretrain")
    task.run()
    assert task.runner.jobs[0].secrets["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert SECRET not in task.runner.jobs[0].spec + repr(task.runner.jobs[0])
