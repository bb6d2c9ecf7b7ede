"""The downstream task: it learns, repeats itself, balances classes and trusts spread labels as far as they are certain."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config.encoders import ResNetConfig
from ssl_core.config.tasks import ImageClassificationConfig
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.models.classifier import ImageClassifier
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing
from ssl_core.models.probes import SpreadGraph
from ssl_core.tasks import image_classification as task
from ssl_core.tasks.image_classification import (
    balanced_rows,
    hard_targets,
    soft_cross_entropy,
    spread_targets,
    train_classifier,
)

ENCODER = ResNetConfig(widths=(8, 16))
NONE = np.array([], dtype=np.int64)


@dataclass
class Few:
    """Images with nothing to tell them apart but themselves."""

    pixels: np.ndarray
    labels: np.ndarray


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few steps as the configuration asks for; the floor has a test of its own."""
    monkeypatch.setattr(task, "MIN_STEPS", 2)


def random_images(count: int = 16, classes: int = 4) -> Few:
    rng = np.random.default_rng(0)
    return Few(rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), np.arange(count) % classes)


def train(images: Few, unlabeled: np.ndarray = NONE, seed: int = 0, **config: Any) -> ImageClassifier:
    labelled = np.setdiff1d(np.arange(len(images.pixels)), unlabeled)
    info = EncoderInfo(ENCODER, measure_preprocessing(images.pixels, np.arange(len(images.pixels))), 16)
    settings = ImageClassificationConfig(**{"epochs": 2, "batch_size": 16, "seed": seed} | config)
    return train_classifier(
        build_encoder(ENCODER, 1, seed=0), info, images, labelled, unlabeled, settings, ["a", "b", "c", "d"], threads=1
    )


def same(first: ImageClassifier, second: ImageClassifier) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def test_one_batch_can_be_overfitted() -> None:
    images = random_images()
    model = train(images, epochs=120, learning_rate=2e-2, encoder_learning_rate=5e-3, label_smoothing=0)
    scores = model.predict_proba(images.pixels)
    assert (scores.argmax(axis=1) == images.labels).all()
    assert scores[np.arange(16), images.labels].mean() > 0.8


def test_linear_learns_and_leaves_the_encoder_as_it_is() -> None:
    images = random_images(8)
    model = train(images, method="linear", epochs=400, learning_rate=3e-2, label_smoothing=0)
    assert (model.predict_proba(images.pixels).argmax(axis=1) == images.labels).all()
    fresh = build_encoder(ENCODER, 1, seed=0).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.encoder.state_dict().items())


@pytest.mark.parametrize("method", ["full", "linear"])
def test_seed_decides_everything(method: str) -> None:
    images = random_images(24)
    unlabeled = np.arange(12, 24)
    first, again, other = (train(images, unlabeled, seed, method=method) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    assert not first.training


def test_unlabeled_labels_are_never_read() -> None:
    images = random_images(24)
    unlabeled = np.arange(12, 24)
    first = train(images, unlabeled)
    images.labels[unlabeled] = -1
    assert same(first, train(images, unlabeled))


def test_spread_labels_take_part_only_if_asked() -> None:
    images = random_images(24)
    unlabeled = np.arange(12, 24)
    alone = train(Few(images.pixels, images.labels), unlabeled, spread_labels=False)
    images.pixels[unlabeled] = 0
    assert not same(train(images, unlabeled), train(random_images(24), unlabeled))
    # Preprocessing is given, so with spreading off the unlabeled pixels reach nothing.
    info = alone.info
    again = train_classifier(
        build_encoder(ENCODER, 1, seed=0), info, images, np.arange(12), unlabeled,
        ImageClassificationConfig(epochs=2, batch_size=16, spread_labels=False), ["a", "b", "c", "d"], threads=1,
    )  # fmt: skip
    assert same(alone, again)


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
    monkeypatch.setattr(task, "SpreadGraph", lambda features: graph)
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
    task.choose_sharpness(graph, known, 4, 0)
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
    targets = task.Targets(np.arange(64), wanted.astype(np.float32), np.ones(64, dtype=np.float32), 0)
    assert task.temper(model, images.pixels, targets) == pytest.approx(1 / 3, rel=1e-2)
    assert model.predict_proba(images.pixels) == pytest.approx(wanted, abs=1e-2)


def test_tempering_leaves_the_labels_out() -> None:
    images = random_images(32)
    one, two = (train(images, spread_labels=False, epochs=4) for _ in range(2))
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 32).astype(np.float32)
    other = soft.copy()
    other[:8] = np.eye(4)[0]
    weights = np.ones(32, dtype=np.float32)
    first, second = (task.Targets(np.arange(32), part, weights, 8) for part in (soft, other))
    assert task.temper(one, images.pixels, first) == task.temper(two, images.pixels, second)


def test_loss_closed_forms() -> None:
    uniform, weights = torch.zeros(3, 4), torch.ones(3)
    one_hot = torch.eye(4)[:3]
    assert float(soft_cross_entropy(uniform, one_hot, weights)) == pytest.approx(math.log(4))
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    targets = task.Targets(np.arange(3), one_hot.numpy(), np.ones(3, dtype=np.float32), 2)
    smoothed, _ = task._on(torch.device("cpu"), targets, np.arange(3), 0.1)
    reference = torch.nn.functional.cross_entropy(logits[:2], torch.arange(2), label_smoothing=0.1)
    assert float(soft_cross_entropy(logits[:2], smoothed[:2], weights[:2])) == pytest.approx(float(reference), rel=1e-6)
    assert torch.equal(smoothed[2], one_hot[2]), "a spread label is soft as it is"
    # A weight of two counts as the same sample twice, a weight of zero as none.
    twice = soft_cross_entropy(logits[[0, 0, 1]], one_hot[[0, 0, 1]], weights)
    assert float(soft_cross_entropy(logits, one_hot, torch.tensor([2.0, 1.0, 0.0]))) == pytest.approx(
        float(twice), rel=1e-6
    )


def test_batches_hold_classes_equally_often() -> None:
    classes = np.array([0] * 90 + [1] * 8 + [3] * 2)
    rows = balanced_rows(classes, 300, np.random.default_rng(0))
    for start in range(0, 300, 30):
        assert np.bincount(classes[rows[start : start + 30]], minlength=4).tolist() == [10, 10, 0, 10]
    large = rows[classes[rows] == 0]
    assert len(set(large[:90].tolist())) == 90, "no member comes again before all were seen"
    assert len(balanced_rows(classes, 7, np.random.default_rng(0))) == 7


def test_few_labels_still_get_enough_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "MIN_STEPS", 9)
    seen: list[np.ndarray] = []
    batches = task._batches

    def watched(*arguments: Any) -> Any:
        for rows in batches(*arguments):
            seen.append(rows)
            yield rows

    monkeypatch.setattr(task, "_batches", watched)
    train(random_images(4), epochs=3, batch_size=8)
    assert [len(rows) for rows in seen] == [8] * 9


def test_non_finite_loss_stops_with_the_key() -> None:
    images = random_images()
    info = EncoderInfo(ENCODER, measure_preprocessing(images.pixels, np.arange(16)), 16)
    encoder = build_encoder(ENCODER, 1, seed=0)
    next(iter(encoder.parameters())).data.fill_(float("nan"))
    with pytest.raises(CheckFailed, match=r"task\.learning_rate: the loss is not finite"):
        train_classifier(
            encoder,
            info,
            images,
            np.arange(16),
            NONE,
            ImageClassificationConfig(epochs=1),
            ["a", "b", "c", "d"],
            threads=1,
        )


def test_stop_is_heard() -> None:
    stop = threading.Event()
    stop.set()
    images = random_images()
    info = EncoderInfo(ENCODER, measure_preprocessing(images.pixels, np.arange(16)), 16)
    with pytest.raises(TryAgain):
        train_classifier(
            build_encoder(ENCODER, 1, seed=0), info, images, np.arange(16), NONE, ImageClassificationConfig(), ["a", "b", "c", "d"],
            threads=1, stop=stop,
        )  # fmt: skip


def test_bfloat16_on_cpu_gives_float32_weights() -> None:
    images = random_images()
    info = EncoderInfo(ENCODER, measure_preprocessing(images.pixels, np.arange(16)), 16)
    model = train_classifier(
        build_encoder(ENCODER, 1, seed=0), info, images, np.arange(16), NONE, ImageClassificationConfig(epochs=1), ["a", "b", "c", "d"],
        precision="bfloat16", threads=1,
    )  # fmt: skip
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert np.isfinite(model.predict_proba(images.pixels)).all()
