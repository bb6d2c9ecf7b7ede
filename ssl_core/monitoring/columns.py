"""Columns of the manifest: which of them look different in the window than in the reference, and how much?

Effect and chance are told apart: PSI says how large a change is, whatever the number of samples; the p-value whether it may be
chance; and over many columns Benjamini and Hochberg's procedure keeps the share of false findings at the level.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
"""Share of false findings among the columns found (Benjamini and Hochberg 1995)."""
CHANGED = 0.1
"""PSI from which a change counts: the customary "moderate"; 0.25 is a "major" one."""
FEWEST_KNOWN = 20
"""Values on each side of a column of which only the known ones count."""
_BINS = 10
_MOST_CATEGORIES = 50
_MISSING = "(missing)"
_OTHER = "(other)"


@dataclass(frozen=True)
class Column:
    """What became of one column."""

    name: str
    kind: Literal["number", "category"]
    psi: float
    """Population stability index over the reference's deciles, or over the categories; missing values are one more."""
    statistic: float
    """Kolmogorov and Smirnov's D of numbers, Cramér's V of categories: 0 alike, 1 apart."""
    p_value: float
    q_value: float
    """The p-value, corrected for the number of columns."""
    drifted: bool
    """``q_value`` is at most ``LEVEL``, and ``psi`` at least ``CHANGED``."""


def compare_columns(
    reference: pd.DataFrame, window: pd.DataFrame, kinds: Mapping[str, str], *, known_only: Collection[str] = ()
) -> list[Column]:
    """All columns of ``kinds`` (name to ``number`` or ``category``) that both have, the most different first.

    Of the columns ``known_only`` only what is not missing counts, and one with fewer than ``FEWEST_KNOWN`` values on a side is left
    out: how many samples have a label yet says nothing about the world. ``ValueError`` where a side has no rows.
    """
    from scipy.stats import false_discovery_control

    if len(reference) == 0 or len(window) == 0:
        raise ValueError("a side has no rows: there is nothing to compare")
    found = []
    for name, kind in kinds.items():
        if name in reference and name in window:
            sides = [reference[name], window[name]]
            if name in known_only:
                sides = [side.dropna() for side in sides]
                if min(map(len, sides)) < FEWEST_KNOWN:
                    continue
            measure = _numbers if kind == "number" else _categories
            found.append((name, kind, *measure(*sides)))
    if not found:
        return []
    q_values = false_discovery_control([p_value for *_, p_value in found])
    columns = [
        Column(name, kind, psi, statistic, p, float(q), bool(q <= LEVEL and psi >= CHANGED))  # type: ignore[arg-type]
        for (name, kind, psi, statistic, p), q in zip(found, q_values, strict=True)
    ]
    return sorted(columns, key=lambda one: (-one.psi, one.name))


def psi(reference: np.ndarray, window: np.ndarray) -> float:
    """Population stability index of counts ``(K,)`` each: ``sum over bins of (w - r) * ln(w / r)``, w and r shares.

    Half a count is added to each bin, so that an empty one makes a large number and not an infinite one.
    """
    r, w = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (reference, window))
    return float(((w - r) * np.log(w / r)).sum())


def _numbers(reference: pd.Series, window: pd.Series) -> tuple[float, float, float]:
    from scipy.stats import ks_2samp

    sides = [column.to_numpy(dtype=np.float64, na_value=np.nan) for column in (reference, window)]
    present = [values[np.isfinite(values)] for values in sides]
    inner = _edges(present[0])
    counts = [
        np.append(
            np.bincount(np.searchsorted(inner, some, side="left"), minlength=len(inner) + 1), len(values) - len(some)
        )
        for some, values in zip(present, sides, strict=True)
    ]
    counts = _occupied(counts)
    index = psi(*counts)
    if not len(present[0]) or not len(present[1]):
        return index, *_chi_square(counts)
    test = ks_2samp(*present)
    _, of_missing = _chi_square([np.array([len(p), len(v) - len(p)]) for p, v in zip(present, sides, strict=True)])
    looks = [float(test.pvalue)] + ([of_missing] if of_missing < 1 else [])
    return index, float(test.statistic), min(1.0, len(looks) * min(looks))


def _edges(values: np.ndarray) -> np.ndarray:
    """Inner borders of the bins: deciles; where many values are equal, such a value gets a bin of its own."""
    if not len(values):
        return np.zeros(0)
    inner = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return inner if len(inner) == _BINS - 1 else np.unique([inner, np.nextafter(inner, -np.inf)])


def _categories(reference: pd.Series, window: pd.Series) -> tuple[float, float, float]:
    sides = [column.astype(object).where(column.notna(), _MISSING).astype(str) for column in (reference, window)]
    kept = sides[0].value_counts().index[:_MOST_CATEGORIES]
    # What the reference does not have, or hardly, is one category: new sources are a change, each by itself none.
    sides = [side.where(side.isin(kept), _OTHER) for side in sides]
    names = sorted(set(sides[0]) | set(sides[1]))
    counts = _occupied([side.value_counts().reindex(names, fill_value=0).to_numpy() for side in sides])
    return psi(*counts), *_chi_square(counts)


def _occupied(counts: list[np.ndarray]) -> list[np.ndarray]:
    used = counts[0] + counts[1] > 0
    return [one[used] for one in counts]


def _chi_square(counts: list[np.ndarray]) -> tuple[float, float]:
    """Cramér's V and the p-value of a table ``(2, K)``."""
    from scipy.stats import chi2_contingency

    table = np.stack(_occupied(counts))
    if table.shape[1] < 2:
        return 0.0, 1.0
    test = chi2_contingency(table, correction=False)
    return float(np.sqrt(test.statistic / table.sum())), float(test.pvalue)
