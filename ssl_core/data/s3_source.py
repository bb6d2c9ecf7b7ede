"""A prefix of a bucket as a source, in every layout that a local folder may have.

It is listed once, when opened; ``sync`` copies what is new or changed into the platform's cache, and items are read from there.
An item's name is its key below the prefix and nothing more: no file is ever called so.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ssl_core.config.project import ProjectConfig
from ssl_core.data.layout import (
    LABELS_FILE,
    MAX_BYTES,
    TOO_LARGE,
    Item,
    LabelsFile,
    Refused,
    check_classes,
    csv_labels,
    folder_labels,
    is_sidecar,
)
from ssl_core.data.s3_bucket import Bucket, Changed, Gone, S3Object
from ssl_core.data.s3_copies import Copies
from ssl_core.data.s3_sync import GONE, RESTLESS, Sync
from ssl_core.errors import UserError
from ssl_core.s3 import split_url
from ssl_core.step import Progress

_FOLDER_MARKERS = ("/", "_$folder$")


class S3Source:
    """``s3://bucket/prefix``. Raises ``UserError`` or ``TryAgain`` where it cannot be listed, is empty or wrongly labelled."""

    def __init__(self, project: ProjectConfig, cache: Path) -> None:
        name, prefix = split_url(project.data.source)
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self._bucket = Bucket(name)
        self._root = f"{self._bucket.url}/{self._prefix}".rstrip("/")
        self._copies = Copies(cache, self._bucket)
        listed = self._bucket.objects(self._prefix)
        self._labels_file, own = self._find_labels(project, listed)
        self.ignored = 0
        self._others: set[str] = set()
        self._objects: dict[str, S3Object] = {}
        for one in listed:
            relative = one.key[len(self._prefix) :]
            if _is_marker(one, relative) or one.key == own or _is_hidden(relative):
                continue
            if is_sidecar(relative):
                self._others.add(relative)
                continue
            self._objects[one.key] = one
        self.ignored = len(self._others)
        if not self._objects:
            raise UserError(
                f"no images in {self._root}"
                + (f" ({self.ignored} objects that are no images)" if self.ignored else ""),
                place="data.source",
                next_step="put image files there, directly or in one folder per class; "
                "what stands in data.source is taken as a folder",
            )
        self._refused = {
            key: reason for key, one in self._objects.items() if (reason := _refusal(one, self._name(key)))
        }
        self._labels = self._read_labels(project)

    def __len__(self) -> int:
        return len(self._objects)

    def items(self) -> Iterator[Item]:
        for key in self._objects:
            name = self._name(key)
            yield Item(name, self._labels.get(name), partial(self._read, key))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._root.encode())
        for one in self._objects.values():
            digest.update(f"{one.key}\0{one.etag}\0{one.size}\n".encode())
        if self._labels_file is not None:
            digest.update(f"{self._labels_file.place}\0{self._labels_file.stamp}".encode())
        return digest.hexdigest()

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        readable = [one for key, one in self._objects.items() if key not in self._refused]
        sync = Sync(self._bucket, self._copies, readable)
        sync.run(progress, stop)
        self._objects |= sync.current
        self._refused |= sync.refused
        if sync.fetched:
            progress.note(f"{len(sync.fetched):,} of {len(self):,} objects fetched from S3, {sync.bytes / 1e6:,.1f} MB")
        return len(sync.fetched)

    def _read(self, key: str) -> bytes:
        if key in self._refused:
            raise Refused(self._refused[key])
        wanted = self._objects[key]
        data = self._copies.read(wanted)
        if data is not None:
            return data
        try:  # not fetched yet, or cleared away since
            return self._bucket.get(wanted)
        except Gone:
            raise Refused(GONE) from None
        except Changed:
            raise Refused(RESTLESS) from None

    def _name(self, key: str) -> str:
        return key[len(self._prefix) :]

    # ---- labels

    def _find_labels(self, project: ProjectConfig, listed: list[S3Object]) -> tuple[LabelsFile | None, str]:
        """The file of labels, and its key where it lies among the images."""
        asked = project.data.labels
        if asked is not None and asked.startswith("s3://"):
            bucket, key = split_url(asked)
            return s3_labels(asked), key if bucket == self._bucket.name else ""
        if asked is not None and Path(asked).is_absolute():
            from ssl_core.data.folder_source import local_labels

            return local_labels(Path(asked)), ""
        key = self._prefix + (asked or LABELS_FILE)
        there = next((one for one in listed if one.key == key), None)
        if there is None and asked is None:
            return None, ""
        if there is None:
            raise UserError(
                f"no such object: {self._bucket.url}/{key}",
                place="data.labels",
                next_step="name a CSV file below data.source, an s3:// address, or a file on this machine as /path or ./path",
            )
        return _labels_of(self._bucket, there), key

    def _read_labels(self, project: ProjectConfig) -> dict[str, str]:
        names = [self._name(key) for key in self._objects if key not in self._refused]
        if self._labels_file is not None:
            refused = {self._name(key) for key in self._refused}
            all_names = [*names, *refused]  # a list may name what cannot be read: it is quarantined, not missing
            labels, where = csv_labels(self._labels_file, all_names, self._root, self._others.__contains__)
        else:
            labels, where = folder_labels(names, self._root)
        check_classes(where, project)
        return labels


def s3_labels(url: str) -> LabelsFile:
    """The labels in the object ``url``. Raises ``UserError`` where there is none."""
    name, key = split_url(url)
    bucket = Bucket(name)
    try:
        there = bucket.look(key)
    except Gone:
        raise UserError(
            f"no such object: {url}",
            place="data.labels",
            next_step="set data.labels to a CSV file with the columns file,label",
        ) from None
    return _labels_of(bucket, there)


def _labels_of(bucket: Bucket, there: S3Object) -> LabelsFile:
    place = f"{bucket.url}/{there.key}"

    def read() -> io.TextIOWrapper:
        if there.size > MAX_BYTES:
            raise UserError(f"{TOO_LARGE}: no list of labels", place=place, next_step="set data.labels to a CSV file")
        try:
            data = bucket.get(there)
        except (Gone, Changed):
            data = bucket.get(bucket.look(there.key))
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")

    return LabelsFile(place, there.etag, read)


def _is_marker(one: S3Object, relative: str) -> bool:
    """Whether an object stands for a folder: consoles and Hadoop make such."""
    return not relative or (not one.size and one.key.endswith(_FOLDER_MARKERS))


def _is_hidden(relative: str) -> bool:
    """Whether a folder or the file itself has a name as ``.git``; ``..`` is not hidden but refused."""
    return any(part.startswith(".") and part not in (".", "..") for part in relative.split("/"))


def _refusal(one: S3Object, relative: str) -> str:
    if {".", ".."} & set(relative.split("/")):
        return "its key holds . or .. as a folder"
    if relative.endswith("/"):
        return "its key ends as a folder's"
    return TOO_LARGE if one.size > MAX_BYTES else ""
