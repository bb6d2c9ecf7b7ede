"""``ssl-core history PROJECT``: the ledger, with its chain checked."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ssl_core.cli.common import load_settings, project_name
from ssl_core.contracts import LedgerEntry
from ssl_core.errors import did_you_mean

_DIGEST = 12
_PIPED_WIDTH = 200


@click.command()
@click.argument("project")
@click.option("--json", "as_json", is_flag=True, help="Every entry whole, as a JSON list.")
def history(project: str, as_json: bool) -> None:
    """Who became champion of PROJECT, when and why: its ledger, oldest entry first.

    Exit code 3 where the ledger was changed after it was written; the entries before that are shown.
    """
    from ssl_core.registry.ledger import Ledger
    from ssl_core.store import Store

    project = project_name(project)
    settings = load_settings()
    store = Store(settings.store_url, settings.cache)
    ledger = Ledger(store, project)
    entries, broken = ledger.read()
    if not entries and broken is None:
        known = [name for name in store.names("ledger") if not name.startswith(".")]
        click.echo(f"ledger of {project}: nothing was decided yet{did_you_mean(project, known)}", err=True)
    if as_json:
        documents: list[dict[str, Any]] = [
            e.model_dump(mode="json") | {"sha256": ledger.digest(e.seq)} for e in entries
        ]
        click.echo(json.dumps(documents, indent=1))
    elif entries:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_PIPED_WIDTH)
        console.print(table(entries))
        if broken is None:
            console.print(f"{len(entries)} entries, the chain holds", markup=False)
    if broken is not None:
        raise broken


def table(entries: list[LedgerEntry]) -> Table:
    """A row an entry; a person's comment or the most important reason stands for why."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("#", "when (UTC)", "action", "version", "replaced", "dataset", "verdict", "who", "why", "report"):
        made.add_column(title, overflow="fold", no_wrap=title in ("#", "version", "report"))
    for entry in entries:
        cells = (
            str(entry.seq), _when(entry.at), entry.action, entry.model_version or "none", entry.replaced_version or "",
            entry.dataset, entry.verdict.value, entry.user, entry.reasons[0] if entry.reasons else "", entry.report_digest[:_DIGEST],
        )  # fmt: skip
        made.add_row(*(_plain(cell) for cell in cells))
    return made


def _when(at: str) -> str:
    try:
        return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M}"
    except ValueError:
        return at


def _plain(text: str) -> str:
    """Neither markup nor what moves a terminal's cursor."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else " " for c in text))
