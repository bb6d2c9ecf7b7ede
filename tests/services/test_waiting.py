"""What was decided on the command line is no question for Airflow any more."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_core.config.settings import Settings
from ssl_core.errors import TryAgain
from ssl_core.services import airflow, waiting

DIGEST = "3f9c2a7d41be" + "0" * 52


class Airflow:
    def __init__(self, *bodies: str | None) -> None:
        self.details = [
            {"body": body, "task_instance": {"dag_run_id": f"manual__{n}+00:00"}} for n, body in enumerate(bodies)
        ]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answered: list[tuple[str, Any]] = []

    def get(self, path: str, **query: Any) -> Any:
        self.asked.append((path, query))
        return {"hitl_details": self.details, "total_entries": len(self.details)}

    def patch(self, path: str, body: Any) -> None:
        self.answered.append((path, body))


def body(digest: str) -> str:
    return f"On the command line: `ssl-core promote digits --approve {digest}`, or `--decline {digest}`."


def test_the_question_about_this_report_is_answered_and_no_other():
    api = Airflow(body("a" * 12), body(DIGEST[:12]), None)
    assert waiting.answer(api, "digits", DIGEST, "Decline", "unfair") == ["manual__1+00:00"]
    ((path, query),) = api.asked
    assert path == "dags/digits.finetune/dagRuns/~/hitlDetails"
    assert (query["task_id"], query["response_received"]) == ("approve", "false")
    assert api.answered == [
        (
            "dags/digits.finetune/dagRuns/manual__1%2B00%3A00/taskInstances/approve/-1/hitlDetails",
            {"chosen_options": ["Decline"], "params_input": {"comment": "unfair"}},
        )
    ]


def test_where_no_airflow_of_this_home_runs_none_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(airflow, "api", lambda settings: pytest.fail("asked"))
    assert waiting.answer_local(Settings(home=tmp_path), "digits", DIGEST, "Promote", "") == []


def test_an_airflow_that_does_not_answer_is_no_matter(tmp_path, monkeypatch):
    class Running:
        def record(self) -> object:
            return object()

    class Away:
        def get(self, path: str, **query: Any) -> Any:
            raise TryAgain("Airflow does not answer")

    monkeypatch.setattr(airflow, "daemon", lambda settings, component: Running())
    monkeypatch.setattr(airflow, "api", lambda settings: Away())
    assert waiting.answer_local(Settings(home=tmp_path), "digits", DIGEST, "Promote", "") == []
    asked = Airflow(body(DIGEST[:12]))
    monkeypatch.setattr(airflow, "api", lambda settings: asked)
    assert waiting.answer_local(Settings(home=tmp_path), "digits", DIGEST, "Promote", "") == ["manual__0+00:00"]
    assert asked.answered[0][1] == {"chosen_options": ["Promote"], "params_input": {"comment": None}}
