"""Which label each text has: from its row, from a separate CSV file, or from its folder."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from ssl_core.config.data import TextDataConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.data.files import Files
from ssl_core.data.layout import (
    Table,
    check_classes,
    check_known,
    csv_labels,
    display_name,
    folder_labels,
    table_rows,
)
from ssl_core.data.table import LabelType
from ssl_core.data.text.encodings import bad_character
from ssl_core.errors import UserError, did_you_mean

_BY_ID = ("id", "label")
_BY_FILE = ("file", "label")
_SHOWN = 10
_MOST_CLASSES = 10_000
_UNLABELED = (
    "set data.label to a column that is not there; .txt files lie directly in data.source, or in its folder 'unlabeled'"
)


def scalar_text(value: object) -> str | None:
    """A cell as text without surrounding blanks, None where it is empty: ``True`` is ``true``, ``1`` and ``1.0`` are ``1``.

    Raises ``ValueError`` where it is no single value, or not finite.
    """
    if value is None:
        return None
    if isinstance(value, str):
        bad = bad_character(value)
        if bad is not None:
            raise ValueError(f"holds {bad[1]}")
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):  # as databases write whole numbers and prices into Parquet
        return str(int(value)) if value == value.to_integral_value() else format(value.normalize(), "f")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("is not a finite number")
        return str(int(value)) if value.is_integer() else repr(value)  # a column of whole numbers with gaps
    raise ValueError("is a list; set data.label_type: classes" if isinstance(value, list) else "is no single value")


def canonical_label(value: object, label_type: LabelType) -> str | None:
    """A label as the manifest stores it; None where there is none.

    class: the text. classes: a JSON list, sorted, each once; an empty list, or a text of separators alone, means none of the
    classes, and nothing at all means unlabeled. number: ``repr(float)``. Raises ``ValueError`` with what is wrong.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if label_type == "class":
        return scalar_text(value)
    if label_type == "number":
        return _number(value)
    names = {name for part in _listed(value) if (name := scalar_text(part)) is not None}
    return json.dumps(sorted(names), ensure_ascii=False)


def _number(value: object) -> str:
    if isinstance(value, (str, int, float, Decimal)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return repr(number)
    raise ValueError("is not a finite number")


def _listed(value: object) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("begins as a JSON list and is none") from None
    return value if isinstance(value, list) else value.split(";") if isinstance(value, str) else [value]


@dataclass(frozen=True, slots=True)
class _Listed:
    label: str | None
    line: int


class Labels:
    """The labels of one source, asked once for each text in the order of the files.

    A separate file of labels alone says them, where there is one. Raises ``UserError`` with file and line for a label that is
    none, or that ``data.classes`` does not name.
    """

    def __init__(self, project: ProjectConfig, files: Files, table: Table | None) -> None:
        assert isinstance(project.data, TextDataConfig)
        self._project = project
        self._config = project.data
        self._root = files.root
        self._table = table
        self._by_file: dict[str, str | None] = {}
        self._by_id: dict[str, _Listed] | None = None
        self._used: set[str] = set()
        self._unidentified = 0
        self._where: dict[str, str] = {}
        """Each class, and where it was first."""
        self._columns: dict[str, None] = {}
        self._column_seen = False
        if table is not None:
            self._read(table, files)
        elif self._config.label_type != "number":
            texts = [name for name in files.names if name.lower().endswith(".txt")]
            labels, where = folder_labels(texts, files.root, files.separator)
            self._by_file = {display_name(name): self._take(label, where[label]) for name, label in labels.items()}

    def columns(self, names: list[str]) -> None:
        """Tells which columns, or JSON keys, a file has."""
        self._column_seen |= self._config.label in names
        if len(self._columns) < _MOST_CLASSES:
            self._columns |= dict.fromkeys(name.encode(errors="backslashreplace").decode() for name in names)

    def of(self, file: str, name: str, place: str, label: object, identity: object) -> str | None:
        """The label of the text called ``name`` in ``file``, whose row says ``label`` and ``identity``; ``place`` is for errors."""
        if self._table is None:
            return self._by_file[file] if file in self._by_file else self._take(label, place)
        if self._by_id is None:
            return self._by_file.get(file)
        try:
            key = _same(name) if identity is None else scalar_text(identity)
        except ValueError as error:
            raise UserError(f"the id {identity!r} {error}", place=place, next_step="give each row an id") from None
        found = self._by_id.get(key or "")
        if found is None:
            return None
        self._used.add(key or "")
        return found.label

    def unidentified(self, name: str) -> None:
        """Tells of a row that cannot be used, so that an id that is listed may have been its."""
        self._used.add(_same(name))
        self._unidentified += self._config.id is not None

    def finish(self) -> None:
        """Called when every text was asked for. Raises ``UserError`` for ids that are nowhere, and for labels that say nothing."""
        if self._table is not None and self._by_id is not None:
            missing = [(listed.line, key) for key, listed in self._by_id.items() if key not in self._used]
            if len(missing) > self._unidentified:
                raise self._missing(self._table, missing)
        if self._table is None and self._config.label != "label" and self._columns and not self._column_seen:
            raise UserError(
                f"no file has a column {self._config.label!r}{did_you_mean(self._config.label, self._columns)} "
                f"(there: {', '.join(islice(self._columns, _SHOWN))})",
                place="data.label",
                next_step="name the column that holds the label, or remove the key",
            )
        if self._config.label_type == "class":
            check_classes(self._where, self._project, _UNLABELED)
        elif self._config.label_type == "classes":
            check_known(self._where, self._project)

    def _take(self, value: object, place: str) -> str | None:
        try:
            label = canonical_label(value, self._config.label_type)
        except ValueError as error:
            raise UserError(
                f"the label {_short(value)} {error}", place=place, next_step="correct it, or leave it empty"
            ) from None
        if label is not None and self._config.label_type != "number":
            for name in [label] if self._config.label_type == "class" else json.loads(label):
                if name not in self._where:
                    self._where[name] = place
            if len(self._where) > _MOST_CLASSES:
                raise UserError(
                    f"more than {_MOST_CLASSES:,} different labels: these are no classes",
                    place=place,
                    next_step="set data.label to the column of the labels, or data.label_type: number",
                )
        return label

    # ---- a separate file

    def _read(self, table: Table, files: Files) -> None:
        next_step = "write the columns id,label, one line a text; or file,label, one line a file"
        rows = table_rows(table, [_BY_ID, _BY_FILE], next_step)
        _, header = next(rows)
        if header == list(_BY_ID):
            self._by_id = self._read_ids(table, rows)
            return
        labels, where = csv_labels(table, files.names, files.root, files.is_other, "text")
        self._by_file = {display_name(name): self._take(label, where[label]) for name, label in labels.items()}

    def _read_ids(self, table: Table, rows: Iterator[tuple[int, list[str]]]) -> dict[str, _Listed]:
        found: dict[str, _Listed] = {}
        for line, (written, label) in rows:
            place = f"{table.place} line {line}"
            key = written.strip()
            if self._config.id is None:
                key = _same(str(PurePosixPath(key))) if key else key  # as ./a.txt
            if not key:
                raise UserError("the id is empty", place=place, next_step="give each line an id, or remove it")
            taken = _Listed(self._take(label, place), line)
            before = found.setdefault(key, taken)
            if before.label != taken.label:
                raise UserError(
                    f"{written!r} is {taken.label!r} here and {before.label!r} in line {before.line}",
                    place=place,
                    next_step="keep one of the two lines",
                )
        return found

    def _missing(self, table: Table, missing: list[tuple[int, str]]) -> UserError:
        shown = "; ".join(f"line {line}: {key!r}" for line, key in missing[:_SHOWN])
        column = f"the column {self._config.id!r}" if self._config.id else "file name and row, as reviews.csv:17"
        return UserError(
            f"{len(missing)} listed id{'s are' if len(missing) > 1 else ' is'} not in {self._root}: {shown}"
            + ("; ..." if len(missing) > _SHOWN else ""),
            place=f"{table.place} line {missing[0][0]}",
            next_step=f"an id is {column}; set data.id, add the missing texts, or remove their lines",
        )


def _same(name: str) -> str:
    """A file's name as one system or another writes it."""
    return unicodedata.normalize("NFC", name)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
