"""What a served champion answered lately, read from its prediction log: Parquet files in a folder or in S3.

Logs are written by programs that nobody here controls, and while they are read. So nothing in them stops the monitor: rows that
make no sense are left out and counted by reason, files that cannot be read are named, and memory holds at most ``MOST_ROWS`` rows.

Shapes: n rows, K classes of the champion.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_core.data.files import Files, Rules, open_files
from ssl_core.data.layout import Refused, display_name
from ssl_core.errors import UserError
from ssl_core.step import NoProgress, Progress
from ssl_core.validation.report import plural, printable

MOST_ROWS = 100_000
"""The newest so many rows are kept; fewer where there are very many classes."""
MOST_NUMBERS = 20_000_000
MOST_TRUTHS = 1_000_000
"""Labels from files of labels, at most."""
SUM_ERROR = 0.02
"""How far probabilities may be from summing to 1."""
_REQUIRED = ("id", "at", "version", "label")
_WANTED = (*_REQUIRED, "confidence", "probabilities", "content", "truth")
_BATCH = 16_384
_SHOWN = 5
_RULES = Rules(
    "prediction logs", wanted=lambda name: name.lower().endswith(".parquet"), most_bytes=None, one_file=True, endings=(".parquet",)
)  # fmt: skip


@dataclass(frozen=True)
class LogWindow:
    """Answers of one champion version since a moment, in the order of time; and what was left out."""

    classes: tuple[str, ...]
    at: np.ndarray
    """datetime64[us], UTC ``(n,)``."""
    labels: np.ndarray
    """What was answered: positions in ``classes`` ``(n,)``."""
    confidence: np.ndarray
    """float64 ``(n,)``."""
    probabilities: np.ndarray | None
    """float32 ``(n, K)``; None where a row has none."""
    truth: np.ndarray
    """What turned out to be right: positions in ``classes`` ``(n,)``, -1 where that is not known, or another class."""
    files: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    """Rows that were left out, by reason."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that could not be read, and why."""
    other_versions: int = 0
    """Rows of other model versions, since the same moment."""
    cut: int = 0
    """Older rows that were left out because there are more than are kept."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def name(self) -> str:
        """The days, for people."""
        if not len(self):
            return "no predictions"
        first, last = (str(moment)[:10] for moment in (self.at[0], self.at[-1]))
        return f"predictions of {first}" if first == last else f"predictions of {first} to {last}"

    def notes(self) -> list[str]:
        """What a person should know of the log, in sentences; empty where all is well."""
        said = [f"prediction log: {plural(count, 'row')} left out: {reason}" for reason, count in self.bad.items()]
        shown = list(self.unreadable.items())[:_SHOWN]
        said += [f"prediction log: {printable(name, 80)} cannot be read: {printable(why, 120)}" for name, why in shown]
        if more := len(self.unreadable) - len(shown):
            said.append(f"prediction log: and {plural(more, 'file')} more")
        if self.cut:
            said.append(f"prediction log: of {len(self) + self.cut:,} rows the newest {len(self):,} were looked at")
        return said


def read_log(
    place: str,
    classes: Sequence[str],
    *,
    version: str,
    since: datetime,
    now: datetime | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    most: int = MOST_ROWS,
) -> LogWindow:
    """The rows of model ``version`` at or after ``since`` (with a time zone), from all ``.parquet`` files below ``place``.

    A file that lacks ``label`` but has ``truth`` and ``id`` or ``content`` is one of labels that came later. No such folder is an
    empty log: serving may not have begun. Raises ``UserError`` or ``TryAgain`` where S3 refuses or cannot be reached.
    """
    reading = _Reading(tuple(classes), version, since.astimezone(UTC), (now or datetime.now(UTC)).astimezone(UTC), most)
    if "://" not in place and not Path(place).exists():
        return reading.result({"the folder": f"there is no {place}"})
    files = _opened(place, cache, progress or NoProgress())
    for name in files.names:
        try:
            with files.open(name) as stream:
                reading.read(pq.ParquetFile(stream))
        except (Refused, OSError, ValueError, pa.ArrowException, MemoryError) as error:
            reading.unreadable[display_name(name)] = (
                str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
            )
    return reading.result()


def _opened(place: str, cache: Path | None, progress: Progress) -> Files:
    try:
        files = open_files(place, _RULES, cache)
        files.sync(progress, threading.Event())
    except UserError as error:
        raise UserError(error.cause, place=f"monitor.predictions: {place}", next_step=error.next_step) from error
    return files


@dataclass
class _Rows:
    """Good rows, column by column; ids and contents are kept for labels that come from elsewhere."""

    at: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray
    """NaN throughout a row without any."""
    truth: np.ndarray
    """-1 not known, -2 another class than the champion's."""
    ids: np.ndarray
    contents: np.ndarray

    def take(self, rows: np.ndarray) -> _Rows:
        return _Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class _Reading:
    """What has been read so far."""

    def __init__(self, classes: tuple[str, ...], version: str, since: datetime, now: datetime, most: int) -> None:
        self._classes, self._version = classes, version
        self._since, self._latest = _moment(since), _moment(now + timedelta(days=1))
        self._most = max(1, min(most, MOST_NUMBERS // max(1, len(classes))))
        self._kept: list[_Rows] = []
        self._truths: dict[str, str] = {}
        self._files = self._others = self._cut = 0
        self._bad: Counter[str] = Counter()
        self.unreadable: dict[str, str] = {}

    def read(self, file: pq.ParquetFile) -> None:
        """One file: predictions, or labels that came later. Raises what pyarrow raises, and ``ValueError`` for another file."""
        names = file.schema_arrow.names
        missing = [name for name in _REQUIRED if name not in names]
        if "truth" in names and "label" not in names and {"id", "content"} & set(names):
            self._files += 1
            self._read_truths(file, [name for name in ("id", "content", "truth") if name in names])
            return
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        kind = file.schema_arrow.field("at").type
        if not pa.types.is_timestamp(kind):
            raise ValueError(f"at holds {kind}, not times")
        self._files += 1
        columns = [name for name in _WANTED if name in names]
        groups = [number for number in range(file.num_row_groups) if not self._is_older(file, number)]
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=columns):
            self._add(pa.Table.from_batches([batch]))

    def result(self, unreadable: dict[str, str] | None = None) -> LogWindow:
        """All rows in the order of time, with the labels that came later."""
        rows = self._thinned(len(self._kept) > 1)
        found = self._kept[0] if rows else _empty(len(self._classes))
        found = found.take(np.lexsort((found.ids, found.at)))
        same = len(found.ids) - len(np.unique(found.ids))
        if same:
            # The last of them counts: a log that is sent again holds the same rows once more.
            _, last = np.unique(found.ids[::-1], return_index=True)
            found = found.take(np.sort(len(found.ids) - 1 - last))
            self._bad["the same id once more"] += same
        truth = self._joined(found)
        if (others := int((truth == -2).sum())) > 0:
            self._bad["only its truth: a class that the champion does not know"] += others
        whole = bool(len(found.at)) and not np.isnan(found.probabilities).any()
        return LogWindow(
            self._classes, found.at, found.labels, found.confidence, found.probabilities if whole else None, np.maximum(truth, -1),
            self._files, dict(self._bad), self.unreadable | (unreadable or {}), self._others, self._cut,
        )  # fmt: skip

    def _is_older(self, file: pq.ParquetFile, group: int) -> bool:
        """Whether all of a row group is from before, as far as its statistics say."""
        row_group = file.metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            if column.path_in_schema == "at" and column.is_stats_set and column.statistics.has_min_max:
                latest = column.statistics.max
                return isinstance(latest, datetime) and _moment(latest) < self._since
        return False

    def _add(self, table: pa.Table) -> None:
        at = table["at"].cast(pa.timestamp("us", tz="UTC"), safe=False)
        times = _numpy(pc.cast(at, pa.int64()), np.int64, np.iinfo(np.int64).min)
        undated = np.asarray(at.is_null())
        recent = (times >= self._since) | undated
        mine = np.asarray(pc.equal(table["version"].cast(pa.string()), self._version).fill_null(False))
        self._others += int((recent & ~undated & ~mine).sum())
        chosen = np.flatnonzero(recent & (mine | undated))
        if not len(chosen):
            return
        table, times = table.take(pa.array(chosen)), times[chosen]
        labels = _positions(table["label"], self._classes)
        probabilities, strange = _probabilities(table, self._classes)
        confidence = _column(table, "confidence")
        known = ~np.isnan(probabilities).any(axis=1)
        confidence = np.where(np.isnan(confidence) & known, np.max(probabilities, axis=1, initial=0), confidence)
        faults = {
            "no id": np.asarray(table["id"].is_null()),
            "no time": np.asarray(table["at"].is_null()),
            "a time in the future": times > self._latest,
            "no label": np.asarray(table["label"].is_null()),
            "a label that the champion does not know": labels < 0,
            "a confidence that is no probability": ~((confidence >= 0) & (confidence <= 1)),
            "probabilities that do not sum to 1 over the champion's classes": strange,
        }
        left = np.ones(len(labels), dtype=bool)
        for reason, faulty in faults.items():
            if count := int((left & faulty).sum()):
                self._bad[reason] += count
            left &= ~faulty
        truth = _positions(table["truth"], self._classes, other=-2) if "truth" in table.column_names else np.full(len(labels), -1)  # fmt: skip
        texts = [_texts(table, name) for name in ("id", "content")]
        self._kept.append(
            _Rows(times.astype("datetime64[us]"), labels, confidence, probabilities, truth, *texts).take(
                np.flatnonzero(left)
            )
        )
        self._thinned(sum(len(rows.at) for rows in self._kept) > 2 * self._most)

    def _thinned(self, needed: bool) -> bool:
        """Joins what is kept and leaves the newest; whether there is anything."""
        if needed and self._kept:
            names = _Rows.__dataclass_fields__
            self._kept = [_Rows(*(np.concatenate([getattr(rows, name) for rows in self._kept]) for name in names))]
        if len(self._kept) == 1 and (more := len(self._kept[0].at) - self._most) > 0:
            self._cut += more
            self._kept = [self._kept[0].take(np.argsort(self._kept[0].at, kind="stable")[more:])]
        return bool(self._kept)

    def _read_truths(self, file: pq.ParquetFile, columns: list[str]) -> None:
        for batch in file.iter_batches(_BATCH, columns=columns):
            for row in batch.to_pylist():
                if row["truth"] is not None and len(self._truths) < MOST_TRUTHS:
                    for name in ("id", "content"):
                        if row.get(name) is not None:
                            self._truths[f"{name}:{row[name]}"] = str(row["truth"])

    def _joined(self, rows: _Rows) -> np.ndarray:
        """Each row's truth: its own, else that of its id, else of its content."""
        place = {name: number for number, name in enumerate(self._classes)}
        truth = rows.truth.copy()
        for number in np.flatnonzero(truth == -1) if self._truths else ():
            said = self._truths.get(f"id:{rows.ids[number]}", self._truths.get(f"content:{rows.contents[number]}"))
            if said is not None:
                truth[number] = place.get(said, -2)
        return truth


def _moment(time: datetime) -> int:
    """Microseconds since 1970, UTC; a time without zone is taken as UTC."""
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _empty(classes: int) -> _Rows:
    none = np.zeros(0, dtype=object)
    return _Rows(
        np.zeros(0, "datetime64[us]"), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, classes), np.float32), np.zeros(0, np.int64), none, none
    )  # fmt: skip


def _positions(column: pa.ChunkedArray, classes: tuple[str, ...], other: int = -1) -> np.ndarray:
    """Where each value stands in ``classes``: -1 where it is empty, ``other`` where it is none of them."""
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(classes, pa.string()))
    positions = _numpy(found, np.int64, other)
    return np.where(np.asarray(column.is_null()), -1, positions)


def _numpy(column: pa.ChunkedArray, kind: Any, empty: float) -> np.ndarray:
    return np.asarray(column.fill_null(empty).to_numpy(), dtype=kind)


def _column(table: pa.Table, name: str) -> np.ndarray:
    """Numbers, NaN where there are none."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return _numpy(table[name].cast(pa.float64()), np.float64, np.nan)


def _texts(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), "", dtype=object)
    return np.array(table[name].cast(pa.string()).fill_null("").to_pylist(), dtype=object)


def _probabilities(table: pa.Table, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """float32 ``(n, K)``, NaN where a row has none; and where they are given and make no sense."""
    matrix = np.full((len(table), len(classes)), np.nan, dtype=np.float32)
    strange = np.zeros(len(table), dtype=bool)
    if "probabilities" not in table.column_names:
        return matrix, strange
    column = table["probabilities"].combine_chunks()
    given = ~np.asarray(column.is_null())
    matrix[given] = 0
    unknown = np.zeros(len(table))
    for rows, names, told in _entries(column, classes, given):
        values = np.where(np.isfinite(told), told, -1)
        strange[rows[(values < 0) | (values > 1 + SUM_ERROR)]] = True
        known = names >= 0
        np.add.at(matrix, (rows[known], names[known]), values[known].astype(np.float32))
        np.add.at(unknown, rows[~known], values[~known])
    off = np.abs(matrix.sum(axis=1) - 1)
    strange |= given & ((off > SUM_ERROR) | (unknown > SUM_ERROR))
    return matrix, strange


def _entries(
    column: pa.Array, classes: tuple[str, ...], given: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, positions in ``classes`` (-1: none of them) and values, of a map from names to numbers, or of a field a class."""
    if pa.types.is_map(column.type):
        offsets = column.offsets.to_numpy()
        part = slice(int(offsets[0]), int(offsets[-1]))
        rows = np.repeat(np.arange(len(column)), np.diff(offsets))
        names = _positions(pa.chunked_array([column.keys[part]]), classes)
        values = _numpy(pa.chunked_array([column.items[part].cast(pa.float64())]), np.float64, np.nan)
        kept = given[rows]
        yield rows[kept], names[kept], values[kept]
    elif pa.types.is_struct(column.type):
        place = {name: number for number, name in enumerate(classes)}
        rows = np.flatnonzero(given)
        for part in column.type:
            values = _numpy(pa.chunked_array([column.field(part.name).cast(pa.float64())]), np.float64, np.nan)
            yield rows, np.full(len(rows), place.get(part.name, -1)), values[rows]
    else:
        raise ValueError(f"probabilities hold {column.type}, not a number for each class")
