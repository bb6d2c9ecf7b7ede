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
from ssl_dags import notify

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


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def failed_task(error: BaseException | None = None) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="tiny.ingest", run_id="manual__2025-01-01T00:00:00+00:00", task_id="validate")
    return {"ti": ti, "exception": error}


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


def test_the_gate_is_told_with_what_it_said(webhook):
    notify.gate_said("tiny.finetune", "manual__1", "gate", "NEEDS_HUMAN: too few samples")
    body = webhook.received[0][2]
    assert (body["event"], body["reason"]) == ("gate", "NEEDS_HUMAN: too few samples")
    assert body["url"].endswith("/dags/tiny.finetune/runs/manual__1/tasks/gate")


def test_without_airflows_address_there_is_no_link(webhook, monkeypatch):
    monkeypatch.delenv("SSL_AIRFLOW_URL")
    notify.step_failed(failed_task())
    assert webhook.received[0][2]["url"] == ""
    assert notify.run_url(Settings(), "a", "b", "c") == ""


def test_secrets_of_jobs_are_masked(webhook, logged):
    mask_secret("a-secret-of-this-test")
    notify.step_failed(failed_task(ValueError("refused: key a-secret-of-this-test")))
    notify.gate_said("tiny.finetune", "manual__1", "gate", "REJECT: a-secret-of-this-test")
    assert [body["reason"] for _, _, body in webhook.received] == ["refused: key ***", "REJECT: ***"]
    assert "a-secret-of-this-test" not in json.dumps(webhook.received) + logged.text


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
