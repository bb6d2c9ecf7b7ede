"""Texts as a source: files on this machine or in S3, a bundled sample, and triples of a knowledge graph that become texts too.

All files are read once, as a stream: each text goes to a spool in the cache as UTF-8, so that reading it again is random access
and what ingest sees is one state of the source. The cache needs room for the texts once; memory holds some forty bytes for
each, and never a whole file. Nothing of the spool is left behind, however the process ends.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from ssl_core.config.data import TextDataConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.data.files import Files, Rules, open_files
from ssl_core.data.folder_files import local_table
from ssl_core.data.layout import LABELS_FILE, Item, Refused, Table, display_name
from ssl_core.data.sources import SampleSource, Source
from ssl_core.data.text.files import READERS, Found, Reading, ending
from ssl_core.data.text.labels import Labels
from ssl_core.data.text.spool import BadText, Spool
from ssl_core.data.text.triples import numbered_triples, sentence
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import Bar, NoProgress, Progress

RULES = Rules(
    "texts", wanted=lambda name: ending(name) in READERS, most_bytes=None, one_file=True, endings=tuple(READERS)
)
_SHOWN_EVERY = 1000
_NO_LABEL = -1


def open_texts(project: ProjectConfig, cache: Path | None = None) -> Source:
    """The source of a project on texts; ``cache`` is where downloads and the spool are kept (default: the settings').

    Raises ``UserError`` where it is missing, empty or wrongly labelled.
    """
    config = project.data
    assert isinstance(config, TextDataConfig)
    source: Source
    if config.source.startswith("sample://"):
        source = SampleSource(config.source.removeprefix("sample://"), project, cache)
        triples = _table(config.triples) if config.triples else None
    else:
        files = open_files(config.source, RULES, cache)
        triples = files.table("data.triples", config.triples) if config.triples else None
        source = TextSource(project, files, cache or Settings().cache)
    return TriplesToo(source, triples) if triples else source


def _table(asked: str) -> Table:
    if asked.startswith("s3://"):
        from ssl_core.data.s3_files import s3_table

        return s3_table(asked, "data.triples")
    return local_table(Path(asked), "data.triples")


class TextSource:
    """See ``Source``. ``sync`` reads all files; whoever asks for a text or their number before causes that too."""

    def __init__(self, project: ProjectConfig, files: Files, cache: Path) -> None:
        assert isinstance(project.data, TextDataConfig)
        self._project = project
        self._config = project.data
        self._files = files
        self._cache = cache
        self._table = files.table("data.labels", self._config.labels, LABELS_FILE)
        files.require_some()
        self._texts: _Texts | None = None

    def __len__(self) -> int:
        return len(self._read_all())

    def items(self) -> Iterator[Item]:
        """Each text, in the order of the files' names and of the lines in them; parts of one text share its ``document``."""
        return self._read_all().items()

    def fingerprint(self) -> str:
        return self._files.fingerprint([self._table])

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        """Fetches what lies elsewhere, then reads all files. Raises ``UserError`` where there is no text, or a label is wrong."""
        fetched = self._files.sync(progress, stop)
        self._texts = self._scan(progress, stop)
        return fetched

    def _read_all(self) -> _Texts:
        if self._texts is None:
            self.sync(NoProgress(), threading.Event())
        assert self._texts is not None
        return self._texts

    def _scan(self, progress: Progress, stop: threading.Event) -> _Texts:
        labels = Labels(self._project, self._files, self._table)
        texts = _Texts(Spool(self._cache), self._config)
        reading = Reading(self._config, labels.columns)
        total = sum(self._files.size(name) for name in self._files.names)
        with progress.bar("read texts", round(total / 1e6, 3), "MB") as bar:
            for name in self._files.names:
                self._scan_file(name, texts, labels, reading, bar, stop)
        texts.finish()
        refused = texts.first_refused()
        if refused:
            raise UserError(
                f"no text in {self._files.root} can be used ({len(texts):,} looked at); {refused}",
                place="data.source",
                next_step="mend this, in the project's data section or in the file",
            )
        labels.finish()
        if not len(texts):
            raise UserError(
                f"no texts in {self._files.root}: its files are empty",
                place="data.source",
                next_step="put texts there, one a line, one a row or one a file",
            )
        if self._files.ignored:
            progress.note(
                f"{self._files.ignored:,} files are left out: texts are in {', '.join(sorted(READERS))} files only"
            )
        return texts

    def _scan_file(
        self, name: str, texts: _Texts, labels: Labels, reading: Reading, bar: Bar, stop: threading.Event
    ) -> None:
        shown_name = display_name(name)
        number = texts.add_file(shown_name)
        place = f"{self._files.root}{self._files.separator}{shown_name}"
        word = "row" if ending(name) == ".parquet" else "line"
        shown, since = 0, 0
        try:
            with self._files.open(name) as raw:
                for found in READERS[ending(name)](raw, reading):
                    _check_stop(stop, place)
                    texts.take(number, found, labels, place, word, stop)
                    since += 1
                    if since >= _SHOWN_EVERY and word == "line":
                        bar.advance((raw.tell() - shown) / 1e6, texts=f"{len(texts):,}")
                        shown, since = raw.tell(), 0
        except Refused as error:
            texts.refuse(number, 0, str(error))
            labels.unidentified(shown_name)
        except OSError as error:
            raise TryAgain(
                f"the source cannot be read: {error.strerror or error}",
                place=place,
                next_step="run again once it answers",
            ) from error
        else:
            if not self._files.is_unchanged(name):
                raise TryAgain(
                    "the file changed while it was being read; nothing was committed",
                    place=place,
                    next_step="run again once the source is at rest",
                )
        bar.advance((self._files.size(name) - shown) / 1e6, texts=f"{len(texts):,}")


class _Texts:
    """What was found, in columns: some forty bytes a text."""

    def __init__(self, spool: Spool, config: TextDataConfig) -> None:
        self._spool = spool
        self._config = config
        self._names: list[str] = []
        self._files = array("l")
        self._numbers = array("Q")
        self._parts = array("L")
        self._labels = array("l")
        self._label_numbers: dict[str, int] = {}
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._spool)

    def add_file(self, name: str) -> int:
        self._names.append(name)
        return len(self._names) - 1

    def take(self, file: int, found: Found, labels: Labels, place: str, word: str, stop: threading.Event) -> None:
        """Keeps one text, or the reason why not."""
        name = self._name(file, found.number)
        if found.problem:
            self.refuse(
                file, found.number, f"{word} {found.number}: {found.problem}" if found.number else found.problem
            )
            labels.unidentified(name)
            return
        where = f"{place} {word} {found.number}" if found.number else place
        label = labels.of(self._names[file], name, where, found.label, found.identity)
        pieces = _stoppable(found.pieces, stop, place)
        try:
            parts = self._spool.add(pieces, self._config.max_characters, self._config.encoding)
        except BadText as error:
            self.refuse(file, found.number, f"{word} {found.number or error.line}: {error}")
            return
        for part in range(1, parts + 1):
            self._append(file, found.number, part, label)

    def refuse(self, file: int, number: int, reason: str) -> None:
        self._reasons[len(self)] = reason.encode(errors="backslashreplace").decode()
        self._spool.add_none()
        self._append(file, number, 1, None)

    def first_refused(self) -> str:
        """The first file and reason where all were refused: a setting or the whole source is wrong, not some texts of it."""
        if not self._reasons or len(self._reasons) < len(self):
            return ""
        return f"{self._name(self._files[0], self._numbers[0])}: {self._reasons[0]}"

    def finish(self) -> None:
        self._spool.finish()

    def items(self) -> Iterator[Item]:
        labels = list(self._label_numbers)
        for row in range(len(self)):
            document = self._name(self._files[row], self._numbers[row])
            part, label = self._parts[row], self._labels[row]
            in_parts = part > 1 or (row + 1 < len(self) and self._parts[row + 1] == 2)
            yield Item(
                f"{document}#{part}" if part > 1 else document,
                None if label == _NO_LABEL else labels[label],
                partial(self._read, row),
                document if in_parts else "",
            )

    def _read(self, row: int) -> bytes:
        if row in self._reasons:
            raise Refused(self._reasons[row])
        return self._spool.read(row)

    def _name(self, file: int, number: int) -> str:
        return f"{self._names[file]}:{number}" if number else self._names[file]

    def _append(self, file: int, number: int, part: int, label: str | None) -> None:
        self._files.append(file)
        self._numbers.append(number)
        self._parts.append(part)
        known = self._label_numbers
        self._labels.append(_NO_LABEL if label is None else known.setdefault(label, len(known)))


class TriplesToo:
    """A source, and behind it each triple of a knowledge graph as a text without label. See ``Source``."""

    def __init__(self, source: Source, table: Table) -> None:
        self._source = source
        self._table = table

    @cached_property
    def _sentences(self) -> list[tuple[int, str]]:
        return [(line, sentence(triple)) for line, triple in numbered_triples(self._table.open, self._table.place)]

    def __len__(self) -> int:
        return len(self._source) + len(self._sentences)

    def items(self) -> Iterator[Item]:
        """The texts, then the triples, named by file and line."""
        yield from self._source.items()
        name = PurePosixPath(self._table.place).name
        for line, text in self._sentences:
            yield Item(f"{name}:{line}", None, text.encode)

    def fingerprint(self) -> str:
        both = f"{self._source.fingerprint()}\0{self._table.place}\0{self._table.stamp}"
        return hashlib.sha256(both.encode(errors="surrogateescape")).hexdigest()

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        found = len(self._sentences)  # a mistake in the file is told before the long reading
        progress.note(f"{found:,} triples of {self._table.place} become texts")
        return self._source.sync(progress, stop)


def _stoppable(pieces: Iterable[str], stop: threading.Event, place: str) -> Iterator[str]:
    for piece in pieces:
        _check_stop(stop, place)
        yield piece


def _check_stop(stop: threading.Event, place: str) -> None:
    if stop.is_set():
        raise TryAgain(
            "told to stop while reading the texts; nothing was committed", place=place, next_step="run again"
        )
