"""A knowledge graph as a file of triples, and each triple as a sentence.

The file is CSV or TSV in UTF-8, three columns a line: subject, relation, object; a first line ``subject,relation,object`` is a
header. The name's ending says which of the two it is; where it is neither ``.csv`` nor ``.tsv``, a tab in the first line does.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TextIO

from ssl_core.errors import UserError

Triple = tuple[str, str, str]

_HEADER = ("subject", "relation", "object")
_NEXT_STEP = "write three columns a line: subject, relation, object (CSV or TSV, UTF-8)"
# Between a small letter or digit and a capital (bornIn), and between capitals and a capitalised word (URLPath).
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=\d)(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def read_triples(path: Path) -> list[Triple]:
    """All triples of a file on this machine, in its order, without surrounding blanks.

    Raises ``UserError`` that names the file and the line: no such file, not UTF-8, not three columns, an empty cell.
    """
    return [triple for _, triple in numbered_triples(partial(_open, Path(path)), str(path))]


def numbered_triples(open_text: Callable[[], TextIO], place: str) -> Iterator[tuple[int, Triple]]:
    """The triples of whatever ``open_text`` opens (with ``newline=""``), each with its line; ``place`` is the file's name.

    Raises as ``read_triples`` does.
    """
    line = 0
    try:
        with open_text() as text:
            first = text.readline()
            tabs = place.lower().endswith(".tsv") or (not place.lower().endswith(".csv") and "\t" in first)
            reader = csv.reader(chain([first] if first else [], text), delimiter="\t" if tabs else ",", strict=True)
            for row in reader:
                line = reader.line_num
                cells = tuple(cell.strip() for cell in row)
                if not any(cells) or (line == 1 and tuple(cell.lower() for cell in cells) == _HEADER):
                    continue
                yield line, _triple(cells, f"{place} line {line}")
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", place=f"{place} after line {line}", next_step="save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"cannot be split into columns: {error}", place=f"{place} after line {line}", next_step=_NEXT_STEP) from error  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", place=place, next_step=f"set the key to a file; {_NEXT_STEP}") from error  # fmt: skip


def sentence(triple: Triple) -> str:
    """``("Marie Curie", "wasBornIn", "Warsaw")`` as ``Marie Curie was born in Warsaw``: the relation is split into words."""
    subject, relation, object_ = triple
    return f"{subject} {relation_words(relation)} {object_}"


def relation_words(relation: str) -> str:
    """``wasBornIn``, ``was_born_in`` and ``was born in`` are the same words; abbreviations in capitals stay (``has URL``)."""
    words = _CAMEL.sub(" ", relation.replace("_", " ")).split()
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words) or relation


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")


def _triple(cells: tuple[str, ...], place: str) -> Triple:
    if len(cells) != 3:
        hint = "; a comma inside a name needs quotes" if len(cells) > 3 else ""
        raise UserError(
            f"{len(cells)} column{'s' if len(cells) > 1 else ''} instead of 3{hint}", place=place, next_step=_NEXT_STEP
        )
    empty = [name for name, cell in zip(_HEADER, cells, strict=True) if not cell]
    if empty:
        raise UserError(f"the {empty[0]} is empty", place=place, next_step=_NEXT_STEP)
    if any("\0" in cell for cell in cells):
        raise UserError("holds a NUL character", place=place, next_step=_NEXT_STEP)
    return cells[0], cells[1], cells[2]
