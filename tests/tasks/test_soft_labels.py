"""Spread labels are trusted as far as they are certain, and the probabilities follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssl_core.models.probes import SpreadGraph
from ssl_core.tasks import soft_labels
from ssl_core.tasks.soft_labels import Targets, choose_sharpness, hard_targets, spread_targets, temper
from tests.tasks.conftest import random_images, train


def circles(count: int = 200, noise: float = 0.25, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(N, 8)`` of four classes that overlap a little, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    return (np.eye(8)[labels] + noise * rng.standard_normal((count, 8))).astype(np.float32), labels


class FixedShares:
    """Label spreading that has made up its mind; remembers what it was shown."""

    def __init__(self, shares: np.ndarray) -> None:
        self.shares, self.seen = shares, []  # type: tuple[np.ndarray, list[list[int]]]

    def spread(self, labels: np.ndarray, classes: int) -> np.ndarray:
        self.seen.append(labels.tolist())
        return self.shares


def test_spread_targets_weigh_by_certainty(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = FixedShares(np.array([[1, 0], [0, 1], [1, 0], [0.5, 0.5], [0.75, 0.25]], dtype=np.float32))
    monkeypatch.setattr(soft_labels, "SpreadGraph", lambda features: graph)
    targets = spread_targets(np.zeros((5, 3)), hard_targets(np.array([7, 9]), np.array([0, 1]), 2), np.array([1, 2, 3]))
    assert graph.seen == [[0, 1, -1, -1, -1]], "one label a class: nothing to cross-validate"
    assert targets.positions.tolist() == [7, 9, 1, 2, 3]
    assert targets.labels == 2
    assert targets.probabilities[4] == pytest.approx([0.9, 0.1], abs=1e-6), "shares to the power of two"
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert targets.weights.tolist() == pytest.approx([1, 1, 1, 0, 1 - entropy / math.log(2)], abs=1e-6)


def test_sharpness_makes_spread_labels_as_sure_as_they_are_right() -> None:
    features, labels = circles(400)
    known = np.where(np.arange(400) < 80, labels, -1)
    graph = SpreadGraph(features)
    hidden = np.arange(80, 400)
    raw = graph.spread(known, 4)[hidden]
    targets = spread_targets(features, hard_targets(np.arange(80), labels[:80], 4), hidden)
    sharp = targets.probabilities[80:]
    right = (raw.argmax(axis=1) == labels[hidden]).mean()
    assert (sharp.argmax(axis=1) == raw.argmax(axis=1)).all()
    assert right - raw.max(axis=1).mean() > 0.1
    assert abs(right - sharp.max(axis=1).mean()) < 0.05


def test_sharpness_reads_the_budget_alone() -> None:
    graph = FixedShares(np.full((40, 4), 0.25, dtype=np.float32))
    known = np.where(np.arange(40) < 20, np.arange(40) % 4, -1)
    choose_sharpness(graph, known, 4, 0)
    assert len(graph.seen) == 5, "five labels a class, five folds"
    left_out = [np.flatnonzero(np.array(seen) != known) for seen in graph.seen]
    assert sorted(np.concatenate(left_out).tolist()) == list(range(20))
    assert all((np.array(seen)[rows] == -1).all() for seen, rows in zip(graph.seen, left_out, strict=True))


def test_tempering_finds_the_temperature_that_was_planted() -> None:
    images = random_images(64)
    model = train(images, spread_labels=False, epochs=20, learning_rate=2e-2)
    model.head.weight.data.mul_(0.2)  # type: ignore[union-attr, operator]
    model.head.bias.data.mul_(0.2)  # type: ignore[union-attr, operator]
    unsure = model.predict_proba(images.pixels)
    wanted = unsure.astype(np.float64) ** 3
    wanted /= wanted.sum(axis=1, keepdims=True)
    targets = Targets(np.arange(64), wanted.astype(np.float32), np.ones(64, dtype=np.float32), 0)
    assert temper(model, images.pixels, targets) == pytest.approx(1 / 3, rel=1e-2)
    assert model.predict_proba(images.pixels) == pytest.approx(wanted, abs=1e-2)


def test_tempering_leaves_the_labels_out() -> None:
    images = random_images(32)
    one, two = (train(images, spread_labels=False, epochs=4) for _ in range(2))
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 32).astype(np.float32)
    other = soft.copy()
    other[:8] = np.eye(4)[0]
    weights = np.ones(32, dtype=np.float32)
    first, second = (Targets(np.arange(32), part, weights, 8) for part in (soft, other))
    assert temper(one, images.pixels, first) == temper(two, images.pixels, second)
