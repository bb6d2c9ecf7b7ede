"""Images through a registered encoder: what finetune and evaluate need; see ``training.bench.Bench``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_core.config.project import ImageProject
from ssl_core.config.tasks import ImageClassificationConfig, TaskConfig
from ssl_core.contracts import DatasetRef
from ssl_core.data.memory import Images, open_images
from ssl_core.models.classifier import ImageClassifier, load_classifier, save_classifier
from ssl_core.models.embed import embed, random_encoder
from ssl_core.models.encoder import EncoderInfo, load_encoder
from ssl_core.models.resnet import ResNet
from ssl_core.step import Progress, StepContext, Tracker
from ssl_core.tasks.image_classification import schedule, train_classifier
from ssl_core.training.bench import GOLDEN_SAMPLES, Classical, Start, Trained
from ssl_core.training.runtime import Runtime
from ssl_core.training.state import CheckpointFiles

Array = np.ndarray


def open_bench(ctx: StepContext, dataset: DatasetRef, runtime: Runtime) -> ImageBench:
    """The registered encoder of the step's inputs, and the dataset's images as it sees them."""
    project = ctx.project
    assert isinstance(project, ImageProject)
    encoder, info = load_encoder(ctx.fetch("registered_encoder"))
    images = open_images(
        dataset, ctx.settings, size=info.preprocessing.size, channels=info.preprocessing.channels, progress=ctx.progress
    )
    return ImageBench(project, encoder, info, images, runtime)


class ImageBench:
    """See ``Bench``."""

    def __init__(
        self, project: ImageProject, encoder: ResNet, info: EncoderInfo, images: Images, runtime: Runtime
    ) -> None:
        self._project, self._encoder, self._info = project, encoder, info
        self._images, self._runtime = images, runtime

    @property
    def table(self) -> Images:
        return self._images

    def resolved(self) -> Mapping[str, Any]:
        return asdict(self._runtime)

    def finetune(
        self,
        labelled: Array,
        unlabeled: Array,
        *,
        task: TaskConfig | None = None,
        random: bool = False,
        start: Start | None = None,
        checkpoints: CheckpointFiles | None = None,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
        tracker: Tracker | None = None,
    ) -> Trained:
        task, runtime = task or self._project.task, self._runtime
        assert isinstance(task, ImageClassificationConfig)
        encoder = start.model.encoder if start else self._random(0) if random else self._encoder
        model = train_classifier(
            encoder, self._info, self._images, labelled, unlabeled, task, self._images.classes,
            head=start.model.head if start else None, penalty=start.penalty if start else None,
            device=runtime.device, precision=runtime.precision, threads=runtime.threads,
            checkpoints=checkpoints, stop=stop, progress=progress, tracker=tracker,
        )  # fmt: skip
        spread = task.spread_labels and len(unlabeled) > 0
        per_epoch, steps = schedule(len(labelled) + (len(unlabeled) if spread else 0), task)
        record = {"spread": spread, "steps": steps, "epochs": round(steps / per_epoch, 2)}
        return Trained(model, record, f" and the labels spread over {len(unlabeled):,} more" if spread else "")

    def save(self, folder: Path, model: ImageClassifier) -> None:
        save_classifier(folder, model)

    def load(self, folder: Path) -> ImageClassifier:
        return load_classifier(folder)

    def suits(self, model: ImageClassifier) -> str:
        if model.classes != self._images.classes:
            return "it knows other classes"
        return "" if model.info == self._info else "it sees images in another way than the registered encoder"

    def logits(self, model: ImageClassifier, positions: Array) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(self._images.pixels[positions]))
        return model(pixels.to(next(model.parameters()).device))

    def scores(self, model: ImageClassifier, positions: Array) -> Array:
        scores = np.zeros((len(positions), len(self._images.classes)), dtype=np.float32)
        columns = [self._images.classes.index(name) for name in model.classes]
        scores[:, columns] = model.predict_proba(np.ascontiguousarray(self._images.pixels[positions]))
        return scores

    def golden(self, model: ImageClassifier, positions: Array) -> dict[str, Array]:
        pixels = np.ascontiguousarray(self._images.pixels[positions[:GOLDEN_SAMPLES]])
        return {"pixels": pixels, "probabilities": model.predict_proba(pixels)}

    def embed(self, positions: Array, random: int | None = None) -> Array:
        network = (self._encoder if random is None else self._random(random)).to(self._runtime.device)
        features = embed(
            network, self._info.preprocessing, self._images.pixels, positions,
            device=self._runtime.device, precision=self._runtime.precision,
        )  # fmt: skip
        network.cpu()
        return features

    def classical(self, train: Array, test: Array) -> Classical:
        from ssl_core.evaluation.image_baselines import ImageBaselines

        pixels = self._images.pixels
        return ImageBaselines(pixels[train], pixels[test], len(self._images.classes), self._project.evaluate.seed)

    def _random(self, number: int) -> ResNet:
        images, seed = self._images, self._project.pretrain.seed
        return random_encoder(self._info, seed + number, images.pixels, images.positions("train"))
