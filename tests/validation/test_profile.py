"""Column summaries against counts done by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ssl_core.validation.profile import NO_LABEL, by_class, columns


def test_counts_and_ranges() -> None:
    frame = pd.DataFrame(
        {
            "whole": pd.Series([1, 1, 2, 5], dtype="int32"),
            "real": pd.Series([0.5, np.nan, np.inf, 1.5], dtype="float32"),
            "word": ["a", "b", "a", None],
            "at": pd.to_datetime(["2026-01-01", "2026-01-03", "2026-01-02", "2026-01-04"], utc=True),
            "same": [7, 7, 7, 7],
            "none": pd.Series([None] * 4, dtype="object"),
        }
    )
    found = {column.name: column for column in columns(frame)}
    assert (found["whole"].low, found["whole"].middle, found["whole"].high) == ("1", "1", "5")
    assert found["whole"].histogram == (2, 1, 0, 0, 1)  # a bin for each whole number
    assert (found["real"].low, found["real"].high, found["real"].missing) == (
        "0.5",
        "1.5",
        1,
    )  # infinity is in no range
    assert found["word"].top == (("a", 2), ("b", 1))
    assert (found["at"].low, found["at"].high) == ("2026-01-01 00:00", "2026-01-04 00:00")
    assert found["same"].histogram == ()
    assert (found["none"].missing, found["none"].distinct) == (4, 0)


def test_long_values_that_share_a_beginning_stay_distinct() -> None:
    assert columns(pd.DataFrame({"id": [f"{i:080d}" for i in range(50)]}))[0].distinct == 50


def test_classes_by_split() -> None:
    frame = pd.DataFrame({"label": ["b", "a", None, "a"], "split": ["train", "test", "train", "train"]})
    table = by_class(frame)
    assert table.splits == ("train", "test")
    assert table.rows == (("a", (1, 1)), ("b", (1, 0)), (NO_LABEL, (1, 0)))
    assert table.total == (3, 1)


def test_many_classes_are_cut_and_counted() -> None:
    table = by_class(pd.DataFrame({"label": [f"c{i:03d}" for i in range(100)], "split": ["train"] * 100}))
    assert (len(table.rows), table.hidden, table.total) == (60, 40, (100,))


def test_no_rows_or_columns() -> None:
    assert columns(pd.DataFrame()) == []
    assert by_class(pd.DataFrame()).rows == ()
    assert [
        c.distinct for c in columns(pd.DataFrame({"a": pd.Series(dtype="float"), "b": pd.Series(dtype="str")}))
    ] == [0, 0]
