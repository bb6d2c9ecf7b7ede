"""Small stand-ins: an image set of a few easy classes, and everything that the loop wants around it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ssl_core.config.encoders import ResNetConfig
from ssl_core.config.objectives import SimCLRConfig
from ssl_core.config.pretrain import ImagePretrainConfig
from ssl_core.contracts import DatasetRef
from ssl_core.data.memory import Images
from ssl_core.models.encoder import build_encoder, measure_preprocessing
from ssl_core.objectives.simclr import SimCLR
from ssl_core.step import NoProgress, NoTracker
from ssl_core.store import Checkpoints, Store
from ssl_core.training.batches import Batches
from ssl_core.training.health import Monitor
from ssl_core.training.loop import fit
from ssl_core.training.pace import Pace
from ssl_core.training.runtime import resolve_runtime
from ssl_core.training.state import CheckpointFiles

ENCODER = ResNetConfig(widths=(8, 16))
OBJECTIVE = SimCLRConfig(projection_hidden=16, projection_dim=8)


def striped_pixels(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8x8 images of 4 classes (a bright bar: left, right, top, bottom), uint8 ``(N, 1, 8, 8)``, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    pixels = rng.integers(0, 60, (count, 1, 8, 8))
    for bar, place in enumerate([np.s_[:, :3], np.s_[:, 5:], np.s_[:3], np.s_[5:]]):
        for row in np.flatnonzero(labels == bar):
            pixels[row, 0][place] += 150
    return pixels.astype(np.uint8), labels.astype(np.int64)


@dataclass
class Bench:
    """A loop ready to run, on a store of its own; run it again to resume."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digest: str = "recipe"
    count: int = 48

    def __post_init__(self) -> None:
        store = Store(self.folder.as_uri(), self.folder / "cache")
        self.store = store
        self.checkpoints: Checkpoints = store.checkpoints("tiny", "pretrain", "key")
        self.pixels, self.labels = striped_pixels(self.count)
        self.train = np.arange(self.count)
        self.tracker = NoTracker()
        self.steps_done: list[int] = []

    def start(
        self,
        *,
        seed: int = 0,
        before_step: Callable[[int, SimCLR], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Pace:
        """Builds everything anew, as a new process would, and trains; ``before_step`` may interfere."""
        config = ImagePretrainConfig(
            **{"epochs": 4, "batch_size": 16, "threads": 1, "seed": seed, "checkpoint_seconds": 0} | self.config
        )
        runtime = resolve_runtime(config)
        preprocessing = measure_preprocessing(self.pixels, self.train)
        encoder = build_encoder(ENCODER, 1, seed=config.seed)
        self.objective = SimCLR(encoder, OBJECTIVE, preprocessing, seed=config.seed)
        augment = self.objective.augment
        self.monitor = Monitor(
            encoder, preprocessing, self.pixels, self.train, min(config.batch_size, self.count),
            views=lambda pixels, view: preprocessing.normalise(augment(pixels, 0, 0, view)),
            labelled=(self.train[4:], self.labels[4:], self.train[:4], self.labels[:4]),
        )  # fmt: skip
        forward = self.objective.forward

        def watched(*arguments: Any, step: int, **more: Any) -> Any:
            if before_step:
                before_step(step, self.objective)
            self.steps_done.append(step)
            return forward(*arguments, step=step, **more)

        self.objective.forward = watched  # type: ignore[method-assign]
        files = CheckpointFiles(self.checkpoints, self.store.scratch, self.digest, self.notes.append)
        return fit(
            self.objective, Batches(self.pixels, self.train, config.batch_size, config.seed, "cpu"), config, runtime,
            monitor=self.monitor, checkpoints=files, tracker=self.tracker, progress=NoProgress(), stop=stop or threading.Event(),
        )  # fmt: skip

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy().copy() for name, tensor in self.objective.state_dict().items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Bench]:
    count = iter(range(1000))
    return lambda **more: Bench(tmp_path / f"bench{next(count)}", **more)


CLASSES = ["left", "right", "top", "bottom"]


def striped_images(folder: Path, *, train: int = 48, val: int = 12, labelled: int | None = None) -> Images:
    """A memory-mapped dataset as ``data.memory`` gives it: train first, then val, then as many of test."""
    pixels, numbers = striped_pixels(train + 2 * val)
    folder.mkdir(parents=True, exist_ok=True)
    pixels.tofile(folder / "pixels.u8")
    labels = np.array([CLASSES[number] for number in numbers], dtype=object)
    if labelled is not None:
        labels[labelled:train] = None
    manifest = pd.DataFrame(
        {
            "sample_id": [f"{row:064x}" for row in range(len(pixels))],
            "split": ["train"] * train + ["val"] * val + ["test"] * val,
            "label": pd.Series(labels, dtype=object),
        }
    )
    mapped = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r", shape=pixels.shape)
    return Images(pixels=mapped, manifest=manifest, classes=CLASSES)


DATASET = DatasetRef(
    kind="dataset", name="tiny", tag="tiny@v1", revision="0" * 40, path="tiny/data", md5="0" * 32 + ".dir",
    remote="/nowhere", sha256="a" * 64, producer="publish/k", rows=72, labelled=72, classes=4,
)  # fmt: skip

TINY = {
    "encoder": {"widths": (8, 16)},
    "objective": {"projection_hidden": 16, "projection_dim": 8},
    "pretrain": {"epochs": 4, "batch_size": 16, "threads": 1, "checkpoint_seconds": 0},
}
"""Project sections under which a step takes a moment."""
