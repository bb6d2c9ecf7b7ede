"""Rows of a dataset version: labels, targets and strata of each type of label."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from ssl_core.data.table import SampleTable


def table(labels: list[str | None], classes: list[str], label_type: str = "class", split: str = "train") -> SampleTable:
    frame = pd.DataFrame({"label": pd.Series(labels, dtype=object), "split": [split] * len(labels)})
    return SampleTable(manifest=frame, classes=classes, label_type=label_type)  # type: ignore[arg-type]


def test_one_class_a_sample() -> None:
    found = table(["b", None, "a"], ["a", "b"])
    assert found.labels.tolist() == [1, -1, 0]
    np.testing.assert_array_equal(found.targets, [[0, 1], [np.nan, np.nan], [1, 0]])
    assert found.positions("train", labelled=True).tolist() == [0, 2]
    assert found.positions("train", labelled=False).tolist() == [1]
    assert found.strata == ["a", "b"]


def test_several_classes_are_drawn_by_their_rarest() -> None:
    found = table(
        [json.dumps(c) if c is not None else None for c in (["a", "b"], ["a"], [], None, ["a"])], ["a", "b"], "classes"
    )
    np.testing.assert_array_equal(found.targets[[0, 1, 2, 4]], [[1, 1], [1, 0], [0, 0], [1, 0]])
    assert found.labels.tolist() == [1, 0, 2, -1, 0]
    assert [found.strata[k] for k in (1, 0, 2)] == ["b", "a", "none of them"]


def test_numbers_are_drawn_by_fifths() -> None:
    found = table([*(repr(float(i)) for i in range(10)), None], [], "number")
    assert found.targets.shape == (11, 1)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1]
    assert len(found.strata) == 5


@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
def test_without_any_label(label_type: str) -> None:
    found = table([None, None], ["a", "b"] if label_type != "number" else [], label_type)
    assert found.labels.tolist() == [-1, -1]
    assert np.isnan(found.targets).all()
    assert len(found.positions("train", labelled=True)) == 0


def test_what_is_no_class_or_split_is_told() -> None:
    with pytest.raises(ValueError, match="outside the dataset's classes: 'c'"):
        _ = table(["c"], ["a", "b"]).labels
    with pytest.raises(ValueError, match="'all' is not a split"):
        table(["a"], ["a", "b"]).positions("all")
