"""How a folder says what its files are: which may be images, and which label each has. The same on a disk and in S3.

A folder holds either class folders (``cat/1.png``: the first folder is the label), or files and a ``labels.csv`` with the
columns ``file,label``, or just files. Where there is a ``labels.csv`` it alone says the labels, and folders are only folders.
Files without a label lie beside the class folders, in a folder ``unlabeled``, or are not listed (or listed without label).
"""

from __future__ import annotations

import csv
import difflib
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TextIO

from ssl_core.config.project import ProjectConfig
from ssl_core.errors import UserError

LABELS_FILE = "labels.csv"
UNLABELED_FOLDERS = frozenset({"unlabeled", "unlabelled"})
MAX_BYTES = 256 * 2**20  # no image needs more, and a file is read in one piece
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
_UNLABELED = "without a labels.csv and with the files directly in data.source, or in its folder 'unlabeled'"
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
    document: str = ""
    """Items that are parts of one document name it: they stay on one side of the split."""


@dataclass(frozen=True)
class Table:
    """A CSV file of labels, wherever it lies."""

    place: str
    stamp: str
    """Changes with the content."""
    open: Callable[[], TextIO]
    """Raises ``OSError``, or the platform's error, where it cannot be read."""


def display_name(path: str) -> str:
    """A path as text: bytes that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def too_large(size: int, most: int | None) -> str:
    """The reason to refuse a file of ``size`` bytes; empty where it may be read."""
    return f"larger than {most // 2**20} MiB" if most is not None and size > most else ""


def is_sidecar(name: str) -> bool:
    """Whether a file lies beside images and is not meant as one."""
    return PurePosixPath(name).suffix.lower() in SIDECARS


def folder_labels(names: Sequence[str], root: str, separator: str = "/") -> tuple[dict[str, str], dict[str, str]]:
    """Labels by name, from class folders, and for each label where it was found."""
    labels = {}
    for name in names:
        folder, _, rest = name.partition(separator)
        if rest and folder.lower() not in (*UNLABELED_FOLDERS, "", ".", ".."):
            labels[name] = display_name(folder)
    return labels, {label: f"the folder {root.rstrip('/')}/{label}" for label in labels.values()}


def csv_labels(
    file: Table, names: Sequence[str], root: str, is_other: Callable[[str], bool], noun: str = "image"
) -> tuple[dict[str, str], dict[str, str]]:
    """Labels by name, from a CSV file, and for each label the line where it was found first.

    ``is_other``: whether a name stands for a file there that is not meant, as no ``noun``. Raises ``UserError`` that names the file and the line.
    """
    next_step = f"write the columns {','.join(_HEADER)}, one line a file, paths relative to {root}"
    known = {name: name for name in names}
    by_text = {unicodedata.normalize("NFC", display_name(name)): name for name in names}
    labels: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    missing: list[str] = []
    for line, row in islice(table_rows(file, [_HEADER], next_step), 1, None):
        place = f"{file.place} line {line}"
        written, label = row[0].strip(), row[1].strip() or None
        listed = PurePosixPath(written)
        if listed.is_absolute() or ".." in listed.parts:
            raise UserError(f"{written!r} leads out of the source folder", place=place, next_step=next_step)
        name = known.get(written) or known.get(str(listed)) or by_text.get(unicodedata.normalize("NFC", str(listed)))
        if name is None:
            missing.append(f"line {line}: {written!r}" + (f" is no {noun} file" if is_other(str(listed)) else ""))
            continue
        if name in labels and labels[name] != label:
            raise UserError(
                f"{written!r} is {label!r} here and {labels[name]!r} in line {lines[name]}",
                place=place,
                next_step="keep one of the two lines",
            )
        labels.setdefault(name, label)
        lines.setdefault(name, line)
    if missing:
        shown = "; ".join(missing[:_SHOWN]) + ("; ..." if len(missing) > _SHOWN else "")
        raise UserError(
            f"{len(missing)} listed file{'s are' if len(missing) > 1 else ' is'} not in {root}: {shown}",
            place=f"{file.place} {missing[0].split(':')[0]}",
            next_step="add the missing files or remove their lines",
        )
    labelled = {name: label for name, label in labels.items() if label is not None}
    return labelled, {label: f"{file.place} line {lines[name]}" for name, label in reversed(labelled.items())}


def table_rows(table: Table, headers: Sequence[Sequence[str]], next_step: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file with their numbers: first the header, which is one of ``headers``, then each row that is not blank.

    Raises ``UserError`` that names the file and the line.
    """
    try:
        with table.open() as text:
            reader = csv.reader(text, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if header not in [list(known) for known in headers]:
                raise UserError(
                    f"the header is {','.join(header)!r}, not {' or '.join(repr(','.join(known)) for known in headers)}",
                    place=f"{table.place} line 1",
                    next_step=next_step,
                )
            yield 1, header
            for row in reader:
                if row and len(row) != len(header):
                    hint = f"; a {header[0]} that holds a comma needs quotes" if len(row) > len(header) else ""
                    raise UserError(
                        f"{len(row)} columns instead of {len(header)}{hint}",
                        place=f"{table.place} line {reader.line_num}",
                        next_step=next_step,
                    )
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", place=table.place, next_step="save it as CSV UTF-8") from error
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", place=table.place, next_step="check the rights of this file"
        ) from error
    except csv.Error as error:
        raise UserError(
            f"not a CSV file: {error}", place=f"{table.place} line {reader.line_num}", next_step=next_step
        ) from error


def check_known(where: Mapping[str, str], project: ProjectConfig) -> None:
    """Raises ``UserError`` for a label outside ``data.classes``. ``where`` maps each label that was found to a place where it was."""
    classes = project.data.classes
    for label in sorted(where):
        if classes is not None and label not in classes:
            near = difflib.get_close_matches(label, classes, n=1)
            raise UserError(
                f"the label {label!r} is not in data.classes" + (f"; did you mean {near[0]!r}?" if near else ""),
                place=where[label],
                next_step=f"correct it, or add it to data.classes ({', '.join(classes)})",
            )


def check_classes(where: Mapping[str, str], project: ProjectConfig, unlabeled: str = _UNLABELED) -> None:
    """``check_known``; also raises ``UserError`` where all labels are the same. ``unlabeled`` says how to have none."""
    check_known(where, project)
    if len(where) == 1:
        label, place = next(iter(where.items()))
        raise UserError(
            f"only one class, {label!r} ({place}): there is nothing to tell apart",
            place="data.labels",
            next_step=f"label at least two classes, or none: {unlabeled}",
        )
