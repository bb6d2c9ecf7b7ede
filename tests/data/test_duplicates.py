"""Near-duplicates: found where a person would say so, and nowhere else."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from ssl_core.data import duplicates, images
from tests.data.conftest import encode, picture


def _thumbnails(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([images.thumbnail(image, duplicates.THUMBNAIL_SIDE) for image in pictures])


def _photo(seed: int, size: int = 96) -> Image.Image:
    """Smooth blobs with some grain: what photos are like to a thumbnail."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def _reference(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """All pairs, one by one, from the definition."""
    found = set()
    for i in range(len(thumbnails)):
        for j in range(i + 1, len(thumbnails)):
            a, b = (thumbnails[k].astype(np.float64).ravel() / 255 for k in (i, j))
            one, other = ((v - v.mean()) / max(v.std(), 0.02) for v in (a, b))
            if np.sqrt(np.mean((one - other) ** 2)) <= 0.1 and abs(a.mean() - b.mean()) <= 0.1:
                found.add((i, j))
    return found


def _pairs(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in duplicates.near_duplicate_pairs(thumbnails)}


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality)))


def test_the_ways_in_which_copies_differ() -> None:
    original = _photo(0)
    copies = [
        _jpeg(original, 40),
        original.resize((48, 48), Image.Resampling.LANCZOS),
        original.resize((200, 200)),
        Image.eval(original, lambda v: min(255, round(v * 1.06))),
        original.filter(ImageFilter.GaussianBlur(1)),
        Image.fromarray(
            np.clip(np.asarray(original) + np.random.default_rng(1).normal(0, 8, (96, 96, 3)), 0, 255).astype(np.uint8)
        ),
    ]
    others = [_photo(seed) for seed in range(1, 30)]
    found = _pairs(_thumbnails([original, *copies, *others]))
    assert {(0, i) for i in range(1, len(copies) + 1)} <= found
    assert max(max(pair) for pair in found) <= len(copies)


def test_what_only_looks_alike_is_kept_apart() -> None:
    original = _photo(0)
    moved = Image.fromarray(np.roll(np.asarray(original), 12, axis=1))
    darker = Image.eval(original, lambda v: v // 2)
    other_colour = Image.merge("RGB", original.split()[::-1])
    assert _pairs(_thumbnails([original, moved, darker, other_colour])) == set()
    flat = [Image.new("L", (32, 32), level) for level in (0, 64, 128, 255)]
    assert _pairs(_thumbnails(flat)) == set()
    assert _pairs(_thumbnails([*flat, Image.new("L", (20, 20), 65)])) == {(1, 4)}


@pytest.mark.parametrize("distortion", [4, 12, 25])
def test_equals_the_comparison_of_all_pairs(distortion: int) -> None:
    """Distortions around the threshold; the hashing must not lose what the definition finds."""
    random = np.random.default_rng(distortion)
    base = [np.asarray(_photo(seed, 32), dtype=np.float64) for seed in range(60)]
    noisy = [
        np.clip(b + random.normal(0, 1, (4, 4, 3)).repeat(8, 0).repeat(8, 1) * distortion * random.random(), 0, 255)
        for b in base * 3
    ]
    thumbnails = _thumbnails([Image.fromarray(values.astype(np.uint8)) for values in base + noisy])
    assert _pairs(thumbnails) == _reference(thumbnails)


def test_tiny_digits_of_one_class_are_not_merged() -> None:
    """1,797 real 8x8 digits look alike within a class; all but a handful are different samples."""
    from sklearn.datasets import load_digits

    digits = [Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)) for image in load_digits().images]
    thumbnails = _thumbnails(digits)
    pairs = duplicates.near_duplicate_pairs(thumbnails)
    assert 1 <= len(pairs) <= 3
    ids = [f"{i:04d}" for i in range(len(digits))]
    assert max(Counter(duplicates.assign_groups(ids, pairs, {})).values()) == 2
    # And a digit that was saved again, a little brighter, is still found.
    again = [Image.eval(digit, lambda v: min(255, round(v * 0.95))) for digit in digits[:50]]
    found = _pairs(np.concatenate([thumbnails, _thumbnails(again)]))
    assert {(i, len(digits) + i) for i in range(50)} <= found


def test_copies_of_one_picture_are_one_group_after_linear_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst case: all pairs are near-duplicates. Compared pairs are counted, for seconds depend on the machine."""
    count, window = 1500, 8
    compared = []

    def counted(thumbnails: np.ndarray, pairs: np.ndarray, real=duplicates._alike) -> np.ndarray:
        compared.append(len(pairs))
        return real(thumbnails, pairs)

    monkeypatch.setattr(duplicates, "_WINDOW", window)
    monkeypatch.setattr(duplicates, "_alike", counted)
    original = np.asarray(_photo(3, 16), dtype=np.int16)
    noise = np.random.default_rng(0).integers(-2, 3, (count, 16, 16, 3))
    thumbnails = np.clip(original + noise, 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    pairs = duplicates.near_duplicate_pairs(thumbnails)
    assert set(duplicates.assign_groups([f"{i:05d}" for i in range(count)], pairs, {})) == {"00000"}
    assert sum(compared) <= count * duplicates._BANDS * window < count * (count - 1) / 2


def test_few_images() -> None:
    for count in (0, 1):
        assert duplicates.near_duplicate_pairs(np.zeros((count, 3, 16, 16), np.uint8)).shape == (0, 2)
    assert _pairs(_thumbnails([picture(1), picture(1)])) == {(0, 1)}


def test_a_group_is_named_by_its_smallest_new_member() -> None:
    pairs = np.array([[0, 1], [1, 3]])
    assert duplicates.assign_groups(["d", "b", "z", "a"], pairs, {}) == ["a", "a", "z", "a"]


def test_known_samples_keep_their_group_and_new_ones_join_the_earliest() -> None:
    known = {"m": (2, "m"), "x": (1, "old"), "q": (3, "q")}
    pairs = np.array([[0, 1], [1, 2], [1, 3]])  # the new sample "a" connects three known ones
    assert duplicates.assign_groups(["m", "a", "x", "q"], pairs, known) == ["m", "old", "old", "q"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_adding_samples_never_changes_a_known_group(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 20))
    ids = data.draw(st.permutations([f"{i:02d}" for i in range(count)]))
    edge = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = data.draw(st.lists(edge, max_size=30))
    known: dict[str, tuple[int, str]] = {}
    for version, size in enumerate(sorted(data.draw(st.lists(st.integers(1, count), min_size=2, max_size=4))), start=1):
        pairs = np.array([e for e in edges if max(e) < size], dtype=np.int64).reshape(-1, 2)
        groups = dict(zip(ids[:size], duplicates.assign_groups(ids[:size], pairs, known), strict=True))
        assert all(groups[sample] == group for sample, (_, group) in known.items())
        for one, other in pairs:  # linked new samples are together
            if ids[one] not in known and ids[other] not in known:
                assert groups[ids[one]] == groups[ids[other]]
        assert set(groups.values()) <= set(ids)
        known |= {sample: known.get(sample, (version, group)) for sample, group in groups.items()}
