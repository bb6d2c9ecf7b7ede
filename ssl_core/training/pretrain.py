"""The ``pretrain`` step: an encoder from the unlabeled training images, and a report on whether it learned."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from ssl_core.contracts import GOLDEN_FILE, DatasetRef
from ssl_core.data.dataset import read_info
from ssl_core.data.memory import Images, choose_size, open_images
from ssl_core.data.reader import fetch
from ssl_core.errors import CheckFailed, UserError
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
from ssl_core.pipeline import digest, recipe_digest
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.training.health import Monitor, Unhealthy, report
from ssl_core.training.loop import fit
from ssl_core.training.pace import Pace
from ssl_core.training.runtime import Runtime, resolve_runtime
from ssl_core.training.state import CheckpointFiles

MIN_TRAIN_IMAGES = 8
"""Contrast needs others: a batch of fewer images says next to nothing."""
GOLDEN_IMAGES = 16
HEALTH_FILE = "health.json"


def run(ctx: StepContext) -> StepOutput:
    """Pretrains on the images of split train, whether labelled or not; no label reaches the objective.

    Makes ``encoder/`` (weights, description, ``golden.safetensors``) and ``health.json``.

    Raises:
        UserError: there are too few training images, or the device cannot be used.
        CheckFailed: the run collapsed or diverged; ``health.json`` says how.
        TryAgain: told to stop; the next call goes on from the checkpoint.
    """
    project, config = ctx.project, ctx.project.pretrain
    dataset: DatasetRef = ctx.input("dataset")
    runtime = resolve_runtime(config)
    images = _open(ctx, dataset)
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
    resolved = {
        **asdict(runtime), "image_size": preprocessing.size, "channels": preprocessing.channels, "batch_size": batch_size,
        "train_images": len(train), "encoder_parameters": parameter_count(encoder),
    }  # fmt: skip
    ctx.tracker.params({"resolved": resolved})
    ctx.progress.note(
        f"{len(train):,} images, {resolved['encoder_parameters']:,} parameters, {runtime.device}, {runtime.precision}, {runtime.threads} threads"
    )

    monitor = Monitor(
        encoder, preprocessing, images.pixels, train, batch_size, views=_views(objective, config.seed),
        device=runtime.device, precision=runtime.precision, labelled=_labelled(images),
    )  # fmt: skip
    checkpoints = CheckpointFiles(
        ctx.checkpoints,
        ctx.store.scratch,
        digest([recipe_digest(project, "pretrain"), dataset.sha256]),
        ctx.progress.note,
    )
    try:
        pace = fit(
            objective, images.pixels, train, config, runtime,
            monitor=monitor, checkpoints=checkpoints, tracker=ctx.tracker, progress=ctx.progress, stop=ctx.stop,
        )  # fmt: skip
    except Unhealthy as fault:
        output = _publish_health(ctx, report(monitor, {"resolved": resolved}, str(fault)))
        output.outputs = {"health": Output("report", HEALTH_FILE)}
        raise CheckFailed(
            str(fault),
            place="pretrain",
            next_step=f"see {HEALTH_FILE}; lower pretrain.learning_rate, raise pretrain.batch_size or weaken objective.augment",
            output=output,
        ) from fault

    _save(ctx, encoder.cpu(), info, images, train)
    output = _publish_health(ctx, report(monitor, _measured(pace, runtime) | {"resolved": resolved}, None))
    output.outputs = {"encoder": Output("encoder", "encoder")}
    output.summary = _summary(ctx, monitor, pace, resolved)
    return output


def _open(ctx: StepContext, dataset: DatasetRef) -> Images:
    """The dataset version's images at the size that the project asks for."""
    size, channels = choose_size(read_info(fetch(dataset, ctx.settings, ctx.progress)), ctx.project.data)
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


def _save(ctx: StepContext, encoder: ResNet, info: EncoderInfo, images: Images, train: np.ndarray) -> None:
    """The encoder folder, with a golden batch computed by what was read back from it: registration compares with that."""
    folder = ctx.out / "encoder"
    save_encoder(folder, encoder, info)
    loaded, info = load_encoder(folder)
    pixels = np.ascontiguousarray(images.pixels[train[:GOLDEN_IMAGES]])
    save_file({"pixels": pixels, "features": embed(loaded, info.preprocessing, pixels)}, folder / GOLDEN_FILE)


def _measured(pace: Pace, runtime: Runtime) -> dict[str, Any]:
    return {
        "images_per_second": round(pace.images_per_second, 1), "data_wait_share": round(pace.wait_share, 4),
        "seconds": round(pace.seconds, 2), "steps": pace.steps,
    }  # fmt: skip


def _publish_health(ctx: StepContext, document: dict[str, Any]) -> StepOutput:
    """Writes and tracks ``health.json``; returns its numbers as the step's metrics."""
    path = ctx.out / HEALTH_FILE
    # NaN is no JSON: what is not finite becomes null, and the reason says so in words.
    path.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    link = ctx.tracker.artifact(path)
    names = (
        "loss",
        "chance_loss",
        "spread",
        "effective_rank",
        "alignment",
        "uniformity",
        "knn_accuracy",
        "images_per_second",
        "data_wait_share",
    )
    metrics = {name: float(document[name]) for name in names if document.get(name) is not None}
    return StepOutput(metrics=metrics, links={"Health report": link} if link else {}, summary=document["reason"] or "")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(ctx: StepContext, monitor: Monitor, pace: Pace, resolved: dict[str, Any]) -> str:
    gauge = monitor.history[-1]
    text = (
        f"Pretrained a {ctx.project.encoder.arch} ({resolved['encoder_parameters']:,} parameters) with {ctx.project.objective.name} on "
        f"{resolved['train_images']:,} images, {pace.steps:,} steps in {pace.seconds:.0f} s ({pace.images_per_second:,.0f} images/s, "
        f"{pace.wait_share:.0%} of it waiting for data).\n"
        f"Loss {gauge.loss:.3f} (chance {gauge.chance_loss:.3f}), feature spread {gauge.spread:.2f}, effective rank "
        f"{gauge.effective_rank:.1f} of {monitor.encoder.features}."
    )
    return text if gauge.knn_accuracy is None else f"{text} kNN accuracy on val: {gauge.knn_accuracy:.3f}."
