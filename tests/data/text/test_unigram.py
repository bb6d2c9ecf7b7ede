"""Unigram's EM against a slow, obvious reference, and its pruning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from ssl_core.data.text import unigram

WORDS = Counter({"▁abab": 5, "▁ab": 7, "▁ba": 3, "▁abba": 2, "▁b": 1})
PIECES = ["▁", "a", "b", "ab", "ba", "▁ab", "abab"]


def segmentations(word: str, pieces: list[str]) -> Iterator[list[str]]:
    if not word:
        yield []
    for piece in pieces:
        if word.startswith(piece):
            for rest in segmentations(word[len(piece) :], pieces):
                yield [piece, *rest]


def test_expected_counts_and_likelihood_are_those_of_all_segmentations() -> None:
    p = np.asarray([0.2, 0.2, 0.1, 0.2, 0.05, 0.15, 0.1])
    lattice = unigram._lattice(WORDS, PIECES)
    expected = dict.fromkeys(PIECES, 0.0)
    likelihood = {}
    for word, count in WORDS.items():
        ways = list(segmentations(word, PIECES))
        weights = [math.prod(p[PIECES.index(piece)] for piece in way) for way in ways]
        likelihood[word] = sum(weights)
        for way, weight in zip(ways, weights, strict=True):
            for piece in way:
                expected[piece] += count * weight / sum(weights)
    np.testing.assert_allclose(lattice.expected(p), list(expected.values()))
    _, whole = lattice.forward(p)
    order = sorted(WORDS, key=lambda word: (-len(word), word))
    np.testing.assert_allclose(whole, [likelihood[word] for word in order])


def test_fewer_pieces_are_renumbered() -> None:
    kept = np.asarray([True, True, True, False, True, True, False])
    fewer = unigram._lattice(WORDS, PIECES).only(kept)
    left = [piece for piece, keep in zip(PIECES, kept, strict=True) if keep]
    p = np.full(len(left), 0.2)
    np.testing.assert_allclose(fewer.expected(p), unigram._lattice(WORDS, left).expected(p))


def test_what_is_learned_is_a_distribution_over_pieces_that_the_words_have() -> None:
    words = Counter({"▁hand": 40, "▁hands": 20, "▁handy": 10, "▁band": 30, "▁bands": 15, "▁xyz": 1})
    alphabet = sorted(set("".join(words)))
    pieces = unigram.learn(words, 14, alphabet)
    assert len(pieces) == 14
    assert {piece for piece, _ in pieces} >= set(alphabet)
    assert {"▁hand", "▁band"} & {piece for piece, _ in pieces}
    assert sum(math.exp(score) for _, score in pieces) == pytest.approx(1, abs=0.05)
    assert [score for _, score in pieces] == sorted((score for _, score in pieces), reverse=True)


def test_words_in_any_order_give_the_same_pieces() -> None:
    words = {f"▁{a}{b}{a}": 2 + len(a) for a in ("un", "re", "de") for b in ("do", "make", "tie", "fit")}
    alphabet = sorted(set("".join(words)))
    backwards = dict(reversed(words.items()))
    assert unigram.learn(words, 30, alphabet) == unigram.learn(backwards, 30, alphabet)


def test_letters_and_punctuation_do_not_share_a_piece() -> None:
    pieces = [piece for piece, _ in unigram.learn({"▁good,": 90, "▁(good": 90}, 40, sorted("▁good,("))]
    assert "▁good" in pieces
    assert not any("," in piece and len(piece) > 1 for piece in pieces)


def test_long_words_and_none() -> None:
    assert unigram.learn({"▁" + "ab" * 500: 3}, 20, ["▁", "a", "b"])
    assert unigram.learn({}, 20, ["a"]) == [("a", 0.0)]
