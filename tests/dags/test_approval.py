"""The task between gate and promote, without a database; whole runs with it are in test_runs.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskAwaitingInput

from ssl_core.contracts import StepResult, Verdict
from ssl_dags.approval import DECLINE, PROMOTE
from tests.dags.results import result


@pytest.fixture(autouse=True)
def asked(monkeypatch) -> list[dict[str, Any]]:
    """What people were asked."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("airflow.sdk.bases.operator.ExecutorSafeguard.test_mode", True)
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **given: asked.append(given)
    )
    return asked


@pytest.fixture
def task(make_dag):
    return make_dag("finetune", promotion={"approval_hours": 5}).task_dict["approve"]


def context(gate: StepResult, place: dict[str, Any] | None = None) -> dict[str, Any]:
    xcoms = {"gate": gate.model_dump(mode="json"), "resolve:place": place}
    ti = SimpleNamespace(
        id="ti-1", dag_id="tiny.finetune", run_id="manual__1", task_id="approve",
        xcom_pull=lambda task_ids, key="return_value": xcoms[task_ids if key == "return_value" else f"{task_ids}:{key}"],
    )  # fmt: skip
    return {"ti": ti, "task_instance": ti}


def open_question(**changes: Any) -> StepResult:
    return result("gate", verdict=Verdict.NEEDS_HUMAN, summary="# NEEDS_HUMAN: {{ 1 + 1 }}", **changes)


@pytest.mark.parametrize(("place", "hours"), [(None, 5), ({}, 5), ({"approval_hours": 0.5}, 0.5)])
def test_it_waits_as_long_as_the_run_was_told(task, asked, place, hours):
    with pytest.raises(TaskAwaitingInput) as waits:
        task.execute(context(open_question(), place))
    assert waits.value.timeout == timedelta(hours=hours)
    (question,) = asked
    assert question["options"] == [PROMOTE, DECLINE]
    assert question["defaults"] is None, "a time-out is no answer"
    assert set(question["params"]) == {"comment"}, "and none of the trigger form's fields"
    assert "{{ 1 + 1 }}" in question["body"]


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        (result("gate", verdict=Verdict.PROMOTE), "the gate said PROMOTE"),
        (result("gate", verdict=Verdict.REJECT), "the gate said REJECT"),
        (open_question(news=False), "decided before"),
    ],
)
def test_nobody_is_asked_what_is_decided(task, asked, gate, why):
    with pytest.raises(AirflowSkipException, match=why):
        task.execute(context(gate))
    assert asked == []


def test_promote_runs_whether_or_not_somebody_was_asked(make_dag):
    tasks = make_dag("finetune").task_dict
    assert tasks["promote"].upstream_task_ids == {"approve"}
    assert tasks["promote"].trigger_rule == "none_failed"


def answered(option: list[str], user: dict[str, str] | None, comment: Any) -> dict[str, Any]:
    return {
        "chosen_options": option, "params_input": {} if comment == "none" else {"comment": comment},
        "responded_at": datetime.now(UTC), "responded_by_user": user, "timedout": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "user", "comment", "approval"),
    [
        (PROMOTE, {"id": "7", "name": "ada"}, None, {"answer": "approve", "user": "ada", "comment": ""}),
        (DECLINE, {"id": "7", "name": "ada"}, " not yet\n", {"answer": "decline", "user": "ada", "comment": "not yet"}),
        (DECLINE, {"id": "7", "name": ""}, "none", {"answer": "decline", "user": "7", "comment": ""}),
        (PROMOTE, None, None, {"answer": "approve", "user": "unknown", "comment": ""}),
    ],
)
def test_an_answer_has_its_author(task, option, user, comment, approval):
    assert task.execute_complete(context(open_question()), answered([option], user, comment)) == approval


@pytest.mark.parametrize("options", [[], [PROMOTE, DECLINE], ["Perhaps"]])
def test_what_is_no_answer_promotes_nothing(task, options):
    with pytest.raises(ValueError, match=r"Perhaps|one of Promote and Decline"):
        task.execute_complete(context(open_question()), answered(options, None, None))


def test_without_an_answer_in_time_it_is_expired_and_told(task, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr("ssl_dags.approval.nobody_answered", lambda *given: told.append(given))
    event = {"error": "too late", "error_type": "timeout"}
    assert task.execute_complete(context(open_question()), event) == {"answer": "expired", "user": "", "comment": ""}
    assert told == [("tiny.finetune", "manual__1", "approve", "NEEDS_HUMAN: {{ 1 + 1 }}")]
