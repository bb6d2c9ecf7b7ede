"""Pretraining on images: the network, its batches and its gauges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from ssl_core.config.project import ImageProject
from ssl_core.contracts import GOLDEN_FILE, DatasetRef
from ssl_core.data.dataset import read_info
from ssl_core.data.memory import Images, choose_size, open_images
from ssl_core.data.reader import fetch
from ssl_core.errors import UserError
from ssl_core.models.embed import embed
from ssl_core.models.encoder import (
    EncoderInfo,
    build_encoder,
    load_encoder,
    measure_preprocessing,
    parameter_count,
    save_encoder,
)
from ssl_core.models.resnet import ResNet
from ssl_core.objectives.simclr import SimCLR
from ssl_core.step import StepContext
from ssl_core.training.batches import Batches
from ssl_core.training.health import Monitor
from ssl_core.training.prepared import Prepared
from ssl_core.training.runtime import Runtime

MIN_TRAIN_IMAGES = 8
"""Contrast needs others: a batch of fewer images says next to nothing."""
GOLDEN_IMAGES = 16


def prepare(ctx: StepContext, dataset: DatasetRef, runtime: Runtime) -> Prepared:
    """A ResNet, SimCLR on it and what feeds and watches them. Raises ``UserError`` where there are too few images."""
    project = ctx.project
    assert isinstance(project, ImageProject)
    config = project.pretrain
    images = open_dataset(ctx, dataset)
    train = images.positions("train")
    if len(train) < MIN_TRAIN_IMAGES:
        raise UserError(
            f"{len(train)} training images; pretraining needs at least {MIN_TRAIN_IMAGES}",
            place=f"dataset {dataset.tag or dataset.name}",
            next_step="add images to data.source, or raise data.split.train",
        )
    preprocessing = measure_preprocessing(images.pixels, train)
    encoder = build_encoder(project.encoder, preprocessing.channels, seed=config.seed)
    info = EncoderInfo(project.encoder, preprocessing, encoder.features)
    objective = SimCLR(encoder, project.objective, preprocessing, norm=project.encoder.norm, seed=config.seed)
    batch_size = min(config.batch_size, len(train))
    monitor = Monitor(
        encoder, preprocessing, images.pixels, train, batch_size, views=_views(objective, config.seed),
        device=runtime.device, precision=runtime.precision, labelled=_labelled(images),
    )  # fmt: skip
    parameters = parameter_count(encoder)
    return Prepared(
        objective=objective,
        batches=Batches(images.pixels, train, config.batch_size, config.seed, runtime.device),
        monitor=monitor,
        unit="images",
        resolved={
            "image_size": preprocessing.size, "channels": preprocessing.channels, "batch_size": batch_size,
            "train_images": len(train), "encoder_parameters": parameters,
        },
        save=lambda folder: _save(folder, encoder.cpu(), info, images, train),
        features=encoder.features,
        network=f"a {project.encoder.arch} ({parameters:,} parameters)",
        data=f"{len(train):,} images",
        mend="lower pretrain.learning_rate, raise pretrain.batch_size or weaken objective.augment",
    )  # fmt: skip


def open_dataset(ctx: StepContext, dataset: DatasetRef) -> Images:
    """The dataset version's images at the size that the project asks for."""
    project = ctx.project
    assert isinstance(project, ImageProject)
    size, channels = choose_size(read_info(fetch(dataset, ctx.settings, ctx.progress)), project.data)
    return open_images(dataset, ctx.settings, size=size, channels=channels, progress=ctx.progress)


def _views(objective: SimCLR, seed: int) -> Any:
    """The objective's own two views, with draws that are the same at every gauge."""

    def view(pixels: torch.Tensor, number: int) -> torch.Tensor:
        return objective.preprocessing.normalise(objective.augment(pixels, seed, 0, number))

    return view


def _labelled(images: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """What the kNN observer votes with and on, where train and val both hold labels."""
    train, val = images.positions("train", labelled=True), images.positions("val", labelled=True)
    if len(train) == 0 or len(val) == 0:
        return None
    return train, images.labels[train], val, images.labels[val]


def _save(folder: Path, encoder: ResNet, info: EncoderInfo, images: Images, train: np.ndarray) -> None:
    """The encoder folder, with a golden batch computed by what was read back from it: registration compares with that."""
    save_encoder(folder, encoder, info)
    loaded, info = load_encoder(folder)
    pixels = np.ascontiguousarray(images.pixels[train[:GOLDEN_IMAGES]])
    save_file({"pixels": pixels, "features": embed(loaded, info.preprocessing, pixels)}, folder / GOLDEN_FILE)
