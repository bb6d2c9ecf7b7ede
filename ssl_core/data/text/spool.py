"""Where the texts of a source wait, as UTF-8 one behind the other, in a file that has no name and so is never left behind."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssl_core.data.text.encodings import bad_character
from ssl_core.store import storage_errors

_BUFFER = 2**20
_LOOK_BACK = 10
_JOINED = 64


class BadText(ValueError):
    """What is wrong with a text, and in which of its lines."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


class Spool:
    """Texts by their number. Reading is safe from any thread, once all are written."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "spool"
        with storage_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=_BUFFER)  # noqa: SIM115 - lives as long as this
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, pieces: Iterable[str], most: int, encoding: str) -> int:
        """Writes one text, cut into parts of at most ``most`` characters; how many these are. A blank text is one empty part.

        Raises ``BadText`` where it holds what no text may; nothing of it is kept then.
        """
        before, lines = len(self), 1
        try:
            for part in cut(pieces, most):
                bad = bad_character(part, encoding)
                if bad is not None:
                    raise BadText(bad[1], lines + part.count("\n", 0, bad[0]))
                lines += part.count("\n")
                if not part.isspace():
                    self._append(part.encode())
        except BadText:
            self._shorten(before)
            raise
        if len(self) == before:
            self._append(b"")
        return len(self) - before

    def add_none(self) -> None:
        """A number without a text."""
        self._ends.append(self._ends[-1])

    def finish(self) -> None:
        """Called when all is written."""
        with storage_errors(str(self._folder)):
            self._file.flush()

    def read(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        with storage_errors(str(self._folder)):
            return os.pread(self._file.fileno(), end - start, start)

    def _append(self, data: bytes) -> None:
        with storage_errors(str(self._folder)):
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def _shorten(self, count: int) -> None:
        if count == len(self):
            return
        del self._ends[count + 1 :]
        with storage_errors(str(self._folder)):
            self._file.seek(self._ends[-1])
            self._file.truncate()


def cut(pieces: Iterable[str], most: int) -> Iterator[str]:
    """The same text in parts of at most ``most`` characters, nothing lost; at most a part and a piece are held.

    Cut at a line end or a blank in the last tenth of a part, else between characters that are drawn apart.
    """
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size <= most:
            continue
        text, start = "".join(held), 0
        while len(text) - start > most:
            end = _cut_at(text, start, start + most)
            yield text[start:end]
            start = end
        held = [text[start:]]
        size = len(held[0])
    if size:
        yield "".join(held)


def _cut_at(text: str, start: int, end: int) -> int:
    low = end - (end - start) // _LOOK_BACK
    line_end = text.rfind("\n", low, end)
    if line_end >= 0:
        return line_end + 1
    blank = next((place for place in range(end, low, -1) if text[place - 1].isspace()), 0)
    return blank or next(
        (place for place in range(end, max(start, end - _JOINED), -1) if not _is_joined(text, place)), end
    )


def _is_joined(text: str, place: int) -> bool:
    """Whether the characters on both sides of a place are drawn as one: marks, joined emoji, flags, vowels and finals of Hangul."""
    import unicodedata

    before, after = text[place - 1], text[place]
    return (
        unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf")
        or before == "\u200d"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff")
        or "\u1160" <= after <= "\u11ff"
    )
