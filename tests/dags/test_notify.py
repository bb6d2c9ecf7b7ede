from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.log import mask_secret

from ssl_core.config.settings import Settings
from ssl_core.contracts import Verdict
from ssl_dags import notify
from tests.dags.results import result

TOKEN = "T024BE7LH-token"
NOTICE = notify.Notice(
    "step-failed", "tiny", "tiny.ingest", "manual__1", "validate", "too few rows", "http://airflow/run"
)


class Webhook:
    """A server that answers ``status`` to each POST, after ``release`` is set."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"ok"
        self.received: list[tuple[str, str, dict[str, Any]]] = []
        self.arrived = threading.Event()
        self.release = threading.Event()
        self.release.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
                hook.arrived.set()
                hook.release.wait(20)
                self.send_response(hook.status)
                self.send_header("Content-Length", str(len(hook.body)))
                self.end_headers()
                self.wfile.write(hook.body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/{TOKEN}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    hook = Webhook()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SSL_WEBHOOK_URL", hook.url)
    monkeypatch.setenv("SSL_AIRFLOW_URL", "http://airflow:8080/")
    yield hook
    hook.close()


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Airflow's Variables, as text; there are no others outside a task."""
    kept: dict[str, str] = {}

    class Variable:
        @staticmethod
        def get(key: str, default: Any, deserialize_json: bool) -> Any:
            return json.loads(kept[key]) if key in kept else default

        @staticmethod
        def set(key: str, value: Any, description: str, serialize_json: bool) -> None:
            kept[key] = json.dumps(value)

        @staticmethod
        def delete(key: str) -> None:
            del kept[key]

    monkeypatch.setattr("ssl_dags.incidents.Variable", Variable)
    return kept


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def failed_task(error: BaseException | None = None) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="tiny.ingest", run_id="manual__2025-01-01T00:00:00+00:00", task_id="validate")
    return {"ti": ti, "exception": error, "task": SimpleNamespace(downstream_task_ids={"publish"})}


def failed_run(reason: str | None) -> dict[str, Any]:
    return {"dag": SimpleNamespace(dag_id="tiny.ingest"), "run_id": "manual__1", "reason": reason}


# ---- what is sent


def test_the_webhook_gets_a_text_and_the_fields_it_is_made_of(webhook):
    assert notify.send(NOTICE) is True
    ((path, kind, body),) = webhook.received
    assert path == f"/hooks/{TOKEN}"
    assert kind == "application/json"
    assert body == {
        "text": "tiny.ingest validate: step-failed: too few rows\nhttp://airflow/run",
        "event": "step-failed",
        "project": "tiny",
        "dag_id": "tiny.ingest",
        "run_id": "manual__1",
        "task_id": "validate",
        "reason": "too few rows",
        "url": "http://airflow/run",
    }


def test_a_text_is_short_enough_for_a_chat(webhook):
    notify.step_failed(failed_task(AirflowFailException("x" * 100_000)))
    assert len(webhook.received[0][2]["text"]) == 2000


def test_a_failed_step_is_told_with_its_reason_and_a_link(webhook):
    notify.step_failed(failed_task(AirflowFailException("check failed: 3 of 9")))
    body = webhook.received[0][2]
    assert (body["event"], body["project"], body["task_id"]) == ("step-failed", "tiny", "validate")
    assert body["reason"] == "check failed: 3 of 9"
    assert body["url"] == (
        "http://airflow:8080/dags/tiny.ingest/runs/manual__2025-01-01T00%3A00%3A00%2B00%3A00/tasks/validate"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [(None, "it was ended from outside"), (KeyError(), "KeyError"), (ValueError("why"), "why")],
)
def test_a_failed_step_without_words_has_a_reason_too(webhook, error, reason):
    notify.step_failed(failed_task(error))
    assert webhook.received[0][2]["reason"] == reason


@pytest.mark.parametrize(
    ("reason", "words"),
    [("timed_out", "limits.run_hours"), ("all_tasks_deadlocked", "no task can go on"), ("other", "other"), (None, "")],
)
def test_a_run_that_no_task_has_told_of_is_told(webhook, reason, words):
    notify.run_failed(failed_run(reason))
    body = webhook.received[0][2]
    assert (body["event"], body["task_id"], body["run_id"]) == ("run-failed", "", "manual__1")
    assert words in body["reason"]
    assert body["url"] == "http://airflow:8080/dags/tiny.ingest/runs/manual__1"


def test_a_failed_task_is_not_told_twice(webhook, logged):
    notify.run_failed(failed_run("task_failure"))
    assert webhook.received == []
    assert "notice" not in logged.text


def gate(verdict: str, summary: str) -> None:
    said = result("gate", verdict=Verdict(verdict), summary=f"{verdict}: {summary}")
    notify.gate_said("tiny.finetune", "manual__1", "gate", said)


def test_the_gate_is_told_with_what_it_said(webhook):
    gate("REJECT", "worse by 3 points")
    body = webhook.received[0][2]
    assert (body["event"], body["reason"]) == ("gate", "REJECT: worse by 3 points")
    assert body["url"].endswith("/dags/tiny.finetune/runs/manual__1/tasks/gate")


def test_who_has_to_decide_is_led_to_where_the_answer_is_given(webhook):
    gate("NEEDS_HUMAN", "too few samples")
    gate("NEEDS_HUMAN", "too few samples")
    bodies = [body for _, _, body in webhook.received]
    assert [body["reason"] for body in bodies] == ["NEEDS_HUMAN: too few samples"] * 2, "each is a question of its own"
    assert bodies[0]["url"].endswith("/dags/tiny.finetune/runs/manual__1/tasks/approve/required_actions")


# ---- incidents


def said(webhook: Webhook) -> list[str]:
    found = [
        f"{body['event']}: {body['reason'].partition(': ')[2] or body['reason']}" for _, _, body in webhook.received
    ]
    webhook.received.clear()
    return found


def test_the_same_failure_is_told_once_and_counted(webhook, variables, logged):
    for rows in (3, 4, 5):
        notify.step_failed(
            failed_task(ValueError(f"check failed: {rows} of 9 in {'ab12cd34' * rows}\n  next: look {rows}"))
        )
    assert len(said(webhook)) == 1
    assert logged.text.count("told before") == 2
    (incidents,) = (json.loads(value) for value in variables.values())
    ((cause, incident),) = incidents.items()
    assert cause == "step-failed: check failed: # of # in #"
    assert incident["count"] == 3
    assert incident["reason"].startswith("check failed: 3 of 9"), "the first, which people were told"
    notify.step_fine(failed_task())
    assert said(webhook) == ["fine-again: check failed: 3 of 9 in ab12cd34ab12cd34ab12cd34\n  next: look 3"]
    assert variables == {}
    notify.step_fine(failed_task())
    assert said(webhook) == []
    notify.step_failed(failed_task(ValueError("check failed: 3 of 9 in ab12cd34")))
    assert len(said(webhook)) == 1, "it was fine in between"


def test_another_cause_and_another_task_are_other_incidents(webhook, variables):
    notify.step_failed(failed_task(ValueError("no such folder")))
    notify.step_failed(failed_task(ValueError("no such file")))
    other = failed_task(ValueError("no such folder"))
    other["ti"].task_id = "ingest"
    notify.step_failed(other)
    assert len(said(webhook)) == 3
    notify.step_fine(failed_task())
    assert len(said(webhook)) == 2
    assert list(variables) == ["ssl_incidents.tiny.ingest.ingest"]


def test_a_run_that_came_to_its_end_closes_a_time_out(webhook, variables):
    notify.run_failed(failed_run("timed_out"))
    notify.run_failed(failed_run("timed_out"))
    assert len(said(webhook)) == 1
    notify.step_fine(failed_task())
    assert said(webhook) == [], "there are tasks after it"
    last = failed_task() | {"task": SimpleNamespace(downstream_task_ids=set())}
    notify.step_fine(last)
    assert [line.partition(":")[0] for line in said(webhook)] == ["fine-again"]
    assert variables == {}


def test_rejections_are_counted_until_a_promotion(webhook, variables):
    gate("REJECT", "worse by 3 points")
    gate("REJECT", "worse by 4 points")
    gate("REJECT", "a slice is worse")
    assert said(webhook) == ["gate: worse by 3 points"]
    gate("PROMOTE", "better")
    assert said(webhook) == ["fine-again: REJECT: worse by 3 points"]
    gate("PROMOTE", "better")
    assert said(webhook) == []
    assert variables == {}


def test_a_finding_is_told_once_until_it_is_another_or_none(webhook, variables):
    def found(alert: str) -> list[str]:
        notify.finding("tiny.monitor", "manual__1", "monitor", alert)
        return said(webhook)

    assert found("") == []
    assert found("data-bug: camera-2 is black") == ["finding: camera-2 is black"]
    assert found("data-bug: camera-2 is still black") == []
    assert found("held-back: 4 retrainings in 30 days") == [
        "fine-again: data-bug: camera-2 is black", "finding: 4 retrainings in 30 days",
    ]  # fmt: skip
    notify.step_fine(failed_task() | {"ti": SimpleNamespace(dag_id="tiny.monitor", run_id="r", task_id="monitor")})
    assert said(webhook) == [], "that the step went well says nothing on what it found"
    assert found("") == ["fine-again: held-back: 4 retrainings in 30 days"]
    assert variables == {}


@pytest.mark.parametrize("fault", ["get", "set", "delete"])
def test_where_incidents_cannot_be_kept_people_are_told_too_often_rather_than_never(
    webhook, logged, monkeypatch, fault
):
    def broken(*given: Any, **options: Any) -> None:
        raise RuntimeError("no database")

    notify.step_failed(failed_task(ValueError("why")))
    monkeypatch.setattr(f"ssl_dags.incidents.Variable.{fault}", broken)
    notify.step_failed(failed_task(ValueError("why")))
    assert len(said(webhook)) == (1 if fault == "delete" else 2)
    notify.step_fine(failed_task())
    assert said(webhook) == ([] if fault in ("get", "delete") else ["fine-again: why"])
    assert ("incident cannot be" in logged.text) is True


@pytest.mark.parametrize("kept", ["[]", "3", "null", '{"step-failed: why": 3}', '{"step-failed: why": {}}'])
def test_what_somebody_wrote_by_hand_breaks_nothing(webhook, variables, kept):
    variables["ssl_incidents.tiny.ingest.validate"] = kept
    notify.step_failed(failed_task(ValueError("why")))
    notify.step_fine(failed_task())
    assert len(webhook.received) == (1 if kept.endswith("{}}") else 2)
    assert variables == {}


def test_without_airflows_address_there_is_no_link(webhook, monkeypatch):
    monkeypatch.delenv("SSL_AIRFLOW_URL")
    notify.step_failed(failed_task())
    assert webhook.received[0][2]["url"] == ""
    assert notify.run_url(Settings(), "a", "b", "c") == ""


def test_secrets_of_jobs_are_masked(webhook, logged, variables):
    mask_secret("a-secret-of-this-test")
    notify.step_failed(failed_task(ValueError("refused: key a-secret-of-this-test")))
    gate("REJECT", "a-secret-of-this-test")
    assert [body["reason"] for _, _, body in webhook.received] == ["refused: key ***", "REJECT: ***"]
    assert "a-secret-of-this-test" not in json.dumps(webhook.received) + logged.text + str(variables)


# ---- what goes wrong with it


def test_without_a_webhook_it_is_only_logged(logged, monkeypatch):
    def nobody(*args, **kwargs):
        raise AssertionError("somebody was called")

    monkeypatch.setattr("urllib.request.urlopen", nobody)
    assert notify.send(NOTICE) is False
    assert [r.levelname for r in logged.records if "too few rows" in r.getMessage()] == ["WARNING"]
    assert "ERROR" not in {r.levelname for r in logged.records}


def refused_address() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/{TOKEN}"


@pytest.mark.parametrize(
    "url",
    [
        "refused",
        f"http://[::bad/{TOKEN}",
        f"http://127.0.0.1:99999/{TOKEN}",
        f"http://127.0.0.1/{TOKEN}\r\nX: y",
        f"file:///etc/{TOKEN}",
        f"ftp://host/{TOKEN}",
        f"javascript:{TOKEN}",
        TOKEN,
    ],
)
def test_an_address_that_does_not_work_never_fails_a_task_nor_shows_in_a_log(logged, monkeypatch, url):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SSL_WEBHOOK_URL", refused_address() if url == "refused" else url)
    assert notify.send(NOTICE) is False
    notify.step_failed(failed_task(ValueError("why")))
    assert "ERROR" in {r.levelname for r in logged.records}
    assert TOKEN not in logged.text
    assert TOKEN not in "".join(str(r.exc_info) for r in logged.records)


@pytest.mark.parametrize("url", ["file:///dev/null", "ftp://127.0.0.1/x"])
def test_no_file_is_opened_and_no_other_protocol_spoken(monkeypatch, url):
    opened = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: opened.append(a))
    monkeypatch.setenv("SSL_WEBHOOK_URL", url)
    assert notify.send(NOTICE) is False
    assert opened == []


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_webhook_that_says_no_is_logged_without_its_address(webhook, logged, status):
    webhook.status, webhook.body = status, f"bad token {TOKEN}".encode()
    assert notify.send(NOTICE) is False
    assert len(webhook.received) == 1
    assert "the webhook did not take the notice: HTTPError" in logged.text
    assert TOKEN not in logged.text


def test_a_webhook_that_does_not_answer_is_not_waited_for(webhook, logged, monkeypatch):
    assert notify._SECONDS <= 5, "Airflow ends a worker five seconds after it asked"
    monkeypatch.setattr(notify, "_SECONDS", 0.2)
    webhook.release.clear()
    assert notify.send(NOTICE) is False  # the server would hold it for 20 seconds
    assert webhook.arrived.wait(20)
    assert "TimeoutError" in logged.text
    assert TOKEN not in logged.text
