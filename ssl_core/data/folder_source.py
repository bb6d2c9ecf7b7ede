"""A local folder as a source. It is listed once, when opened; nothing outside of it is ever read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    display_name,
    folder_labels,
    is_sidecar,
)
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import Progress


@dataclass(frozen=True)
class _File:
    path: str  # relative to the root, as the operating system gives it
    stamp: tuple[int, ...]  # size, mtime_ns, ctime_ns, inode
    refused: str = ""


class FolderSource:
    """A local folder. It is listed once, when opened; the files are read when asked for."""

    def __init__(self, project: ProjectConfig) -> None:
        self._root = Path(project.data.source)
        if not _is(Path.is_dir, self._root):
            raise UserError(
                f"{'not a folder' if _is(Path.exists, self._root) else 'no such folder'}: {self._root}",
                place="data.source",
                next_step="set data.source to the folder that holds the images",
            )
        self._root = self._root.resolve()
        self._labels_file, path = _find_labels(project, self._root)
        self._files, self.ignored = _scan(self._root, path)
        if not self._files:
            raise UserError(
                f"no images in {self._root}" + (f" ({self.ignored} files that are no images)" if self.ignored else ""),
                place="data.source",
                next_step="put image files there, directly or in one folder per class",
            )
        self._labels = self._read_labels(project)

    def __len__(self) -> int:
        return len(self._files)

    def items(self) -> Iterator[Item]:
        for file in self._files:
            name = display_name(file.path)
            yield Item(name, self._labels.get(file.path), _reader(self._root, file))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(os.fsencode(self._root))
        for file in self._files:
            digest.update(os.fsencode(file.path) + b"\0" + repr(file.stamp).encode() + file.refused.encode() + b"\n")
        if self._labels_file:
            digest.update(os.fsencode(self._labels_file.place) + self._labels_file.stamp.encode())
        return digest.hexdigest()

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        """Nothing to fetch: the files are here."""
        return 0

    def _read_labels(self, project: ProjectConfig) -> dict[str, str]:
        names = [file.path for file in self._files]
        if self._labels_file:
            labels, where = csv_labels(
                self._labels_file,
                names,
                str(self._root),
                lambda name: _is(Path.is_file, self._root / name),
            )
        else:
            labels, where = folder_labels(names, str(self._root), os.sep)
        check_classes(where, project)
        return labels


def local_labels(path: Path) -> LabelsFile:
    """A CSV file on this machine. Raises ``UserError`` where there is none."""
    if not _is(Path.is_file, path):
        raise UserError(
            f"no such file: {path}",
            place="data.labels",
            next_step="set data.labels to a CSV file with the columns file,label",
        )
    return LabelsFile(str(path), repr(_stamp(path.stat())), partial(path.open, encoding="utf-8-sig", newline=""))


def _is(asked: Callable[[Path], bool], path: Path) -> bool:
    """``asked``, for instance ``Path.is_file``; no where the name is one that nothing can have, such as one of 300 letters."""
    try:
        return asked(path)
    except (OSError, ValueError):
        return False


def _find_labels(project: ProjectConfig, root: Path) -> tuple[LabelsFile | None, Path | None]:
    """The file of labels, and its path where it is on this machine."""
    if project.data.labels is None:
        path = root / LABELS_FILE
        if path.is_symlink() and not _inside(path, root):
            raise UserError(
                "a link that leads out of the source folder",
                place=str(path),
                next_step="set data.labels to the file itself",
            )
        return (local_labels(path), path) if path.is_file() else (None, None)
    if project.data.labels.startswith("s3://"):
        from ssl_core.data.s3_source import s3_labels

        return s3_labels(project.data.labels), None
    path = root / project.data.labels  # an absolute path stands for itself
    return local_labels(path), path


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _scan(root: Path, labels: Path | None) -> tuple[list[_File], int]:
    """All files that may be images, sorted by path, and how many others lie there. Hidden ones are not counted."""
    files: list[_File] = []
    ignored = 0
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            files.append(_File(folder or ".", (), f"the folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            path = f"{folder}{os.sep}{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
                continue
            if labels and root / path == labels:
                continue
            if is_sidecar(entry.name):
                ignored += 1
                continue
            files.append(_look(root, path, entry))
    return sorted(files, key=lambda file: os.fsencode(file.path)), ignored


def _look(root: Path, path: str, entry: os.DirEntry[str]) -> _File:
    try:
        return _looked_at(root, path, entry)
    except OSError as error:  # gone since the folder was listed, or on a share that does not answer
        return _File(path, (), f"cannot be read: {error.strerror}")


def _looked_at(root: Path, path: str, entry: os.DirEntry[str]) -> _File:
    stamp = _stamp(entry.stat(follow_symlinks=False))
    if entry.is_symlink():
        if not _inside(root / path, root):
            return _File(path, stamp, "a link that leads out of the source folder")
        if not entry.is_file():
            return _File(path, stamp, "a link to a folder, or to nothing")
        stamp += _stamp(entry.stat())
    elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
        return _File(path, stamp, "not a regular file")
    return _File(path, stamp, TOO_LARGE if entry.stat().st_size > MAX_BYTES else "")


def _reader(root: Path, file: _File) -> Callable[[], bytes]:
    def read() -> bytes:
        if file.refused:
            raise Refused(file.refused)
        path = root / file.path
        if not _inside(path, root):  # looked at again: it may have been replaced since the folder was listed
            raise Refused("a link that leads out of the source folder")
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN):
                raise TryAgain(
                    f"the source cannot be read: {error.strerror}",
                    place=str(path),
                    next_step="run again once it answers",
                ) from error
            raise Refused(f"cannot be read: {error.strerror}") from error

    return read
