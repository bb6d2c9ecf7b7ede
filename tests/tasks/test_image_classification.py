"""The downstream task: it learns, repeats itself and balances classes."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config.tasks import ImageClassificationConfig
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.models.classifier import ImageClassifier
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing
from ssl_core.tasks import image_classification as task
from ssl_core.tasks.image_classification import balanced_rows, soft_cross_entropy, train_classifier
from ssl_core.tasks.soft_labels import Targets
from tests.tasks.conftest import ENCODER, NONE, Few, random_images, train


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


def test_loss_closed_forms() -> None:
    uniform, weights = torch.zeros(3, 4), torch.ones(3)
    one_hot = torch.eye(4)[:3]
    assert float(soft_cross_entropy(uniform, one_hot, weights)) == pytest.approx(math.log(4))
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    targets = Targets(np.arange(3), one_hot.numpy(), np.ones(3, dtype=np.float32), 2)
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
