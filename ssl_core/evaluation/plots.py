"""The report's pictures, each drawn from the numbers that lie beside it as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in grey by line style and marker.
_METHODS = {
    "pretrained": ("#0072B2", "-", "o"),
    "random_init": ("#D55E00", "--", "s"),
    "classical": ("#5F5F5F", ":", "^"),
}
# Paul Tol's muted palette; with more classes than colours, markers change as well.
_CLASSES = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#777777",
)
_MARKERS = "osv^DPX*"
_MOST_CELL_NUMBERS = 15
_MOST_CLASS_NAMES = 40
_DPI = 150


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure, stored at ``path`` at the end; its texts are shown as they are, so that ``$`` starts no formula."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        try:
            axes.spines[["top", "right"]].set_visible(False)
            yield figure, axes
            # Without the writer's version, equal numbers give equal files.
            figure.savefig(path, dpi=_DPI, metadata={"Software": None})
        finally:
            plt.close(figure)


def plot_label_efficiency(path: Path, rows: Sequence[Mapping[str, Any]], project: str) -> None:
    """Accuracy against the number of labels, with 95% intervals: ``rows`` are ``label_budgets`` of the evaluation."""
    from matplotlib.ticker import NullLocator, PercentFormatter

    with _figure(path, 7.0, 4.4) as (_, axes):
        counts = [row["count"] for row in rows]
        names = {
            "pretrained": f"pretrained encoder, {rows[0]['pretrained']['probe'].replace('-', ' ')}",
            "random_init": "the same encoder, random weights",
            "classical": "best classical baseline",
        }
        for shift, (method, (colour, line, marker)) in zip((1.0, 1.015, 0.985), _METHODS.items(), strict=True):
            mean = np.array([row[method]["mean"] for row in rows])
            below, above = (np.abs(mean - [row[method][end] for row in rows]) for end in ("low", "high"))
            # Shifted a little, so that intervals at one budget do not hide each other.
            axes.errorbar(
                np.array(counts) * shift, mean, yerr=[below, above], color=colour, linestyle=line, marker=marker,
                markersize=5, linewidth=1.8, capsize=3, label=names[method],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{row['count']:,}" + ("\n(all)" if row["labels"] == "all" else "") for row in rows])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("labelled training samples (log scale)")
        axes.set_ylabel("accuracy on the test split")
        axes.set_title(f"{project}: what pretraining is worth at each number of labels", loc="left")
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, loc="lower right", title="bars: 95% intervals", alignment="left")


def plot_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Counts of true against predicted classes; colour is the share of the true class."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(classes)
    side = min(max(4.2, 0.42 * n + 2.2), 12.0)
    with _figure(path, side + 0.6, side) as (figure, axes):
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        if n <= _MOST_CELL_NUMBERS:
            for i, j in zip(*np.nonzero(counts), strict=True):
                axes.text(
                    j,
                    i,
                    f"{counts[i, j]:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.5 else "#222222",
                )
        if n <= _MOST_CLASS_NAMES:
            long = max(len(name) for name in classes) > 3
            axes.set_xticks(
                range(n),
                [_short(name) for name in classes],
                rotation=45 if long else 0,
                ha="right" if long else "center",
            )
            axes.set_yticks(range(n), [_short(name) for name in classes])
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_title(title, loc="left")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0%", "50%", "100%"])
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)  # type: ignore[operator]


def plot_forgetting(
    path: Path,
    values: np.ndarray,
    windows: Sequence[str],
    versions: Sequence[str],
    learned: Sequence[int],
    project: str,
) -> None:
    """Mean quality ``(V, W)`` of each model version on each test window; a frame where a version was the first to see a window."""
    rows, columns = values.shape
    low = min(0.5, float(np.floor(values.min() * 10) / 10))
    with _figure(path, min(2.6 + 0.75 * columns, 16.0), min(1.9 + 0.5 * rows, 12.0)) as (figure, axes):
        image = axes.imshow(values, cmap="viridis", vmin=low, vmax=1, aspect="auto")
        axes.spines[:].set_visible(False)
        if columns <= _MOST_CELL_NUMBERS:
            for i, j in np.ndindex(rows, columns):
                light = (values[i, j] - low) / (1 - low) < 0.6
                axes.text(
                    j,
                    i,
                    f"{values[i, j]:.3f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if light else "#222222",
                )
        for j, i in enumerate(learned):
            if i >= 0:
                axes.add_patch(_frame(j, i))
        axes.set_xticks(range(columns), [_short(name) for name in windows])
        axes.set_yticks(range(rows), [_short(name) for name in versions])
        axes.tick_params(length=0)
        axes.set_xlabel("test window (frame: where it was learned)")
        axes.set_ylabel("model version")
        axes.set_title(f"{project}: what is remembered", loc="left", fontsize=10)
        bar = figure.colorbar(image, ax=axes, shrink=0.9)
        bar.outline.set_visible(False)  # type: ignore[operator]


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor="#D55E00", linewidth=2)


def plot_embedding_map(
    path: Path, points: np.ndarray, labels: np.ndarray, classes: Sequence[str], project: str, method: str
) -> None:
    """Test samples where the encoder puts them, flattened to two dimensions ``(M, 2)``, coloured by their true class."""
    import matplotlib.patheffects as effects

    present = [k for k in range(len(classes)) if (labels == k).any()]
    wide = 1 < len(present) <= _MOST_CLASS_NAMES
    with _figure(path, 7.4 if wide else 6.0, 5.6) as (_, axes):
        dots = []
        for k in present:
            own = points[labels == k]
            scatter = axes.scatter(
                own[:, 0], own[:, 1], s=16, color=_CLASSES[k % len(_CLASSES)], marker=_MARKERS[k // len(_CLASSES) % len(_MARKERS)],
                linewidths=0, alpha=0.85,
            )  # fmt: skip
            dots.append(scatter)
            if len(present) <= _MOST_CELL_NUMBERS:
                middle = own[((own - np.median(own, axis=0)) ** 2).sum(axis=1).argmin()]
                text = axes.annotate(
                    _short(classes[k]), middle, fontsize=10, fontweight="bold", ha="center", va="center"
                )
                text.set_path_effects([effects.withStroke(linewidth=3, foreground="white")])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(False)
        axes.set_title(
            f"{project}: {len(points):,} test samples as the encoder sees them, without labels", loc="left", fontsize=11
        )
        axes.set_xlabel(f"{method} of the embeddings (no units; near means alike)")
        if wide:
            columns = 1 if len(present) <= 20 else 2
            # Labels of artists that start with an underscore would be left out; labels given here are not.
            axes.legend(
                dots,
                [_short(classes[k]) for k in present],
                frameon=False,
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                title="true class",
                ncols=columns,
                fontsize=9,
            )


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
