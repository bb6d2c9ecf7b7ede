"""Entities that a team knows (a gazetteer, or the nodes of a knowledge graph): read, written in tokens, found in texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ssl_core.data.text.triples import read_triples
from ssl_core.errors import UserError

_log = logging.getLogger(__name__)
_LONGEST_NAME = 1000
"""Characters of a line; what is longer is no name, and the file probably not a list of names."""
_NEXT_STEP = "write one entity a line (UTF-8), or triples as .csv or .tsv: subject, relation, object"


class _Tokenizer(Protocol):
    @property
    def unk_id(self) -> int: ...
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


def load_entities(path: Path) -> list[str]:
    """The names of a file, each once, in the file's order, without surrounding blanks.

    ``.csv`` and ``.tsv`` are triples, whose subjects and objects are the entities; anything else has one name a line, where
    empty lines and comments (``#`` and a blank, or ``#`` alone: ``#hashtag`` is a name) do not count.
    Raises ``UserError`` that names file and line: no such file, not UTF-8, a NUL, an endless line, no entity at all.
    """
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        names = [name for subject, _, object_ in read_triples(path) for name in (subject, object_)]
    else:
        names = _read_lines(path)
    if not names:
        raise UserError("holds no entity", place=str(path), next_step=_NEXT_STEP)
    return list(dict.fromkeys(names))


def _read_lines(path: Path) -> list[str]:
    names = []
    number = 0
    try:
        with path.open("rb") as lines:
            while line := lines.readline(8 * _LONGEST_NAME):
                number += 1
                name = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if len(name) > _LONGEST_NAME or "\0" in name:
                    what = "holds a NUL character" if "\0" in name else f"more than {_LONGEST_NAME} characters"
                    raise UserError(what, place=f"{path} line {number}", next_step=_NEXT_STEP)
                if name and name != "#" and not (name[0] == "#" and name[1].isspace()):
                    names.append(name)
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", place=f"{path} line {number}", next_step="save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", place=str(path), next_step=_NEXT_STEP) from error
    return names


def entity_ids(names: Sequence[str], tokenizer: _Tokenizer) -> list[list[int]]:
    """The names in tokens, as they stand at the start of a word; each form once.

    A byte-level tokenizer may write a name otherwise after a blank than at the start of a text: then both forms are given.
    Names with an unknown token are left out, because they would match any other unknown word; a warning counts them.
    """
    forms: dict[tuple[int, ...], None] = {}
    left_out = 0
    for ids, after_blank in zip(tokenizer.encode(names), tokenizer.encode([f" {name}" for name in names]), strict=True):
        if not ids or tokenizer.unk_id in ids:
            left_out += 1
            continue
        forms[tuple(ids)] = None
        forms[tuple(after_blank)] = None
    if left_out:
        _log.warning(
            "%d of %d entities are left out: the tokenizer does not know their characters", left_out, len(names)
        )
    return [list(form) for form in forms]


class EntityFinder:
    """Finds entities, given as token ids, in sequences of tokens.

    An exact trie that all candidates walk at once: a node and a token together make one number, and a sorted table of
    these numbers gives the next node. ``ordinary`` ``(V,)`` says which tokens of the vocabulary are not special; entities
    with a special token in them are left out, and so are empty ones. Raises ``ValueError`` for a token outside the vocabulary.
    """

    def __init__(self, entities: Sequence[Sequence[int]], ordinary: np.ndarray) -> None:
        self._ordinary = np.asarray(ordinary, dtype=bool)
        self._size = len(ordinary)
        usable = {tuple(int(token) for token in entity) for entity in entities if len(entity)}
        if any(not 0 <= token < self._size for entity in usable for token in entity):
            raise ValueError(f"an entity has a token outside the vocabulary of {self._size}")
        self.entities = sorted(entity for entity in usable if all(ordinary[token] for token in entity))
        """The entities that can be found, each once."""
        self.longest = max(map(len, self.entities), default=0)
        children: dict[int, int] = {}
        complete = [False]
        for entity in self.entities:
            node = 0
            for token in entity:
                key = node * self._size + token
                if key not in children:
                    children[key] = len(complete)
                    complete.append(False)
                node = children[key]
            complete[node] = True
        self._keys = np.array(sorted(children), dtype=np.int64)
        self._nodes = np.array([children[key] for key in self._keys.tolist()], dtype=np.int64)
        self._complete = np.array(complete)
        self._first = np.zeros(self._size, dtype=np.int64)
        """The node after a first token, 0 for none: almost all candidates end here."""
        here = self._keys < self._size
        self._first[self._keys[here]] = self._nodes[here]

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where entities begin ``(E,)``, ascending, and how many tokens each has ``(E,)``.

        ``begins`` ``(T,)``: a word begins at this token; False at special tokens. An entity begins with a word, ends with a
        word, and lies within one of the sequences of ``lengths`` ``(N,)``. None overlaps another: the longest wins, of
        equally long ones the first.
        """
        ids = np.asarray(ids, dtype=np.int64)
        edge = np.append(begins | ~self._ordinary[ids], True)
        lengths = np.asarray(lengths)
        stops = np.cumsum(lengths)
        edge[stops] = True
        starts = np.flatnonzero(begins & (self._first[ids] > 0))
        nodes = self._first[ids[starts]]
        stop = stops[np.searchsorted(stops, starts, side="right")]
        found: list[np.ndarray] = []
        for depth in range(1, self.longest + 1):
            found.append(starts[self._complete[nodes] & edge[starts + depth]])
            inside = starts + depth < stop
            starts, nodes, stop = starts[inside], nodes[inside], stop[inside]
            keys = nodes * self._size + ids[starts + depth]
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            known = self._keys[at] == keys
            starts, nodes, stop = starts[known], self._nodes[at[known]], stop[known]
        return _longest_first(found, len(ids))


def _longest_first(found: list[np.ndarray], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the finds, ``found[l - 1]`` the starts of those of l tokens, the ones that stay: starts and sizes."""
    taken = np.zeros(tokens, dtype=bool)
    sizes = np.zeros(tokens, dtype=np.int64)
    for size in range(len(found), 0, -1):
        starts = found[size - 1]
        # whatever is taken is at least as long, so it cannot lie strictly inside
        starts = starts[~taken[starts] & ~taken[starts + size - 1]]
        starts = starts[_one_after_the_other(starts, size)]
        sizes[starts] = size
        taken[(starts[:, None] + np.arange(size)).ravel()] = True
    kept = np.flatnonzero(sizes)
    return kept, sizes[kept]


def _one_after_the_other(starts: np.ndarray, size: int) -> np.ndarray:
    """bool: from the first on, each that begins after the end of the one kept before it; in log2(n) rounds.

    Each start points to the next that it does not overlap; the kept ones are those on the way from the first, and the
    pointers double in length each round.
    """
    kept = np.zeros(len(starts) + 1, dtype=bool)
    kept[0] = True
    pointers = np.append(np.searchsorted(starts, starts + size), len(starts))
    for _ in range(len(starts).bit_length()):
        kept[pointers[kept]] = True
        pointers = pointers[pointers]
    return kept[:-1]
