"""Which column of a file holds the texts and which the labels, by what lies in its first rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from ssl_core.data.files import Files
from ssl_core.data.layout import Refused
from ssl_core.data.table import LabelType
from ssl_core.data.text.encodings import lines, text_chunks, whole_lines
from ssl_core.data.text.files import ending

_ROWS = 2000
_LONGEST = 2**20
_LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "rating", "stars", "score", "topic", "intent", "grade",
)  # fmt: skip
_MOST_CLASSES = 50
_MOST_WHOLE_NUMBERS = 20
"""More different numbers than this are a quantity, fewer may be classes."""
_SEVERAL = 0.1
"""Share of labels with a separator from which one text may have several."""
_FEW_FILES, _MANY_LINES = 10, 20


@dataclass(frozen=True)
class Columns:
    """What ``data`` has to name, with the reasons."""

    text: str = "text"
    label: str = "label"
    label_type: LabelType = "class"
    why_text: str = ""
    why_label: str = ""
    why_type: str = ""
    others: tuple[str, ...] = ()
    """The columns that are neither."""


def guess_columns(files: Files, name: str) -> Columns:
    """By the first rows of one file; what cannot be read is for ingest to complain of."""
    try:
        with files.open(name) as raw:
            rows = list(islice(_records(raw, ending(name)), _ROWS))
    except (Refused, OSError):
        return Columns()
    names = list(dict.fromkeys(column for row in rows for column in row))
    text, why_text = _text_column(rows, names)
    others = [column for column in names if column != text]
    label, why_label = _label_column(rows, others)
    values = [row[label] for row in rows if row.get(label) not in (None, "", [])]
    kind, why_type = _label_type(values)
    rest = tuple(column for column in others if column != label)
    return Columns(text, label, kind, why_text, why_label, why_type, rest)


def guess_unit(files: Files, texts: Sequence[str]) -> str:
    """``line`` where a few .txt files hold a text in each line, as one file of many does; empty where a file is a text."""
    if not texts or len(texts) >= _FEW_FILES:
        return ""
    counts = []
    for name in texts:
        try:
            with files.open(name) as raw:
                first = islice(lines(text_chunks(raw)), _ROWS)
                counts.append(sum(last and not piece.isspace() for _, piece, last in first))
        except (Refused, OSError):
            continue
    least = 2 if len(texts) == 1 else _MANY_LINES * len(counts)
    return "line" if counts and sum(counts) >= least else ""


def _text_column(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[str, str]:
    lengths = {}
    for name in names:
        found = [len(value) for row in rows if isinstance(value := row.get(name), str)]
        if 2 * len(found) > len(rows):
            lengths[name] = sum(found) / len(found)
    if not lengths or "text" in lengths:
        return "text", ""
    longest = max(lengths, key=lambda name: lengths[name])
    return longest, f"the column with the longest texts, {lengths[longest]:.0f} characters on average"


def _label_column(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[str, str]:
    """The column whose name says so; else the only one that few different values fill."""
    if "label" in names:
        return "label", ""
    by_name = {name.strip().lower(): name for name in reversed(names)}
    found = next((by_name[known] for known in _LABEL_NAMES if known in by_name), None)
    if found is not None:
        return found, "by its name: the labels; name another column, or one that is not there, if they are not"
    few = {name: count for name in names if (count := _different(rows, name))}
    if len(few) != 1:
        return "label", ""
    ((name, count),) = few.items()
    return name, f"the only other column with few different values, {count}"


def _different(rows: Sequence[dict[str, Any]], name: str) -> int:
    """How many different values a column has where these may be classes; else 0."""
    values = [str(row[name]) for row in rows if row.get(name) not in (None, "", [])]
    count = len(set(values))
    return count if 2 <= count <= _MOST_CLASSES and 5 * count <= len(values) else 0


def _label_type(values: Sequence[Any]) -> tuple[LabelType, str]:
    listed = sum(
        isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("[")) for value in values
    )
    split = sum(isinstance(value, str) and ";" in value for value in values)
    if values and (listed == len(values) or listed + split > _SEVERAL * len(values)):
        return "classes", "a text may have several, as a list or separated by `;`"
    numbers = [number for value in values if (number := _number(value)) is not None]
    if values and len(numbers) == len(values):
        whole = all(number.is_integer() for number in numbers)
        if not whole or len(set(numbers)) > _MOST_WHOLE_NUMBERS:
            return "number", f"{min(numbers):g} to {max(numbers):g}: a quantity, not the name of a class"
    return "class", ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _records(raw: BinaryIO, kind: str) -> Iterator[dict[str, Any]]:
    """The rows that can be read, until one that cannot."""
    if kind == ".parquet":
        yield from _parquet(raw)
        return
    whole = (line for _, line in whole_lines(text_chunks(raw), _LONGEST) if line is not None)
    if kind in (".csv", ".tsv"):
        table = csv.reader((line + "\n" for line in whole), delimiter="\t" if kind == ".tsv" else ",")
        try:
            header = [cell.strip() for cell in next(table, [])]
            yield from (dict(zip(header, row, strict=False)) for row in table if row)
        except csv.Error:
            return
    else:
        for line in whole:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def _parquet(raw: BinaryIO) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(raw).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError, OSError):
        return
