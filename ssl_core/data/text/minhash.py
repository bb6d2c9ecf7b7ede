"""Near-duplicate texts: the same words but for a few, found by MinHash in time linear in the number of texts.

A text is the set of its character shingles, all pieces of ``SHINGLE`` neighbouring characters (fewer where the script sets no
spaces, since a character says more there). The share of equal values in two signatures estimates the Jaccard similarity of
the two sets (Broder 1997, "On the resemblance and containment of documents", https://doi.org/10.1109/SEQUEN.1997.666900),
with a standard deviation of ``sqrt(J (1 - J) / 64)``, .05 at .8. Pairs to compare come from bands of the signature: two texts
of similarity s agree in a band of r values with probability ``s ** r``, and in one of b bands with ``1 - (1 - s ** r) ** b``.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from ssl_core.data.text.words import is_spaceless

VALUES = 64
SHINGLE = 5
SPACELESS_SHINGLE = 3
RECALL = 0.999
"""The chance that two texts at the wanted similarity are compared at all."""

_SPACE = re.compile(r"\s+")
_WINDOW = 32  # within a band of equal keys, each text is compared with its next ones only
_CHUNK = 8192
_BLOCK = 16_384
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def signature(text: str) -> np.ndarray:
    """The MinHash of a text, uint32 ``(64,)``; case and the amount of space do not count. Equal on every machine."""
    hashes = _shingles(_SPACE.sub(" ", text.casefold()).strip())
    factors, terms = _functions()
    smallest = np.full(VALUES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashes), _CHUNK):
        part = hashes[start : start + _CHUNK]
        # Multiply-shift hashing: the upper half of a * x + b, modulo 2^64.
        values = ((factors[:, None] * part + terms[:, None]) >> np.uint64(32)).astype(np.uint32)
        np.minimum(smallest, values.min(axis=1), out=smallest)
    return smallest


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The estimated Jaccard similarity of signatures ``(..., 64)``."""
    return np.asarray((one == other).mean(axis=-1))


def near_duplicate_pairs(signatures: np.ndarray, least: float) -> np.ndarray:
    """Pairs ``(P, 2)`` of positions, ``i < j``, whose estimated similarity is at least ``least``.

    Of many texts with equal bands each is compared with its neighbours only: the pairs of a large cluster are then not
    complete, but connect it, and a corpus of copies costs no more than another.
    """
    count = len(signatures)
    if count < 2:
        return np.empty((0, 2), dtype=np.int64)
    width = band_width(least)
    keys = _band_keys(signatures, width)
    candidates = [np.empty(0, dtype=np.int64)]
    for band in range(len(keys)):
        # Neighbours agree in this band, then in as many values of the next: alike texts come to stand together.
        order = np.lexsort((keys[(band + 1) % len(keys)], keys[band]))
        sorted_keys = keys[band][order]
        for offset in range(1, min(_WINDOW, count - 1) + 1):
            same = np.flatnonzero(sorted_keys[offset:] == sorted_keys[:-offset])
            if not len(same):
                break
            one, other = order[same], order[same + offset]
            candidates.append(np.minimum(one, other) * count + np.maximum(one, other))
    codes = np.unique(np.concatenate(candidates))
    pairs = np.stack([codes // count, codes % count], axis=1)
    kept = [
        similarity(signatures[block[:, 0]], signatures[block[:, 1]]) >= least
        for block in (pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK))
    ]
    return pairs[np.concatenate(kept)] if kept else pairs


def band_width(least: float) -> int:
    """The widest band with which a pair of similarity ``least`` is compared with probability ``RECALL``."""
    for width in range(VALUES, 1, -1):
        if 1 - (1 - least**width) ** (VALUES // width) >= RECALL:
            return width
    return 1


def _shingles(text: str) -> np.ndarray:
    """A 64-bit hash of each shingle, uint64 ``(S,)``, S at least 1."""
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    spaceless = not text.isascii() and sum(map(is_spaceless, text[:_CHUNK])) > min(len(text), _CHUNK) / 2
    size = min(SPACELESS_SHINGLE if spaceless else SHINGLE, len(characters)) or 1
    if not len(characters):
        return np.zeros(1, dtype=np.uint64)
    hashes = np.zeros(len(characters) - size + 1, dtype=np.uint64)
    for place in range(size):
        hashes = (hashes + characters[place : place + len(hashes)] + np.uint64(1)) * _PRIME
    # splitmix64's last steps: every bit of the characters reaches every bit of the hash.
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(hashes ^ (hashes >> np.uint64(31)))


@cache
def _functions() -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and terms of the hash functions, uint64 ``(64,)`` each."""
    random = np.random.default_rng(0)
    factors, terms = random.integers(0, 2**64, (2, VALUES), dtype=np.uint64, endpoint=False)
    return factors | np.uint64(1), terms


def _band_keys(signatures: np.ndarray, width: int) -> np.ndarray:
    """One 64-bit key for each band, uint64 ``(bands, N)``."""
    bands = VALUES // width
    keys = np.zeros((bands, len(signatures)), dtype=np.uint64)
    for place in range(width):
        columns = signatures[:, place : bands * width : width].T.astype(np.uint64)
        keys = (keys ^ columns) * _PRIME
        keys ^= keys >> np.uint64(29)
    return keys
