"""What a project's models have forgotten: quality of each model version on each test window, R[version, window].

A window is what one dataset version brought (``first_version`` of the manifest), by its labelled test samples. Rows are the
versions that were champions, in the order in which they were promoted, and the challenger last. Quality is that of
``evaluation.metrics``: accuracy where a sample has one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.contracts import DatasetRef
from ssl_core.data.windows import version_number
from ssl_core.errors import StepError
from ssl_core.evaluation.plots import plot_forgetting
from ssl_core.evaluation.predictions import Predictions
from ssl_core.registry import answers
from ssl_core.registry.ledger import Ledger
from ssl_core.step import StepContext

MOST_VERSIONS = 12
"""Earlier champions in a matrix, the latest ones: each has to answer for every window."""
_SHOWN = 6
_THIS = "this"


@dataclass(frozen=True)
class Row:
    """One model version: the dataset version that it was made from, and its quality on test samples, aligned with the windows."""

    version: str
    dataset: int
    """N of ``<name>@vN``: the newest window that it has seen."""
    quality: np.ndarray
    """float64 ``(M,)`` in [0, 1] of each test sample."""


@dataclass(frozen=True)
class Matrix:
    """R, with what is read off its last row (Lopez-Paz and Ranzato 2017, https://arxiv.org/abs/1706.08840, section 2)."""

    versions: list[str]
    windows: list[int]
    counts: list[int]
    """Test samples a window."""
    values: np.ndarray
    """float64 ``(V, W)``: mean quality."""
    learned: list[int]
    """For each window, the row that saw it first; -1: none of them."""
    average: float
    """ACC: mean of the last row over all windows, each counting the same."""
    backward_transfer: float | None
    """BWT: mean change on the windows that an earlier row had learned, from then to the last row; negative is forgetting."""
    worst_window: int | None
    """The window with the lowest change."""
    worst_change: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"values": np.round(self.values, 5).tolist()}


def measure(ctx: StepContext, mine: Predictions, name: str = _THIS) -> Matrix | None:
    """The matrix of the project's champions and a challenger, on the test samples of input ``dataset``; None before the first champion.

    Args:
        mine: the challenger's predictions on the labelled test samples of that dataset version.
        name: what its row is called.

    A champion that cannot be asked any more has no row, with a note. Raises ``StepError`` where the dataset cannot be read.
    """
    entries = Ledger(ctx.store, ctx.project.name).entries()
    promoted = list(dict.fromkeys(e.model_version for e in entries if e.action == "PROMOTED" and e.model_version))
    if not promoted:
        return None
    dataset: DatasetRef = ctx.input("dataset")
    manifest = answers.read_table(ctx, dataset).manifest
    window = dict(zip(manifest["sample_id"].astype(str), manifest["first_version"].tolist(), strict=True))
    ids = [sample for sample in mine.sample_ids if sample in window]
    rows: list[Row] = []
    for version in promoted[-MOST_VERSIONS:]:
        if version == name:
            continue
        try:
            known = answers.registered(ctx, version).tags.get("ssl.dataset", "")
            theirs = answers.answers(ctx, version, sample_ids=ids)
        except StepError as error:
            ctx.progress.note(f"version {version} is left out of the forgetting matrix: {str(error).splitlines()[0]}")
            continue
        rows.append(Row(version, version_number(known) or 0, _in_order(theirs, ids)))
    rows.append(Row(name, version_number(dataset.tag or "") or max(window.values(), default=0), _in_order(mine, ids)))
    return forgetting_matrix(rows, np.array([window[sample] for sample in ids], dtype=np.int64))


def _in_order(predictions: Predictions, ids: Sequence[str]) -> np.ndarray:
    at = {sample: i for i, sample in enumerate(predictions.sample_ids)}
    return np.asarray(predictions.quality, dtype=np.float64)[[at[sample] for sample in ids]]


def forgetting_matrix(rows: Sequence[Row], windows: np.ndarray) -> Matrix:
    """``rows`` in the order in which they were champions, the challenger last; ``windows`` ``(M,)``: the window of each sample.

        ACC = 1/W sum_w R[T, w]        BWT = 1/|L| sum_{w in L} R[T, w] - R[l(w), w]

    T is the last row, l(w) the first one whose dataset version holds window w, L the windows with l(w) < T. Departure: the
    paper's task i is learned by row i; here a row may learn several windows, or none.
    """
    numbers = sorted({int(w) for w in windows})
    if not rows or not numbers:
        raise ValueError("a matrix needs a version and a test sample")
    values = np.array([[row.quality[windows == w].mean() for w in numbers] for row in rows])
    learned = [next((i for i, row in enumerate(rows) if row.dataset >= w), -1) for w in numbers]
    last = len(rows) - 1
    changes = {
        w: float(values[last, c] - values[learned[c], c]) for c, w in enumerate(numbers) if 0 <= learned[c] < last
    }
    worst = min(changes, key=lambda w: changes[w]) if changes else None
    return Matrix(
        versions=[row.version for row in rows], windows=numbers, counts=[int((windows == w).sum()) for w in numbers],
        values=values, learned=learned, average=float(values[last].mean()),
        backward_transfer=float(np.mean(list(changes.values()))) if changes else None,
        worst_window=worst, worst_change=changes[worst] if worst is not None else None,
    )  # fmt: skip


def markdown(matrix: Matrix) -> list[str]:
    """The lines of a card: the latest rows and windows as a table, and what they amount to. A star marks where a window was learned."""
    rows = range(len(matrix.versions))[-_SHOWN:]
    columns = list(range(len(matrix.windows)))[-_SHOWN:]
    if matrix.worst_window is not None and (worst := matrix.windows.index(matrix.worst_window)) not in columns:
        columns = [worst, *columns[1:]]
    lines = [
        "| version | " + " | ".join(f"v{matrix.windows[c]} ({matrix.counts[c]})" for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for r in rows:
        cells = [f"{matrix.values[r, c]:.3f}" + ("*" if matrix.learned[c] == r else "") for c in columns]
        lines.append(f"| {matrix.versions[r]} | " + " | ".join(cells) + " |")
    said = f"Mean over windows {matrix.average:.3f}"
    if matrix.backward_transfer is not None and matrix.worst_change is not None:
        said += f"; backward transfer {matrix.backward_transfer:+.3f}; worst window v{matrix.worst_window} ({matrix.worst_change:+.3f})"
    return [*lines, "", said + "."]


def draw(matrix: Matrix, path: Path, project: str) -> None:
    """The whole matrix as a small heat map, PNG."""
    windows = [f"v{number}" for number in matrix.windows]
    plot_forgetting(path, matrix.values, windows, matrix.versions, matrix.learned, project)
