"""Which rows are a window, and which the reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ssl_core.data.windows import FEWEST_UNTRAINED, new_windows, old_windows, reference_of, version_number

SPLITS = ["train", "val", "test", "vault"]


def manifest(per_version: int, versions: int = 4) -> pd.DataFrame:
    return pd.DataFrame({
        "split": SPLITS * (per_version * versions // 4),
        "first_version": np.repeat(np.arange(1, versions + 1), per_version),
    })  # fmt: skip


def test_windows_are_what_each_later_version_brought_without_the_vault() -> None:
    rows = manifest(8)
    windows = new_windows(rows, champion=2, latest=5)
    assert [one.name for one in windows] == ["v3", "v4", "v5"]
    assert [len(one.rows) for one in windows] == [6, 6, 0], "v5 brought labels only"
    assert set(rows.iloc[windows[0].rows]["split"]) == {"train", "val", "test"}
    assert set(rows.iloc[windows[0].rows]["first_version"]) == {3}
    assert new_windows(rows, champion=4, latest=4) == []


def test_old_windows_hold_what_the_encoder_has_not_seen() -> None:
    rows = manifest(8)
    old = old_windows(rows, champion=3, encoder=2)
    assert [len(one.rows) for one in old] == [4, 4, 6], "of v3 also what later became training samples"
    assert set(rows.iloc[old[0].rows]["split"]) == {"val", "test"}


def test_the_reference_was_not_trained_on_where_there_is_enough() -> None:
    rows = manifest(2 * FEWEST_UNTRAINED)
    found = reference_of(rows, champion=1)
    assert len(found.rows) == FEWEST_UNTRAINED
    assert set(rows.iloc[found.rows]["split"]) == {"val", "test"}
    assert set(rows.iloc[found.rows]["first_version"]) == {1}
    assert not found.trained_on
    few = reference_of(manifest(2 * FEWEST_UNTRAINED - 4), champion=1)
    assert few.trained_on
    assert "train" in few.what
    assert len(few.rows) == (2 * FEWEST_UNTRAINED - 4) * 3 // 4
    assert "v1 to v2" in reference_of(rows, champion=2).what


@pytest.mark.parametrize(
    ("tag", "number"), [("digits@v12", 12), ("a-b@v1", 1), ("candidate", None), ("digits@v0", None), ("", None)]
)
def test_the_number_of_a_version(tag: str, number: int | None) -> None:
    assert version_number(tag) == number
