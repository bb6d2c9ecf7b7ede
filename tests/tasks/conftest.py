"""Images and a trainer that all tests of the tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ssl_core.config.encoders import ResNetConfig
from ssl_core.config.tasks import ImageClassificationConfig
from ssl_core.models.classifier import ImageClassifier
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing
from ssl_core.tasks import image_classification as task
from ssl_core.tasks.image_classification import train_classifier

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
