"""Predictions survive the file, whatever order they came in; a test set is named by its samples."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_core.errors import UserError
from ssl_core.evaluation.predictions import (
    COLUMNS,
    Predictions,
    make_predictions,
    read_predictions,
    test_set_digest,
    write_predictions,
)

IDS = ["c", "a", "b"]
LABELS = np.array([2, 0, 1])
SCORES = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], dtype=np.float32)
CLASSES = ["ant", 'büg, "quoted"', "cat"]


def test_round_trip_is_sorted_and_exact(tmp_path):
    made = make_predictions(IDS, LABELS, SCORES, CLASSES)
    write_predictions(tmp_path / "p.parquet", made)
    read = read_predictions(tmp_path / "p.parquet")
    assert read.sample_ids == ("a", "b", "c")
    assert read.classes == tuple(CLASSES)
    np.testing.assert_array_equal(read.labels, [0, 1, 2])
    np.testing.assert_array_equal(read.scores, SCORES[[1, 2, 0]])
    np.testing.assert_array_equal(read.correct, [True, False, True])
    table = pq.read_table(tmp_path / "p.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert table.column("predicted").to_pylist() == ["ant", "ant", "cat"]
    assert set(table.column("split").to_pylist()) == {"test"}


def test_equal_predictions_give_equal_bytes(tmp_path):
    for name, order in (("x", [0, 1, 2]), ("y", [2, 0, 1])):
        write_predictions(
            tmp_path / name, make_predictions([IDS[i] for i in order], LABELS[order], SCORES[order], CLASSES)
        )
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_test_set_digest_depends_on_the_samples_alone():
    assert test_set_digest(IDS) == test_set_digest(sorted(IDS)) == hashlib.sha256(b"a\nb\nc\n").hexdigest()
    assert test_set_digest(["a", "bc"]) != test_set_digest(["ab", "c"])
    assert make_predictions(IDS, LABELS, SCORES, CLASSES).digest == test_set_digest(IDS)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="fit together"):
        Predictions(("a",), np.array([0]), SCORES, ("x", "y", "z"))
    with pytest.raises(ValueError, match="sorted"):
        make_predictions(["a", "a", "b"], LABELS, SCORES, CLASSES)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "text").write_text("hello")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other")
    for name in ("text", "other", "missing"):
        with pytest.raises(UserError, match="not a file of predictions") as error:
            read_predictions(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
