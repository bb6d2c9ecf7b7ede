"""``ssl-core report PROJECT``: did pretraining help? Read from what was recorded; nothing is computed again."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from ssl_core.cli.common import load_settings
from ssl_core.config.load import find_project, load_project


@click.command()
@click.argument("project")
@click.option("--json", "as_data", is_flag=True, help="Print JSON instead of a table.")
@click.option("--version", "version", metavar="N", help="A registered version; default: the champion.")
def report(project: str, as_data: bool, version: str | None) -> None:
    """Accuracy at each label budget beside random init and the best classical baseline, with intervals and links.

    PROJECT is a project's name or file.
    """
    from ssl_core.registry.evaluations import find_evaluation
    from ssl_core.registry.server import ensure_server

    settings = load_settings()
    # A name is enough: the project file may be elsewhere, the record is in the registry.
    name = load_project(find_project(project, settings.projects_dir)).name if Path(project).suffix else project
    ensure_server(settings, lambda text: click.echo(text, err=True))
    found = find_evaluation(settings, name, version)

    from ssl_core.evaluation.report import as_json, read_evaluation, render

    evaluation = read_evaluation(found.folder)
    if as_data:
        document = as_json(evaluation, version=found.version, dataset=found.dataset, links=found.links)
        click.echo(json.dumps(document, indent=1))
        return
    out = Console(highlight=False)
    out.print(
        f"{name} version {found.version}{', ' + found.alias if found.alias else ''}, data {found.dataset}", markup=False
    )
    out.print(render(evaluation))
    for title, url in found.links.items():
        out.print(f"{title}: {url}", markup=False, soft_wrap=True)
