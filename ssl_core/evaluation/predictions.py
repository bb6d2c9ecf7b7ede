"""Predictions of one model on one test set: a Parquet file that gate, slices and reports read instead of inferring again.

One row a sample, sorted by ``sample_id``:

| column | type | holds |
|---|---|---|
| ``sample_id`` | string | the sample |
| ``label`` | string | the truth: a class name; classes: a JSON list of names, ``["angry", "urgent"]``; number: the number as text |
| ``split`` | string | where it was taken from |
| ``scores`` | list of float32 | a probability for each of ``classes``, or one number |
| ``predicted`` | string | what the scores say, in the form of ``label`` |

The schema's metadata: ``classes``, a JSON list; and unless labels are classes, one a sample: ``label_type`` and, for numbers,
``spread``, by which errors are measured (``evaluation.metrics``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from ssl_core.data.table import LabelType
from ssl_core.errors import UserError
from ssl_core.evaluation.metrics import CLASSES_FROM, class_quality, classes_quality, number_quality

COLUMNS = ("sample_id", "label", "split", "scores", "predicted")


def test_set_digest(sample_ids: Iterable[str]) -> str:
    """SHA-256 of the sorted sample ids, one a line: what a test set is named by."""
    return hashlib.sha256("".join(f"{i}\n" for i in sorted(sample_ids)).encode()).hexdigest()


test_set_digest.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name; this is no test


@dataclass(frozen=True)
class Predictions:
    """One row a sample, M of them, sorted by ``sample_ids``."""

    sample_ids: tuple[str, ...]
    labels: np.ndarray
    """int64 ``(M,)`` positions in ``classes``; -1 throughout where ``label_type`` is not class: see ``targets``."""
    scores: np.ndarray
    """float32 ``(M, K)`` by ``classes``; numbers ``(M, 1)``."""
    classes: tuple[str, ...]
    split: str = "test"
    label_type: LabelType = "class"
    targets: np.ndarray | None = None
    """float32: classes ``(M, K)``, 1 for each class that a sample has, else 0; number ``(M, 1)``; class: None."""
    spread: float | None = None
    """number: what errors are measured by, ``metrics.label_spread`` of the training labels."""

    def __post_init__(self) -> None:
        samples = len(self.sample_ids)
        width = 1 if self.label_type == "number" else len(self.classes)
        fits = self.scores.shape == (samples, width) and self.labels.shape == (samples,)
        if self.label_type != "class":
            fits = fits and self.targets is not None and self.targets.shape == (samples, width)
        if not fits or (self.label_type == "number") != (self.spread is not None):
            raise ValueError("sample_ids, labels, scores and classes do not fit together")
        if list(self.sample_ids) != sorted(set(self.sample_ids)):
            raise ValueError("sample_ids must be sorted and differ")

    @property
    def truth(self) -> np.ndarray:
        """What ``scores`` are held against: ``labels`` for class, else ``targets``."""
        return self.labels if self.targets is None else self.targets

    @property
    def predicted(self) -> np.ndarray:
        """class: position of the most probable one ``(M,)``; classes: bool ``(M, K)``; number: ``(M,)``."""
        if self.label_type == "class":
            return self.scores.argmax(axis=1)
        return self.scores >= CLASSES_FROM if self.label_type == "classes" else self.scores[:, 0]

    @property
    def quality(self) -> np.ndarray:
        """How good each prediction is, from 0 to 1, float64 ``(M,)``; its mean is the headline. See ``evaluation.metrics``."""
        return _quality(self, self.scores, self.truth)

    @property
    def correct(self) -> np.ndarray:
        """True where the prediction is right, ``(M,)``; only where a sample has one class."""
        if self.label_type != "class":
            raise ValueError(
                f"predictions of label_type {self.label_type} are not right or wrong; ask for their quality"
            )
        return self.predicted == self.labels

    @property
    def digest(self) -> str:
        """The test set's name."""
        return test_set_digest(self.sample_ids)


def _quality(judged_by: Predictions, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if judged_by.label_type == "class":
        return class_quality(scores, truth)
    if judged_by.label_type == "classes":
        return classes_quality(scores, truth)
    assert judged_by.spread is not None  # as __post_init__ demands
    return number_quality(scores, truth, judged_by.spread)


def make_predictions(
    sample_ids: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    split: str = "test",
    *,
    label_type: LabelType = "class",
    targets: np.ndarray | None = None,
    spread: float | None = None,
) -> Predictions:
    """Predictions in any order, put into the order of their ids.

    Takes what a ``SampleTable`` has: where ``label_type`` is not class, ``targets`` count and ``labels``, its strata, do not.
    """
    order = np.argsort(np.asarray(sample_ids, dtype=object))
    one_class = label_type == "class"
    if not one_class and targets is None:
        raise ValueError(f"label_type {label_type} needs targets")
    return Predictions(
        tuple(str(sample_ids[i]) for i in order),
        np.asarray(labels, np.int64)[order] if one_class else np.full(len(order), -1, np.int64),
        np.asarray(scores, np.float32)[order],
        tuple(classes) if label_type != "number" else (),
        split,
        label_type,
        None if one_class else np.asarray(targets, np.float32)[order],
        spread,
    )


def paired_quality(first: Predictions, second: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """The quality of both on the samples that both hold, each float64 ``(n,)``, matched by ``sample_id``.

    The first one's truth and spread count: labels may have been corrected since. The second may number its classes
    differently, or know others; a class that the first does not know is never right. Raises ``ValueError`` where the two
    have no sample in common or labels of different types.
    """
    if first.label_type != second.label_type:
        raise ValueError(f"labels of type {first.label_type} and {second.label_type} cannot be compared")
    rows = {sample: i for i, sample in enumerate(second.sample_ids)}
    pairs = [(i, rows[sample]) for i, sample in enumerate(first.sample_ids) if sample in rows]
    if not pairs:
        raise ValueError("no sample in common")
    mine, theirs = np.asarray(pairs, dtype=np.int64).T
    scores, truth = second.scores[theirs], first.truth[mine]
    if first.label_type != "number" and first.classes != second.classes:
        names = (*first.classes, *(name for name in second.classes if name not in first.classes))
        wide = np.full((len(pairs), len(names)), -1, np.float32)  # below every probability: not predicted
        wide[:, [names.index(name) for name in second.classes]] = scores
        scores = wide
        if first.label_type == "classes":
            truth = np.pad(truth, ((0, 0), (0, len(names) - truth.shape[1])))
    return first.quality[mine], _quality(first, scores, truth)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the columns of the table above; equal predictions give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "sample_id": pa.array(predictions.sample_ids, pa.string()),
            "label": pa.array(_texts(predictions, predictions.truth), pa.string()),
            "split": pa.array([predictions.split] * len(predictions.sample_ids), pa.string()),
            "scores": pa.array(list(predictions.scores), pa.list_(pa.float32())),
            "predicted": pa.array(_texts(predictions, predictions.predicted), pa.string()),
        }
    )
    metadata = {"classes": json.dumps(list(predictions.classes))}
    if predictions.label_type != "class":
        metadata["label_type"] = predictions.label_type
    if predictions.spread is not None:
        metadata["spread"] = repr(float(predictions.spread))
    pq.write_table(table.replace_schema_metadata(metadata), path)


def read_predictions(path: Path) -> Predictions:
    """The inverse of ``write_predictions``; ``UserError`` where the file is not one of its."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        classes = json.loads(metadata[b"classes"])
        label_type = metadata.get(b"label_type", b"class").decode()
        if tuple(table.column_names) != COLUMNS:
            raise ValueError(f"columns {table.column_names}")
        if label_type not in get_args(LabelType):
            raise ValueError(f"label_type {label_type!r}")
        columns = {name: table.column(name).to_pylist() for name in ("sample_id", "label", "split")}
        width = 1 if label_type == "number" else len(classes)
        labels, targets = _parsed(columns["label"], classes, label_type)  # type: ignore[arg-type]
        return Predictions(
            tuple(columns["sample_id"]),
            labels,
            np.asarray(table.column("scores").to_pylist(), dtype=np.float32).reshape(len(table), width),
            tuple(classes),
            columns["split"][0] if columns["split"] else "test",
            label_type,  # type: ignore[arg-type]
            targets,
            float(metadata[b"spread"]) if label_type == "number" else None,
        )
    except (OSError, KeyError, ValueError, TypeError) as error:  # pyarrow's errors are OSErrors and ValueErrors
        raise UserError(
            f"not a file of predictions ({error})", place=str(path), next_step="run `ssl-core step evaluate` again"
        ) from error


def _texts(predictions: Predictions, values: np.ndarray) -> list[str]:
    """Labels or predictions as the file has them."""
    names = predictions.classes
    if predictions.label_type == "class":
        return [names[k] for k in values]
    if predictions.label_type == "classes":
        return [json.dumps([names[k] for k in np.flatnonzero(row)], ensure_ascii=False) for row in values]
    return [str(number) for number in values.ravel()]  # the shortest text that is this float32 again


def _parsed(texts: list[str], classes: list[str], label_type: LabelType) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and targets from the texts of column ``label``."""
    position = {name: i for i, name in enumerate(classes)}
    if label_type == "class":
        return np.asarray([position[name] for name in texts], dtype=np.int64), None
    labels = np.full(len(texts), -1, dtype=np.int64)
    if label_type == "number":
        return labels, np.asarray([float(text) for text in texts], dtype=np.float32).reshape(-1, 1)
    targets = np.zeros((len(texts), len(classes)), dtype=np.float32)
    for row, text in zip(targets, texts, strict=True):
        row[[position[name] for name in json.loads(text)]] = 1
    return labels, targets
