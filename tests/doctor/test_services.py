"""Airflow, MLflow and the clock, against servers that answer what each fault looks like."""

from __future__ import annotations

import time
from email.utils import formatdate
from importlib import metadata
from types import SimpleNamespace

import pytest

from ssl_core.config.settings import Settings
from ssl_core.doctor import services
from ssl_core.doctor.http import NoAnswer, ask
from ssl_core.services.environment import AIRFLOW_VERSION

OURS = metadata.version("mlflow")


# ---- one request


def test_why_there_is_no_answer(refusing, hanging):
    with pytest.raises(NoAnswer, match="refused"):
        ask(refusing)
    with pytest.raises(NoAnswer, match="in time"):
        ask(hanging, timeout=0.3)
    with pytest.raises(NoAnswer, match="host name"):
        ask("http://no-such-host.invalid")
    with pytest.raises(NoAnswer):
        ask("no address at all")


def test_an_error_is_an_answer(serve):
    reply = ask(serve(lambda *_: (403, "no"), DATE="Mon, 05 Jan 2026 00:00:00 GMT"))
    assert (reply.status, reply.headers["date"][:3]) == (403, "Mon")


# ---- MLflow


def at(tmp_path, url: str, monkeypatch) -> Settings:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return Settings(home=tmp_path / "home")


def major(version: str) -> str:
    return f"{int(OURS.split('.')[0]) + 1}.0.0" if version == "next" else version


@pytest.mark.parametrize(
    ("status", "version", "finding", "words", "mend"),
    [
        (200, OURS, "ok", "", ""),
        (200, "3.1.0", "warning", "3.1.0", f"mlflow=={OURS}"),
        (200, "1.30.0", "failed", "1.30.0", f"mlflow=={OURS}"),
        (200, "<html>a wiki</html>", "failed", "something else than MLflow", "MLFLOW_TRACKING_URI"),
        (404, "", "failed", "something else than MLflow", "MLFLOW_TRACKING_URI"),
        (403, "", "failed", "refuses (HTTP 403)", "MLFLOW_TRACKING_USERNAME"),
        (503, "", "failed", "answers HTTP 503", "MLFLOW_TRACKING_URI"),
    ],
)
def test_mlflow_of_somebody_else(status, version, finding, words, mend, serve, tmp_path, monkeypatch):
    found = services.mlflow(at(tmp_path, serve(lambda *_: (status, version)), monkeypatch))
    assert found.status == finding
    assert words in found.cause
    assert mend in found.mend


def test_no_mlflow_at_the_address(refusing, tmp_path, monkeypatch):
    found = services.mlflow(at(tmp_path, refusing, monkeypatch))
    assert found.status == "failed"
    assert "connection refused" in found.cause
    assert "MLFLOW_TRACKING_URI" in found.mend
    assert services.artifacts_from_here(at(tmp_path, refusing, monkeypatch)).status == "skipped"


def test_the_local_mlflow_that_does_not_run_is_no_failure(settings):
    found = services.mlflow(settings)
    assert (found.status, found.mend) == ("warning", "ssl-core mlflow start")


def test_the_local_mlflow_on_another_port(settings, monkeypatch):
    monkeypatch.setattr(services, "server_status", lambda _: SimpleNamespace(running=True, port=5123))
    found = services.mlflow(settings)
    assert found.status == "failed"
    assert "export SSL_MLFLOW_PORT=5123" in found.mend


def test_a_database_is_no_server(tmp_path, monkeypatch):
    assert services.mlflow(at(tmp_path, "sqlite:///x.db", monkeypatch)).status == "warning"


def test_artifacts_are_tried_by_the_jobs_python_and_what_it_says_is_told(serve, tmp_path, monkeypatch):
    program = tmp_path / "python"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serve(lambda *_: (200, OURS)))
    settings = Settings(home=tmp_path, job_python=str(program))
    for script, status, words in (
        ("""echo noise; echo '{"findings": {"artifacts": {"status": "ok", "found": "written"}}}'""", "ok", "written"),
        ("echo 'No module named ssl_core' >&2; exit 1", "failed", "No module named ssl_core"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        found = services.artifacts_from_here(settings)
        assert found.status == status
        assert words in found.found + found.cause
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    assert "no answer" in services.artifacts_from_here(settings, seconds=0.2).cause
    assert time.monotonic() - began < 5


# ---- Airflow


def component(name: str = "scheduler", pid: int | None = 7, healthy: bool = True) -> SimpleNamespace:
    return SimpleNamespace(name=name, pid=pid, healthy=healthy)


@pytest.mark.parametrize(
    ("components", "answer", "status", "words", "mend"),
    [
        ([component()], {"version": AIRFLOW_VERSION}, "ok", "", ""),
        ([component()], {"version": "2.9.0"}, "failed", "Airflow 2.9.0 runs", "ssl-core down"),
        ([component()], "a page", "failed", "something else than Airflow", "SSL_AIRFLOW_PORT"),
        ([component(pid=None, healthy=False)], {}, "failed", "scheduler ended", "ssl-core up"),
        ([component("triggerer", healthy=False)], {}, "failed", "no heartbeat", "ssl-core logs triggerer"),
    ],
)
def test_airflow(components, answer, status, words, mend, serve, tmp_path, monkeypatch):
    port = int(serve(lambda *_: (200, answer)).rpartition(":")[2])
    settings = Settings(home=tmp_path, airflow_port=port)
    monkeypatch.setattr(services.airflow_service, "running_port", lambda _: port)
    monkeypatch.setattr(services.airflow_service, "status", lambda _: components)
    found = services.airflow(settings)
    assert found.status == status
    assert words in found.cause
    assert mend in found.mend


def test_airflow_does_not_run_or_runs_elsewhere(settings, monkeypatch):
    found = services.airflow(settings)
    assert (found.status, found.mend) == ("warning", "ssl-core up")
    monkeypatch.setattr(services.airflow_service, "running_port", lambda _: 8099)
    found = services.airflow(settings)
    assert (found.status, "export SSL_AIRFLOW_PORT=8099" in found.mend) == ("failed", True)


# ---- clock


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [
        (0, "ok", "as at"),
        (10, "ok", "10 s ahead"),
        (120, "warning", "120 s ahead"),
        (-120, "warning", "120 s behind"),
        (1200, "failed", "S3 refuses"),
        (-1200, "failed", "S3 refuses"),
    ],
)
def test_the_clock(ahead, status, words, serve, settings):
    url = serve(lambda *_: (403, ""), date=formatdate(1_790_000_000, usegmt=True))
    found = services.clock(settings, lambda: [url], now=lambda: 1_790_000_000 + ahead)
    assert found.status == status
    assert words in found.found + found.cause
    assert status == "ok" or "timedatectl" in found.mend


def test_the_clock_needs_somebody_who_says_the_time(settings, refusing, serve):
    silent = serve(lambda *_: (200, ""))
    assert services.clock(settings, lambda: [refusing, silent]).status == "skipped"
