"""A prefix of a bucket, or one object, with everything that a local folder may hold.

It is listed once, when opened; ``sync`` copies what is new or changed into the platform's cache, and files are read from there.
A name is a key below the prefix and nothing more: no file is ever called so.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ssl_core.data.files import Rules
from ssl_core.data.layout import MAX_BYTES, Refused, Table, too_large
from ssl_core.data.s3_bucket import Bucket, Changed, Gone, S3Object
from ssl_core.data.s3_copies import Copies
from ssl_core.data.s3_sync import GONE, RESTLESS, Sync
from ssl_core.errors import TryAgain, UserError
from ssl_core.s3 import split_url
from ssl_core.step import Progress

_FOLDER_MARKERS = ("/", "_$folder$")


class S3Files:
    """See ``Files``: ``s3://bucket/prefix``."""

    separator = "/"

    def __init__(self, source: str, rules: Rules, cache: Path) -> None:
        name, prefix = split_url(source)
        self._rules = rules
        self._bucket = Bucket(name)
        self._copies = Copies(cache, self._bucket)
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        listed = self._bucket.objects(self._prefix)
        one = None if listed else self._one(prefix)
        self.is_one = one is not None
        if one is not None:
            listed, self._prefix = [one], one.key[: one.key.rfind("/") + 1]
        self.root = f"{self._bucket.url}/{self._prefix}".rstrip("/")
        self._listed = {one.key: one for one in listed}
        self._others: set[str] = set()
        self._objects: dict[str, S3Object] = {}
        """By name."""
        for one in listed:
            relative = one.key[len(self._prefix) :]
            if _is_marker(one, relative) or _is_hidden(relative):
                continue
            if rules.wanted(relative):
                self._objects[relative] = one
            else:
                self._others.add(relative)
        self._refused = {
            name: reason for name, one in self._objects.items() if (reason := _refusal(one, name, rules.most_bytes))
        }

    def _one(self, key: str) -> S3Object | None:
        """The object ``key``, where a source may be one file and there is such an object."""
        if not self._rules.one_file or not self._rules.wanted(key) or key.endswith("/"):
            return None
        try:
            return self._bucket.look(key)
        except Gone:
            return None

    @property
    def names(self) -> list[str]:
        return list(self._objects)

    @property
    def ignored(self) -> int:
        return len(self._others)

    def is_other(self, name: str) -> bool:
        return name in self._others

    def size(self, name: str) -> int:
        return self._objects[name].size

    def table(self, key: str, asked: str | None, default: str = "") -> Table | None:
        if asked is not None and asked.startswith("s3://"):
            bucket, object_key = split_url(asked)
            if bucket == self._bucket.name and object_key.startswith(self._prefix):
                self._drop(object_key[len(self._prefix) :])
            return s3_table(asked, key)
        if asked is not None and Path(asked).is_absolute():
            from ssl_core.data.folder_files import local_table

            return local_table(Path(asked), key)
        name = asked or default
        there = self._listed.get(self._prefix + name)
        if there is None and asked is None:
            return None
        if there is None:
            raise UserError(
                f"no such object: {self._bucket.url}/{self._prefix}{name}",
                place=key,
                next_step="name a CSV file below data.source, an s3:// address, or a file on this machine as /path or ./path",
            )
        self._drop(name)
        return _table_of(self._bucket, there, key)

    def _drop(self, name: str) -> None:
        self._objects.pop(name, None)
        self._refused.pop(name, None)
        self._others.discard(name)

    def require_some(self) -> None:
        if self._objects:
            return
        noun = self._rules.noun
        raise UserError(
            f"no {noun} in {self.root}" + (f" ({self.ignored} objects that are no {noun})" if self.ignored else ""),
            place="data.source",
            next_step=f"{self._rules.next_step}; what stands in data.source is taken as a folder",
        )

    def fingerprint(self, tables: Sequence[Table | None] = ()) -> str:
        digest = hashlib.sha256(self.root.encode())
        for one in self._objects.values():
            digest.update(f"{one.key}\0{one.etag}\0{one.size}\n".encode())
        for table in tables:
            if table is not None:
                digest.update(f"{table.place}\0{table.stamp}".encode())
        return digest.hexdigest()

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        readable = [one for name, one in self._objects.items() if name not in self._refused]
        sync = Sync(self._bucket, self._copies, readable, self._rules.most_bytes)
        sync.run(progress, stop)
        self._objects |= {self._name(key): one for key, one in sync.current.items()}
        self._refused |= {self._name(key): reason for key, reason in sync.refused.items()}
        if sync.fetched:
            progress.note(
                f"{len(sync.fetched):,} of {len(self._objects):,} objects fetched from S3, {sync.bytes / 1e6:,.1f} MB"
            )
        return len(sync.fetched)

    def read(self, name: str) -> bytes:
        if name in self._refused:
            raise Refused(self._refused[name])
        wanted = self._objects[name]
        data = self._copies.read(wanted)
        if data is not None:
            return data
        try:  # not fetched yet, or cleared away since
            return self._bucket.get(wanted)
        except Gone:
            raise Refused(GONE) from None
        except Changed:
            raise Refused(RESTLESS) from None

    def open(self, name: str) -> BinaryIO:
        wanted = self._objects[name]
        if name not in self._refused and wanted.size > MAX_BYTES:  # too large to be fetched once more, into memory
            copy = self._copies.open(wanted)
            if copy is None:
                raise TryAgain(
                    "its copy in the cache was removed while it was needed",
                    place=f"{self._bucket.url}/{wanted.key}",
                    next_step="run again; the cache needs room for the whole source",
                )
            return copy
        return self._copies.open(wanted) or io.BytesIO(self.read(name))

    def is_unchanged(self, name: str) -> bool:
        """A copy never changes."""
        return True

    def _name(self, key: str) -> str:
        return key[len(self._prefix) :]


def s3_table(url: str, key: str) -> Table:
    """The CSV file in the object ``url``, which the configuration's ``key`` names. Raises ``UserError`` where there is none."""
    name, object_key = split_url(url)
    bucket = Bucket(name)
    try:
        there = bucket.look(object_key)
    except Gone:
        raise UserError(f"no such object: {url}", place=key, next_step=f"set {key} to a CSV file") from None
    return _table_of(bucket, there, key)


def _table_of(bucket: Bucket, there: S3Object, key: str) -> Table:
    place = f"{bucket.url}/{there.key}"

    def read() -> io.TextIOWrapper:
        if there.size > MAX_BYTES:
            raise UserError(
                f"{too_large(there.size, MAX_BYTES)}: no such list", place=place, next_step=f"set {key} to a CSV file"
            )
        try:
            data = bucket.get(there)
        except (Gone, Changed):
            data = bucket.get(bucket.look(there.key))
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")

    return Table(place, there.etag, read)


def _is_marker(one: S3Object, relative: str) -> bool:
    """Whether an object stands for a folder: consoles and Hadoop make such."""
    return not relative or (not one.size and one.key.endswith(_FOLDER_MARKERS))


def _is_hidden(relative: str) -> bool:
    """Whether a folder or the file itself has a name as ``.git``; ``..`` is not hidden but refused."""
    return any(part.startswith(".") and part not in (".", "..") for part in relative.split("/"))


def _refusal(one: S3Object, relative: str, most_bytes: int | None) -> str:
    if {".", ".."} & set(relative.split("/")):
        return "its key holds . or .. as a folder"
    if relative.endswith("/"):
        return "its key ends as a folder's"
    return too_large(one.size, most_bytes)
