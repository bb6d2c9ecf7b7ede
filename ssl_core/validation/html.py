"""The report as one HTML file: nothing loaded from anywhere, nothing executed, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import jinja2

from ssl_core.validation.profile import NO_LABEL, Column, Table
from ssl_core.validation.report import ValidationReport, printable


def render(
    report: ValidationReport, *, name: str, facts: Mapping[str, str], columns: list[Column], classes: Table
) -> str:
    """The page. ``facts`` are the figures below the verdict, title to value."""
    return _template().render(
        report=report, name=name, facts=facts, columns=columns, classes=classes,
        shown=[*report.failed, *report.warnings], no_label=NO_LABEL,
        largest=max((n for label, row in classes.rows if label != NO_LABEL for n in row), default=0),
    )  # fmt: skip


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"printable": printable, "bars": _bars, "width": _width, "thousands": lambda n: f"{n:,}"}
    return environment.get_template("report.html")


def _bars(counts: tuple[int, ...], width: float = 120.0, height: float = 28.0) -> list[dict[str, str]]:
    """Rectangles of a sparkline; a bin that holds anything is at least one unit high, so that outliers show."""
    top = max(counts)
    heights = [0.0 if not n else max(1.5, height * n / top) for n in counts]
    step = min(width / len(counts), 12.0)
    return [
        {"x": f"{i * step:.4g}", "y": f"{height - h:.4g}", "w": f"{step - 1:.4g}", "h": f"{h:.4g}"}
        for i, h in enumerate(heights)
    ]


def _width(count: int, largest: int) -> str:
    return f"{100 * count / largest:.3g}" if largest else "0"
