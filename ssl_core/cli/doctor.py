"""``ssl-core doctor``: what is wrong here, and the command that mends it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter

import click
from rich.console import Console
from rich.text import Text

from ssl_core.cli.common import load_settings
from ssl_core.doctor.finding import Answer
from ssl_core.errors import UserError

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_NAME_WIDTH = 19


@click.command()
@click.argument("project", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="As one JSON list of {name, status, found, cause, mend, seconds}."
)
def doctor(project: str | None, as_json: bool) -> None:
    """Check everything a run needs, and say what mends what is wrong.

    With PROJECT also that its data can be listed and how its steps run. Exit code 0 where nothing failed, else 2. Nothing is
    changed, and nothing that it writes to try a storage is left behind.
    """
    began = time.monotonic()
    logging.disable(logging.CRITICAL)  # what libraries log about a fault, the findings say
    console = Console(highlight=False, soft_wrap=True)
    answers: list[Answer] = []
    try:
        settings = load_settings()
    except UserError as error:
        # Without settings there is nothing to look at; a reader of the JSON gets the same form all the same.
        answers = [Answer("settings", "failed", "", error.cause, "correct these variables, or unset them", 0.0)]
        if not as_json:
            show(console, answers[0])
        _end(console, answers, began, as_json)
        sys.exit(2)
    from ssl_core.doctor.checks import checks
    from ssl_core.doctor.run import Examination, end_children

    examination = Examination(checks(settings, project), settings)
    for answer in examination.answers():
        answers.append(answer)
        if not as_json:
            show(console, answer)
    _end(console, answers, began, as_json)
    code = 2 if any(answer.status == "failed" for answer in answers) else 0
    if examination.late:
        # A thread that hangs in a library's pool would be waited for at the end of the process, for as long as it hangs.
        sys.stdout.flush()
        end_children()
        os._exit(code)
    sys.exit(code)


def show(console: Console, answer: Answer) -> None:
    """One line; where something is wrong the cause, and the mend below it."""
    line = Text.assemble((f"{answer.status:8}", _STYLES[answer.status]), f" {answer.name:{_NAME_WIDTH}} ")
    indent = " " * (10 + _NAME_WIDTH)
    text = answer.cause or answer.found
    line.append(text.replace("\n", f"\n{indent}"), style="dim" if answer.status == "skipped" else "")
    if answer.mend:
        line.append(f"\n{indent}next: {answer.mend}".replace("\n\n", "\n"))
    console.print(line)


def _end(console: Console, answers: list[Answer], began: float, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([answer.as_dict() for answer in answers], indent=1, ensure_ascii=False))
        return
    counts = Counter[str](answer.status for answer in answers)
    said = ", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status])
    console.print(f"{said}; {time.monotonic() - began:.1f} s", style="dim")
