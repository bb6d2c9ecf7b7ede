"""The drift report for people: one HTML file that loads nothing and runs nothing, and a picture.

All of it is drawn from the record (``document.DriftReport``) alone, so that a stored ``drift.json`` can be drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from ssl_core.errors import UserError
from ssl_core.monitoring.columns import CHANGED
from ssl_core.monitoring.document import SCHEMA_VERSION, Action, DriftReport, Kind, PastWindow, Point

JSON_FILE = "drift.json"
HTML_FILE = "drift.html"
PICTURE_FILE = "drift.png"
HIGHEST_SCORE = 3.0
"""Where the score's bars end: how far beyond that a window lies makes no difference to anybody."""
HIGHEST_PSI = 1.0
MAJOR = 0.25
"""PSI that is customarily called a major change."""

TITLES: dict[Kind, str] = {
    "quiet": "Quiet",
    "cannot-tell": "Cannot tell",
    "data-bug": "Data bug",
    "prior-shift": "Prior shift",
    "covariate-shift": "Covariate shift",
    "new-territory": "New territory",
}
MEANINGS: dict[Kind, str] = {
    "quiet": "What arrived looks like what the champion was judged on.",
    "cannot-tell": "There is too little to judge this window by.",
    "data-bug": "Something is wrong with the data, not with the world.",
    "prior-shift": "The classes come in other shares; within a class nothing changed.",
    "covariate-shift": "Samples of the known kind look different now.",
    "new-territory": "This lies outside of what the encoder has learned.",
}
_STEPS: dict[Action, str] = {
    "none": "Nothing needs to be done.",
    "quarantine": "Nothing is trained on account of this window. Look at what is named below, mend the source, and take the samples "
    "out or in again; then run the monitor once more.",
    "recalibrate": "Multiply the champion's probabilities by the factors below, and scale them to sum to 1. A person decides; "
    "nothing is trained.",
    "finetune": "Fine-tuning again on old and new samples is justified.",
    "pretrain": "Pretraining again on the new samples is proposed. It is costly, so a person decides: start the project's "
    "pretrain run, or label some of the window first to see whether the encoder still serves.",
}  # fmt: skip
_LEVELS: dict[Kind, str] = {
    "quiet": "good",
    "cannot-tell": "warn",
    "data-bug": "bad",
    "prior-shift": "warn",
    "covariate-shift": "warn",
    "new-territory": "bad",
}


def next_steps(report: DriftReport) -> list[str]:
    """What follows, in sentences."""
    steps = [_STEPS[report.finding.action]]
    if report.retrain:
        steps.append("It starts by itself: this report wakes the project's finetune run.")
    elif report.held_back:
        steps.append(f"It is held back: {report.held_back}.")
    elif report.finding.action == "finetune" and not report.alarm:
        above = sum(past.exceeded for past in report.history[-report.rule.m :])
        steps.append(
            f"It does not start yet: {above} of the last {report.rule.m} windows {'is' if above == 1 else 'are'} above the "
            f"threshold, and {report.rule.k} are an alarm."
        )
    if report.finding.who == "person" and (report.alarm or report.finding.kind == "data-bug"):
        steps.append("Whoever the project notifies is told once.")
    return steps


def write(report: DriftReport, folder: Path) -> None:
    """``drift.json``, ``drift.html`` and ``drift.png`` into ``folder``."""
    from ssl_core.monitoring.plots import draw

    (folder / JSON_FILE).write_text(report.to_json(), encoding="utf-8")
    (folder / HTML_FILE).write_text(render(report), encoding="utf-8")
    draw(folder / PICTURE_FILE, report)


def read(folder: Path) -> DriftReport:
    """The record in a step's output folder. Raises ``UserError`` where there is none, or one of another version."""
    path = folder / JSON_FILE if folder.is_dir() else folder
    try:
        report = DriftReport.model_validate_json(path.read_bytes())
        if report.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema version {report.schema_version}, this program reads {SCHEMA_VERSION}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"not a readable drift report ({str(error).splitlines()[0]})", place=str(path), next_step="run the monitor again"
        ) from None  # fmt: skip
    return report


def render(report: DriftReport) -> str:
    """The page."""
    return _template().render(
        report=report, level=_LEVELS[report.finding.kind], title=TITLES[report.finding.kind], meaning=MEANINGS[report.finding.kind],
        steps=next_steps(report), bars=score_bars(report.history), titles=TITLES, levels=_LEVELS, changed=CHANGED, major=MAJOR,
        highest_score=highest(report.history), highest_psi=HIGHEST_PSI,
        largest=max((max(c.reference, c.window) for c in report.predictions.classes), default=1) if report.predictions else 1,
    )  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """One window in the score's chart."""

    past: PastWindow
    height: str
    """Percent of the chart."""
    cut: bool
    """Whether the score lies above the chart."""


def score_bars(history: Sequence[PastWindow]) -> list[Bar]:
    """A window that scores anything is seen, and one that was not judged has no bar."""
    found, top = [], highest(history)
    for past in history:
        score = max(0.0, past.score or 0.0)
        height = 100 * min(score, top) / top
        found.append(Bar(past, f"{max(height, 1.5) if past.score is not None else 0:.3g}", score > top))
    return found


def highest(history: Sequence[PastWindow]) -> float:
    """Where the chart ends: above the threshold, 1, and the scores, but at ``HIGHEST_SCORE``."""
    return min(HIGHEST_SCORE, max([1.4, *(1.05 * (past.score or 0) for past in history)]))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "thousands": lambda n: f"{n:,}",
        "percent": lambda share: f"{share:.1%}",
        "signed": lambda share: f"{share:+.1%}",
        "width": lambda value, largest: f"{100 * min(max(value, 0), largest) / largest:.3g}" if largest > 0 else "0",
        "number": lambda value: f"{value:.3g}",
        "auc": lambda value: f"{value:.3f}",
        "chance": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
        "minute": lambda moment: moment[:16].replace("T", " "),
        "x": lambda point: f"{50 + 47 * _inside(point)[0]:.4g}",
        "y": lambda point: f"{50 - 47 * _inside(point)[1]:.4g}",
    }
    return environment.get_template("drift.html")


def _inside(point: Point) -> Point:
    return min(max(point[0], -1.0), 1.0), min(max(point[1], -1.0), 1.0)
