"""The ``finetune`` step: a classifier from the registered encoder and the labels of the budget."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ssl_core.config.tasks import ImageClassificationConfig
from ssl_core.contracts import GOLDEN_FILE, DatasetRef, ModelRef
from ssl_core.data.budgets import nested_draws
from ssl_core.data.memory import Images, open_images
from ssl_core.errors import UserError
from ssl_core.models.classifier import ImageClassifier, load_classifier, save_classifier
from ssl_core.models.encoder import EncoderInfo, load_encoder
from ssl_core.models.resnet import ResNet
from ssl_core.pipeline import digest, recipe_digest
from ssl_core.step import Output, Progress, StepContext, StepOutput, Tracker
from ssl_core.tasks.image_classification import schedule, train_classifier
from ssl_core.training.runtime import Runtime, resolve_runtime
from ssl_core.training.state import CheckpointFiles

GOLDEN_IMAGES = 16
TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class Finetuned:
    """A classifier and the labels that made it."""

    model: ImageClassifier
    labelled: np.ndarray
    """Positions of the labelled training images that were used."""
    unlabeled: np.ndarray
    """Positions of the training images whose labels, if any, were not read."""
    spread: bool
    """Whether the labels were spread over the unlabeled ones, so that those were trained on too."""
    steps: int
    epochs: float
    """Passes over the images that were trained on: ``task.epochs``, or more where that would be too few steps."""


def run(ctx: StepContext) -> StepOutput:
    """Fine-tunes the registered encoder on ``task.labels`` labelled images of split train.

    Makes ``model/``: the classifier, ``training.json`` (budget, sample_ids, seeds) and ``golden.safetensors``.

    Raises:
        UserError: there are fewer labels than asked for, or than classes.
        CheckFailed: the loss is not finite.
        TryAgain: told to stop; the next call goes on from the checkpoint.
    """
    task = ctx.project.task
    dataset: DatasetRef = ctx.input("dataset")
    registered: ModelRef = ctx.input("registered_encoder")
    runtime = resolve_runtime(ctx.project.pretrain)
    encoder, info = load_encoder(ctx.fetch("registered_encoder"))
    images = open_images(
        dataset, ctx.settings, size=info.preprocessing.size, channels=info.preprocessing.channels, progress=ctx.progress
    )
    recipe = digest([recipe_digest(ctx.project, "finetune"), dataset.sha256, registered.sha256])
    checkpoints = CheckpointFiles(ctx.checkpoints, ctx.store.scratch, recipe, ctx.progress.note)
    made = finetune_from(
        encoder,
        info,
        images,
        task,
        runtime,
        checkpoints=checkpoints,
        stop=ctx.stop,
        progress=ctx.progress,
        tracker=ctx.tracker,
    )
    folder = ctx.out / "model"
    save_classifier(folder, made.model)
    _save_golden(folder, images)
    sample_ids = images.manifest["sample_id"].to_numpy()[made.labelled].tolist()
    document = {
        "schema_version": 1, "label_budget": task.labels, "labels": len(sample_ids), "sample_ids": sorted(sample_ids),
        "spread": made.spread, "unlabeled_images": len(made.unlabeled), "method": task.method, "seed": task.seed,
        "steps": made.steps, "epochs": made.epochs,
        "dataset": dataset.tag or dataset.revision, "encoder": f"{registered.name}/{registered.version}", "device": runtime.device,
        "precision": runtime.precision, "threads": runtime.threads,
    }  # fmt: skip
    (folder / TRAINING_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    ctx.tracker.params({"resolved": {k: v for k, v in document.items() if k != "sample_ids"}})
    metrics = {"labels": float(len(sample_ids))}
    summary = f"Fine-tuned {registered.name} version {registered.version} ({task.method}) on {len(sample_ids):,} labelled images"
    summary += f" and the labels spread over {len(made.unlabeled):,} more." if made.spread else "."
    if (accuracy := _accuracy(made.model, images, "val")) is not None:
        metrics["val_accuracy"] = accuracy
        ctx.tracker.metrics({"val_accuracy": accuracy})
        summary += f" Accuracy on val: {accuracy:.3f}."
    return StepOutput(outputs={"model": Output("model", "model")}, metrics=metrics, summary=summary)


def finetune_from(
    encoder: ResNet,
    info: EncoderInfo,
    images: Images,
    task: ImageClassificationConfig,
    runtime: Runtime,
    *,
    checkpoints: CheckpointFiles | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
) -> Finetuned:
    """The recipe of ``task`` from ``encoder``, which stays as it is: the same labels and batches whatever the encoder is.

    ``evaluate`` calls it with a random encoder: the same recipe without pretraining.
    """
    labelled = draw_labels(images, task)
    train = images.positions("train")
    unlabeled = np.setdiff1d(train, labelled)
    model = train_classifier(
        encoder, info, images, labelled, unlabeled, task, images.classes,
        device=runtime.device, precision=runtime.precision, threads=runtime.threads,
        checkpoints=checkpoints, stop=stop, progress=progress, tracker=tracker,
    )  # fmt: skip
    spread = task.spread_labels and len(unlabeled) > 0
    per_epoch, steps = schedule(len(labelled) + (len(unlabeled) if spread else 0), task)
    return Finetuned(model, labelled, unlabeled, spread, steps, round(steps / per_epoch, 2))


def draw_labels(images: Images, task: ImageClassificationConfig) -> np.ndarray:
    """Positions of the labelled training images within the budget ``task.labels``, ascending; stratified and seeded.

    Raises ``UserError`` where there are fewer than asked for, or a class would have none.
    """
    available = images.positions("train", labelled=True)
    labels = images.labels[available]
    missing = _unlabeled_classes(labels, images.classes)
    if missing:
        raise UserError(
            f"no labelled training image of {', '.join(missing)} ({len(available)} labelled in all, {len(images.classes)} classes)",
            place="data.labels",
            next_step="label at least one image of each class (two or more are better), or list fewer data.classes",
        )
    if task.labels == "all":
        return available
    if task.labels > len(available):
        raise UserError(
            f"asks for {task.labels} labels, but the training split has {len(available)}",
            place="task.labels",
            next_step=f"set task.labels to all, or to {len(available)} or less",
        )
    if task.labels < len(images.classes):
        raise UserError(
            f"asks for {task.labels} labels, but there are {len(images.classes)} classes",
            place="task.labels",
            next_step=f"set task.labels to {len(images.classes)} or more",
        )
    drawn = nested_draws(labels, [task.labels], 1, task.seed)[0][task.labels]
    return np.sort(available[drawn])


def _unlabeled_classes(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    present = set(labels.tolist())
    return [name for i, name in enumerate(classes) if i not in present]


def _save_golden(folder: Path, images: Images) -> None:
    """A golden batch, computed by what was read back from ``folder``: registration compares with it."""
    pixels = np.ascontiguousarray(images.pixels[images.positions("train")[:GOLDEN_IMAGES]])
    save_file({"pixels": pixels, "probabilities": load_classifier(folder).predict_proba(pixels)}, folder / GOLDEN_FILE)


def _accuracy(model: ImageClassifier, images: Images, split: str) -> float | None:
    positions = images.positions(split, labelled=True)
    if len(positions) == 0:
        return None
    predicted = model.predict_proba(np.ascontiguousarray(images.pixels[positions])).argmax(axis=1)
    return float((predicted == images.labels[positions]).mean())
