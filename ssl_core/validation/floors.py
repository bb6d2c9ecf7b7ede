"""The floors: checks that are always on, whatever a project's suite says.

Where Great Expectations has an expectation for it, a floor is one (``expectation_floors``); the rest are plain
functions over the manifest with the same kind of result (``plain_floors``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa

from ssl_core.config.project import ExpectationConfig, ValidationConfig
from ssl_core.data.dataset import manifest_schema
from ssl_core.data.splits import SIDES
from ssl_core.data.table import LabelType
from ssl_core.validation.report import CheckResult, Example, plural, printable

_TEXT, _WHOLE, _REAL, _TIME = "text", "whole number", "real number", "time with zone"


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        return _TIME
    return _WHOLE if pa.types.is_integer(type_) else _REAL if pa.types.is_floating(type_) else _TEXT


@cache
def columns(modality: str) -> dict[str, str]:
    """The manifest's fixed columns and what they hold."""
    return {field.name: _kind(field.type) for field in manifest_schema(modality)}


@cache
def filled(modality: str) -> frozenset[str]:
    """The columns that may not be empty: all but ``label``."""
    return frozenset(field.name for field in manifest_schema(modality) if not field.nullable)


_EXAMPLES = 10
_CLOCK_TOLERANCE = timedelta(days=1)


@dataclass(frozen=True)
class Counts:
    """What ``dataset.json`` says about the dataset, for comparison with its manifest."""

    rows: int
    labelled: int
    classes: tuple[str, ...]
    modality: str = "image"
    label_type: LabelType = "class"


@dataclass(frozen=True)
class Floor:
    """A floor that Great Expectations judges."""

    name: str
    title: str
    expected: str
    expectation: ExpectationConfig
    place: str = ""


def expectation_floors(config: ValidationConfig, classes: Sequence[str], now: datetime) -> list[Floor]:
    """The floors in Great Expectations' own form, for the same run as the project's suite."""

    def expect(kind: str, **kwargs: object) -> ExpectationConfig:
        return ExpectationConfig(type=f"expect_{kind}", kwargs=kwargs)

    floors = [
        Floor(
            "rows", "Enough samples", f"at least {plural(config.min_rows, 'row')}",
            expect("table_row_count_to_be_between", min_value=config.min_rows), "validation.min_rows",
        ),
        Floor(
            "sample-id-present", "Every sample has an id", "sample_id is never empty",
            expect("column_values_to_not_be_null", column="sample_id"),
        ),
        Floor(
            "sample-id-unique", "Every sample stands once", "sample_id is unique",
            expect("column_values_to_be_unique", column="sample_id"),
        ),
        Floor(
            "split-known", "Every sample is on a known side", f"split is one of {', '.join(SIDES)}",
            expect("column_values_to_be_in_set", column="split", value_set=list(SIDES)),
        ),
        Floor(
            "train-present", "There is something to train on", "at least one sample in split train",
            expect("column_distinct_values_to_contain_set", column="split", value_set=["train"]),
        ),
    ]  # fmt: skip
    if classes:
        floors.append(
            Floor(
                "label-known",
                "Labels name known classes",
                f"label is empty or one of {plural(len(classes), 'class name')}",
                expect("column_values_to_be_in_set", column="label", value_set=list(classes)),
                "data.classes",
            )
        )
    if config.max_age_days is not None:
        oldest, latest = now - timedelta(days=config.max_age_days), now + _CLOCK_TOLERANCE
        floors.append(
            Floor(
                "fresh", "The data is fresh",
                f"the newest sample arrived within {config.max_age_days:g} days before {now:%Y-%m-%d %H:%M} UTC, and not in the future",
                expect(
                    "column_max_to_be_between", column="arrived_at",
                    min_value=oldest.isoformat(), max_value=latest.isoformat(),
                ),
                "validation.max_age_days",
            )
        )  # fmt: skip
    return floors


def plain_floors(frame: pd.DataFrame, counts: Counts | None, classes: Sequence[str]) -> list[CheckResult]:
    """The floors that Great Expectations has no expectation for."""
    modality = counts.modality if counts else "image"
    label_type = counts.label_type if counts else "class"
    results = [
        _judge(
            "columns",
            "The manifest has its fixed columns",
            "all columns there, with the right types",
            lambda: _columns(frame, modality),
        ),
        _judge(
            "complete",
            "Nothing but labels is missing",
            "no empty or non-finite value outside of label",
            lambda: _complete(frame, modality),
        ),
        _judge("groups", "Near-duplicates stay together", "no group stands in two splits", lambda: _groups(frame)),
    ]
    if label_type != "class":
        wanted = "label is empty or a number" if label_type == "number" else "label is empty or a list of class names"
        results.append(
            _judge("label-known", "Labels are what they should be", wanted, lambda: _labels(frame, label_type, classes))
        )
    elif not classes:
        results.append(
            _judge(
                "label-known",
                "Labels name known classes",
                "no classes are known, so no sample has a label",
                lambda: _unlabelled(frame),
            )
        )
    if counts is not None:
        results.append(
            _judge(
                "counts",
                "The manifest is whole",
                "as many rows and labels as dataset.json says",
                lambda: _counts(frame, counts),
            )
        )
    return results


Finding = tuple[bool, str, list[Example]]


class CannotJudge(Exception):
    """A check has no data to look at."""


def _judge(name: str, title: str, expected: str, look: Callable[[], Finding]) -> CheckResult:
    try:
        passed, observed, examples = look()
    except CannotJudge as error:
        return CheckResult(name=name, origin="floor", title=title, expected=expected, passed=False, reason=str(error))
    return CheckResult(
        name=name,
        origin="floor",
        title=title,
        expected=expected,
        passed=passed,
        observed=observed,
        examples=tuple(examples),
    )


def _need(frame: pd.DataFrame, *columns: str) -> None:
    if missing := [c for c in columns if c not in frame.columns]:
        raise CannotJudge(f"there is no column {', '.join(missing)}")
    if frame.empty:
        raise CannotJudge("there are no rows to judge")


def _columns(frame: pd.DataFrame, modality: str) -> Finding:
    examples = []
    for column, kind in columns(modality).items():
        if column not in frame.columns:
            examples.append(Example(value=f"{column}: missing, should be {kind}"))
        elif not _is_kind(frame[column], kind):
            examples.append(Example(value=f"{column}: {frame[column].dtype}, should be {kind}"))
    if examples:
        return False, f"{plural(len(examples), 'column')} missing or of the wrong type", examples
    return True, f"{len(frame.columns)} columns", []


def _is_kind(series: pd.Series, kind: str) -> bool:
    types = pd.api.types
    if kind == _TEXT:
        plain = series.dtype == object and types.infer_dtype(series, skipna=True) in ("string", "empty")
        return plain or (isinstance(series.dtype, pd.StringDtype) and series.dtype != object)
    if kind == _WHOLE:
        return types.is_integer_dtype(series)
    if kind == _REAL:
        return types.is_float_dtype(series)
    return isinstance(series.dtype, pd.DatetimeTZDtype)


def _complete(frame: pd.DataFrame, modality: str) -> Finding:
    present = [c for c in columns(modality) if c in filled(modality) and c in frame.columns]
    if not present:
        raise CannotJudge("none of the fixed columns is there")
    _need(frame, *present)
    bad = pd.DataFrame({c: _empty(frame[c]) for c in present})
    if not bad.to_numpy().any():
        return True, f"{plural(len(frame), 'row')}, {len(present)} columns", []
    by_column = bad.sum()
    examples = [
        Example(value=f"{column}: {plural(int(n), 'value')}", sample=_sample(frame, int(np.argmax(bad[column]))))
        for column, n in by_column.items()
        if n
    ]
    return False, f"{plural(int(bad.any(axis=1).sum()), 'row')} with missing values", examples


def _empty(series: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(series):
        return ~pd.Series(np.isfinite(series.to_numpy(dtype=float, na_value=np.nan)), index=series.index)
    return series.isna() | (series == "") if _is_kind(series, _TEXT) else series.isna()


def _groups(frame: pd.DataFrame) -> Finding:
    _need(frame, "group", "split")
    sides = frame.groupby("group", sort=True)["split"].nunique()
    torn = sides[sides > 1].index
    if len(torn) == 0:
        return True, plural(len(sides), "group"), []
    first = frame[frame["group"].isin(torn[:_EXAMPLES])].groupby("group", sort=True)
    examples = [
        Example(
            value=f"{printable(name, 20)}: {', '.join(sorted(printable(s, 20) for s in set(rows['split'])))}",
            sample=_sample(frame, int(rows.index[0])),
        )
        for name, rows in first
    ]
    return False, f"{plural(len(torn), 'group')} in more than one split: samples leak between train and test", examples


def _unlabelled(frame: pd.DataFrame) -> Finding:
    _need(frame, "label")
    labelled = frame["label"].notna()
    rows = np.flatnonzero(labelled.to_numpy())[:_EXAMPLES]
    examples = [Example(value=printable(frame["label"].iloc[row]), sample=_sample(frame, int(row))) for row in rows]
    return not labelled.any(), plural(int(labelled.sum()), "label"), examples


def _labels(frame: pd.DataFrame, label_type: LabelType, classes: Sequence[str]) -> Finding:
    _need(frame, "label")

    def fits(label: str) -> bool:
        try:
            if label_type == "number":
                return math.isfinite(float(label))
            names = json.loads(label)
            return isinstance(names, list) and set(names) <= set(classes)
        except (ValueError, TypeError):
            return False

    labels = frame["label"].dropna()
    bad = [row for row, label in enumerate(frame["label"]) if isinstance(label, str) and not fits(label)]
    examples = [
        Example(value=printable(frame["label"].iloc[row]), sample=_sample(frame, int(row))) for row in bad[:_EXAMPLES]
    ]
    return not bad, f"{plural(len(labels), 'label')}, {len(bad)} of them not so", examples


def _counts(frame: pd.DataFrame, counts: Counts) -> Finding:
    labelled = int(frame["label"].notna().sum()) if "label" in frame.columns else 0
    observed = f"{plural(len(frame), 'row')}, {plural(labelled, 'label')}"
    if (len(frame), labelled) == (counts.rows, counts.labelled):
        return True, observed, []
    return False, f"{observed}; dataset.json says {plural(counts.rows, 'row')}, {plural(counts.labelled, 'label')}", []


def _sample(frame: pd.DataFrame, row: int) -> str:
    """What a person can find the sample in ``row`` (a position) by."""
    for column in ("source", "sample_id"):
        if column in frame.columns and isinstance(frame[column].iloc[row], str):
            return printable(frame[column].iloc[row])
    return f"row {row}"
