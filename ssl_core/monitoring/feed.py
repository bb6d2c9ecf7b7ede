"""Faults of the feed that the manifest alone shows: another schema, columns that broke, and where samples come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.data.origin import source_names
from ssl_core.monitoring.document import MOST_SOURCES, OTHER, SourceCount
from ssl_core.validation.report import printable

if TYPE_CHECKING:
    import pandas as pd

NOT_MEASURES = frozenset({"sample_id", "split", "group", "label", "source", "arrived_at", "first_version"})
_OF_THE_FILE = frozenset({"width", "height", "channels", "bytes"})
"""What another camera or scanner makes alike for all its files: that they are constant says nothing against them."""
NEWLY_MISSING = 0.05
"""Share of values that are missing, above the reference's, from which a column is broken."""
SPIKE = 0.1
"""Share of a window that holds one and the same value, which the reference hardly knows."""
SURPRISING = 1e-4
"""And the chance of it, at most, if the window were like the reference: whole numbers come again and again."""
IMPOSSIBLE = 0.1
"""Share of values that lie outside of the reference's range by more than ``TIMES`` its width: another unit, and no other world."""
TIMES = 10
_VARIED = 20
"""Different values in the reference, from which a column is taken as continuous."""
_FEWEST = 20


def schema_differences(reference: pd.DataFrame, window: pd.DataFrame) -> list[str]:
    """Columns that the window lacks, has beyond the reference's, or holds in another type; in words."""
    found = [f"the column {printable(c, 60)} is missing" for c in reference if c not in window]
    found += [f"the column {printable(c, 60)} is new" for c in window if c not in reference]
    for name in reference:
        if name in window and len(reference) and len(window):
            before, now = _type(reference[name]), _type(window[name])
            if before != now and "nothing" not in (before, now):
                found.append(f"the column {printable(name, 60)} holds {now} and used to hold {before}")
    return found


def broken_columns(reference: pd.DataFrame, window: pd.DataFrame) -> list[str]:
    """Measures that no longer measure: missing, constant, one value again and again, or impossible; in words.

    Needs ``_FEWEST`` rows on both sides; fewer show nothing.
    """
    if min(len(reference), len(window)) < _FEWEST:
        return []
    found: list[str] = []
    for name in reference.columns:
        if name not in NOT_MEASURES and name in window:
            faults = _faults(reference[name], window[name], may_be_constant=name in _OF_THE_FILE)
            found.extend(f"{printable(name, 60)}: {fault}" for fault in faults)
    return found


def _faults(reference: pd.Series, window: pd.Series, *, may_be_constant: bool) -> Iterator[str]:
    missing, usual = _missing(window), _missing(reference)
    if missing - usual >= NEWLY_MISSING:
        yield f"{missing:.0%} of the values are missing, {usual:.0%} used to be"
    known, before = window[~_is_missing(window)], reference[~_is_missing(reference)]
    if not len(known) or not len(before) or before.nunique() < 2:
        return
    counts = known.value_counts()
    value, share = counts.index[0], counts.iloc[0] / len(known)
    usual = float((before == value).mean())
    if may_be_constant or not _is_surprising(int(counts.iloc[0]), len(known), usual, before):
        pass
    elif len(counts) == 1 and usual < 0.9:
        yield f"always {printable(value, 40)}, where the reference varies"
    elif before.nunique() >= _VARIED and share >= SPIKE and share >= 10 * usual:
        yield f"{share:.0%} of the values are {printable(value, 40)}, {usual:.1%} used to be"
    if _is_number(before) and _is_number(known):
        low, high = float(before.min()), float(before.max())
        values = known.to_numpy(dtype=np.float64)
        beyond = TIMES * (high - low)
        share = float(((values < low - beyond) | (values > high + beyond)).mean())
        if share >= IMPOSSIBLE:
            yield f"{share:.0%} of the values are far outside of anything seen before ({low:.4g} to {high:.4g})"


def _is_surprising(count: int, total: int, usual: float, before: pd.Series) -> bool:
    """Whether one value stands so often in a window hardly by chance, whichever value it might have been."""
    from scipy.stats import binom

    chance = binom.sf(count - 1, total, max(usual, 1 / (2 * len(before))))
    return bool(chance * before.nunique() <= SURPRISING)


def source_counts(manifest: pd.DataFrame) -> list[SourceCount]:
    """How many samples came from where, most first; the rest, where there are many, as one."""
    counts = source_names(manifest).value_counts(sort=True)
    counts = counts[counts.index != ""]
    shown = counts if len(counts) <= MOST_SOURCES else counts.iloc[: MOST_SOURCES - 1]
    found = [SourceCount(name=str(name), rows=int(n)) for name, n in shown.items()]
    rest = int(counts.iloc[len(shown) :].sum())
    return [*found, SourceCount(name=OTHER, rows=rest)] if rest else found


def _type(column: pd.Series) -> str:
    from pandas.api import types

    known = column.dropna()
    if not len(known):
        return "nothing"
    if types.is_bool_dtype(known):
        return "yes or no"
    if types.is_numeric_dtype(known):
        return "numbers"
    if types.is_datetime64_any_dtype(known):
        return "times"
    kinds = {type(value) for value in known.head(1000)}
    if kinds <= {str}:
        return "texts"
    return "numbers" if kinds <= {int, float} else re.sub(r"\W+", " ", " and ".join(sorted(k.__name__ for k in kinds)))


def _is_number(column: pd.Series) -> bool:
    from pandas.api import types

    return bool(types.is_numeric_dtype(column) and not types.is_bool_dtype(column))


def _is_missing(column: pd.Series) -> pd.Series:
    """Empty, or a number that is none."""
    if _is_number(column):
        return column.isna() | column.isin([np.inf, -np.inf])
    return column.isna()


def _missing(column: pd.Series) -> float:
    return float(_is_missing(column).mean()) if len(column) else 0.0
