"""``ssl-core up``, ``down``, ``status`` and ``logs``: Airflow and MLflow on this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from ssl_core.cli.common import load_settings, stderr_console
from ssl_core.config.settings import Settings
from ssl_core.errors import UserError, did_you_mean


@click.command()
def up() -> None:
    """Start Airflow and MLflow, wait until they are healthy and print their addresses.

    What runs is kept, what died is started again.
    """
    from ssl_core.services.platform import bring_up, links

    settings = load_settings()
    console = stderr_console()
    began = time.monotonic()

    def note(text: str) -> None:
        console.print(f"{time.monotonic() - began:5.1f} s  {text}", style="dim", soft_wrap=True, markup=False)

    note("ready" if bring_up(settings, note) else "everything ran already")
    for title, text in links(settings).items():
        click.echo(f"{title:8} {text}")


@click.command()
def down() -> None:
    """Stop Airflow and MLflow, with everything they started. What they hold stays."""
    from ssl_core.registry.server import stop_server
    from ssl_core.services import airflow
    from ssl_core.services.containers import stop_left

    settings = load_settings()
    console = stderr_console()

    def note(text: str) -> None:
        console.print(text, style="dim", soft_wrap=True, markup=False)

    # MLflow last: a job that is being stopped may still write to it.
    stopped = airflow.stop(settings, note, keep=_mlflow_pids(settings))
    for container in stop_left(settings):
        note(f"container {container} had been left behind; stopped")
        stopped += 1
    if not settings.mlflow_tracking_uri and stop_server(settings):
        note("MLflow stopped")
        stopped += 1
    click.echo("stopped" if stopped else "nothing was running")


def _mlflow_pids(settings: Settings) -> tuple[int, ...]:
    from ssl_core.registry.server import server_status

    pid = server_status(settings).pid
    return (pid,) if pid else ()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def status(as_json: bool) -> None:
    """Say what runs; exit code 1 unless all of it is healthy."""
    from ssl_core.registry.server import server_status
    from ssl_core.services import airflow
    from ssl_core.services.environment import USER, airflow_home, password_file

    settings = load_settings()
    components = airflow.status(settings)
    server = server_status(settings)
    healthy = server.healthy and all(component.healthy for component in components)
    if as_json:
        parts = {
            c.name: {"pid": c.pid, "healthy": c.healthy, "heartbeat": c.heartbeat, "log": str(c.log)}
            for c in components
        }
        document = {
            "healthy": healthy,
            "home": str(settings.root),
            "airflow": {
                "url": settings.browser_airflow_url, "api": settings.local_airflow_url, "user": USER,
                "password_file": str(password_file(settings)), "home": str(airflow_home(settings)), "components": parts,
            },
            "mlflow": {"url": server.url, "pid": server.pid, "healthy": server.healthy, "log": str(server.log or "")},
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        sys.exit(0 if healthy else 1)
    click.echo(f"Airflow  {settings.browser_airflow_url}")
    for component in components:
        click.echo(
            f"  {component.name:14} {component.state:17} {f'process {component.pid}' if component.pid else ''}".rstrip()
        )
    click.echo(f"MLflow   {server.url}")
    state = "healthy" if server.healthy else "starting" if server.running else "not running"
    click.echo(f"  {'server':14} {state:17} {f'process {server.pid}' if server.pid else ''}".rstrip())
    port = airflow.running_port(settings)
    if port not in (None, settings.airflow_port):
        click.echo(
            f"  next: this home's Airflow runs on port {port}: export SSL_AIRFLOW_PORT={port}, or stop it: ssl-core down"
        )
    elif not healthy:
        click.echo("  next: ssl-core up")
    sys.exit(0 if healthy else 1)


@click.command()
@click.argument("component", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on; Ctrl-C ends it.")
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(min=0), help="Lines of each log.")
def logs(component: str | None, follow: bool, lines: int) -> None:
    """Show the logs of api-server, scheduler, dag-processor, triggerer and mlflow, or of one COMPONENT."""
    files = _log_files(load_settings())
    if component and component not in files:
        raise UserError(
            f"there is no component `{component}`{did_you_mean(component, files)}",
            place="ssl-core logs",
            next_step=f"one of {', '.join(files)}",
        )
    chosen = {component: files[component]} if component else files
    tails = {name: _Tail(path, f"{name:14} | " if len(chosen) > 1 else "") for name, path in chosen.items()}
    for name, tail in tails.items():
        if not tail.show_last(lines) and not follow:
            click.echo(f"{name}: no log yet ({chosen[name]})", err=True)
    while follow:
        for tail in tails.values():
            tail.show_new()
        time.sleep(0.3)


def _log_files(settings: Settings) -> dict[str, Path]:
    from ssl_core.registry.server import log_path
    from ssl_core.services import airflow

    found = {name: airflow.daemon(settings, name).log for name in airflow.COMPONENTS}
    return found | {"mlflow": log_path(settings)}


class _Tail:
    """The end of a log file, and what is added to it; a file that was moved aside is begun anew."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path, self._prefix = path, prefix
        self._position = 0
        self._inode = 0

    def show_last(self, count: int) -> bool:
        text = self._read()
        if text is None:
            return False
        for line in text.splitlines()[-count:] if count else []:
            click.echo(self._prefix + line)
        return True

    def show_new(self) -> None:
        for line in (self._read() or "").splitlines():
            click.echo(self._prefix + line)

    def _read(self) -> str | None:
        """What was not read yet, in whole lines; of a long file the last 2 MB."""
        try:
            with self._path.open("rb") as file:
                stat = self._path.stat()
                if stat.st_ino != self._inode or stat.st_size < self._position:
                    self._inode, self._position = stat.st_ino, 0
                start = max(self._position, stat.st_size - 2_000_000)
                file.seek(start)
                data = file.read()
        except OSError:
            return None
        whole = data[: data.rfind(b"\n") + 1]
        self._position = start + len(whole)
        return whole.decode(errors="replace")
