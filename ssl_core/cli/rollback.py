"""``ssl-core rollback PROJECT`` and ``ssl-core delete-version PROJECT VERSION``: back, and what must not be taken away for that."""

from __future__ import annotations

import click

from ssl_core.cli.common import load_settings, new_run, project_name


@click.command()
@click.argument("project")
@click.option("--to", default="", metavar="VERSION", help="A version that was the champion; default: the one before.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the ledger.")
def rollback(project: str, to: str, reason: str) -> None:
    """Make an earlier champion of PROJECT the champion again.

    Nothing moves before that version was loaded and answered as it did when it was trained.
    """
    from ssl_core.registry.rollback import roll_back
    from ssl_core.registry.server import ensure_server
    from ssl_core.store import Store

    project = project_name(project)
    settings = load_settings()
    ensure_server(settings, lambda text: click.echo(text, err=True))
    store = Store(settings.store_url, settings.cache)
    click.echo(roll_back(settings, store, project, to.strip(), reason, new_run()).text)


@click.command("delete-version")
@click.argument("project")
@click.argument("version")
@click.option("--encoder", is_flag=True, help="A version of the encoder, PROJECT-encoder.")
def delete_version(project: str, version: str, encoder: bool) -> None:
    """Remove VERSION of PROJECT from the registry, unless an alias names it or it may become the champion again.

    What lies in the store stays.
    """
    from ssl_core.registry.removal import remove_version
    from ssl_core.registry.server import ensure_server
    from ssl_core.store import Store

    project = project_name(project)
    settings = load_settings()
    ensure_server(settings, lambda text: click.echo(text, err=True))
    title = remove_version(settings, Store(settings.store_url, settings.cache), project, version, encoder=encoder)
    click.echo(f"{title} is not in the registry any more; its files in the store are untouched")
