"""The test set cut into slices: by label, by source and by window, the dataset version that a sample came with.

Each slice that is large enough is compared like the whole, with exact p-values that are corrected by Holm over all of them:
with forty slices, two would look worse by chance alone. The windows that the champion's own data had, together, are the
forgetting check: a challenger may win on what is new and lose what was known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ssl_core.config.promotion import PromotionConfig
from ssl_core.data.origin import source_names
from ssl_core.data.table import SampleTable
from ssl_core.errors import did_you_mean
from ssl_core.evaluation.predictions import Predictions, paired_quality
from ssl_core.registry.compare import Comparison, compare_quality, holm


@dataclass(frozen=True)
class Slice:
    """Some of the test samples."""

    name: str
    """``label=cat``, ``source=camera-2``, ``window=v3``; or the older windows, in words."""
    n: int
    comparison: Comparison | None
    """None: too few samples."""
    adjusted: float = 1.0
    """Holm's p-value for "worse"; 1 where it is not."""
    listed: bool = False
    """In ``promotion.protected_slices``."""
    old: bool = False
    """All windows of the champion's data."""
    hint: str = ""

    @property
    def protected(self) -> bool:
        """Must not get worse, whatever is gained elsewhere."""
        return self.listed or self.old

    def as_dict(self) -> dict[str, Any]:
        """JSON values for the report."""
        return asdict(self) | {"protected": self.protected}


def cut(
    mine: Predictions,
    theirs: Predictions,
    table: SampleTable,
    promotion: PromotionConfig,
    *,
    champion_window: int | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Slice]:
    """Both models' answers compared on each slice of the samples that both hold; the older windows first.

    Args:
        mine: the challenger's.
        theirs: the champion's.
        table: the dataset version that the samples are in.
        promotion: which slices are protected, and how many samples one needs.
        champion_window: N of the champion's dataset version; None where it has none.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    first, second = paired_quality(mine, theirs)
    there = set(theirs.sample_ids)
    rows = np.asarray([i for i, sample in enumerate(mine.sample_ids) if sample in there])
    found = masks(mine, rows, table)
    slices = []
    skipped: list[np.ndarray] = [np.ones(len(rows), dtype=bool)]  # the whole is no slice, nor is one a slice twice
    if champion_window is not None:
        old = windows_of(mine, rows, table) <= champion_window
        if old.any() and not old.all():
            slices.append((f"the champion's older windows (up to v{champion_window})", old, False, True))
            skipped.append(old)
    for name in dict.fromkeys(promotion.protected_slices):
        slices.append((name, found.get(name, np.zeros(len(rows), dtype=bool)), True, False))
    for name, mask in found.items():
        if name not in promotion.protected_slices and not any(np.array_equal(mask, other) for other in skipped):
            slices.append((name, mask, False, False))
    made = [
        Slice(
            name, int(mask.sum()),
            compare_quality(first[mask], second[mask], mine.label_type, resamples=resamples, seed=seed)
            if mask.sum() >= promotion.min_slice else None,
            listed=listed, old=is_old, hint="" if name in found or is_old else did_you_mean(name, found),
        )
        for name, mask, listed, is_old in slices
    ]  # fmt: skip
    return _corrected(made)


def _corrected(slices: list[Slice]) -> list[Slice]:
    """With Holm's p-values over all slices that were compared."""
    compared = [i for i, one in enumerate(slices) if one.comparison is not None]
    chances = []
    for i in compared:
        c = slices[i].comparison
        assert c is not None
        chances.append(c.p_value if c.difference < 0 else 1.0)
    adjusted = dict(zip(compared, holm(chances), strict=True))
    return [replace(one, adjusted=adjusted.get(i, 1.0)) for i, one in enumerate(slices)]


def masks(mine: Predictions, rows: np.ndarray, table: SampleTable) -> Mapping[str, np.ndarray]:
    """Slice name to which of ``rows`` of the predictions are in it, bool ``(n,)``; every value that occurs is a slice."""
    found: dict[str, np.ndarray] = {}
    if mine.label_type == "class":
        labels = mine.labels[rows]
        found |= {f"label={name}": labels == k for k, name in enumerate(mine.classes)}
    elif mine.label_type == "classes":
        assert mine.targets is not None
        found |= {f"label={name}": mine.targets[rows, k] > 0 for k, name in enumerate(mine.classes)}
    else:
        assert mine.targets is not None
        numbers = mine.targets[rows, 0]
        fifth = np.searchsorted(np.quantile(numbers, [0.2, 0.4, 0.6, 0.8]), numbers, side="right")
        found |= {f"label={name}": fifth == k for k, name in enumerate(table.strata)}
    source = source_names(table.manifest).set_axis(table.manifest["sample_id"]).reindex(_ids(mine, rows)).to_numpy()
    found |= {f"source={name}": source == name for name in sorted(set(source.tolist())) if name}
    window = windows_of(mine, rows, table)
    found |= {f"window=v{number}": window == number for number in sorted(set(window.tolist()))}
    return {name: mask for name, mask in found.items() if mask.any()}


def windows_of(mine: Predictions, rows: np.ndarray, table: SampleTable) -> np.ndarray:
    """The dataset version that each of these samples came with, int64 ``(n,)``."""
    return _column(mine, rows, table, "first_version").astype(np.int64)


def _column(mine: Predictions, rows: np.ndarray, table: SampleTable, name: str) -> np.ndarray:
    values = table.manifest.set_index("sample_id")[name]
    return values.reindex(_ids(mine, rows)).to_numpy()


def _ids(mine: Predictions, rows: np.ndarray) -> list[str]:
    return [mine.sample_ids[i] for i in rows]
