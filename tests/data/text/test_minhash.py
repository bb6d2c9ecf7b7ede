"""Near-duplicate texts: estimates against true Jaccard similarity, what is found, and what a corpus of copies costs."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.data.text import minhash
from ssl_core.data.text.minhash import near_duplicate_pairs, signature, similarity

WORDS = [
    f"{a}{b}{c}"
    for a in ("ba", "de", "ki", "lo", "mu")
    for b in ("ran", "sel", "tor")
    for c in ("a", "ic", "ous", "ly")
]


def sentence(random: np.random.Generator, words: int = 40) -> list[str]:
    return [WORDS[i] for i in random.integers(0, len(WORDS), words)]


def shingles(text: str, size: int = minhash.SHINGLE) -> set[str]:
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def signatures(texts: list[str]) -> np.ndarray:
    return np.stack([signature(text) for text in texts])


def test_the_estimate_is_the_true_similarity_within_its_error() -> None:
    random, misses = np.random.default_rng(0), []
    for changed in (0, 2, 5, 10, 20, 40) * 8:
        words = sentence(random)
        other = list(words)
        for place in random.permutation(len(words))[:changed]:
            other[place] = "quixotic"
        one, two = " ".join(words), " ".join(other)
        true = len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
        misses.append(float(similarity(signature(one), signature(two))) - true)
    assert abs(np.mean(misses)) < 0.03
    assert np.abs(misses).max() < 4 * (0.25 / minhash.VALUES) ** 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A fine film.", "a  FINE\nfilm. "),
        ("", " "),
        ("x", "X"),
        ("這部電影很好看，我非常喜歡它的音樂和畫面。", "這部電影很好看，我非常喜歡它的音樂和畫面。"),
        ("👩‍👩‍👧 e\u0301", "👩‍👩‍👧 E\u0301"),
    ],
)
def test_case_and_space_do_not_count(one: str, other: str) -> None:
    assert np.array_equal(signature(one), signature(other))


def test_signatures_are_those_of_every_machine() -> None:
    assert signature("the film is a delight").tolist()[:3] == [319845217, 43006211, 154422917]
    long = " ".join(sentence(np.random.default_rng(1), 9000))
    parts = [minhash._shingles(long)[i : i + 100] for i in range(0, len(long), 100)]
    factors, terms = minhash._functions()
    slow = [
        min(int(((int(a) * int(h) + int(b)) % 2**64) >> 32) for part in parts for h in part[:100])
        for a, b in zip(factors[:2], terms[:2], strict=True)
    ]
    assert signature(long)[:2].tolist() == slow


def test_copies_with_a_few_changes_are_found_and_others_are_not() -> None:
    random = np.random.default_rng(2)
    texts = [sentence(random) for _ in range(400)]
    twins = []
    for words in texts[:50]:
        copy = list(words)
        copy[7] = "quixotic"
        twins.append(copy)
    pairs = near_duplicate_pairs(signatures([" ".join(t) for t in texts + twins]), 0.8)
    found = {tuple(pair) for pair in pairs.tolist()}
    wanted = {(i, 400 + i) for i in range(50)}
    # 64 values know a similarity to .05: a pair of these sixty words may look alike by chance, and a twin be missed.
    assert len(found & wanted) >= 49
    assert len(found - wanted) <= 3


def test_chinese_without_spaces() -> None:
    base = "我昨天晚上和朋友们一起去看了这部新上映的电影，觉得故事非常感人，演员的表演也很自然，值得推荐给大家。"
    other = "今天的天气很好，我们打算去公园里散步，然后在湖边的小店喝一杯热茶，晚上再回家做饭，看一会儿书就睡觉。"
    pairs = near_duplicate_pairs(signatures([base, base.replace("昨天", "前天"), other]), 0.8)
    assert pairs.tolist() == [[0, 1]]


def test_a_corpus_of_copies_is_one_cluster_and_linear_work() -> None:
    copies = np.tile(signature("the same again and again"), (20_000, 1))
    pairs = near_duplicate_pairs(copies, 0.8)
    assert len(pairs) <= 20_000 * minhash._WINDOW * 2
    connected = set(pairs[:, 1].tolist())
    assert connected == set(range(1, 20_000))


@pytest.mark.parametrize(("least", "width"), [(0.8, 4), (0.5, 2), (0.95, 9), (1.0, 64)])
def test_bands_are_as_wide_as_recall_allows(least: float, width: int) -> None:
    found = minhash.band_width(least)
    assert found == width
    bands = minhash.VALUES // found
    assert found == 1 or 1 - (1 - least**found) ** bands >= minhash.RECALL
    if found < minhash.VALUES:
        wider = found + 1
        assert 1 - (1 - least**wider) ** (minhash.VALUES // wider) < minhash.RECALL


def test_few_texts() -> None:
    assert near_duplicate_pairs(np.empty((0, 64), np.uint32), 0.8).shape == (0, 2)
    assert near_duplicate_pairs(signatures(["one"]), 0.8).shape == (0, 2)
