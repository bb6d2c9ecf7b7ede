"""The drift report as a picture: scores of the last windows, both sides as the encoder sees them, and what columns say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.monitoring.columns import CHANGED
from ssl_core.monitoring.document import DriftReport, EmbeddingMap, PastWindow
from ssl_core.monitoring.report import HIGHEST_PSI, HIGHEST_SCORE, TITLES, highest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, as in the other pictures, its red darker: it stands beside the yellow.
_BELOW, _ABOVE, _ALARM, _REFERENCE = "#0072B2", "#E69F00", "#C4391D", "#8C959F"
_MOST_BARS = 60
_MOST_COLUMNS = 12
_NAMED_BARS = 8


def draw(path: Path, report: DriftReport) -> None:
    """Stores the picture at ``path``, PNG; equal reports give equal files. Texts are shown as they are."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.3), layout="constrained", width_ratios=[1.25, 1, 1])
        try:
            for one in axes:
                one.spines[["top", "right"]].set_visible(False)
            _scores(axes[0], report.history[-_MOST_BARS:])
            _map(axes[1], report.map)
            _columns(axes[2], report)
            figure.suptitle(
                f"{report.project}, {report.window.name}: {TITLES[report.finding.kind].lower()}",
                x=0.01,
                ha="left",
                fontweight="bold",
            )
            # Without the writer's version, equal numbers give equal files.
            figure.savefig(path, dpi=110, metadata={"Software": None})
        finally:
            plt.close(figure)


def _scores(axes: Axes, history: list[PastWindow]) -> None:
    axes.set_title("score of each window (yellow: above, red: alarm)", loc="left", fontsize=10)
    heights = [min(max(past.score or 0.0, 0.0), HIGHEST_SCORE) for past in history]
    colours = [_ALARM if past.alarm else _ABOVE if past.exceeded else _BELOW for past in history]
    axes.bar(range(len(history)), heights, color=colours, width=0.8)
    axes.axhline(1, color="#444444", linestyle="--", linewidth=1.2)
    axes.text(1.0, 1.02, "threshold", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    for place, past in enumerate(history):
        if past.score is None:
            axes.text(place, 0.03, "?", ha="center", va="bottom", color="#444444")
        elif past.score > HIGHEST_SCORE and len(history) <= _NAMED_BARS * 2:
            axes.text(
                place, 0.99 * HIGHEST_SCORE, f"{past.score:.0f}", ha="center", va="top", fontsize=9, color="white"
            )
    axes.set_ylim(0, highest(history))
    axes.set_xlim(-0.6, max(len(history), 5) - 0.4)
    step = max(1, -(-len(history) // _NAMED_BARS))
    named = range(len(history) - 1, -1, -step)
    axes.set_xticks([*named], [_short(history[place].window, 12) for place in named])
    axes.set_ylabel("share of the threshold")


def _map(axes: Axes, points: EmbeddingMap | None) -> None:
    axes.set_title("as the champion's encoder sees them", loc="left", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if points is None or not points.window or not points.reference:
        axes.text(0.5, 0.5, "not compared", transform=axes.transAxes, ha="center", va="center", color="#666666")
        return
    reference, window = np.asarray(points.reference), np.asarray(points.window)
    axes.scatter(
        reference[:, 0], reference[:, 1], s=14, facecolors="none", edgecolors=_REFERENCE, linewidths=0.7, label="reference"
    )  # fmt: skip
    axes.scatter(window[:, 0], window[:, 1], s=14, color=_ALARM, linewidths=0, alpha=0.7, label="window")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_xlabel(points.method, fontsize=8)


def _columns(axes: Axes, report: DriftReport) -> None:
    axes.set_title("columns of the manifest, by PSI", loc="left", fontsize=10)
    shown = report.columns[:_MOST_COLUMNS][::-1]
    axes.barh(
        range(len(shown)), [min(c.psi, HIGHEST_PSI) for c in shown], color=[_ALARM if c.drifted else _BELOW for c in shown]
    )  # fmt: skip
    for place, column in enumerate(shown):
        if column.psi > HIGHEST_PSI:
            axes.text(HIGHEST_PSI, place, f" {column.psi:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [_short(c.name, 22) for c in shown])
    axes.axvline(CHANGED, color="#444444", linestyle="--", linewidth=1.2)
    axes.set_xlim(0, HIGHEST_PSI * 1.1)
    axes.set_ylim(len(shown) - max(len(shown), 5) - 0.5, len(shown) - 0.5)
    if not shown:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none compared", transform=axes.transAxes, ha="center", va="center", color="#666666")


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
