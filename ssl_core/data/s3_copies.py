"""Copies of S3 objects in the platform's cache. A kill at any moment loses nothing that arrived, and leaves nothing half-written.

No name from a bucket ever becomes a file name: copies lie under digests. Small objects lie together in one SQLite file, because
making a file costs more than fetching 4 KB does; one row a key, so that a new state takes the old one's place. Larger ones are
files, named by key and state, that appear whole by a rename; what is large is fetched in parts, each a file until all are there.
``ssl-core gc`` removes what was not used for longest: everything here can be fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ssl_core.data.s3_bucket import Bucket, S3Object
from ssl_core.store import storage_errors

SMALL = 32 * 2**10
PART = 8 * 2**20
_OLD_SECONDS = 86_400.0
_BUSY_SECONDS = 60.0
_TABLE = "CREATE TABLE IF NOT EXISTS copies (key BLOB PRIMARY KEY, state BLOB NOT NULL, data BLOB NOT NULL)"


class Copies:
    """The copies of one bucket's objects. All methods may be called from any thread."""

    def __init__(self, cache: Path, bucket: Bucket) -> None:
        place = hashlib.sha256(f"{bucket.endpoint}\n{bucket.name}".encode()).hexdigest()[:16]
        self.folder = cache / "s3" / place
        self._unfinished = self.folder / "unfinished"
        self._small = _Small(self.folder / "small.sqlite")

    def prepare(self) -> None:
        """Makes the folders, and removes what earlier processes left unfinished a day ago."""
        with storage_errors(str(self.folder)):
            self._unfinished.mkdir(parents=True, exist_ok=True)
            for number in range(256):
                (self.folder / f"{number:02x}").mkdir(exist_ok=True)
            for left in self._unfinished.iterdir():
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime > _OLD_SECONDS:
                        shutil.rmtree(left) if left.is_dir() else left.unlink()

    def missing(self, wanted: Iterable[S3Object]) -> list[S3Object]:
        """Those without a whole copy. An empty object needs none."""
        with storage_errors(str(self.folder)):
            small = self._small.states()
        return [
            one
            for one in wanted
            if one.size
            and (
                small.get(_digest(one.key)) != _state(one)
                if one.size <= SMALL
                else not _has_size(self._path(one), one.size)
            )
        ]

    def read(self, wanted: S3Object) -> bytes | None:
        """The copy; None where it is not there or not whole (after a power cut a file may have its name and not its bytes)."""
        if not wanted.size:
            return b""
        try:
            if wanted.size <= SMALL:
                data = self._small.get(_digest(wanted.key), _state(wanted))
            else:
                data = self._path(wanted).read_bytes()
        except (OSError, sqlite3.Error):
            return None
        return data if data is not None and len(data) == wanted.size else None

    def open(self, wanted: S3Object) -> BinaryIO | None:
        """The copy as a stream; None as in ``read``."""
        if not wanted.size or wanted.size <= SMALL:
            data = self.read(wanted)
            return None if data is None else io.BytesIO(data)
        try:
            stream = self._path(wanted).open("rb")
        except OSError:
            return None
        if os.fstat(stream.fileno()).st_size == wanted.size:
            return stream
        stream.close()
        return None

    def add_small(self, arrived: Iterable[tuple[S3Object, bytes]]) -> None:
        """Keeps small objects, all at once or none. Raises ``TryAgain`` where the disk is full or cannot be written."""
        with storage_errors(str(self.folder)):
            self._small.put((_digest(one.key), _state(one), data) for one, data in arrived)

    def add_part(self, wanted: S3Object, start: int, temporary: str, get: Callable[[int, int], bytes]) -> bool:
        """Fetches the part at ``start`` of a larger object with ``get(start, end)``, unless it is there; whether all are now.

        ``temporary`` names a file of the caller's own. Raises what ``get`` raises, and ``TryAgain`` as ``add_small`` does.
        """
        own = self._unfinished / temporary
        ranges = parts(wanted)
        if len(ranges) == 1:
            self._write(own, self._path(wanted), get(0, wanted.size))
            return True
        folder = self._unfinished / f"{self._path(wanted).name}.parts"
        part, end = folder / f"{start:012d}", dict(ranges)[start]
        if not _has_size(part, end - start):
            data = get(start, end)
            with storage_errors(str(self.folder)):
                folder.mkdir(exist_ok=True)
            self._write(own, part, data)
        pieces = [(folder / f"{start:012d}", end - start) for start, end in ranges]
        return all(_has_size(path, size) for path, size in pieces) and self._join(wanted, folder, own)

    def _join(self, wanted: S3Object, folder: Path, own: Path) -> bool:
        """Makes the object of its parts, by whoever brings the last one."""
        try:
            with storage_errors(str(self.folder)):
                with own.open("wb") as whole:
                    for part in sorted(folder.iterdir()):
                        whole.write(part.read_bytes())
                if own.stat().st_size == wanted.size:  # else another joins the same parts, and has begun to remove them
                    own.replace(self._path(wanted))
        except FileNotFoundError:
            pass
        shutil.rmtree(folder, ignore_errors=True)
        return _has_size(self._path(wanted), wanted.size)

    def _write(self, own: Path, target: Path, data: bytes) -> None:
        """Not flushed to the disk one by one: sizes are looked at before a copy is used."""
        with storage_errors(str(self.folder)):
            own.write_bytes(data)
            own.replace(target)

    def _path(self, wanted: S3Object) -> Path:
        name = (_digest(wanted.key)[:12] + _state(wanted)).hex()
        return self.folder / name[:2] / name[2:]


def parts(wanted: S3Object) -> list[tuple[int, int]]:
    """The byte ranges in which an object is fetched."""
    return [(start, min(start + PART, wanted.size)) for start in range(0, wanted.size, PART)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest()


def _state(one: S3Object) -> bytes:
    """What tells two states of one key apart."""
    return _digest(f"{one.size} {one.etag}")


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


class _Small:
    """Small objects in one SQLite file. Whole transactions only; every thread has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine = threading.local()

    def states(self) -> dict[bytes, bytes]:
        """The state of each key's copy. A file that SQLite cannot read is removed: it is a cache."""
        if not self._path.exists():
            return {}
        try:
            return dict(self._connection().execute("SELECT key, state FROM copies"))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, or the disk: nothing is wrong with the file
                raise OSError(errno.EIO, str(error)) from error
            self._mine = threading.local()
            self._path.unlink(missing_ok=True)
            return {}

    def put(self, rows: Iterable[tuple[bytes, bytes, bytes]]) -> None:
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO copies VALUES (?, ?, ?)", rows)

    def get(self, key: bytes, state: bytes) -> bytes | None:
        if not self._path.exists():
            return None
        found = (
            self._connection().execute("SELECT data FROM copies WHERE key = ? AND state = ?", (key, state)).fetchone()
        )
        return bytes(found[0]) if found else None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._mine, "connection", None)
        if connection is None or not self._path.exists():  # gc may have removed the file under an open connection
            connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute(_TABLE)
            self._mine.connection = connection
        return connection
