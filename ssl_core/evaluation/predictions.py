"""Predictions of one model on one test set: a Parquet file that gate, slices and reports read instead of inferring again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_core.errors import UserError

COLUMNS = ("sample_id", "label", "split", "scores", "predicted")


def test_set_digest(sample_ids: Iterable[str]) -> str:
    """SHA-256 of the sorted sample ids, one a line: what a test set is named by."""
    return hashlib.sha256("".join(f"{i}\n" for i in sorted(sample_ids)).encode()).hexdigest()


test_set_digest.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name; this is no test


@dataclass(frozen=True)
class Predictions:
    """One row a sample, sorted by ``sample_ids``; ``labels`` int64 ``(M,)`` and ``scores`` float32 ``(M, K)`` by ``classes``."""

    sample_ids: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]
    split: str = "test"

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.sample_ids), len(self.classes)) or self.labels.shape != (
            len(self.sample_ids),
        ):
            raise ValueError("sample_ids, labels, scores and classes do not fit together")
        if list(self.sample_ids) != sorted(set(self.sample_ids)):
            raise ValueError("sample_ids must be sorted and differ")

    @property
    def predicted(self) -> np.ndarray:
        """Position of the most probable class, ``(M,)``."""
        return self.scores.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """True where the prediction is right, ``(M,)``."""
        return self.predicted == self.labels

    @property
    def digest(self) -> str:
        """The test set's name."""
        return test_set_digest(self.sample_ids)


def make_predictions(
    sample_ids: Sequence[str], labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], split: str = "test"
) -> Predictions:
    """Predictions in any order, put into the order of their ids."""
    order = np.argsort(np.asarray(sample_ids, dtype=object))
    return Predictions(
        tuple(str(sample_ids[i]) for i in order),
        np.asarray(labels, np.int64)[order],
        np.asarray(scores, np.float32)[order],
        tuple(classes),
        split,
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write columns ``sample_id, label, split, scores, predicted``; equal predictions give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = np.asarray(predictions.classes, dtype=object)
    table = pa.table(
        {
            "sample_id": pa.array(predictions.sample_ids, pa.string()),
            "label": pa.array(names[predictions.labels].tolist(), pa.string()),
            "split": pa.array([predictions.split] * len(predictions.sample_ids), pa.string()),
            "scores": pa.array(list(predictions.scores), pa.list_(pa.float32())),
            "predicted": pa.array(names[predictions.predicted].tolist(), pa.string()),
        }
    )
    pq.write_table(table.replace_schema_metadata({"classes": json.dumps(list(predictions.classes))}), path)


def read_predictions(path: Path) -> Predictions:
    """The inverse of ``write_predictions``; ``UserError`` where the file is not one of its."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        classes = json.loads((table.schema.metadata or {})[b"classes"])
        if tuple(table.column_names) != COLUMNS:
            raise ValueError(f"columns {table.column_names}")
        position = {name: i for i, name in enumerate(classes)}
        columns = {name: table.column(name).to_pylist() for name in ("sample_id", "label", "split")}
        scores = np.asarray(table.column("scores").to_pylist(), dtype=np.float32).reshape(len(table), len(classes))
        labels = np.asarray([position[name] for name in columns["label"]], dtype=np.int64)
        split = columns["split"][0] if columns["split"] else "test"
        return Predictions(tuple(columns["sample_id"]), labels, scores, tuple(classes), split)
    except (OSError, KeyError, ValueError) as error:  # pyarrow's errors are OSErrors and ValueErrors
        raise UserError(
            f"not a file of predictions ({error})", place=str(path), next_step="run `ssl-core step evaluate` again"
        ) from error
