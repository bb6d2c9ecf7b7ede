"""What is compared with what: the windows of new samples, and the reference that the champion was not trained on.

A *window* is what one dataset version brought: the rows of the manifest with its number as ``first_version``. Those after the
champion's own version are new, those up to it are old. The vault is the gate's alone and in none of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

FEWEST_UNTRAINED = 200
"""Validation and test samples, from which on they are the reference by themselves."""
_UNTRAINED = ("val", "test")
_USED = ("train", *_UNTRAINED)


@dataclass(frozen=True)
class Window:
    """The samples that one dataset version brought; ``rows`` are positions in the manifest, ascending."""

    name: str
    number: int
    rows: np.ndarray


@dataclass(frozen=True)
class ReferenceRows:
    """What windows are compared with: positions in the manifest, ascending, and what they are in words."""

    rows: np.ndarray
    what: str
    trained_on: bool
    """Whether the encoder has seen some of them: then it may tell new samples from them just for that."""


def version_number(tag: str) -> int | None:
    """N of ``<name>@vN``; None for anything else."""
    found = re.fullmatch(r"[a-z][a-z0-9-]*@v([1-9]\d*)", tag, re.ASCII)
    return int(found[1]) if found else None


def reference_of(manifest: pd.DataFrame, champion: int) -> ReferenceRows:
    """Validation and test samples of the versions up to the champion's; where these are few, its training samples too.

    What an encoder was trained on it knows by heart, new samples it does not: that alone would make a difference.
    """
    old = manifest["first_version"].to_numpy() <= champion
    versions = "v1" if champion == 1 else f"v1 to v{champion}"
    untrained = np.flatnonzero(old & manifest["split"].isin(_UNTRAINED).to_numpy())
    if len(untrained) >= FEWEST_UNTRAINED:
        return ReferenceRows(untrained, f"validation and test samples of {versions}", trained_on=False)
    every = np.flatnonzero(old & manifest["split"].isin(_USED).to_numpy())
    what = f"training, validation and test samples of {versions}, as only {len(untrained):,} were not trained on"
    return ReferenceRows(every, what, trained_on=len(every) > len(untrained))


def new_windows(manifest: pd.DataFrame, champion: int, latest: int) -> list[Window]:
    """The windows after the champion's version up to ``latest``, in order; one that brought no samples is empty."""
    return [_window(manifest, number, _USED) for number in range(champion + 1, latest + 1)]


def old_windows(manifest: pd.DataFrame, champion: int, encoder: int) -> list[Window]:
    """The windows up to the champion's version, without what its encoder was trained on: the training samples up to version ``encoder``."""
    return [_window(manifest, n, _UNTRAINED if n <= encoder else _USED) for n in range(1, champion + 1)]


def _window(manifest: pd.DataFrame, number: int, splits: tuple[str, ...]) -> Window:
    chosen = (manifest["first_version"].to_numpy() == number) & manifest["split"].isin(splits).to_numpy()
    return Window(f"v{number}", number, np.flatnonzero(chosen))
