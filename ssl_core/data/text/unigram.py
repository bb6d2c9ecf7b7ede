"""Learns the pieces of a Unigram language model (Kudo 2018), the same ones from the same words whatever runs beside it.

A word is a sequence of pieces, independent of one another: P(word) = sum over its segmentations of prod p(piece). EM raises the
likelihood of the corpus; pieces that cost it least when they go are dropped until ``size`` are left. The tokenizers library has
such a trainer, but there hash order and threads decide ties and last digits, so that two runs make two files.

All words are read at once, position by position: W words, E edges (places where a piece fits), n pieces. In place of the best
other segmentation of a piece, its loss counts all others. https://arxiv.org/abs/1804.10959
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LONGEST_WORD = 24
"""Longer words are learned from in parts of so many characters; so short, no probability of a word underflows."""
_LONGEST_PIECE = 16
_SHRINKING = 0.75
_SEEDS = 10
_SURPLUS = 1.1
"""At the end the likeliest are taken out of a few more than are wanted."""
_FLOOR = 1e-9


@dataclass(frozen=True)
class _Lattice:
    """Where pieces fit into words. Words are numbered from the longest to the shortest, so that those that reach a position come first."""

    words: int
    ends: list[np.ndarray]
    """``ends[t]``: the words of length t."""
    start: np.ndarray
    """``(E,)`` int64 the position at which an edge begins; edges are in the order (stop, word, start)."""
    stop: np.ndarray
    word: np.ndarray
    piece: np.ndarray
    counts: np.ndarray
    """``(W,)`` float64: how often each word occurs."""

    def only(self, kept: np.ndarray) -> _Lattice:
        """With the pieces where ``kept`` ``(n,)`` is true, numbered anew."""
        chosen = kept[self.piece]
        number = np.cumsum(kept) - 1
        return _Lattice(
            self.words, self.ends, self.start[chosen], self.stop[chosen], self.word[chosen],
            number[self.piece[chosen]], self.counts,
        )  # fmt: skip

    def steps(self, by: np.ndarray) -> list[slice]:
        """The edges that share one value of ``by``, which ascends: 0, 1, 2, ..."""
        bounds = np.searchsorted(by, np.arange(len(self.ends) + 1))
        return [slice(int(a), int(b)) for a, b in pairwise(bounds)]

    def forward(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``alpha`` ``(positions, W)``, the probability of each beginning of each word, and that of whole words ``(W,)``."""
        alpha = np.zeros((len(self.ends), self.words))
        alpha[0] = 1
        for stop, edges in enumerate(self.steps(self.stop)):
            if stop:
                flow = alpha[self.start[edges], self.word[edges]] * p[self.piece[edges]]
                alpha[stop] = np.bincount(self.word[edges], weights=flow, minlength=self.words)
        whole = np.zeros(self.words)
        for stop, words in enumerate(self.ends):
            whole[words] = alpha[stop, words]
        return alpha, whole

    def expected(self, p: np.ndarray) -> np.ndarray:
        """How often each piece is used ``(n,)``: over all segmentations, weighted by their probability."""
        alpha, whole = self.forward(p)
        beta = np.zeros_like(alpha)
        for stop, words in enumerate(self.ends):
            beta[stop, words] = 1
        order = np.argsort(self.start, kind="stable")
        slices = self.steps(self.start[order])
        for position in range(len(self.ends) - 1, -1, -1):
            edges = order[slices[position]]
            flow = beta[self.stop[edges], self.word[edges]] * p[self.piece[edges]]
            beta[position] += np.bincount(self.word[edges], weights=flow, minlength=self.words)
        share = np.divide(self.counts, whole, out=np.zeros_like(whole), where=whole > 0)
        use = alpha[self.start, self.word] * p[self.piece] * beta[self.stop, self.word] * share[self.word]
        return np.bincount(self.piece, weights=use, minlength=len(p))


def learn(words: Mapping[str, int], size: int, required: Sequence[str]) -> list[tuple[str, float]]:
    """At most ``size`` pieces with their log probabilities, the likeliest first; ``required`` (single characters) are among them.

    ``words`` are counted, each with the mark of the space before it. Fewer pieces come where the words have no more.
    """
    counted: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(0, len(word), LONGEST_WORD):
            counted[word[start : start + LONGEST_WORD]] += count
    pieces, weights = _seeds(counted, max(size * _SEEDS, 10_000), required)
    single = np.asarray([len(piece) == 1 for piece in pieces])
    lattice = _lattice(counted, pieces)
    p = weights / weights.sum()
    size = max(size, int(single.sum()))
    enough = int(_SURPLUS * size)
    while True:
        for _ in range(2):
            p = _maximise(lattice.expected(p), single)
        if len(pieces) <= enough:
            break
        room = max(enough, int(_SHRINKING * len(pieces)))
        kept = _worth_keeping(pieces, p, lattice.expected(p), single, room)
        pieces = [piece for piece, keep in zip(pieces, kept, strict=True) if keep]
        lattice, single = lattice.only(kept), single[kept]
        p = p[kept] / p[kept].sum()
    order = sorted(range(len(pieces)), key=lambda i: (not single[i], -p[i], pieces[i]))[:size]
    kept = np.zeros(len(pieces), dtype=bool)
    kept[[i for i in order if single[i] or p[i] > _FLOOR]] = True
    p = _maximise(lattice.only(kept).expected(p[kept] / p[kept].sum()), single[kept])
    left = [piece for piece, keep in zip(pieces, kept, strict=True) if keep]
    scored = [(piece, round(math.log(value), 6)) for piece, value in zip(left, p.tolist(), strict=True)]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


def _seeds(counted: Counter[str], most: int, required: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Substrings that occur at least twice, by count times length, beside the required characters; and their counts."""
    found: Counter[str] = Counter()
    for word, count in counted.items():
        for start in range(len(word)):
            for stop in range(start + 2, min(len(word), start + _LONGEST_PIECE) + 1):
                found[word[start:stop]] += count
    characters: Counter[str] = Counter()
    for word, count in counted.items():
        for character in word:
            characters[character] += count
    alone = set(required)
    longer = [
        (piece, count)
        for piece, count in found.items()
        if count > 1 and _is_one_kind(piece) and alone.issuperset(piece)
    ]
    longer.sort(key=lambda pair: (-pair[1] * len(pair[0]), pair[0]))
    chosen = [(character, max(1, characters[character])) for character in sorted(alone)] + longer[:most]
    return [piece for piece, _ in chosen], np.asarray([count for _, count in chosen], dtype=np.float64)


def _is_one_kind(piece: str) -> bool:
    """Letters and digits, or neither: "good" and "good," must not be two tokens. The space mark goes with both."""
    body = piece[1:] if piece[0] == "▁" else piece
    return "▁" not in body and (body.isalnum() or not any(map(str.isalnum, body)))


def _lattice(counted: Counter[str], pieces: list[str], *, whole: bool = True) -> _Lattice:
    """Where ``pieces`` fit into the words; without ``whole``, a piece does not stand for a word by itself."""
    number = {piece: i for i, piece in enumerate(pieces)}
    words = sorted(counted, key=lambda word: (-len(word), word))
    longest = len(words[0]) if words else 0
    edges = array("i")  # as a list of tuples they would take twenty times the memory
    for place, word in enumerate(words):
        for stop in range(1, len(word) + 1):
            for start in range(max(0, stop - _LONGEST_PIECE), stop):
                piece = number.get(word[start:stop])
                if piece is not None and (whole or stop - start < len(word)):
                    edges.extend((stop, place, start, piece))
    table = np.frombuffer(edges, dtype=np.int32).reshape(-1, 4).astype(np.int64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    lengths = np.asarray([len(word) for word in words], dtype=np.int64)
    return _Lattice(
        len(words), [np.flatnonzero(lengths == t) for t in range(longest + 1)], table[:, 2], table[:, 0], table[:, 1],
        table[:, 3], np.asarray([counted[word] for word in words], dtype=np.float64),
    )  # fmt: skip


def _maximise(expected: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Probabilities from expected counts; the digamma function takes from rare pieces (a sparse Dirichlet prior)."""
    from scipy.special import digamma

    used = np.maximum(expected, 0.5 * single)  # a required character stays possible
    weight = np.where(used > 0, np.exp(digamma(np.maximum(used, 1e-3))), 0)
    return np.maximum(weight / weight.sum(), _FLOOR)


def _worth_keeping(pieces: list[str], p: np.ndarray, expected: np.ndarray, single: np.ndarray, room: int) -> np.ndarray:
    """The ``room`` pieces whose loss would cost the likelihood most, single characters first; ``(n,)`` bool."""
    longer = np.flatnonzero(~single)
    spelled = Counter({pieces[i]: 1 for i in longer})
    lattice = _lattice(spelled, pieces, whole=False)
    _, other = lattice.forward(p)
    order = sorted(spelled, key=lambda word: (-len(word), word))
    by_piece = dict(zip(order, other.tolist(), strict=True))
    others = np.asarray([by_piece[pieces[i]] for i in longer])
    cost = expected[longer] * (np.log(p[longer]) - np.log(np.maximum(others, 1e-300)))
    kept = single.copy()
    kept[longer[np.argsort(-cost, kind="stable")[: max(0, room - int(single.sum()))]]] = True
    return kept
