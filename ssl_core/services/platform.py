"""Airflow and MLflow together: brought up, mended where one of them died, and where to find them."""

from __future__ import annotations

from collections.abc import Callable

from ssl_core.config.settings import Settings
from ssl_core.registry.server import server_status, start_server, wait_for_server
from ssl_core.services import airflow
from ssl_core.services.environment import USER, password, password_file

Note = Callable[[str], None]


def bring_up(settings: Settings, note: Note) -> bool:
    """Starts what does not run, both at the same time, and waits until all is healthy; returns whether anything was started.

    Raises what ``airflow.check``, ``airflow.start``, ``airflow.wait_healthy`` and ``ensure_server`` raise.
    """
    airflow.check(settings)  # what a user must mend is found before anything is started
    started: list[str] = []
    start_server(settings, started.append)
    if started:
        note("MLflow started")
    started += airflow.start(settings, note)
    airflow.wait_healthy(settings, note)
    wait_for_server(settings)
    if started:
        note("MLflow answers")
    return bool(started)


def mend(settings: Settings, note: Note) -> None:
    """Starts again what has died since; cheap where nothing has."""
    dead = [c.name for c in airflow.status(settings) if c.pid is None]
    if not server_status(settings).running:
        dead.append("MLflow")
    if dead:
        note(f"{', '.join(dead)} ended; starting again")
        bring_up(settings, note)


def links(settings: Settings) -> dict[str, str]:
    """Title to what a person opens: Airflow with user and password, MLflow."""
    secret = password(settings)
    signed = (
        f"user {USER}, password {secret} (kept in {password_file(settings)})" if secret else "sign in as configured"
    )
    return {"Airflow": f"{settings.browser_airflow_url}  {signed}", "MLflow": settings.browser_mlflow_url}
