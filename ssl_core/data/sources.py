"""Where samples come from: a local folder in the layouts that people already have, or a bundled sample.

A folder holds either class folders (``cat/1.png``: the first folder is the label), or files and a ``labels.csv`` with the
columns ``file,label``, or just files. Where there is a ``labels.csv`` it alone says the labels, and folders are only folders.
Files without a label lie beside the class folders, in a folder ``unlabeled``, or are not listed (or listed without label).
Nothing outside the folder is ever read.
"""

from __future__ import annotations

import csv
import difflib
import errno
import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from ssl_core.config.project import ProjectConfig
from ssl_core.errors import TryAgain, UserError

LABELS_FILE = "labels.csv"
UNLABELED_FOLDERS = frozenset({"unlabeled", "unlabelled"})
# What lies beside images in real folders and is not meant as one. Anything else is tried, so that nothing is lost silently.
SIDECARS = frozenset(
    {
        ".csv",
        ".db",
        ".docx",
        ".gz",
        ".h5",
        ".htm",
        ".html",
        ".ini",
        ".ipynb",
        ".json",
        ".jsonl",
        ".lnk",
        ".log",
        ".md",
        ".mat",
        ".npy",
        ".npz",
        ".parquet",
        ".pdf",
        ".pkl",
        ".py",
        ".rst",
        ".sh",
        ".tar",
        ".toml",
        ".tsv",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
        ".zip",
    }
)
_HEADER = ["file", "label"]
_MAX_BYTES = 256 * 2**20  # no image needs more, and a file is read in one piece
_SHOWN = 10


class Refused(Exception):
    """A file of the source that must not or cannot be read; the message is the reason, for the quarantine list."""


@dataclass(frozen=True)
class Item:
    """One file of a source, not read yet."""

    name: str
    """Path relative to the source's root, or the sample's own name; always valid UTF-8."""
    label: str | None
    read: Callable[[], bytes]
    """The encoded bytes. Raises ``Refused`` (or ``OSError``) where that cannot be. Safe to call from any thread."""


class Source(Protocol):
    """What ``ingest`` reads."""

    def __len__(self) -> int: ...
    def items(self) -> Iterator[Item]:
        """Every file that may be an image, in the order of its name."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the content may have changed; made without reading any content."""
        ...


def open_source(project: ProjectConfig, cache: Path | None = None) -> Source:
    """The source of a project; ``cache`` is where downloads are kept (default: the settings').

    Raises ``UserError`` where it is missing, empty or wrongly labelled.
    """
    source = project.data.source
    if source.startswith("sample://"):
        return SampleSource(source.removeprefix("sample://"), project, cache)
    return FolderSource(project)


class SampleSource:
    """A sample that comes with the platform; loaded when its items are asked for."""

    def __init__(self, name: str, project: ProjectConfig, cache: Path | None) -> None:
        from ssl_core.data.samples import sample_version

        self._name = name
        self._project = project
        self._cache = cache
        self._version = sample_version(name)  # an unknown name is an error here

    @cached_property
    def _items(self) -> list[Item]:
        from ssl_core.data.samples import sample_items

        items = sorted(sample_items(self._name, self._cache), key=lambda item: item.name)
        _check_classes({item.label: item.name for item in items if item.label is not None}, self._project)
        return items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[Item]:
        return iter(self._items)

    def fingerprint(self) -> str:
        return f"sample:{self._name}:{self._version}"


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
        self._labels_path = _labels_path(project, self._root)
        self._files, self.ignored = _scan(self._root, self._labels_path)
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
        if self._labels_path:
            digest.update(os.fsencode(self._labels_path) + repr(_stamp(self._labels_path.stat())).encode())
        return digest.hexdigest()

    def _read_labels(self, project: ProjectConfig) -> dict[str, str]:
        if self._labels_path:
            labels, lines = _read_csv(self._labels_path, self._root, [file.path for file in self._files])
            where = {label: f"{self._labels_path} line {lines[path]}" for path, label in reversed(labels.items())}
        else:
            labels = {}
            for file in self._files:
                folder, _, rest = file.path.partition(os.sep)
                if rest and folder.lower() not in UNLABELED_FOLDERS:
                    labels[file.path] = display_name(folder)
            where = {label: f"the folder {self._root / label}" for label in labels.values()}
        _check_classes(where, project)
        return labels


def _is(asked: Callable[[Path], bool], path: Path) -> bool:
    """``asked``, for instance ``Path.is_file``; no where the name is one that nothing can have, such as one of 300 letters."""
    try:
        return asked(path)
    except (OSError, ValueError):
        return False


def display_name(path: str) -> str:
    """A path as text: bytes that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _labels_path(project: ProjectConfig, root: Path) -> Path | None:
    if project.data.labels is None:
        default = root / LABELS_FILE
        if default.is_symlink() and not _inside(default, root):
            raise UserError(
                "a link that leads out of the source folder",
                place=str(default),
                next_step="set data.labels to the file itself",
            )
        return default if default.is_file() else None
    path = root / project.data.labels  # an absolute path stands for itself
    if not _is(Path.is_file, path):
        raise UserError(
            f"no such file: {path}",
            place="data.labels",
            next_step="set data.labels to a CSV file with the columns file,label",
        )
    return path


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
            if Path(entry.name).suffix.lower() in SIDECARS:
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
    return _File(path, stamp, f"larger than {_MAX_BYTES // 2**20} MiB" if entry.stat().st_size > _MAX_BYTES else "")


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


def _read_csv(path: Path, root: Path, files: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Labels and line numbers by file path. Raises ``UserError`` that names the file and the line."""
    next_step = f"write the columns {','.join(_HEADER)}, one line a file, paths relative to {root}"
    known = {file: file for file in files}
    by_text = {unicodedata.normalize("NFC", display_name(file)): file for file in files}
    labels: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    missing: list[str] = []
    for line, row in _rows(path, next_step):
        place = f"{path} line {line}"
        name, label = row[0].strip(), row[1].strip() or None
        listed = PurePosixPath(name)
        if listed.is_absolute() or ".." in listed.parts:
            raise UserError(f"{name!r} leads out of the source folder", place=place, next_step=next_step)
        file = known.get(str(listed)) or by_text.get(unicodedata.normalize("NFC", str(listed)))
        if file is None:
            missing.append(f"line {line}: {name!r}" + (" is no image file" if _is(Path.is_file, root / listed) else ""))
            continue
        if file in labels and labels[file] != label:
            raise UserError(
                f"{name!r} is {label!r} here and {labels[file]!r} in line {lines[file]}",
                place=place,
                next_step="keep one of the two lines",
            )
        labels.setdefault(file, label)
        lines.setdefault(file, line)
    if missing:
        shown = "; ".join(missing[:_SHOWN]) + ("; ..." if len(missing) > _SHOWN else "")
        raise UserError(
            f"{len(missing)} listed file{'s are' if len(missing) > 1 else ' is'} not in {root}: {shown}",
            place=f"{path} {missing[0].split(':')[0]}",
            next_step="add the missing files or remove their lines",
        )
    return {file: label for file, label in labels.items() if label is not None}, lines


def _rows(path: Path, next_step: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, [])
            if [cell.strip() for cell in header] != _HEADER:
                raise UserError(
                    f"the header is {','.join(header)!r}, not 'file,label'", place=f"{path} line 1", next_step=next_step
                )
            for row in reader:
                if row and len(row) != len(_HEADER):
                    hint = "; a file name that holds a comma needs quotes" if len(row) > len(_HEADER) else ""
                    raise UserError(
                        f"{len(row)} columns instead of 2{hint}",
                        place=f"{path} line {reader.line_num}",
                        next_step=next_step,
                    )
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", place=str(path), next_step="save it as CSV UTF-8") from error
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", place=str(path), next_step="check the rights of this file"
        ) from error
    except csv.Error as error:
        raise UserError(
            f"not a CSV file: {error}", place=f"{path} line {reader.line_num}", next_step=next_step
        ) from error


def _check_classes(where: dict[str, str], project: ProjectConfig) -> None:
    """``where`` maps each label that was found to a place where it was."""
    classes = project.data.classes
    for label in sorted(where):
        if classes is not None and label not in classes:
            near = difflib.get_close_matches(label, classes, n=1)
            raise UserError(
                f"the label {label!r} is not in data.classes" + (f"; did you mean {near[0]!r}?" if near else ""),
                place=where[label],
                next_step=f"correct it, or add it to data.classes ({', '.join(classes)})",
            )
    if len(where) == 1:
        label, place = next(iter(where.items()))
        raise UserError(
            f"only one class, {label!r} ({place}): there is nothing to tell apart",
            place="data.labels",
            next_step="label at least two classes, or none: without a labels.csv and with the files directly in data.source, "
            "or in its folder 'unlabeled'",
        )
