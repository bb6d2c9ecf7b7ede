"""All texts of a dataset version as token ids in one memory map: tokenized once and kept by content address.

Layout: ``<cache>/tokens/<key>/``: ``ids.bin``, raw uint16 (uint32 for more than 65,536 tokens) ``(T,)``; ``offsets.bin``, int64
``(N+1,)``; ``units.jsonl``, one line for each row group of the shards with the checksums of what it became. The same journal makes
a build that was killed go on after its last whole unit, and a damaged store grow anew from its last sound one.
N texts in manifest order, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow.parquet as pq
import tokenizers

from ssl_core.config.settings import Settings, usable_cpus
from ssl_core.contracts import DatasetRef
from ssl_core.data.dataset import MANIFEST_FILE, read_info, read_manifest_file
from ssl_core.data.lock import file_lock
from ssl_core.data.reader import fetch
from ssl_core.data.splits import SIDES
from ssl_core.data.table import SampleTable
from ssl_core.data.text.parallel import LostWorker, encode_batches
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.errors import TryAgain
from ssl_core.step import NoProgress, Progress
from ssl_core.store import storage_errors

TOKENS_VERSION = 1
"""Raise it when the same texts and tokenizer would give other files."""

_IDS, _OFFSETS, _UNITS = "ids.bin", "offsets.bin", "units.jsonl"
_ROWS = 1024
_BLOCK_TEXTS, _BLOCK_TOKENS = 16_384, 2**20
_LOCK_TIMEOUT = 3600.0
_WORTH_WORKERS = 4 * 2**20
"""Bytes of text from which on several processes tokenize: starting them takes about a second, as these bytes do."""
_BUFFER = 2**20
"""Bytes of a column that are read at once; by default it is a whole row group, and the manifest's may hold a million rows."""

_GOES_ON = "run the same command again; it goes on from there"


class _Paused(TryAgain):
    """What is done so far is sound and stays."""


@dataclass(frozen=True)
class Tokens:
    """The texts of one dataset version as ids, without special tokens: text i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray
    """``(T,)`` uint16 or uint32 memory map; read-only."""
    offsets: np.ndarray
    """``(N+1,)`` int64 memory map, ascending from 0."""
    folder: Path
    """The local copy of the dataset version."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def table(self) -> SampleTable:
        """Splits and labels; read on first use, as the manifest of a large corpus takes more memory than anything else here."""
        info = read_info(self.folder)
        return SampleTable(read_manifest_file(self.folder / MANIFEST_FILE), list(info.classes), info.label_type)

    def positions(self, split: str) -> np.ndarray:
        """Texts of a split, ascending, ``(n,)`` int64; reads nothing else of the manifest."""
        if split not in SIDES:
            raise ValueError(f"{split!r} is not a split: {', '.join(SIDES)}")
        return np.flatnonzero(in_split(self.folder, split))

    def labelled(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Texts of a split that have a class, ascending, and its number, both ``(n,)`` int64; reads nothing else of the manifest.

        None where labels are something else than one class.
        """
        info = read_info(self.folder)
        if info.label_type != "class":
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        found = np.full(len(self), -1, dtype=np.int64)
        for rows, labels, codes in _codes(self.folder, "label"):
            # A missing label has the code -1, which is the last place here.
            found[rows] = np.asarray([*(info.classes.index(label) for label in labels), -1])[codes]
        positions = np.flatnonzero(in_split(self.folder, split) & (found >= 0))
        return positions, found[positions]

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        """Tokens of each of these texts, ``(n,)`` int64."""
        return np.asarray(self.offsets[positions + 1] - self.offsets[positions])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All ids, some texts at a time: the ids of these one after the other, and how many each has, int64.

        Read, not mapped: what of a map was touched once counts as this process's memory.
        """
        first = 0
        while first < len(self):
            offsets = _read(self.offsets, first, min(first + _BLOCK_TEXTS, len(self)) + 1)
            fit = int(np.searchsorted(offsets, offsets[0] + _BLOCK_TOKENS, side="right"))
            offsets = offsets[: max(2, fit)]  # one text at least
            yield _read(self.ids, int(offsets[0]), int(offsets[-1])), np.diff(offsets)
            first += len(offsets) - 1


@dataclass(frozen=True)
class _Unit:
    """One row group of the shards, tokenized: a line of the journal."""

    rows: int
    tokens: int
    ids_crc32: int
    offsets_crc32: int


def open_tokens(
    ref: DatasetRef,
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Tokens:
    """The tokens of ``ref``; made on the first call, mapped on the next ones. Peak memory does not grow with the corpus.

    The files are read through and checked against their checksums when opened, which also brings them into the page cache.
    Raises ``TryAgain`` for storage (a full disk leaves nothing behind), when ``stop`` is set (the next call goes on from there),
    and for a dataset whose shards and manifest disagree.
    """
    progress = progress or NoProgress()
    folder = fetch(ref, settings, progress)
    rows = pq.read_metadata(folder / MANIFEST_FILE).num_rows
    # The library's version is part of the address: another one may give other ids for rare characters.
    named = json.dumps([ref.md5, tokenizer.digest, TOKENS_VERSION, tokenizers.__version__])
    target = settings.cache / "tokens" / hashlib.sha256(named.encode()).hexdigest()[:32]
    kind = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
    if not _is_whole(target, rows, kind):
        lock = settings.cache / "locks" / target.name
        with file_lock(lock, timeout=_LOCK_TIMEOUT, note=progress.note, purpose=f"the tokens of {ref.tag or ref.name}"):
            if not _is_whole(target, rows, kind):  # otherwise another process made it meanwhile
                _build(folder, target, tokenizer, rows, kind, progress, stop or threading.Event())
    return Tokens(_map(target / _IDS, kind), _map(target / _OFFSETS, np.dtype(np.int64)), folder)


def read_texts(folder: Path, *, skip: int = 0, rows: int = _ROWS) -> Iterator[tuple[list[str], list[str], bool]]:
    """``(sample_ids, texts, ends)`` in manifest order from all shards, ``rows`` at a time; ``ends``: the row group ends here.

    ``skip``: row groups to leave out at the beginning. No batch reaches across a row group.
    """
    for shard in sorted(folder.glob("data-*.parquet")):
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                left = file.metadata.row_group(group).num_rows
                if skip:
                    skip -= 1
                    continue
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=["sample_id", "text"]):
                    left -= batch.num_rows
                    yield batch.column("sample_id").to_pylist(), batch.column("text").to_pylist(), left == 0


def in_split(folder: Path, split: str) -> np.ndarray:
    """``(N,)`` bool: whether each text of a dataset folder belongs to ``split``."""
    found = np.zeros(pq.read_metadata(folder / MANIFEST_FILE).num_rows, dtype=bool)
    for rows, sides, codes in _codes(folder, "split"):
        found[rows] = np.asarray([side == split for side in sides])[codes]
    return found


def _codes(folder: Path, column: str) -> Iterator[tuple[slice, list[str], np.ndarray]]:
    """A column of few distinct values, some rows at a time: these rows, the values, and each row's place among them, -1 for none.

    No string is made for a row, and nothing of Arrow's is called that would import pandas: that takes most of a second, and 40 MB.
    """
    row = 0
    with pq.ParquetFile(
        folder / MANIFEST_FILE, read_dictionary=[column], buffer_size=_BUFFER, pre_buffer=False
    ) as file:
        for batch in file.iter_batches(batch_size=64 * _ROWS, columns=[column]):
            indices, count = batch.column(0).indices, batch.num_rows
            codes = np.full(count, -1, dtype=np.int32)
            if indices.null_count < count:
                valid, data = indices.buffers()
                codes = np.frombuffer(data, np.int32, count, offset=4 * indices.offset)
                if indices.null_count:
                    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
                    codes = np.where(bits[indices.offset : indices.offset + count] > 0, codes, -1)
            yield slice(row, row + count), batch.column(0).dictionary.to_pylist(), codes
            row += count


def _build(
    folder: Path,
    target: Path,
    tokenizer: Tokenizer,
    rows: int,
    kind: np.dtype,
    progress: Progress,
    stop: threading.Event,
) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        with storage_errors(str(target)):
            if target.exists():  # damaged, or it would have been used: its sound beginning is kept
                shutil.rmtree(part, ignore_errors=True)
                target.rename(part)
            part.mkdir(parents=True, exist_ok=True)
            done = _sound_units(part, kind)
            if done:
                progress.note(f"tokens: going on after {sum(unit.rows for unit in done):,} of {rows:,} texts")
            _cut(part, done, kind)
            with (
                (part / _IDS).open("ab") as ids,
                (part / _OFFSETS).open("ab") as offsets,
                (part / _UNITS).open("a") as units,
            ):
                _write(folder, tokenizer, rows, kind, done, (ids, offsets, units), progress, stop)
            part.rename(target)
    except _Paused:
        raise
    except (OSError, TryAgain):  # on a full disk the half that was written is in the way
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    rows: int,
    kind: np.dtype,
    done: list[_Unit],
    files: tuple[IO[bytes], IO[bytes], IO[str]],
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Appends all units after ``done``. Written from front to back, not through a map: a full disk is then an error, not a SIGBUS."""
    ids_file, offsets_file, units_file = files
    position = sum(unit.rows for unit in done)
    end = sum(unit.tokens for unit in done)
    if not done:
        offsets_file.write(np.zeros(1, np.int64).tobytes())
    workers = usable_cpus() if _text_bytes(folder, len(done)) >= _WORTH_WORKERS else 1
    unit = _Unit(0, 0, 0, 0)
    batches = _checked_texts(folder, len(done), position, stop)
    with (
        progress.bar("tokenize", rows, "texts") as bar,
        closing(encode_batches(batches, tokenizer, kind, workers)) as encoded,
    ):
        bar.advance(position)
        try:
            for ends, (ids, lengths) in encoded:
                ids_bytes = ids.tobytes()
                offsets_bytes = (end + lengths.cumsum()).tobytes()
                ids_file.write(ids_bytes)
                offsets_file.write(offsets_bytes)
                end += len(ids)
                unit = _Unit(
                    unit.rows + len(lengths),
                    unit.tokens + len(ids),
                    zlib.crc32(ids_bytes, unit.ids_crc32),
                    zlib.crc32(offsets_bytes, unit.offsets_crc32),
                )
                bar.advance(len(lengths))
                if ends:
                    for file in (ids_file, offsets_file):
                        file.flush()
                        os.fsync(file.fileno())
                    units_file.write(json.dumps(asdict(unit)) + "\n")
                    units_file.flush()
                    position += unit.rows
                    unit = _Unit(0, 0, 0, 0)
        except LostWorker as error:
            raise _Paused(str(error), next_step=_GOES_ON) from error
        os.fsync(units_file.fileno())
    if position != rows:
        raise TryAgain(
            "the manifest holds more samples than the shards", place=str(folder), next_step="run ingest again"
        )


def _checked_texts(folder: Path, skip: int, position: int, stop: threading.Event) -> Iterator[tuple[bool, list[str]]]:
    """All texts after ``skip`` row groups, which hold ``position`` rows, with whether the row group ends with them.

    Raises ``TryAgain`` where the manifest has other samples, and when told to stop.
    """
    expected = _sample_ids(folder, position)
    for sample_ids, texts, ends in read_texts(folder, skip=skip):
        if stop.is_set():
            raise _Paused("stopped while tokenizing", next_step=_GOES_ON)
        if sample_ids != [next(expected, None) for _ in sample_ids]:
            raise TryAgain(
                "the shards and the manifest hold different samples", place=str(folder), next_step="run ingest again"
            )
        yield ends, texts


def _text_bytes(folder: Path, skip: int) -> int:
    """Bytes of the texts after ``skip`` row groups."""
    groups: list[int] = []
    for shard in sorted(folder.glob("data-*.parquet")):
        metadata = pq.read_metadata(shard)
        column = metadata.schema.names.index("text")
        groups += (
            metadata.row_group(group).column(column).total_uncompressed_size for group in range(metadata.num_row_groups)
        )
    return sum(groups[skip:])


def _sample_ids(folder: Path, start: int) -> Iterator[str]:
    """The manifest's sample ids from row ``start`` on; a bounded number of them is in memory."""
    with pq.ParquetFile(folder / MANIFEST_FILE, buffer_size=_BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=_ROWS, columns=["sample_id"]):
            if start < batch.num_rows:
                yield from batch.column("sample_id").slice(start).to_pylist()
            start = max(0, start - batch.num_rows)


def _sound_units(folder: Path, kind: np.dtype) -> list[_Unit]:
    """The journal's units up to the first one whose content is not what it was."""
    units: list[_Unit] = []
    try:
        for line in (folder / _UNITS).read_text().splitlines():
            units.append(_Unit(**json.loads(line)))
    except (OSError, ValueError, TypeError):  # no journal, or a line that was being written
        pass
    rows = np.cumsum([0, *(unit.rows for unit in units)])
    tokens = np.cumsum([0, *(unit.tokens for unit in units)])

    def is_sound(number: int) -> bool:
        unit = units[number]
        return (
            _checksum(folder / _IDS, int(tokens[number]) * kind.itemsize, unit.tokens * kind.itemsize) == unit.ids_crc32
            and _checksum(folder / _OFFSETS, 8 * (int(rows[number]) + 1), 8 * unit.rows) == unit.offsets_crc32
        )

    with ThreadPoolExecutor(4) as pool:
        sound = list(pool.map(is_sound, range(len(units))))
    return units[: sound.index(False)] if False in sound else units


def _checksum(path: Path, start: int, size: int) -> int:
    """CRC-32 of a part of a file; -1 where the file ends before it."""
    checksum = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            while size:
                block = file.read(min(size, 2**20))
                if not block:
                    return -1
                checksum = zlib.crc32(block, checksum)
                size -= len(block)
    except OSError:
        return -1
    return checksum


def _sizes(units: list[_Unit], kind: np.dtype) -> dict[str, int]:
    return {
        _IDS: sum(unit.tokens for unit in units) * kind.itemsize,
        _OFFSETS: 8 * (sum(unit.rows for unit in units) + 1),
    }


def _is_whole(folder: Path, rows: int, kind: np.dtype) -> bool:
    if not folder.is_dir():
        return False
    units = _sound_units(folder, kind)
    if sum(unit.rows for unit in units) != rows:
        return False
    paths = {folder / name: size for name, size in _sizes(units, kind).items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _cut(folder: Path, units: list[_Unit], kind: np.dtype) -> None:
    """Leaves of an unfinished build just what ``units`` tell of."""
    sizes = _sizes(units, kind) if units else {_IDS: 0, _OFFSETS: 0}
    for name, size in sizes.items():
        with (folder / name).open("ab") as file:
            file.truncate(size)
    (folder / _UNITS).write_text("".join(json.dumps(asdict(unit)) + "\n" for unit in units))


def _map(path: Path, kind: np.dtype) -> np.ndarray:
    count = path.stat().st_size // kind.itemsize
    if count == 0:
        return np.zeros(0, kind)
    mapped: np.ndarray = np.memmap(path, dtype=kind, mode="r", shape=(count,))
    return mapped


def _read(mapped: np.ndarray, begin: int, end: int) -> np.ndarray:
    """A copy of ``mapped[begin:end]`` that does not pass through the map."""
    if not isinstance(mapped, np.memmap):
        return mapped[begin:end]
    kind = mapped.dtype
    return np.fromfile(str(mapped.filename), kind, end - begin, offset=begin * kind.itemsize)
