"""Airflow on this machine: four processes that are started, watched and stopped one by one.

They are those of ``airflow standalone`` (api-server, scheduler, dag-processor, triggerer), but not it: on SIGTERM it leaves its
children behind, it does not notice when one of them dies, and the scheduler's and the triggerer's log servers listen on all
interfaces. Here these start none (``--skip-serve-logs``): on one machine the API server reads the log files from disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ssl_core.config.settings import Settings
from ssl_core.daemon import Daemon, exclusive, free_port, port_taken
from ssl_core.errors import StepError, TryAgain, UserError
from ssl_core.registry.client import get
from ssl_core.services import orphans
from ssl_core.services.api import AirflowApi
from ssl_core.services.environment import (
    AIRFLOW_VERSION,
    USER,
    Environment,
    airflow_home,
    check_environment,
    environment,
    password,
)

COMPONENTS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
POOLS = {
    "gpu": (1, "One slot a GPU: steps that train wait here for their turn"),
    "data-repo": (1, "One writer of the data repository at a time"),
}
_MIGRATE_SECONDS = 300.0
_START_SECONDS = 180.0
_POLL_SECONDS = 0.25
# A running task gets SIGTERM from the scheduler's workers, and its job three seconds to save a checkpoint.
_STOP_SECONDS = {"scheduler": 8.0, "dag-processor": 3.0, "triggerer": 3.0, "api-server": 3.0}
_LEFT_OVER_SECONDS = 4.0

Note = Callable[[str], None]


@dataclass(frozen=True)
class ComponentStatus:
    """One of Airflow's processes. ``healthy``: it runs, and has said so since it was started."""

    name: str
    pid: int | None
    healthy: bool
    heartbeat: str | None
    log: Path

    @property
    def state(self) -> str:
        return "healthy" if self.healthy else "no heartbeat yet" if self.pid else "not running"


def daemon(settings: Settings, component: str) -> Daemon:
    """The background process of a component; its log is there whether it runs or not."""
    return Daemon(component, airflow_home(settings) / "logs" / "services")


def api(settings: Settings) -> AirflowApi:
    """The way to the local Airflow, as the user that was made for it."""
    return AirflowApi(settings.local_airflow_url, USER, password(settings))


def check(settings: Settings) -> Path:
    """The folder of Airflow's programs. ``UserError`` for what a user must mend before anything can start."""
    programs = check_environment(settings)
    _check_port(settings)
    return programs


def start(settings: Settings, note: Note = lambda text: None) -> list[str]:
    """Starts what does not run, and does not wait until it is healthy; returns the names of what was started.

    Two callers at once start one of each. Raises ``UserError`` where Airflow's environment is missing or the port is taken,
    ``TryAgain`` where the database cannot be prepared.
    """
    programs = check(settings)
    surroundings = environment(settings)
    with _lock(settings):
        _check_port(settings)  # again: somebody may have started it meanwhile
        missing = [name for name in COMPONENTS if daemon(settings, name).process() is None]
        if missing:
            _end_left_overs(settings, missing, note)
            _migrate(settings, programs, surroundings, note)
        digest = _digest(surroundings)
        if any(r and r.extra.get("settings") != digest for r in (daemon(settings, n).record() for n in COMPONENTS)):
            note("settings have changed since Airflow was started; to apply them: ssl-core down, then ssl-core up")
        for name in missing:
            pid = daemon(settings, name).start(
                [str(programs / "airflow"), *COMPONENTS[name]],
                env=surroundings.full(),
                cwd=airflow_home(settings),
                port=settings.airflow_port,
                settings=digest,
            )
            note(f"{name} started (process {pid})")
    return missing


def wait_healthy(settings: Settings, note: Note = lambda text: None, *, timeout: float = _START_SECONDS) -> None:
    """Waits until every process runs and has sent a heartbeat since its start, and the pools are there.

    Raises ``TryAgain`` naming the process that ended or did not get there, with the last line of its log.
    """
    deadline = time.monotonic() + timeout
    seen: set[str] = set()
    while True:
        found = status(settings)
        for component in found:
            if component.healthy and component.name not in seen:
                seen.add(component.name)
                note(f"{component.name} is healthy")
        if all(component.healthy for component in found):
            break
        for component in found:
            late = time.monotonic() > deadline and not component.healthy
            if component.pid is None or late:
                what = f"did not become healthy within {timeout:.0f} s" if late else "ended"
                raise TryAgain(
                    f"Airflow's {component.name} {what}: {daemon(settings, component.name).last_words()}",
                    place=str(component.log),
                    next_step=f"ssl-core logs {component.name}, then ssl-core up again"
                    + (" after ssl-core down" if late else ""),
                )
        time.sleep(_POLL_SECONDS)
    ensure_pools(settings, note)


def ensure_pools(settings: Settings, note: Note = lambda text: None) -> None:
    """Makes the pools that DAGs name, where they are missing; what somebody set is left alone."""
    if not password(settings):
        note(f"no password of user {USER}: pools {', '.join(POOLS)} are not checked")
        return
    client = api(settings)
    for name, (slots, description) in POOLS.items():
        client.ensure_pool(name, slots, description)


def status(settings: Settings) -> list[ComponentStatus]:
    """Each process, whether it runs and whether its heartbeat is newer than its start."""
    records = {name: daemon(settings, name).record() for name in COMPONENTS}
    answer: dict[str, dict[str, str | None]] = {}
    if records["api-server"] is not None:
        try:
            answer = AirflowApi(settings.local_airflow_url, "", "", timeout=5).health()
        except StepError:
            answer = {}
    database = (answer.get("metadatabase") or {}).get("status") == "healthy"
    found = []
    for name, record in records.items():
        key = name.replace("-", "_")
        said = answer.get(key) or {}
        heartbeat = said.get(f"latest_{key}_heartbeat")
        fresh = record is not None and _newer(heartbeat, record.started)
        healthy = (
            database and record is not None and (name == "api-server" or (said.get("status") == "healthy" and fresh))
        )
        found.append(
            ComponentStatus(name, record.pid if record else None, healthy, heartbeat, daemon(settings, name).log)
        )
    return found


def running_port(settings: Settings) -> int | None:
    """The port that this home's Airflow was started on; None where nothing of it runs."""
    records = (daemon(settings, name).record() for name in COMPONENTS)
    return next((int(record.extra.get("port", 0)) for record in records if record is not None), None)


def _newer(heartbeat: str | None, started: float) -> bool:
    try:
        return heartbeat is not None and datetime.fromisoformat(heartbeat).timestamp() > started
    except ValueError:
        return False


def stop(settings: Settings, note: Note = lambda text: None, *, keep: tuple[int, ...] = ()) -> int:
    """Stops all of it and returns how many processes were running. Nothing that carries this home's marker is left.

    The scheduler goes first, with SIGTERM to its group: it stops at once, and its workers hand the signal to running tasks,
    whose jobs may save a checkpoint. (SIGINT the workers ignore: they would wait for the task's own end.) The API server goes
    after it, so that the tasks can still say how they ended. ``keep``: processes that are spared with their children.
    """
    with _lock(settings):
        stopped = int(_stop(settings, "scheduler", note))
        with ThreadPoolExecutor() as pool:
            others = [name for name in COMPONENTS if name != "scheduler"]
            stopped += sum(pool.map(lambda name: _stop(settings, name, note), others))
        left = orphans.end(lambda: orphans.marked(settings.root, but=keep), grace=_LEFT_OVER_SECONDS)
        if left:
            note(f"ended {left} process{'es' if left > 1 else ''} that had been left behind")
    return stopped + left


def _stop(settings: Settings, name: str, note: Note) -> bool:
    ran = daemon(settings, name).stop(_STOP_SECONDS[name], signal.SIGTERM)
    if ran:
        note(f"{name} stopped")
    return ran


def _lock(settings: Settings) -> AbstractContextManager[None]:
    return exclusive(airflow_home(settings) / "platform.lock")


def _end_left_overs(settings: Settings, names: list[str], note: Note) -> None:
    """A killed scheduler leaves its workers and their tasks, which the next one would not know."""
    for name in names:
        record = daemon(settings, name).written()
        if record is None or record.replaced():
            continue
        of_it = orphans.of_session(record.pid)
        left = orphans.end(lambda: [p for p in orphans.marked(settings.root) if of_it(p)], grace=_LEFT_OVER_SECONDS)  # noqa: B023
        if left:
            note(f"{name} had ended; ended {left} of its processes")


def _digest(surroundings: Environment) -> str:
    return hashlib.sha256(json.dumps(surroundings.public, sort_keys=True).encode()).hexdigest()[:12]


def _check_port(settings: Settings) -> None:
    if settings.airflow_port == settings.mlflow_port and not settings.mlflow_tracking_uri:
        raise UserError(
            f"Airflow and MLflow cannot both have port {settings.airflow_port}",
            place="SSL_AIRFLOW_PORT",
            next_step=f"export SSL_AIRFLOW_PORT={free_port(settings.airflow_port)}",
        )
    port = running_port(settings)
    if port not in (None, settings.airflow_port):
        raise UserError(
            f"the Airflow of {settings.root} runs on port {port}, not {settings.airflow_port}",
            place="SSL_AIRFLOW_PORT",
            next_step=f"export SSL_AIRFLOW_PORT={port} to go on with it, or stop it first: ssl-core down",
        )
    if daemon(settings, "api-server").process() is None and port_taken(settings.airflow_port):
        answer = get(f"{settings.local_airflow_url}/api/v2/version", timeout=3)
        version = answer[1] if answer and answer[0] == 200 and '"version"' in answer[1] else ""
        what = f"an Airflow that was not started from {settings.root}" if version else "another program"
        raise UserError(
            f"port {settings.airflow_port} is taken by {what}",
            place="SSL_AIRFLOW_PORT",
            next_step=f"choose a free port, for example: export SSL_AIRFLOW_PORT={free_port(settings.airflow_port)}",
        )


def _migrate(settings: Settings, programs: Path, surroundings: Environment, note: Note) -> None:
    """Makes or upgrades the tables; skipped (it takes seconds) where this version has done so on our own database file."""
    home = airflow_home(settings)
    stamp, database = home / "migrated", home / "airflow.db"
    ours = not any(name.startswith("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN") for name in os.environ)
    if ours and database.exists() and stamp.exists() and stamp.read_text() == AIRFLOW_VERSION:
        return
    note("preparing Airflow's database")
    log = home / "logs" / "services" / "migrate.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with log.open("wb") as out:
        try:
            # A session of its own: Ctrl-C must not cut a migration in half.
            code = subprocess.run(
                [str(programs / "airflow"), "db", "migrate"],
                cwd=home, env=surroundings.full(), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                timeout=_MIGRATE_SECONDS, check=False, start_new_session=True,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
    if code != 0:
        words = Daemon("migrate", log.parent).last_words()
        raise TryAgain(
            f"Airflow's database could not be prepared: {words}",
            place=str(log),
            next_step="read the log, then ssl-core up",
        )
    if ours:
        stamp.write_text(AIRFLOW_VERSION)
