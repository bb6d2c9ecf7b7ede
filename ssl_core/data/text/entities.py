"""Entities that a team knows (a gazetteer, or the nodes of a knowledge graph): read, written in tokens, found in texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
