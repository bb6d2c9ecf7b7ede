"""``ssl-core lint`` and ``ssl-core schema``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ssl_core.cli.common import load_settings
from ssl_core.config.load import load_project
from ssl_core.config.project import ProjectConfig, project_schema
from ssl_core.errors import UserError


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def lint(files: tuple[Path, ...]) -> None:
    """Check project FILES, or all in the projects folder: every problem of every file, then exit code 2."""
    chosen = list(files) or sorted(load_settings().projects_dir.glob("*.y*ml"))
    if not chosen:
        raise UserError("no project files found", next_step="ssl-core lint FILE..., or ssl-core init NAME --data PATH")
    broken = 0
    names: dict[str, Path] = {}
    for file in chosen:
        try:
            project = load_project(file)
            if project.name in names:
                raise UserError(f"the name '{project.name}' is taken by {names[project.name]}", place=f"{file}: name")
            names[project.name] = file
            problems = _expectation_problems(project, file)
        except UserError as error:
            problems = [error]
        broken += bool(problems)
        for problem in problems:
            click.echo(str(problem), err=True)
        if not problems:
            click.echo(f"{file}: ok")
    if broken:
        sys.exit(2)


def _expectation_problems(project: ProjectConfig, file: Path) -> list[UserError]:
    """Unknown types and arguments in the suite. Great Expectations is imported, which takes seconds, only where there is one."""
    if not project.validation.expectations:
        return []
    from ssl_core.validation.gx_runner import build

    problems = []
    for index, expectation in enumerate(project.validation.expectations):
        try:
            build([expectation])
        except UserError as error:
            error.place = f"{file}: {error.place.replace('[0]', f'[{index}]', 1)}"  # each is built as a suite of one
            problems.append(error)
    return problems


@click.command()
def schema() -> None:
    """Print the JSON Schema of a project file.

    In an editor with a YAML language server: `# yaml-language-server: $schema=project.schema.json` on the first line.
    """
    click.echo(json.dumps(project_schema(), indent=2))
