"""``ssl-core promote PROJECT``: a person's answer to what the gate left open."""

from __future__ import annotations

from typing import Literal

import click

from ssl_core.cli.common import load_settings, new_run, project_name
from ssl_core.errors import UserError


@click.command()
@click.argument("project")
@click.option(
    "--approve",
    metavar="DIGEST",
    help="Promote the challenger of the gate report with this SHA-256 (a beginning is enough).",
)
@click.option("--decline", metavar="DIGEST", help="Turn it down; the champion stays.")
@click.option("--comment", default="", metavar="TEXT", help="Why, for the ledger.")
def promote(project: str, approve: str | None, decline: str | None, comment: str) -> None:
    """Approve or decline what the gate left to a person, by the digest of its report."""
    from ssl_core.registry.promote import decide
    from ssl_core.registry.server import ensure_server
    from ssl_core.services.waiting import answer_local

    if (approve is None) == (decline is None):
        raise UserError("say either --approve DIGEST or --decline DIGEST", place="ssl-core promote")
    project = project_name(project)
    settings = load_settings()
    ensure_server(settings, lambda text: click.echo(text, err=True))
    action: Literal["PROMOTED", "DECLINED"] = "PROMOTED" if approve else "DECLINED"
    outcome = decide(settings, project, (approve or decline or "").lower(), action, new_run(), comment.strip())
    click.echo(outcome.text)
    option = "Promote" if approve else "Decline"
    for run in answer_local(settings, project, outcome.report_digest, option, comment.strip()):
        click.echo(f"the waiting run {project}.finetune {run} goes on", err=True)
