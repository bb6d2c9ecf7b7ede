"""A local folder, or one file. It is listed once, when opened; nothing outside of it is ever read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ssl_core.data.files import Rules
from ssl_core.data.layout import Refused, Table, too_large
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import Progress

_STORAGE_FAILED = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)


@dataclass(frozen=True)
class _File:
    path: str  # relative to the root, as the operating system gives it
    stamp: tuple[int, ...]  # size, mtime_ns, ctime_ns, inode; of a link its own, then its target's
    refused: str = ""


class FolderFiles:
    """See ``Files``. The files are read when asked for."""

    separator = os.sep

    def __init__(self, source: str, rules: Rules) -> None:
        path = Path(source)
        self._rules = rules
        self.is_one = rules.one_file and _is(Path.is_file, path)
        if not self.is_one and not _is(Path.is_dir, path):
            raise UserError(
                f"{'not a folder' if _is(Path.exists, path) else 'no such folder'}: {path}",
                place="data.source",
                next_step=f"set data.source to the folder that holds the {rules.noun}",
            )
        path = path.resolve()
        self._root = path.parent if self.is_one else path
        self.root = str(self._root)
        self._others: set[str] = set()
        if self.is_one:
            files = [_looked_at(self._root, path.name, path, rules.most_bytes)] if rules.wanted(path.name) else []
            self._others = set() if files else {path.name}
        else:
            files = self._scan()
        self._files = {file.path: file for file in files}

    @property
    def names(self) -> list[str]:
        return list(self._files)

    @property
    def ignored(self) -> int:
        return len(self._others)

    def is_other(self, name: str) -> bool:
        return name not in self._files and _is(Path.is_file, self._root / name)

    def size(self, name: str) -> int:
        stamp = self._files[name].stamp
        return stamp[-4] if stamp else 0

    def table(self, key: str, asked: str | None, default: str = "") -> Table | None:
        if asked is None:
            path = self._root / default
            if not default or self.is_one or not (path.is_file() or path.is_symlink()):
                return None
            if path.is_symlink() and not _inside(path, self._root):
                raise UserError(
                    "a link that leads out of the source folder",
                    place=str(path),
                    next_step=f"set {key} to the file itself",
                )
            if not path.is_file():
                return None
        elif asked.startswith("s3://"):
            from ssl_core.data.s3_files import s3_table

            return s3_table(asked, key)
        else:
            path = self._root / asked  # an absolute path stands for itself
        found = local_table(path, key)
        if path.is_relative_to(self._root):
            name = str(path.relative_to(self._root))
            self._files.pop(name, None)
            self._others.discard(name)
        return found

    def require_some(self) -> None:
        if self._files:
            return
        noun = self._rules.noun
        there = f"{self.root}{os.sep}{next(iter(self._others), '')}" if self.is_one else self.root
        raise UserError(
            f"no {noun} in {there}" + (f" ({self.ignored} files that are no {noun})" if self.ignored else ""),
            place="data.source",
            next_step=self._rules.next_step,
        )

    def fingerprint(self, tables: Sequence[Table | None] = ()) -> str:
        digest = hashlib.sha256(os.fsencode(self._root))
        for file in self._files.values():
            digest.update(os.fsencode(file.path) + b"\0" + repr(file.stamp).encode() + file.refused.encode() + b"\n")
        for table in tables:
            if table is not None:
                digest.update(os.fsencode(table.place) + table.stamp.encode())
        return digest.hexdigest()

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        """Nothing to fetch: the files are here."""
        return 0

    def read(self, name: str) -> bytes:
        with self._reading(name) as path:
            return path.read_bytes()

    def open(self, name: str) -> BinaryIO:
        with self._reading(name) as path:
            return path.open("rb")

    def is_unchanged(self, name: str) -> bool:
        file = self._files[name]
        try:
            return _looked_at(self._root, name, self._root / name, self._rules.most_bytes).stamp == file.stamp
        except OSError:
            return False

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        file = self._files[name]
        if file.refused:
            raise Refused(file.refused)
        path = self._root / file.path
        if not _inside(path, self._root):  # looked at again: it may have been replaced since the folder was listed
            raise Refused("a link that leads out of the source folder")
        try:
            yield path
        except OSError as error:
            if error.errno in _STORAGE_FAILED:
                raise TryAgain(
                    f"the source cannot be read: {error.strerror}",
                    place=str(path),
                    next_step="run again once it answers",
                ) from error
            raise Refused(f"cannot be read: {error.strerror}") from error

    def _scan(self) -> list[_File]:
        """The files that are meant, sorted by path; the others are counted."""
        files: list[_File] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(self._root / folder))
            except OSError as error:
                files.append(_File(folder or ".", (), f"the folder cannot be read: {error.strerror}"))
                continue
            for entry in entries:
                path = f"{folder}{os.sep}{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif not self._rules.wanted(entry.name):
                    self._others.add(path)
                else:
                    files.append(_look(self._root, path, entry, self._rules.most_bytes))
        return sorted(files, key=lambda file: os.fsencode(file.path))


def local_table(path: Path, key: str) -> Table:
    """A CSV file on this machine. Raises ``UserError`` where there is none."""
    if not _is(Path.is_file, path):
        raise UserError(
            f"no such file: {path}",
            place=key,
            next_step=f"set {key} to a CSV file",
        )
    return Table(str(path), repr(_stamp(path.stat())), partial(path.open, encoding="utf-8-sig", newline=""))


def _is(asked: Callable[[Path], bool], path: Path) -> bool:
    """``asked``, for instance ``Path.is_file``; no where the name is one that nothing can have, such as one of 300 letters."""
    try:
        return asked(path)
    except (OSError, ValueError):
        return False


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _look(root: Path, path: str, entry: os.DirEntry[str], most_bytes: int | None) -> _File:
    try:
        return _looked_at(root, path, entry, most_bytes)
    except OSError as error:  # gone since the folder was listed, or on a share that does not answer
        return _File(path, (), f"cannot be read: {error.strerror}")


def _looked_at(root: Path, path: str, entry: os.DirEntry[str] | Path, most_bytes: int | None) -> _File:
    own = entry.stat(follow_symlinks=False)
    stamp = _stamp(own)
    size = own.st_size
    if entry.is_symlink():
        if not _inside(root / path, root):
            return _File(path, stamp, "a link that leads out of the source folder")
        if not entry.is_file():
            return _File(path, stamp, "a link to a folder, or to nothing")
        target = entry.stat()
        stamp, size = stamp + _stamp(target), target.st_size
    elif not stat.S_ISREG(own.st_mode):
        return _File(path, stamp, "not a regular file")
    return _File(path, stamp, too_large(size, most_bytes))
