"""The REST client against a small server: signing in, its errors as ours, and logs as plain lines."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ssl_core.daemon import free_port
from ssl_core.errors import TryAgain, UserError
from ssl_core.services.api import AirflowApi


class Server(http.server.ThreadingHTTPServer):
    """Answers what a test has put into ``answers``; asks for the token ``token``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = "one"
        self.answers: dict[str, tuple[int, Any]] = {}
        self.seen: list[tuple[str, str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        self.server.seen.append((self.command, self.path, body))
        path = self.path.split("?")[0].removeprefix("/api/v2/")
        if path == "/auth/token":
            known = body == {"username": "admin", "password": "right"}
            self.say(201 if known else 401, {"access_token": self.server.token} if known else {"detail": "Invalid"})
        elif not path.startswith("monitor") and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.say(401, {"detail": "Invalid JWT token"})
        else:
            self.say(*self.server.answers.get(path, (404, {"detail": "not here"})))

    do_GET = do_POST = do_PATCH = answer

    def say(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # A proxy that is not there: asking it for this machine's own server would fail.
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(server: Server) -> AirflowApi:
    return AirflowApi(server.url, "admin", "right", timeout=10)


def test_health_needs_no_user(server: Server) -> None:
    server.answers["monitor/health"] = (200, {"scheduler": {"status": "healthy"}})
    assert AirflowApi(server.url, "", "").health() == {"scheduler": {"status": "healthy"}}
    assert [path for _, path, _ in server.seen] == ["/api/v2/monitor/health"]


def test_signs_in_once_and_again_when_the_token_has_run_out(server: Server, api: AirflowApi) -> None:
    server.answers["dags"] = (200, {"dags": []})
    api.get("dags")
    assert api.get("dags", limit=3, tags=None) == {"dags": []}
    assert [path for _, path, _ in server.seen] == ["/auth/token", "/api/v2/dags", "/api/v2/dags?limit=3"]
    server.token = "two"
    assert api.get("dags") == {"dags": []}
    assert [path for _, path, _ in server.seen[3:]] == ["/api/v2/dags", "/auth/token", "/api/v2/dags"]


def test_post_and_patch_send_json(server: Server, api: AirflowApi) -> None:
    server.answers["dags/d/dagRuns"] = (200, {"dag_run_id": "r"})
    server.answers["dags/d"] = (200, {})
    assert api.post("dags/d/dagRuns", {"logical_date": None})["dag_run_id"] == "r"
    api.patch("dags/d", {"is_paused": False})
    assert server.seen[1:] == [
        ("POST", "/api/v2/dags/d/dagRuns", {"logical_date": None}),
        ("PATCH", "/api/v2/dags/d", {"is_paused": False}),
    ]


def test_a_wrong_password_is_the_users_error_and_is_not_repeated(server: Server) -> None:
    with pytest.raises(UserError, match="does not let user 'admin' in") as caught:
        AirflowApi(server.url, "admin", "wrong-secret").get("dags")
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ("Invalid input for param epochs: 0 is less than the minimum of 1", "less than the minimum"),
        ([{"loc": ["body", "slots"], "msg": "Field required"}], "body.slots: Field required"),
        ({"reason": "not_found", "message": "The DagRun was not found"}, "The DagRun was not found"),
    ],
)
def test_a_refusal_says_what_the_api_said(server: Server, api: AirflowApi, detail: Any, words: str) -> None:
    server.answers["dags"] = (400, {"detail": detail})
    with pytest.raises(UserError, match=words):
        api.get("dags")


def test_an_outage_is_to_be_tried_again(server: Server, api: AirflowApi) -> None:
    server.answers["dags"] = (503, "down")
    with pytest.raises(TryAgain, match="503"):
        api.get("dags")
    with pytest.raises(TryAgain, match="does not answer") as caught:
        AirflowApi(f"http://127.0.0.1:{free_port(40_000)}", "admin", "right").get("dags")
    assert "ssl-core up" in caught.value.next_step


def test_another_program_on_the_port_is_said(server: Server, api: AirflowApi) -> None:
    server.answers["dags"] = (200, "<html>")
    with pytest.raises(UserError, match="something else than Airflow"):
        api.get("dags")


def test_a_pool_that_somebody_else_makes_at_the_same_moment_is_fine(
    server: Server, api: AirflowApi, monkeypatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(api, "_has_pool", lambda name: next(answers))
    server.answers["pools"] = (409, {"detail": "Unique constraint violation"})
    api.ensure_pool("gpu", 1, "why")
    monkeypatch.setattr(api, "_has_pool", lambda name: False)
    with pytest.raises(UserError, match="Unique constraint"):
        api.ensure_pool("gpu", 1, "why")


def test_a_pool_is_made_once_and_then_left_alone(server: Server, api: AirflowApi) -> None:
    server.answers["pools"] = (200, {"pools": [{"name": "gpu-2", "slots": 4}]})  # the pattern finds parts of names
    api.ensure_pool("gpu", 1, "why")
    assert server.seen[-1][0] == "POST"
    assert server.seen[-1][2] == {"name": "gpu", "slots": 1, "description": "why", "include_deferred": False}
    server.answers["pools"] = (200, {"pools": [{"name": "gpu", "slots": 4}]})
    api.ensure_pool("gpu", 1, "why")
    assert server.seen[-1][0] == "GET"


def test_a_log_is_plain_lines_without_where_they_were_read(server: Server, api: AirflowApi) -> None:
    events = ["::group::Log message source details", "/x/attempt=1.log", "Could not read served logs", "::endgroup::"]
    events += ["::group::Pre Execute", "hello", "::endgroup::", "epoch 1"]
    path = "dags/d/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00/taskInstances/g.t/logs/2"
    server.answers[path] = (200, {"content": [{"event": event} for event in events], "continuation_token": "x"})
    lines = api.task_log("d", "manual__2026-01-01T00:00:00+00:00", "g.t", 2, map_index=3)
    assert lines == ["::group::Pre Execute", "hello", "::endgroup::", "epoch 1"]
    assert "map_index=3" in server.seen[-1][1]
    assert api.task_log("d", "r", "not.started.yet") == []
