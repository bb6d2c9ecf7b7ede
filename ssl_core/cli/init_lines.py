"""What the first project files of all modalities are written with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_core.config.settings import expand
from ssl_core.validation.report import plural

LISTED_CLASSES = 50
# Above this share of unusable samples the guard must not be set to let them pass: the source itself is wrong.
_MOST_UNREADABLE = 0.2


def line(text: str, why: str) -> str:
    """A line of YAML with the reason beside it."""
    return f"{text:<24}   # {why}"


def yaml_value(value: Any) -> str:
    """One line of YAML for a value that comes from the data."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("...\n").strip()
    )


def head(name: str, sentences: Sequence[str]) -> list[str]:
    """The file's first lines: what was found, how to run it, and its name."""
    return [
        *[f"# {sentence}" for sentence in sentences],
        f"#   ssl-core run {name}",
        "# Only what differs from the defaults, or what you may want to change. Every key: docs/project-yaml.md",
        f"name: {name}",
        line('description: ""', "one sentence for people"),
    ]


def class_lines(labels: Sequence[str]) -> list[str]:
    """``data.classes``, where there are few enough to read."""
    if not 2 <= len(labels) <= LISTED_CLASSES:
        return []
    return [line(f"  classes: {yaml_value(list(labels))}", "as found; a label outside of this list is an error")]


def guard_lines(unreadable: int, looked_at: int, noun: str) -> list[str]:
    """``data.max_quarantined``, so that the file runs in spite of some unusable samples; a remark where there are too many."""
    if not unreadable:
        return []
    found = f"{unreadable} of {plural(looked_at, noun)} looked at cannot be used"
    if unreadable > _MOST_UNREADABLE * looked_at:
        return [f"  # {found}: ingest will stop and list them all. Mend or remove them first."]
    share = math.ceil(200 * unreadable / looked_at) / 100
    why = f"{found}; ingest lists them all. Mend them and remove this line"
    return [line(f"  max_quarantined: {share:g}", why)]


def validation_lines(rows: int, example: str) -> list[str]:
    """``validation``; ``example`` is an expectation to begin with."""
    return [
        "",
        "validation:",
        line(f"  min_rows: {max(1, rows // 2)}", "half of what is there now: a truncated delivery is not published"),
        "  # expectations:         # Great Expectations' own form, over the columns of the manifest (docs/validation.md)",
        f"  #   - {example}",
    ]


def absolute(data: str) -> Path:
    """A path as a person types it."""
    return expand(data).resolve()
