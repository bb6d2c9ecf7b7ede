"""The local MLflow server: one start for all that needs a real one, and everything that is in its way."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from ssl_core.cli.mlflow import mlflow as mlflow_command
from ssl_core.config.settings import Settings
from ssl_core.errors import TryAgain, UserError
from ssl_core.registry import server
from ssl_core.registry.server import ensure_server, server_status, start_server, stop_server, wait_for_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path / "a home with spaces", mlflow_port=free_port())
    yield settings
    stop_server(settings)


@pytest.fixture
def foreign() -> Iterator[int]:
    """A web server of somebody else."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd.server_address[1]
    httpd.shutdown()


@pytest.mark.e2e
def test_started_once_found_again_and_stopped(local: Settings) -> None:
    """Two processes start at once; one server comes up, is light, keeps to loopback, and goes with its workers."""
    script = (
        "import sys; from pathlib import Path; from ssl_core.config.settings import Settings; from ssl_core.registry.server import start_server\n"
        "start_server(Settings(home=Path(sys.argv[1]), mlflow_port=int(sys.argv[2])), lambda text: print('STARTED'))"
    )
    command = [sys.executable, "-c", script, str(local.home), str(local.mlflow_port)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [starter.communicate(timeout=60)[0] for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0]
    assert sorted(said) == ["", "STARTED\n"]

    assert ensure_server(local) == local.local_mlflow_url
    status = server_status(local)
    assert (status.managed, status.running, status.healthy) == (True, True, True)
    assert status.pid is not None
    process = psutil.Process(status.pid)
    members = [process, *process.children(recursive=True)]
    assert len(members) <= 4, "one worker, no job runners"
    listening = {
        c.laddr.ip
        for m in members
        for c in m.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == local.mlflow_port
    }
    assert listening == {"127.0.0.1"}

    from ssl_core.registry.client import connect

    client = connect(local)
    run = client.create_run(client.create_experiment("there"))
    client.log_text(run.info.run_id, "kept", "note.txt")
    assert list((local.root / "mlflow" / "artifacts").rglob("note.txt"))

    with pytest.raises(UserError, match="runs on port"):
        start_server(Settings(home=local.home, mlflow_port=free_port()))
    with pytest.raises(UserError, match="an MLflow server"):
        start_server(Settings(home=local.home / "other", mlflow_port=local.mlflow_port))

    assert stop_server(local)
    assert not any(m.is_running() and m.status() != psutil.STATUS_ZOMBIE for m in members)
    assert not stop_server(local)
    assert not server_status(local).running


def test_a_port_taken_by_another_program_names_the_variable(tmp_path: Path, foreign: int) -> None:
    settings = Settings(home=tmp_path, mlflow_port=foreign)
    with pytest.raises(UserError, match="taken by another program") as caught:
        ensure_server(settings)
    assert caught.value.place == "SSL_MLFLOW_PORT"
    assert "export SSL_MLFLOW_PORT=" in caught.value.next_step


@pytest.mark.parametrize(
    "content",
    ["", "{}", "not json", '{"pid": 1, "started": 5.0, "port": 1}', '{"pid": 99999999, "started": 5.0, "port": 1}'],
)
def test_a_stale_pid_file_is_nobodys_server(local: Settings, content: str) -> None:
    folder = local.root / "mlflow"
    folder.mkdir(parents=True)
    (folder / "server.json").write_text(content)
    assert not server_status(local).running
    assert not stop_server(local)


def test_a_reused_pid_is_never_stopped(local: Settings) -> None:
    """The pid file names a process that lives, but is not the server: another one got its number."""
    with subprocess.Popen(["sleep", "60"]) as other:
        folder = local.root / "mlflow"
        folder.mkdir(parents=True)
        (folder / "server.json").write_text(
            json.dumps(
                {"pid": other.pid, "started": psutil.Process(other.pid).create_time() - 100, "port": local.mlflow_port}
            )
        )
        assert not stop_server(local)
        assert other.poll() is None
        other.kill()


def test_a_server_that_keeps_artifacts_elsewhere_is_told(local: Settings) -> None:
    """Its artifacts would be looked for in one place and written to another."""
    folder = local.root / "mlflow"
    folder.mkdir(parents=True)
    record = {"pid": os.getpid(), "started": psutil.Process().create_time(), "port": local.mlflow_port}
    try:
        (folder / "server.json").write_text(json.dumps(record | {"artifacts": "s3://bucket/here"}))
        at = {"home": local.home, "mlflow_port": local.mlflow_port}
        assert start_server(Settings(**at, mlflow_artifacts="s3://bucket/here/")) == local.local_mlflow_url
        for other in ("s3://bucket/there", ""):
            with pytest.raises(UserError, match="keeps artifacts in s3://bucket/here, not in") as caught:
                start_server(Settings(**at, mlflow_artifacts=other))
            assert caught.value.place == "SSL_MLFLOW_ARTIFACTS"
            assert "ssl-core mlflow stop" in caught.value.next_step
    finally:
        (folder / "server.json").unlink()  # this process is not to be stopped


def test_a_server_that_dies_while_starting_is_reported_with_its_log(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(settings: Settings) -> int:
        server.log_path(settings).write_text("Traceback ...\nOperationalError: disk I/O error\n")
        return os.getpid()

    monkeypatch.setattr(server, "_spawn", dying)
    with pytest.raises(TryAgain, match="disk I/O error") as caught:
        ensure_server(local)
    assert caught.value.place.endswith("server.log")


def test_a_configured_server_is_never_started_nor_stopped(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert start_server(settings) == settings.mlflow_tracking_uri
    with pytest.raises(TryAgain):
        wait_for_server(settings)
    assert not server_status(settings).managed
    assert not (tmp_path / "mlflow").exists()


def test_status_names_the_port_of_a_server_that_runs_elsewhere(
    local: Settings, foreign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the configured port answers: that is somebody else's server."""
    folder = local.root / "mlflow"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SSL_HOME", str(local.home))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as server_process:
        started = psutil.Process(server_process.pid).create_time()
        record = {"pid": server_process.pid, "started": started, "port": local.mlflow_port}
        (folder / "server.json").write_text(json.dumps(record))
        try:
            for port in (free_port(), foreign):
                monkeypatch.setenv("SSL_MLFLOW_PORT", str(port))
                found = CliRunner().invoke(mlflow_command, ["status"])
                assert found.exit_code == 1
                assert f"127.0.0.1:{port}  not here" in found.output
                assert f"runs on port {local.mlflow_port}" in found.output
                assert f"export SSL_MLFLOW_PORT={local.mlflow_port}" in found.output
            monkeypatch.setenv("SSL_MLFLOW_PORT", str(local.mlflow_port))
            assert "starting" in CliRunner().invoke(mlflow_command, ["status"]).output
        finally:
            server_process.kill()


def test_the_command_says_what_it_found(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_HOME", str(local.home))
    monkeypatch.setenv("SSL_MLFLOW_PORT", str(local.mlflow_port))
    found = CliRunner().invoke(mlflow_command, ["status"])
    assert (found.exit_code, "not running" in found.output) == (1, True)
    assert "was not running" in CliRunner().invoke(mlflow_command, ["stop"]).output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    refused = CliRunner().invoke(mlflow_command, ["stop"])
    assert isinstance(refused.exception, UserError)
