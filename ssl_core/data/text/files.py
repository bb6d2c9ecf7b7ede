"""The texts in one file: ``.txt``, JSON lines, CSV, TSV or Parquet, read as a stream.

A row that cannot be used is found with its reason, and reading goes on behind it. What must be held as a whole, a JSON line or a
CSV row, may have so many characters at most (``longest``); a ``.txt`` file or a line of it has no such limit.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol

from ssl_core.config.data import TextDataConfig
from ssl_core.data.text.encodings import bad_character, has_surrogates, lines, text_chunks, whole_lines
from ssl_core.errors import did_you_mean

_LONGEST = 16 * 2**20
_BATCH_BYTES = 16 * 2**20
_MOST_BATCH_ROWS = 4096
_SHOWN = 10


@dataclass(slots=True)
class Found:
    """One text of a file, or what is wrong in its place."""

    number: int
    """Of its line, or in Parquet of its row, from 1; 0 where it is the whole file."""
    pieces: Iterator[str] | Sequence[str] = ()
    """The text, in pieces that are read before the next text is asked for. May hold what ``bad_character`` finds."""
    label: object = None
    identity: object = None
    problem: str = ""
    """Why it cannot be used."""


@dataclass(frozen=True)
class Reading:
    """How a file is read."""

    config: TextDataConfig
    columns: Callable[[list[str]], None]
    """Called with the names of the columns or JSON keys, once a file."""

    @property
    def longest(self) -> int:
        return max(_LONGEST, 4 * self.config.max_characters)

    def wanted(self, names: Sequence[str]) -> str:
        """What is wrong with a header; empty where every column that is needed is there once."""
        needed = {"data.text": self.config.text} | ({"data.id": self.config.id} if self.config.id else {})
        for key, name in needed.items():
            if name not in names:
                near = did_you_mean(name, names)
                return f"no column {name!r}{near} (there: {', '.join(names[:_SHOWN])}); set {key}"
        twice = [
            name for name in (*needed.values(), self.config.label) if name is not None and list(names).count(name) > 1
        ]
        return f"the column {twice[0]!r} is there twice" if twice else ""


class Reader(Protocol):
    def __call__(self, raw: BinaryIO, how: Reading) -> Iterator[Found]: ...


# ---- .txt


def read_txt(raw: BinaryIO, how: Reading) -> Iterator[Found]:
    """The whole file as one text, or with ``unit: line`` each line that is not blank."""
    chunks = text_chunks(raw, how.config.encoding)
    if how.config.unit == "file":
        yield Found(0, chunks)
        return
    pieces = lines(chunks)
    for number, piece, last in pieces:
        if not piece or piece.isspace():
            continue  # a blank line, or the blank beginning of a long one, which no text keeps
        if last:
            yield Found(number, (piece,))
        else:
            line = _Line(piece, pieces)
            yield Found(number, line)
            line.skip()


class _Line:
    """The pieces of one long line."""

    def __init__(self, first: str, pieces: Iterator[tuple[int, str, bool]]) -> None:
        self._next: str | None = first
        self._pieces = pieces
        self._over = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._next is not None:
            piece, self._next = self._next, None
            return piece
        if self._over:
            raise StopIteration
        _, piece, self._over = next(self._pieces)  # a last line without a line end stops here
        return piece

    def skip(self) -> None:
        for _ in self:
            pass


# ---- JSON lines


def read_jsonl(raw: BinaryIO, how: Reading) -> Iterator[Found]:
    """One JSON object a line."""
    config, first = how.config, True
    for number, line in whole_lines(text_chunks(raw, config.encoding), how.longest):
        if line is None:
            yield Found(number, problem=_too_long(how))
            continue
        if not line or line.isspace():
            continue
        record = _record(line, config.encoding)
        if isinstance(record, str):
            yield Found(number, problem=record)
            continue
        if first:
            how.columns(list(record))
            first = False
        elif config.label in record:
            how.columns([config.label])
        found = _row(number, record, config)
        if any(has_surrogates(piece) for piece in found.pieces):
            found = Found(number, problem="half of a surrogate pair as an escape (\\ud800 to \\udfff)")
        yield found


def _record(line: str, encoding: str) -> dict[str, Any] | str:
    """The object in a line, or why there is none."""
    bad = bad_character(line, encoding)
    if bad is not None:
        return bad[1]
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        return f"no JSON that can be read: {error}"
    return record if isinstance(record, dict) else f"{_kind(record)} and not an object {{...}}"


def _row(number: int, record: dict[str, Any], config: TextDataConfig) -> Found:
    text = record.get(config.text)
    if config.text not in record:
        names = list(record)
        near = did_you_mean(config.text, names)
        return Found(number, problem=f"no {config.text!r}{near} (there: {', '.join(names[:_SHOWN])}); set data.text")
    if config.id is not None and record.get(config.id) is None:
        return Found(number, problem=f"no {config.id!r}, which data.id names")
    if not isinstance(text, str):
        return Found(number, problem=f"{config.text!r} is {_kind(text)} and not a text")
    return Found(number, (text,), record.get(config.label), record.get(config.id) if config.id else None)


def _kind(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return names.get(type(value), "empty")


# ---- CSV and TSV


class _TooLong(Exception):
    """A line that is not held."""


class _Lines:
    """Lines for a CSV reader; goes on behind one that is too long."""

    def __init__(self, numbered: Iterator[tuple[int, str | None]]) -> None:
        self._numbered = numbered
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._numbered)
        if line is None:
            raise _TooLong
        return line + "\n"


def read_csv(raw: BinaryIO, how: Reading, delimiter: str = ",") -> Iterator[Found]:
    """One text a row, with a header; quoted cells may hold line ends. A text is numbered by the line that its row begins in."""
    config = how.config
    csv.field_size_limit(max(csv.field_size_limit(), how.longest))
    source = _Lines(whole_lines(text_chunks(raw, config.encoding), how.longest))
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        first = source.number + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except (csv.Error, _TooLong) as error:
            reason = _too_long(how) if isinstance(error, _TooLong) else f"not CSV: {error}"
            if source.number > first:
                reason += f" (a row from line {first} to {source.number}: is a quote missing?)"
            yield from (Found(number, problem=reason) for number in range(first, source.number + 1))
            continue
        if not row:
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            problem = how.wanted(header)
            if problem:
                yield Found(0, problem=f"line {first}: {problem}{_other_delimiter(row, delimiter)}")
                return
            how.columns(header)
        elif len(row) != len(header):
            hint = "; a text that holds one needs quotes" if len(row) > len(header) else ""
            yield Found(first, problem=f"{len(row)} columns instead of {len(header)}{hint}")
        else:
            yield _row(first, dict(zip(header, row, strict=True)), config)
    if header is None and source.number == 0:
        yield Found(0, problem="an empty file")


def _other_delimiter(row: list[str], delimiter: str) -> str:
    other = next((mark for mark in ";\t," if mark != delimiter and mark in row[0]), None) if len(row) == 1 else None
    names = {";": "semicolons", "\t": "tabs", ",": "commas"}
    return f"; the columns seem to be parted by {names[other]}, not by {names[delimiter]}" if other else ""


def read_tsv(raw: BinaryIO, how: Reading) -> Iterator[Found]:
    """As ``read_csv``, with tabs."""
    return read_csv(raw, how, "\t")


def _too_long(how: Reading) -> str:
    return (
        f"longer than {how.longest:,} characters, which is too much to hold at once; keep such a text in a .txt file, "
        "which is cut while it is read"
    )


# ---- Parquet


def read_parquet(raw: BinaryIO, how: Reading) -> Iterator[Found]:
    """One text a row of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    config, number = how.config, 0
    try:
        file = pq.ParquetFile(raw)
        names = file.schema_arrow.names
        problem = how.wanted(names) or _not_text(file.schema_arrow.field(config.text).type, config.text)
        if problem:
            yield Found(0, problem=problem)
            return
        how.columns(names)
        wanted = dict.fromkeys(name for name in (config.text, config.label, config.id) if name is not None)
        columns = [name for name in wanted if name in names]
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata), columns=columns):
            cells = {name: _cells(batch.column(name)) for name in columns}
            for row in zip(*cells.values(), strict=True):
                number += 1
                record: dict[str, Any] = dict(zip(cells, row, strict=True))
                if isinstance(record[config.text], bytes):  # pyarrow does not check what it reads
                    yield Found(number, problem="not UTF-8")
                else:
                    yield _row(number, record, config)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        reason = f"not a Parquet file that can be read: {' '.join(str(error).split())[:200]}"
        yield Found(number + 1 if number else 0, problem=reason)


def _not_text(type_: Any, name: str) -> str:
    from pyarrow import types

    inner = type_.value_type if types.is_dictionary(type_) else type_
    is_text = types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)
    return "" if is_text else f"the column {name!r} holds {inner} and no text; set data.text"


def _batch_rows(metadata: Any) -> int:
    """So many rows that a batch takes about ``_BATCH_BYTES``."""
    rows = max(metadata.num_rows, 1)
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(_MOST_BATCH_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _cells(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(chain.from_iterable(_cell(column.slice(row, 1)) for row in range(len(column))))


def _cell(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [b""]


READERS: dict[str, Reader] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
"""By the ending of a file's name, in small letters."""


def ending(name: str) -> str:
    """``.txt`` of ``folder/A.TXT``."""
    return PurePosixPath(name).suffix.lower()
