"""The local MLflow server: started on loopback when no other is configured, shared by all runs of one platform home.

One worker and no job runner: 2 processes and about 370 MB, where MLflow's default is 15 processes and 2.4 GB.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_core.config.settings import Settings, expand
from ssl_core.daemon import Daemon, Record, free_port, port_taken
from ssl_core.errors import TryAgain, UserError
from ssl_core.registry.client import check_reachable, get

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_SERVER_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class ServerStatus:
    """``managed``: whether this platform home started it. ``pid`` is None where it does not run or is not ours.

    ``url`` is the configured address, and ``healthy`` says whether the server answers there; ``port`` is the one that
    this home's server was started on.
    """

    url: str
    managed: bool
    running: bool
    healthy: bool
    pid: int | None
    log: Path | None
    port: int | None = None


def _daemon(settings: Settings) -> Daemon:
    return Daemon("server", settings.root / "mlflow")


def log_path(settings: Settings) -> Path:
    """Where the local server's output goes."""
    return _daemon(settings).log


def _port(record: Record) -> int:
    return int(record.extra.get("port", 0))


def _foreign(settings: Settings) -> UserError:
    version = get(f"{settings.local_mlflow_url}/version")
    is_mlflow = version is not None and version[0] == 200 and version[1].count(".") == 2
    what = (
        f"an MLflow server ({version[1].strip()}) that was not started from {settings.root}"
        if version and is_mlflow
        else "another program"
    )
    use_it = f" To use that server: export MLFLOW_TRACKING_URI={settings.local_mlflow_url}" if is_mlflow else ""
    return UserError(
        f"port {settings.mlflow_port} is taken by {what}",
        place="SSL_MLFLOW_PORT",
        next_step=f"choose a free port, for example: export SSL_MLFLOW_PORT={free_port(settings.mlflow_port)}.{use_it}",
    )


def start_server(settings: Settings, note: Callable[[str], None] | None = None) -> str:
    """Starts the local server unless it runs or ``MLFLOW_TRACKING_URI`` names another; does not wait. Returns its URL.

    The caller goes on with its imports and calls ``wait_for_server`` before the first request. Two callers at once
    start one server. Raises ``UserError`` where something else has the port.
    """
    if settings.mlflow_tracking_uri:
        return settings.tracking_url
    daemon = _daemon(settings)
    with daemon.lock():
        ours = daemon.record()
        port = _port(ours) if ours else 0
        if ours is not None and port == settings.mlflow_port:
            _same_artifacts(settings, ours)
            return settings.local_mlflow_url
        if ours is not None:
            raise UserError(
                f"the MLflow server of {settings.root} runs on port {port}, not {settings.mlflow_port}",
                place="SSL_MLFLOW_PORT",
                next_step=f"export SSL_MLFLOW_PORT={port} to go on with it, or stop it first: SSL_MLFLOW_PORT={port} ssl-core mlflow stop",
            )
        if port_taken(settings.mlflow_port):
            raise _foreign(settings)
        pid = _spawn(settings)
        if note:
            note(
                f"MLflow server: {settings.local_mlflow_url} (process {pid}, log {log_path(settings)}; stop it with `ssl-core mlflow stop`)"
            )
    return settings.local_mlflow_url


def _artifacts(settings: Settings) -> str:
    """Where the server keeps artifacts: a folder of its own, or what ``SSL_MLFLOW_ARTIFACTS`` says."""
    if "://" in settings.mlflow_artifacts:
        return settings.mlflow_artifacts.rstrip("/")
    return str(
        expand(settings.mlflow_artifacts) if settings.mlflow_artifacts else _daemon(settings).folder / "artifacts"
    )


def _same_artifacts(settings: Settings, ours: Record) -> None:
    """The server passes artifacts on to one place, which it was told when it started."""
    there = ours.extra.get("artifacts")
    if there and there != _artifacts(settings):
        raise UserError(
            f"the MLflow server that runs keeps artifacts in {there}, not in {_artifacts(settings)}",
            place="SSL_MLFLOW_ARTIFACTS",
            next_step="ssl-core mlflow stop, then run again; artifacts of earlier runs stay where they are and are not moved",
        )


def _spawn(settings: Settings) -> int:
    daemon = _daemon(settings)
    folder = daemon.folder
    artifacts = _artifacts(settings)
    if "://" not in artifacts:
        Path(artifacts).mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", artifacts,
        "--host", "127.0.0.1", "--port", str(settings.mlflow_port), "--workers", "1",
        "--uvicorn-opts", "--log-level warning",  # an access log would grow without end
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_") or k.startswith("MLFLOW_S3_")}
    environment |= _SERVER_ENVIRONMENT
    # MLflow starts uvicorn through the shell's search path.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return daemon.start(command, env=environment, cwd=folder, port=settings.mlflow_port, artifacts=artifacts)


def wait_for_server(settings: Settings, timeout: float = _START_SECONDS) -> str:
    """Waits until the server answers and returns its URL; ``TryAgain`` with the log's place where it does not."""
    if settings.mlflow_tracking_uri:
        check_reachable(settings)
        return settings.tracking_url
    url = settings.local_mlflow_url
    deadline = time.monotonic() + timeout
    while True:
        answer = get(f"{url}/health", timeout=2)
        ours = _daemon(settings).record()
        if ours is not None and answer is not None and answer[0] == 200:
            return url
        if ours is None:
            if port_taken(settings.mlflow_port):
                raise _foreign(settings)
            raise TryAgain(
                f"the local MLflow server ended while starting: {_daemon(settings).last_words()}",
                place=str(log_path(settings)),
                next_step="read the log, then run again",
            )
        if time.monotonic() > deadline:
            raise TryAgain(
                f"the local MLflow server did not answer within {timeout:.0f} s",
                place=f"{url}, log {log_path(settings)}",
                next_step="ssl-core mlflow stop, then run again",
            )
        time.sleep(0.1)


def ensure_server(settings: Settings, note: Callable[[str], None] | None = None) -> str:
    """The address of an MLflow server that answers: the configured one, or the local one, started if need be.

    Raises ``UserError`` where the port is taken, ``TryAgain`` where the server does not answer.
    """
    start_server(settings, note)
    return wait_for_server(settings)


def server_status(settings: Settings) -> ServerStatus:
    """Whether a server runs and answers."""
    answer = (
        get(f"{settings.tracking_url.rstrip('/')}/health", timeout=2)
        if settings.tracking_url.startswith("http")
        else None
    )
    healthy = answer is not None and answer[0] == 200
    if settings.mlflow_tracking_uri:
        return ServerStatus(settings.tracking_url, managed=False, running=healthy, healthy=healthy, pid=None, log=None)
    ours = _daemon(settings).record()
    here = ours is not None and _port(ours) == settings.mlflow_port
    return ServerStatus(
        settings.tracking_url, managed=True, running=ours is not None, healthy=healthy and here,
        pid=ours.pid if ours else None, log=log_path(settings), port=_port(ours) if ours else None,
    )  # fmt: skip


def stop_server(settings: Settings) -> bool:
    """Stops the server this home started, with its workers; False where none ran. Other processes are never touched."""
    daemon = _daemon(settings)
    with daemon.lock():
        return daemon.stop(_STOP_SECONDS)
