"""``ssl-core mlflow``: the local MLflow server."""

from __future__ import annotations

import sys

import click

from ssl_core.cli.common import load_settings
from ssl_core.errors import UserError


@click.group()
def mlflow() -> None:
    """The local MLflow server of this platform home; `ssl-core run` starts it by itself."""


@mlflow.command()
def start() -> None:
    """Start it, unless it runs, and print its address."""
    from ssl_core.registry.server import ensure_server

    click.echo(ensure_server(load_settings(), lambda text: click.echo(text, err=True)))


@mlflow.command()
def stop() -> None:
    """Stop it. What it holds stays."""
    from ssl_core.registry.server import stop_server

    settings = load_settings()
    if settings.mlflow_tracking_uri:
        raise UserError("that server is not ours to stop", place=f"MLFLOW_TRACKING_URI={settings.mlflow_tracking_uri}")
    click.echo("stopped" if stop_server(settings) else "it was not running")


@mlflow.command()
def status() -> None:
    """Say whether it runs; exit code 1 where it does not answer."""
    from ssl_core.registry.server import server_status

    settings = load_settings()
    found = server_status(settings)
    state = "answers" if found.healthy else "starting" if found.running else "not running"
    if found.port is not None and found.port != settings.mlflow_port:
        state = f"not here: the server of {settings.root} runs on port {found.port}"
    click.echo(f"{found.url}  {state}" + (f"  process {found.pid}, log {found.log}" if found.pid else ""))
    if found.port is not None and found.port != settings.mlflow_port:
        click.echo(f"  next: export SSL_MLFLOW_PORT={found.port}, or stop it: ssl-core mlflow stop")
    sys.exit(0 if found.healthy else 1)
