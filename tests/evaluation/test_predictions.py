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
    paired_quality,
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


def several(order=(0, 1, 2)):
    targets = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)
    scores = np.array([[0.9, 0.2, 0.4], [0.1, 0.1, 0.1], [0.3, 0.5, 0.9]], np.float32)
    kept = list(order)
    return make_predictions(
        [IDS[i] for i in kept], np.zeros(3), scores[kept], CLASSES, label_type="classes", targets=targets[kept]
    )


def numbers(spread=4.0):
    targets = np.array([[0.1], [-2.5], [1e20]], np.float32)
    scores = np.array([[1.1], [-2.5], [0.3]], np.float32)
    return make_predictions(
        IDS, np.zeros(3), scores, CLASSES, "vault", label_type="number", targets=targets, spread=spread
    )


@pytest.mark.parametrize("made", [several(), numbers()], ids=["classes", "number"])
def test_other_types_of_labels_survive_the_file(tmp_path, made):
    write_predictions(tmp_path / "p.parquet", made)
    read = read_predictions(tmp_path / "p.parquet")
    assert (read.sample_ids, read.classes, read.split) == (made.sample_ids, made.classes, made.split)
    assert (read.label_type, read.spread) == (made.label_type, made.spread)
    for name in ("labels", "targets", "scores", "quality", "predicted"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert read.targets.dtype == np.float32
    with pytest.raises(ValueError, match="not right or wrong"):
        _ = made.correct
    write_predictions(tmp_path / "again.parquet", read)
    assert (tmp_path / "p.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_labels_in_the_file_are_for_people(tmp_path):
    write_predictions(tmp_path / "c", several())
    table = pq.read_table(tmp_path / "c")
    assert table.column("label").to_pylist() == ["[]", '["büg, \\"quoted\\""]', '["ant", "cat"]']
    assert table.column("predicted").to_pylist() == ["[]", '["büg, \\"quoted\\"", "cat"]', '["ant"]']
    write_predictions(tmp_path / "n", numbers())
    table = pq.read_table(tmp_path / "n")
    assert table.column("label").to_pylist() == ["-2.5", "1e+20", "0.1"]
    assert table.column("predicted").to_pylist() == ["-2.5", "0.3", "1.1"]


def test_quality_by_type_of_label():
    np.testing.assert_array_equal(make_predictions(IDS, LABELS, SCORES, CLASSES).quality, [1, 0, 1])
    np.testing.assert_allclose(several().quality, [1, 0.5, 0.5])
    np.testing.assert_allclose(numbers().quality, [1, 0, 0.75], atol=1e-6)


def test_targets_and_spread_come_with_their_types():
    with pytest.raises(ValueError, match="needs targets"):
        make_predictions(IDS, LABELS, SCORES, CLASSES, label_type="classes")
    with pytest.raises(ValueError, match="fit together"):
        numbers(spread=None)
    with pytest.raises(ValueError, match="fit together"):
        make_predictions(IDS, LABELS, SCORES, CLASSES, spread=1.0)


def test_two_models_are_paired_by_sample_and_by_the_names_of_classes():
    first = make_predictions(IDS, LABELS, SCORES, CLASSES)
    # Right on "a" and wrong on "c"; its classes stand in another order, and one is unknown to the first.
    names = ["new", "cat", "ant"]
    scores = np.array([[0.1, 0.2, 0.7], [0.9, 0.05, 0.05], [0, 1, 0]], np.float32)
    second = make_predictions(["a", "c", "z"], np.array([2, 1, 1]), scores, names)
    mine, theirs = paired_quality(first, second)
    assert (mine.tolist(), theirs.tolist()) == ([1, 1], [1, 0])
    with pytest.raises(ValueError, match="no sample"):
        paired_quality(first, make_predictions(["x"], LABELS[:1], SCORES[:1], CLASSES))
    with pytest.raises(ValueError, match="cannot be compared"):
        paired_quality(first, several())

    turned = several()
    backwards = Predictions(
        turned.sample_ids, turned.labels, turned.scores[:, ::-1], turned.classes[::-1], "test", "classes",
        turned.targets[:, ::-1],
    )  # fmt: skip
    for one in paired_quality(turned, backwards):
        np.testing.assert_array_equal(one, turned.quality)
    # A class that only the second knows, and predicts, counts against it.
    wider = Predictions(
        turned.sample_ids, turned.labels, np.hstack([turned.scores, np.ones((3, 1), np.float32)]), (*CLASSES, "new"), "test",
        "classes", np.hstack([turned.targets, np.ones((3, 1), np.float32)]),
    )  # fmt: skip
    assert paired_quality(turned, wider)[1].tolist() == pytest.approx([0, 1 / 3, 1 / 3])

    for one in paired_quality(numbers(), numbers(spread=1.0)):  # the first one's spread counts
        np.testing.assert_array_equal(one, numbers().quality)
