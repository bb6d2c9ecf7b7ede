"""Column summaries for the report: what a person looks at before trusting a verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ssl_core.validation.report import printable

_BINS = 24
_TOP = 12
NO_LABEL = "(no label)"


@dataclass(frozen=True)
class Column:
    """One column: its type, what is missing, and either a histogram or the most frequent values."""

    name: str
    type: str
    missing: int
    distinct: int
    low: str = ""
    middle: str = ""
    high: str = ""
    histogram: tuple[int, ...] = ()
    top: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Table:
    """Samples by class (rows) and split (columns)."""

    splits: tuple[str, ...] = ()
    rows: tuple[tuple[str, tuple[int, ...]], ...] = ()
    total: tuple[int, ...] = ()
    hidden: int = 0
    """Classes beyond those shown."""


def columns(frame: pd.DataFrame) -> list[Column]:
    """A summary of every column of ``frame``."""
    return [_column(str(name), frame[name]) for name in frame.columns]


def by_class(frame: pd.DataFrame, most: int = 60) -> Table:
    """How many samples of each class stand in each split, at most ``most`` classes; empty without the two columns."""
    if frame.empty or not {"label", "split"} <= set(frame.columns):
        return Table()
    labels = frame["label"].astype("object").where(frame["label"].notna(), None)
    counts = pd.crosstab(
        labels.map(lambda v: NO_LABEL if v is None else printable(v, 60)),
        frame["split"].map(lambda v: printable(v, 30)),
    )
    order = [s for s in ("train", "val", "test", "vault") if s in counts.columns]
    counts = counts[[*order, *[c for c in counts.columns if c not in order]]]
    rows = tuple(
        (str(name), tuple(int(n) for n in values)) for name, values in zip(counts.index, counts.to_numpy(), strict=True)
    )
    rows = tuple(row for row in rows if row[0] != NO_LABEL) + tuple(row for row in rows if row[0] == NO_LABEL)
    hidden = max(0, len(rows) - most)
    return Table(tuple(map(str, counts.columns)), rows[hidden:], tuple(int(n) for n in counts.sum()), hidden)


def _column(name: str, series: pd.Series) -> Column:
    kind, missing, known = str(series.dtype), int(series.isna().sum()), series.dropna()
    if pd.api.types.is_datetime64_any_dtype(series):
        return _measured(
            name, kind, missing, known, known.astype("int64").to_numpy(dtype=float), known.dt.strftime("%Y-%m-%d %H:%M")
        )
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        values = known.to_numpy(dtype=float)
        return _measured(name, kind, missing, known, values, known.map(lambda v: f"{v:.6g}"))
    counts = known.astype("object").map(lambda v: v if isinstance(v, str) else str(v)).value_counts()
    few = len(counts) <= _TOP or (len(counts) and counts.iloc[0] >= max(3, 0.02 * len(series)))
    top = tuple((printable(value, 60), int(n)) for value, n in counts.head(_TOP).items()) if few else ()
    return Column(name, kind, missing, len(counts), top=top)


def _measured(name: str, kind: str, missing: int, known: pd.Series, values: np.ndarray, shown: pd.Series) -> Column:
    finite = np.isfinite(values)
    values, shown = values[finite], shown[finite]
    if not len(values):
        return Column(name, kind, missing, 0)
    order = np.argsort(values, kind="stable")
    low, middle, high = (str(shown.iloc[order[i]]) for i in (0, (len(order) - 1) // 2, -1))
    spread = values.max() - values.min()
    bins = (
        int(min(_BINS, spread + 1)) if pd.api.types.is_integer_dtype(known) else _BINS
    )  # no empty bins between whole numbers
    histogram = tuple(int(n) for n in np.histogram(values, bins=bins)[0]) if spread else ()
    return Column(name, kind, missing, int(known.nunique()), low, middle, high, histogram)
