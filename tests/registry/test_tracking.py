"""MLflow runs: lineage, resumption, buffering, and a server that is not there."""

from __future__ import annotations

import http.server
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import requests

from ssl_core.config.settings import Settings
from ssl_core.contracts import RunContext
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.pipeline import get_step, source_digest
from ssl_core.registry import tracking
from ssl_core.registry.client import connect
from ssl_core.registry.tracking import MlflowTracker, dataset_entity, open_run
from tests.registry.conftest import World, dataset_ref

RUN = RunContext(run_id="walk-1", user="ada", url="http://airflow/run/1")


def opened(world: World, key: str = "k" * 64):
    return open_run(world.settings, world.project, get_step("pretrain"), key, RUN, {"dataset": dataset_ref()})


def test_a_run_says_where_it_comes_from(world: World, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("fine")
    with opened(world) as tracker:
        tracker.params({"objective": {"name": "simclr", "temperature": 0.2}})
        link = tracker.artifact(tmp_path / "report.md", "reports")
    run = world.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "pretrain tiny@v1"
    assert run.data.params == {"objective.name": "simclr", "objective.temperature": "0.2"}
    wanted = {
        "ssl.project": "tiny", "ssl.step": "pretrain", "ssl.key": "k" * 64, "ssl.code": source_digest(), "ssl.dataset": "tiny@v1",
        "ssl.dataset_md5": dataset_ref().md5, "ssl.run_id": "walk-1", "ssl.run_url": "http://airflow/run/1", "mlflow.user": "ada",
    }  # fmt: skip
    assert {name: run.data.tags.get(name) for name in wanted} == wanted
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("tiny@v1", dataset_ref().md5)
    view = "?workflowType=machine_learning"  # else MLflow opens its GenAI view
    assert link.endswith(f"/runs/{tracker.run_id}/artifacts/reports/report.md{view}")
    assert tracker.url.endswith(f"/runs/{tracker.run_id}{view}")
    assert {a.path for a in world.client.list_artifacts(tracker.run_id)} == {"config.yaml", "inputs.json", "reports"}


def test_a_failed_step_goes_on_in_the_same_run(world: World) -> None:
    with pytest.raises(CheckFailed), opened(world) as first:  # noqa: PT012
        first.params({"lr": 0.1})
        first.metrics({"loss": 2.0}, step=0)
        raise CheckFailed("the features collapsed", place="pretrain", next_step="lower the learning rate")
    run = world.client.get_run(first.run_id)
    assert run.info.status == "FAILED"
    assert "the features collapsed" in run.data.tags["ssl.error"]
    assert run.data.tags["ssl.exit_code"] == "3"
    with pytest.raises(KeyboardInterrupt), opened(world) as stopped:
        raise KeyboardInterrupt
    assert world.client.get_run(first.run_id).info.status == "KILLED"
    with opened(world) as second:
        second.params({"lr": 0.1, "more": 1})
        second.metrics({"loss": 1.0}, step=1)
    assert first.run_id == stopped.run_id == second.run_id
    run = world.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["ssl.error"] == ""
    assert [(m.step, m.value) for m in world.client.get_metric_history(first.run_id, "loss")] == [(0, 2.0), (1, 1.0)]
    with opened(world) as third:
        pass
    assert third.run_id != first.run_id, "a finished run is closed for good"
    with opened(world, key="other") as fourth:
        pass
    assert fourth.run_id not in (first.run_id, third.run_id)


def test_a_defect_keeps_its_own_error(world: World) -> None:
    with pytest.raises(ZeroDivisionError), opened(world) as tracker:
        raise ZeroDivisionError("by zero")
    assert world.client.get_run(tracker.run_id).data.tags["ssl.error"] == "ZeroDivisionError: by zero"


def test_metrics_go_in_batches_and_none_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    with opened(world) as tracker:
        real = tracker._client.log_batch
        monkeypatch.setattr(
            tracker._client, "log_batch", lambda *a, **k: (calls.append(len(k.get("metrics", ()))), real(*a, **k))
        )
        for step in range(1200):
            tracker.metrics({"a": float(step), "b": float("nan")}, step=step)
    assert len(calls) <= 10
    assert sum(calls) == 2400
    assert len(world.client.get_metric_history(tracker.run_id, "a")) == 1200


def test_a_server_that_comes_back_gets_what_was_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(world) as tracker:
        away = True
        real = MlflowTracker.flush

        def flush(self: MlflowTracker) -> None:
            if away:
                raise TryAgain("MLflow cannot be reached")
            real(self)

        monkeypatch.setattr(MlflowTracker, "flush", flush)
        monkeypatch.setattr(tracking, "_BUFFERED", 10)
        with caplog.at_level(logging.WARNING):
            for step in range(50):
                tracker.metrics({"loss": 1.0}, step=step)
        assert len(caplog.records) == 1, "the next try waits, training goes on"
        away = False
    assert len(world.client.get_metric_history(tracker.run_id, "loss")) == 50


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (TryAgain("MLflow cannot be reached", place="http://there"), 0),  # the step's own error says it
        (TryAgain("stopped by SIGTERM"), 1),
        (ZeroDivisionError("by zero"), 1),
    ],
)
@pytest.mark.parametrize("seen_before", [False, True])
def test_an_outage_is_said_once(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason,
    said: int,
    seen_before: bool,
) -> None:
    def away(self: MlflowTracker, *arguments: object) -> None:
        raise TryAgain("MLflow cannot be reached: connection refused", place="http://there")

    monkeypatch.setattr(tracking, "_FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "_LONGEST_PAUSE", 0.0)
    with caplog.at_level(logging.WARNING), pytest.raises(type(reason)) as raised, opened(world) as tracker:  # noqa: PT012
        monkeypatch.setattr(MlflowTracker, "flush", away)
        monkeypatch.setattr(MlflowTracker, "tags", away)
        if seen_before:
            for step in range(5):
                tracker.metrics({"loss": 1.0}, step=step)
            assert len(caplog.records) == 1
        raise reason
    assert raised.value is reason
    assert [r.message.split(";")[0] for r in caplog.records] == ["MLflow cannot be reached: connection refused"] * (
        1 if seen_before else said
    )


def test_the_next_outage_is_said_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "_FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "_LONGEST_PAUSE", 0.0)
    with caplog.at_level(logging.WARNING), opened(world) as tracker:
        real = tracker._client.log_batch
        for _outage in range(2):
            refused = requests.exceptions.ConnectionError("[Errno 111] Connection refused")
            monkeypatch.setattr(tracker._client, "log_batch", Mock(side_effect=refused))
            tracker.metrics({"loss": 1.0})
            tracker.metrics({"loss": 1.0})
            monkeypatch.setattr(tracker._client, "log_batch", real)
            tracker.metrics({"loss": 1.0})
    assert len(caplog.records) == 2


def test_a_digest_is_never_cut_short() -> None:
    with pytest.raises(ValueError, match="not a DVC md5"):
        dataset_entity(dataset_ref().model_copy(update={"md5": "a" * 40}))


def test_mlflow_down_is_try_again_and_quick(tmp_path: Path, make_project, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    settings = Settings(home=tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(TryAgain) as caught, open_run(settings, make_project(), get_step("pretrain"), "k", RUN, {}):
        pass
    assert time.monotonic() - started < 10
    assert caught.value.exit_code == 75
    assert str(port) in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in caught.value.next_step


class _Unavailable(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def faulty(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that is closed, never answers, or always answers 503."""
    if request.param == "unavailable":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Unavailable) as httpd:
            threading.Thread(target=httpd.serve_forever, daemon=True).start()
            yield httpd.server_address[1]
            httpd.shutdown()
        return
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        if request.param == "silent":
            there.listen()
        yield there.getsockname()[1]


@pytest.mark.parametrize(
    ("faulty", "words"),
    [("closed", "connection refused"), ("silent", "timed out"), ("unavailable", "HTTP 503")],
    indirect=["faulty"],
)
def test_mlflow_going_down_in_between_is_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: int, words: str
) -> None:
    """The client's own errors are translated too, not only the first look at /health, and into words."""
    from ssl_core.registry import client as client_module

    settings = Settings(home=tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{faulty}")
    monkeypatch.setattr(client_module, "check_reachable", lambda settings: None)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(TryAgain) as caught, client_module.mlflow_errors(settings):
        connect(settings).get_run("x")
    assert caught.value.cause == f"MLflow cannot be reached: {words}"
