"""Where samples come from, as people would say it: the folder or the file, and not each sample's own path."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def source_names(manifest: pd.DataFrame) -> pd.Series:
    """Where each sample comes from, one name a row; empty where the manifest does not say.

    A sample that is a file comes from its folder; one that is a line or row of a file, from this file. Where folders are the
    classes, the folder of the class is no source.
    """
    paths = manifest["source"].astype(str)
    if not len(paths):  # of no rows, pandas makes no columns
        return paths
    lines = paths.str.extract(r"^(.*):\d+(?:[:#]\d+)*$")[0]
    folders = paths.str.rpartition("/")[0]
    names = lines.where(lines.notna(), folders)
    first = names.str.partition("/")[0]
    labelled = manifest["label"].notna() & (names != "") & lines.isna()
    if labelled.any() and (first[labelled] == manifest.loc[labelled, "label"]).mean() >= 0.9:
        inner = names.str.partition("/")[2]
        names = names.where(lines.notna(), inner)
    return names
