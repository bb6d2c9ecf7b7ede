"""What ``ssl-core embed`` reads: the texts of files, or images, each with an id, a batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, TypeVar

from ssl_core.config.data import TextDataConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.data.files import Files, Rules, open_files
from ssl_core.data.layout import Refused, display_name
from ssl_core.errors import UserError
from ssl_core.step import Progress
from ssl_core.validation.report import printable

T = TypeVar("T")

_SHOWN = 5
_SHOWN_EVERY = 1000

Batch = tuple[list[str], Sequence[str | bytes]]
"""Ids, and what a served model is sent."""


class Rows(Protocol):
    """Samples in the order of the files' names and of the rows in them."""

    def __len__(self) -> int: ...
    def batches(self, size: int) -> Iterator[Batch]:
        """All of them, ``size`` at a time. Raises ``UserError`` where one cannot be read."""
        ...


def open_rows(
    modality: str, asked: str, project: ProjectConfig | None, column: str | None, cache: Path, progress: Progress
) -> Rows:
    """The samples in a file or folder, ``asked``, here or in S3.

    Texts are read as ingest reads them, once before anything is embedded: whatever cannot be used is an error that names
    it. Raises ``UserError`` for that, and where there is no such file or column, or nothing in it.
    """
    if modality == "text":
        return _Texts(asked, project, column, cache, progress)
    if column is not None:
        raise UserError("images have no columns", place="--column", next_step="leave it out")
    return _Images(asked, cache, progress)


class _Images:
    """One a file; the id is its name."""

    def __init__(self, asked: str, cache: Path, progress: Progress) -> None:
        from ssl_core.data.image_source import RULES

        self._files = _open(asked, replace(RULES, one_file=True), cache, progress)
        self._asked = asked

    def __len__(self) -> int:
        return len(self._files.names)

    def batches(self, size: int) -> Iterator[Batch]:
        for names in _batched(self._files.names, size):
            yield [display_name(name) for name in names], [self._read(name) for name in names]

    def _read(self, name: str) -> bytes:
        try:
            return self._files.read(name)
        except Refused as error:
            raise UserError(f"{printable(display_name(name))}: {error}", place=self._asked, next_step=_MEND) from error


_MEND = "mend or remove it, then run the same command again"


class _Texts:
    """One a line of a .txt file, one a row of the others (of a folder's .txt files, what ``data.unit`` says).

    The id is the file's name and the line, as ingest has it; or what the column of ``data.id`` holds, where there is one.
    """

    def __init__(
        self, asked: str, project: ProjectConfig | None, column: str | None, cache: Path, progress: Progress
    ) -> None:
        from ssl_core.data.text.source import RULES

        self._files = _open(asked, RULES, cache, progress)
        self._asked = asked
        known = project.data if project else None
        config = known if isinstance(known, TextDataConfig) else TextDataConfig(source=asked)
        # No label is looked at, whatever a column is called: those who embed may have none, or others.
        changes = {"text": column or config.text, "label": None, "id": None}
        self._config = config.model_copy(update=changes | ({"unit": "line"} if self._files.is_one else {}))
        if config.id and config.id in self._columns():
            self._config = self._config.model_copy(update={"id": config.id})
        self._count = self._check(progress)

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Batch]:
        for part in _batched(self._all(), size):
            if bad := [row for row in part if row[2]]:
                raise self._refusal(bad, len(bad), "changed while it was read")
            yield [name for name, _, _ in part], [text for _, text, _ in part]

    def _check(self, progress: Progress) -> int:
        """How many texts there are; raises where one of them cannot be used, with the first few by name."""
        count = bad = 0
        shown: list[tuple[str, str, str]] = []
        with progress.bar("read", None, "texts") as bar:
            for row in self._all():
                count += 1
                if row[2]:
                    bad += 1
                    shown = [*shown, row][:_SHOWN]
                if count % _SHOWN_EVERY == 0:
                    bar.advance(_SHOWN_EVERY)
        if bad:
            raise self._refusal(shown, bad, "")
        if not count:
            raise UserError("no text in it", place=self._asked, next_step="name a file with one text a line or a row")
        return count

    def _refusal(self, shown: list[tuple[str, str, str]], bad: int, why: str) -> UserError:
        rows = "; ".join(f"{printable(name)}: {printable(problem, 200)}" for name, _, problem in shown)
        more = f"; and {bad - len(shown):,} more" if bad > len(shown) else ""
        what = f"{bad:,} text{'' if bad == 1 else 's'} cannot be used" + (f" ({why})" if why else "")
        return UserError(f"{what}: {rows}{more}", place=self._asked, next_step=_MEND)

    def _columns(self) -> set[str]:
        """The names in the first file's header or first object."""
        from ssl_core.data.text.files import READERS, Reading, ending

        names: list[str] = []
        first = self._files.names[0]
        try:
            with self._files.open(first) as raw:
                next(iter(READERS[ending(first)](raw, Reading(self._config, names.extend))), None)
        except Refused:
            return set()  # the check says so
        return set(names)

    def _all(self) -> Iterator[tuple[str, str, str]]:
        return chain.from_iterable(map(self._in_file, self._files.names))

    def _in_file(self, name: str) -> Iterator[tuple[str, str, str]]:
        """Id, text and what is wrong with it, of all in one file."""
        from ssl_core.data.text.encodings import bad_character
        from ssl_core.data.text.files import READERS, Reading, ending

        shown = display_name(name)
        try:
            with self._files.open(name) as raw:
                for found in READERS[ending(name)](raw, Reading(self._config, lambda names: None)):
                    where = f"{shown}:{found.number}" if found.number else shown
                    if found.problem:
                        # What a project file would set is here an option.
                        yield where, "", found.problem.replace("set data.text", "name it with --column")
                        continue
                    text, problem = _joined(found.pieces)
                    if (bad := bad_character(text, self._config.encoding)) is not None:
                        problem = bad[1]
                    yield where if found.identity is None else str(found.identity), text, problem
        except Refused as error:
            yield shown, "", str(error)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _joined(pieces: Iterator[str] | Sequence[str]) -> tuple[str, str]:
    """A text in one piece, and what is wrong with it."""
    from ssl_core.serving.texts import MAX_CHARACTERS

    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_CHARACTERS:
            return "", f"more than {MAX_CHARACTERS:,} characters"
        parts.append(piece)
    text = "".join(parts)
    return text, "" if text.strip() else "there is no text in it"


def _open(asked: str, rules: Rules, cache: Path, progress: Progress) -> Files:
    """The files in ``asked``, brought here."""
    if "://" not in asked and not Path(asked).exists():
        raise UserError("no such file or folder", place=asked, next_step=f"name a file or folder with {rules.noun}")
    try:
        files = open_files(asked, rules, cache)
        if not files.names:
            raise UserError(f"no {rules.noun} there" + (f" ({files.ignored:,} other files)" if files.ignored else ""))
        files.sync(progress, threading.Event())
    except UserError as error:
        raise UserError(error.cause, place=asked, next_step=_next_step(rules)) from error
    return files


def _next_step(rules: Rules) -> str:
    if rules.noun != "texts":
        return "name a file or folder with images"
    from ssl_core.data.text.files import READERS

    return f"name a file or folder with texts: {', '.join(READERS)}"
