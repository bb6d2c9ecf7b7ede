"""A champion on real digits and dataset versions that grow, as the monitor meets them: files, registry and store are real."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssl_core.config.encoders import ResNetConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, RunContext
from ssl_core.data.dataset import write_dataset
from ssl_core.data.samples import shift as moved
from ssl_core.evaluation.predictions import make_predictions, write_predictions
from ssl_core.models.classifier import build_classifier, save_classifier
from ssl_core.models.embed import embed, random_encoder
from ssl_core.models.encoder import EncoderInfo, measure_preprocessing, save_encoder
from ssl_core.monitoring import monitor
from ssl_core.monitoring.document import DriftReport
from ssl_core.registry.client import connect
from ssl_core.step import NoTracker, StepContext, StepOutput
from ssl_core.store import Store, path_sha256
from tests.data.remotes import stored_version

CLASSES = [str(n) for n in range(10)]
FIRST = 900
SPLITS = ("train", "train", "val", "test", "train", "val", "test", "train", "val", "vault")


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 in a fixed order that mixes writers: uint8 ``(N, 8, 8)``, and their classes."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return (bunch.images[order] * 15.9).astype(np.uint8), bunch.target[order].astype(np.int64)


def turned(pixels: np.ndarray) -> np.ndarray:
    """Another world."""
    return moved.add_noise(moved.rotate(pixels, 60), 40, 0)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def places_of(store: Store) -> dict[str, Path]:
    """Where the champion's files lie."""
    return {name: Path(store.path(f"tiny/{name}/k/out/{name}")) for name in ("encoder", "model", "evaluation")}


def enlist(settings: Settings, store: Store, dataset: DatasetRef, version: int = 1) -> None:
    """Registers what lies at ``places_of`` as the champion and its encoder."""
    places = places_of(store)
    tags = {
        name: {
            "ssl.kind": f"registered-{name}", "ssl.uri": f"tiny/{name}/k/out/{name}", "ssl.sha256": path_sha256(folder),
            "ssl.producer": f"{name}/k", "ssl.model_id": "", "ssl.project": "tiny", "ssl.dataset": "tiny@v1",
            "ssl.dataset_md5": dataset.md5,
        }
        for name, folder in places.items()
    }  # fmt: skip
    evaluation = tags.pop("evaluation")
    tags["model"] |= {
        "ssl.dataset": f"tiny@v{version}", "ssl.encoder": "tiny-encoder", "ssl.encoder_version": "1",
        "ssl.evaluation_uri": evaluation["ssl.uri"], "ssl.evaluation_sha256": evaluation["ssl.sha256"],
        "ssl.evaluation_producer": "evaluate/k",
    }  # fmt: skip
    client = connect(settings)
    for name, registered in (("encoder", "tiny-encoder"), ("model", "tiny")):
        client.create_registered_model(registered)
        client.create_model_version(registered, places[name].as_uri(), tags=tags[name])
        client.set_registered_model_alias(registered, "champion", "1")


def step_context(
    settings: Settings, store: Store, project: ProjectConfig, dataset: DatasetRef, out: Path, run: str
) -> StepContext:
    """The monitor's."""
    out.mkdir()
    return StepContext(
        project=project, settings=settings, inputs={"dataset": dataset}, run=RunContext(run_id=run), key=run, out=out, store=store,
        checkpoints=store.checkpoints("tiny", "monitor", "k"), tracker=NoTracker(),
    )  # fmt: skip


@dataclass
class World:
    """Version 1 holds ``FIRST`` digits, which the champion knows; ``arrive`` makes the next version."""

    settings: Settings
    project: ProjectConfig
    tmp: Path
    frames: list[pd.DataFrame] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    used: int = 0
    runs: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self.settings.store_url, self.settings.cache)
        self.dataset = self.arrive(FIRST)

    def arrive(
        self, count: int, change: Any = None, *, labelled: bool = True, rows: np.ndarray | None = None, **columns: Any
    ) -> DatasetRef:
        """``count`` digits that were not there before (or those at ``rows``), each passed through ``change``."""
        images, classes = digits()
        chosen = np.arange(self.used, self.used + count) if rows is None else rows
        if rows is None:
            self.used += count
        pixels = images[chosen] if change is None else change(images[chosen])
        version = len(self.frames) + 1
        brightness = pixels.reshape(len(pixels), 64).mean(axis=1) / 255 if len(pixels) else np.zeros(0)
        frame = pd.DataFrame(
            {
                "sample_id": [f"{version:04d}{i:060d}" for i in range(len(chosen))],
                "split": [SPLITS[i % len(SPLITS)] for i in range(len(chosen))],
                "group": [f"{version:04d}{i:060d}" for i in range(len(chosen))],
                "label": pd.Series([CLASSES[k] if labelled else None for k in classes[chosen]], dtype=object),
                "source": [f"camera-1/{version}-{i}.png" for i in range(len(chosen))],
                "arrived_at": pd.Series([pd.Timestamp("2026-01-01", tz="UTC")] * len(chosen), dtype="datetime64[us, UTC]"),
                "first_version": np.full(len(chosen), version, np.int32),
                "width": np.int32(8), "height": np.int32(8), "channels": np.int32(1), "bytes": np.int32(100),
                "brightness": brightness.astype(np.float32),
                "contrast": (pixels.reshape(len(pixels), 64).std(axis=1) / 255).astype(np.float32) if len(pixels) else np.zeros(0, np.float32),
            }
        ).assign(**columns)  # fmt: skip
        self.frames.append(frame)
        self.pictures.append(pixels)
        self.dataset = self.publish()
        return self.dataset

    def publish(self, **changed: Any) -> DatasetRef:
        """All that arrived so far, as the newest version; ``changed`` are fields of ``dataset.json``."""
        version = len(self.frames)
        manifest = pd.concat(self.frames, ignore_index=True)
        pixels = np.concatenate(self.pictures)
        folder = self.tmp / f"v{version}-{self.runs}-{len(changed)}"
        write_dataset(folder, manifest, lambda i: _png(pixels[i]), name="tiny", modality="image", classes=CLASSES)
        if changed:
            info = json.loads((folder / "dataset.json").read_bytes())
            (folder / "dataset.json").write_text(json.dumps(info | changed))
        return stored_version(folder, self.tmp / "remote", tag=f"tiny@v{version}")

    def crown(self, version: int = 1) -> None:
        """Makes the champion: a random encoder, which is enough to see shifts, and a linear head on its features.

        ``version``: of the dataset that it knows; its encoder knows version 1.
        """
        images, classes = digits()
        pixels = images[:FIRST, None]
        splits = self.frames[0]["split"].to_numpy()
        train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
        info = EncoderInfo(ResNetConfig(widths=(8, 16)), measure_preprocessing(pixels, train), 16)
        encoder = random_encoder(info, 0, pixels, train)
        features = embed(encoder, info.preprocessing, pixels)
        head = LogisticRegression(max_iter=2000).fit(features[train], classes[train])
        model = build_classifier(encoder, info, CLASSES)
        with torch.no_grad():
            model.head.weight.copy_(torch.from_numpy(head.coef_))
            model.head.bias.copy_(torch.from_numpy(head.intercept_))
        places = places_of(self.store)
        save_encoder(places["encoder"], encoder, info)
        save_classifier(places["model"], model)
        places["evaluation"].mkdir(parents=True)
        ids = self.frames[0]["sample_id"].to_numpy()[test].tolist()
        answers = make_predictions(ids, classes[test], model.predict_proba(pixels[test]), CLASSES)
        write_predictions(places["evaluation"] / "predictions.parquet", answers)
        enlist(self.settings, self.store, self.dataset, version)

    def watch(self, run: str = "", dataset: DatasetRef | None = None, **changed: Any) -> tuple[DriftReport, StepOutput]:
        """The step, in a run of its own unless one is named; ``changed`` are keys of ``monitor``."""
        ctx = self.context(run, dataset, **changed)
        made = monitor.run(ctx)
        return DriftReport.model_validate_json((ctx.out / "drift.json").read_bytes()), made

    def context(self, run: str = "", dataset: DatasetRef | None = None, **changed: Any) -> StepContext:
        """What a step of the project sees, in a run of its own unless one is named."""
        self.runs += 1
        section = self.project.monitor.model_copy(update=changed)
        return step_context(
            self.settings, self.store, self.project.model_copy(update={"monitor": section}), dataset or self.dataset,
            self.tmp / f"out-{self.runs}", run or f"run-{self.runs}",
        )  # fmt: skip
