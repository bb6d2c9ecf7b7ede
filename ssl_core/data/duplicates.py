"""Near-duplicates: pictures that a person would call the same (saved again, resized, slightly brighter).

Two images are near-duplicates if their thumbnails, each with its mean removed and divided by its contrast, differ by at
most ``MAX_DISTANCE`` (root mean square; 0.1 is a correlation of 0.995) and their means by at most ``MAX_MEAN_SHIFT``.
Candidates come from random-hyperplane hashing (Charikar 2002, https://doi.org/10.1145/509907.509965): a pair at the angle
``theta`` shares a band of r bits with probability ``(1 - theta / pi) ** r``, and one of L bands with
``1 - (1 - (1 - theta / pi) ** r) ** L``, above .999 at the threshold. Within a band only neighbours in sorted order are
compared, so the work is linear in the number of images however alike they are. Half of the bands cut the data at zero, where
all copies of one picture fall together; half at the median, where pictures which all look alike (centred digits, portraits)
still spread over the keys. Rotated and mirrored copies are not looked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

THUMBNAIL_SIDE = 16
MAX_DISTANCE = 0.1
MAX_MEAN_SHIFT = 0.1
_CONTRAST_FLOOR = 0.02  # below it an image is flat, and dividing by its contrast would only compare noise
_BANDS = 16
_MIN_BITS = 16
_WINDOW = 32
_BLOCK = 4096
_ROUNDING = 1e-3  # what is left of a flat image after its mean was removed


def near_duplicate_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Pairs ``(P, 2)`` of positions, ``i < j``, that are near-duplicates among ``thumbnails`` ``(N, 3, S, S)`` uint8.

    Where more than ``_WINDOW`` images share a band, each is compared with its neighbours only: the pairs of a large cluster
    are then not complete, but connect it.
    """
    count = len(thumbnails)
    if count < 2:
        return np.empty((0, 2), dtype=np.int64)
    keys, means = _band_keys(thumbnails)
    candidates = [np.empty(0, dtype=np.int64)]
    for band in range(_BANDS):
        # Neighbours agree in this band, then in as many bits of the next, then in brightness.
        order = np.lexsort((means, keys[(band + 1) % _BANDS], keys[band]))
        sorted_keys = keys[band][order]
        for offset in range(1, min(_WINDOW, count - 1) + 1):
            same = np.flatnonzero(sorted_keys[offset:] == sorted_keys[:-offset])
            if not len(same):
                break
            one, other = order[same], order[same + offset]
            candidates.append(np.minimum(one, other) * count + np.maximum(one, other))
    codes = np.unique(np.concatenate(candidates))
    pairs = np.stack([codes // count, codes % count], axis=1)
    kept = [_alike(thumbnails, pairs[start : start + _BLOCK]) for start in range(0, len(pairs), _BLOCK)]
    return pairs[np.concatenate(kept)] if kept else pairs


def assign_groups(sample_ids: Sequence[str], pairs: np.ndarray, known: dict[str, tuple[int, str]]) -> list[str]:
    """The group of each sample: the sample_id of its cluster's earliest member.

    ``known`` maps samples of the previous version to ``(first_version, group)``. They keep their group, even where a new
    sample connects two of them; a new sample joins the group of its cluster's earliest known member.
    """
    parent = list(range(len(sample_ids)))

    def find(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for one, other in pairs.tolist():
        parent[find(one)] = find(other)
    earliest: dict[int, tuple[float, str, str]] = {}
    for position, sample_id in enumerate(sample_ids):
        version, group = known.get(sample_id, (math.inf, sample_id))
        root = find(position)
        earliest[root] = min(earliest.get(root, (math.inf, sample_id, group)), (version, sample_id, group))
    return [
        known[sample_id][1] if sample_id in known else earliest[find(position)][2]
        for position, sample_id in enumerate(sample_ids)
    ]


def _normalised(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(N, D)`` float32 with zero mean and unit contrast, and the means ``(N,)``, 0 to 1."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32) / 255.0
    means = flat.mean(axis=1)
    flat -= means[:, None]
    flat /= np.maximum(np.sqrt((flat**2).mean(axis=1)), _CONTRAST_FLOOR)[:, None]
    return flat, means


def _band_keys(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash keys ``(bands, N)`` and the means ``(N,)``.

    A bit says on which side of a random hyperplane an image lies.
    """
    count = len(thumbnails)
    bits = max(_MIN_BITS, math.ceil(math.log2(count)))
    planes = np.random.default_rng(0).standard_normal((thumbnails[0].size, _BANDS * bits)).astype(np.float32)
    sides = np.empty((count, _BANDS * bits), dtype=np.float32)
    means = np.empty(count, dtype=np.float32)
    for start in range(0, count, _BLOCK):
        block, means[start : start + _BLOCK] = _normalised(thumbnails[start : start + _BLOCK])
        np.matmul(block, planes, out=sides[start : start + _BLOCK])
    weights = (1 << np.arange(bits, dtype=np.int64))[:, None]
    keys = np.empty((_BANDS, count), dtype=np.int64)
    for band in range(_BANDS):
        part = sides[:, band * bits : (band + 1) * bits]
        cut = np.median(part, axis=0) if band % 2 else _ROUNDING
        keys[band] = ((part > cut).astype(np.int64) @ weights)[:, 0]
    return keys, means


def _alike(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    one, mean_one = _normalised(thumbnails[pairs[:, 0]])
    other, mean_other = _normalised(thumbnails[pairs[:, 1]])
    distance = np.sqrt(((one - other) ** 2).mean(axis=1))
    return (distance <= MAX_DISTANCE) & (np.abs(mean_one - mean_other) <= MAX_MEAN_SHIFT)
