"""Image classification: a head on the encoder, trained on few labels and on what they say about the unlabeled images.

Shapes: N training images, K classes, D features.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.config.objectives import ImageAugmentConfig
from ssl_core.config.tasks import ImageClassificationConfig
from ssl_core.data.augment import ImageAugment
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.models.anchors import Penalty
from ssl_core.models.classifier import ImageClassifier, build_classifier
from ssl_core.models.embed import embed
from ssl_core.models.encoder import EncoderInfo
from ssl_core.models.optim import adamw, parameter_groups, set_rates, step_seed, warmup_cosine
from ssl_core.models.resnet import ResNet
from ssl_core.step import NoProgress, NoTracker, Progress, Tracker
from ssl_core.tasks.soft_labels import Targets, hard_targets, spread_targets, temper

MIN_STEPS = 100
"""Ten labels make an epoch of one step; so few steps would teach the head nothing."""
CHECKPOINT_SECONDS = 30.0
"""What a killed process loses, at most; 0 stores every step."""
WARMUP = 0.1
GRADIENT_NORM_LIMIT = 1.0
MILD = ImageAugmentConfig(
    crop_scale=(0.8, 1.0), rotate=8, translate=0.05, shear=3, flip=False,
    brightness=0.15, contrast=0.15, noise=0.02, blur=0.0, cutout=0.0,
)  # fmt: skip
"""Views for fine-tuning: what a label surely survives, whatever the images show."""


class Images(Protocol):
    """What is needed of ``data.memory.Images``."""

    @property
    def pixels(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...


class Checkpoints(Protocol):
    """What is needed of ``training.state.CheckpointFiles``: where an interrupted training goes on from."""

    def save(self, step: int, trained: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None: ...
    def restore(self, trained: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]: ...


def train_classifier(
    encoder: ResNet,
    info: EncoderInfo,
    images: Images,
    labelled_positions: np.ndarray,
    unlabeled_positions: np.ndarray,
    config: ImageClassificationConfig,
    classes: Sequence[str],
    *,
    head: nn.Module | None = None,
    penalty: Penalty | None = None,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    checkpoints: Checkpoints | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
) -> ImageClassifier:
    """A classifier on a copy of ``encoder``, in eval mode on the CPU; equal seeds and threads give equal bits there.

    ``config.method`` full trains encoder and head at a rate each, on lightly augmented images; linear trains the head
    on the frozen encoder's features. Batches hold every class equally often. The labels of ``unlabeled_positions`` are
    never read. ``head`` is where the head starts from, instead of knowing nothing; ``penalty`` is added to the loss.

    With ``checkpoints``, full goes on from the newest one, to the same bits as if it had never stopped; linear takes
    seconds and starts again.

    Raises:
        CheckFailed: the loss or a gradient is not finite.
        TryAgain: ``stop`` was set; a checkpoint was saved first, where there are ``checkpoints``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    encoder = copy.deepcopy(encoder).to(device)
    labels = images.labels[labelled_positions]
    targets = hard_targets(labelled_positions, labels, len(classes))
    linear = config.method == "linear"
    spread = config.spread_labels and len(unlabeled_positions) > 0
    features = None
    if linear or spread:
        everything = np.concatenate([labelled_positions, unlabeled_positions]) if spread else labelled_positions
        features = embed(encoder, info.preprocessing, images.pixels, everything, device=device, precision=precision)
        if spread:
            targets = spread_targets(features, targets, unlabeled_positions, config.seed)
    model = build_classifier(encoder, info, classes)
    if head is not None:
        model.head.load_state_dict(head.state_dict())
    model.to(device)
    follow = _Follower(stop or threading.Event(), progress or NoProgress(), tracker or NoTracker(), checkpoints)
    with torch.random.fork_rng():
        if linear:
            assert features is not None
            _train_head(model, features, targets, config, replace(follow, checkpoints=None), penalty)
        else:
            _train_all(model, images.pixels, targets, config, precision, follow, penalty)
    if spread:
        temper(model, images.pixels, targets)
    return model.cpu().eval()


def schedule(images: int, config: ImageClassificationConfig) -> tuple[int, int]:
    """``(steps an epoch, steps in all)`` on so many training images: ``config.epochs``, or more up to ``MIN_STEPS``."""
    per_epoch = -(-images // config.batch_size)
    return per_epoch, max(config.epochs * per_epoch, MIN_STEPS)


def soft_cross_entropy(logits_NK: Tensor, targets_NK: Tensor, weights_N: Tensor) -> Tensor:
    """``-sum_n w_n sum_k t_nk log p_nk / sum_n w_n``. A scalar."""
    losses = -(targets_NK * F.log_softmax(logits_NK.float(), dim=1)).sum(dim=1)
    return (losses * weights_N).sum() / weights_N.sum().clamp_min(1e-12)


def balanced_rows(classes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` rows ``(size,)`` in which the present classes take turns, each through its own shuffled members.

    So any stretch of K rows holds each of K classes once; members of a small class come again before those of a large
    one have all been seen.
    """
    present = np.unique(classes)
    turns = -(-size // len(present))
    columns = []
    for one in rng.permutation(present):
        members = np.flatnonzero(classes == one)
        rounds = -(-turns // len(members))
        columns.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:turns])
    return np.stack(columns, axis=1).ravel()[:size]


def _batches(
    targets: Targets, config: ImageClassificationConfig, steps_per_epoch: int, start: int, steps: int
) -> Iterator[np.ndarray]:
    """Rows of ``targets`` for the steps ``start`` to ``steps``; every epoch's order follows from (seed, epoch)."""
    kinds = targets.probabilities.argmax(axis=1)
    for epoch in range(start // steps_per_epoch, -(-steps // steps_per_epoch)):
        rows = balanced_rows(kinds, steps_per_epoch * config.batch_size, np.random.default_rng([config.seed, epoch]))
        first = epoch * steps_per_epoch
        yield from rows.reshape(steps_per_epoch, config.batch_size)[max(0, start - first) : steps - first]


def _train_all(
    model: ImageClassifier,
    pixels: np.ndarray,
    targets: Targets,
    config: ImageClassificationConfig,
    precision: str,
    follow: _Follower,
    penalty: Penalty | None,
) -> None:
    """Encoder and head, on mild views of the images."""
    device = next(model.parameters()).device
    optimizer = adamw(
        [
            *parameter_groups(model.encoder, config.encoder_learning_rate, config.weight_decay),
            *parameter_groups(model.head, config.learning_rate, config.weight_decay),
        ]
    )
    augment = ImageAugment(MILD)
    pull = penalty(model) if penalty else None

    def loss(rows: np.ndarray, step: int) -> Tensor:
        batch = torch.from_numpy(pixels[targets.positions[rows]]).to(device)
        views = model.info.preprocessing.normalise(augment(batch, config.seed, step, 0))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(views)
        value = soft_cross_entropy(logits, *_on(device, targets, rows, config.label_smoothing))
        return value + pull() if pull else value

    model.train()
    _descend(loss, model, optimizer, targets, config, follow)


def _train_head(
    model: ImageClassifier,
    features: np.ndarray,
    targets: Targets,
    config: ImageClassificationConfig,
    follow: _Follower,
    penalty: Penalty | None,
) -> None:
    """The head alone, on standardised features; the standardisation is then folded into its weights."""
    device = next(model.parameters()).device
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    standard = torch.from_numpy(((features - mean) / std).astype(np.float32)).to(device)
    weight, bias = model.head.weight, model.head.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    with torch.no_grad():  # a head that knows something answers the same on standardised features
        bias.add_(weight @ torch.from_numpy(mean).to(device))
        weight.mul_(torch.from_numpy(std).to(device))
    pull = penalty(model.head) if penalty else None
    optimizer = adamw(parameter_groups(model.head, config.learning_rate, config.weight_decay))

    def loss(rows: np.ndarray, step: int) -> Tensor:
        logits = model.head(standard[torch.from_numpy(rows).to(device)])
        value = soft_cross_entropy(logits, *_on(device, targets, rows, config.label_smoothing))
        return value + pull() if pull else value

    _descend(loss, model.head, optimizer, targets, config, follow)
    with torch.no_grad():
        weight.div_(torch.from_numpy(std).to(device))
        bias.sub_(weight @ torch.from_numpy(mean).to(device))


def _on(device: torch.device, targets: Targets, rows: np.ndarray, smoothing: float) -> tuple[Tensor, Tensor]:
    """Probabilities and weights of ``rows``; labels are smoothed towards ``1 / K``, spread ones are soft as they are."""
    probabilities = targets.probabilities[rows]
    share = np.where(rows < targets.labels, smoothing, 0).astype(np.float32)[:, None]
    probabilities = probabilities * (1 - share) + share / probabilities.shape[1]
    return torch.from_numpy(probabilities).to(device), torch.from_numpy(targets.weights[rows]).to(device)


@dataclass(frozen=True)
class _Follower:
    """Who watches the training, and who may stop it."""

    stop: threading.Event
    progress: Progress
    tracker: Tracker
    checkpoints: Checkpoints | None


class _Loss(Protocol):
    def __call__(self, rows: np.ndarray, step: int) -> Tensor: ...


def _descend(
    loss_of: _Loss,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    targets: Targets,
    config: ImageClassificationConfig,
    follow: _Follower,
) -> None:
    """AdamW with warm-up and cosine over class-balanced batches; the loss is read, and logged, once an epoch.

    A step follows from (seed, step) and the state before it, so state and step number are all that a resume has to know.
    """
    per_epoch, steps = schedule(len(targets.positions), config)
    warmup = round(WARMUP * steps)
    start, record = follow.checkpoints.restore(trained, optimizer) if follow.checkpoints else (0, {})
    total = torch.tensor(record.get("loss_sum", 0.0), device=next(trained.parameters()).device)
    counted, shown = record.get("loss_count", 0), start
    saved_at = time.monotonic()
    with follow.progress.bar("finetune", steps - start, "steps") as bar:
        for step, rows in enumerate(_batches(targets, config, per_epoch, start, steps), start):
            set_rates(optimizer, warmup_cosine(step, steps, warmup))
            torch.manual_seed(step_seed(config.seed, step))  # for modules that draw; augmentation has its own
            loss = loss_of(rows, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained.parameters(), GRADIENT_NORM_LIMIT)
            optimizer.step()
            total, counted = total + loss.detach(), counted + 1
            done, stopping = step + 1, follow.stop.is_set()
            epoch_ends = done % per_epoch == 0 or done == steps
            due = stopping or done == steps or time.monotonic() - saved_at >= CHECKPOINT_SECONDS
            if epoch_ends or due:
                # Before a state is stored, what led to it is read and found finite.
                mean = _finite_mean(float(total), counted, float(norm), done)
                bar.advance(done - shown, epoch=f"{-(-done // per_epoch)}/{-(-steps // per_epoch)}", loss=f"{mean:.3f}")
                shown = done
            if epoch_ends:
                follow.tracker.metrics({"loss": mean}, done)
                total, counted = torch.zeros_like(total), 0
            if follow.checkpoints and due:
                follow.checkpoints.save(done, trained, optimizer, {"loss_sum": float(total), "loss_count": counted})
                saved_at = time.monotonic()
            if stopping and done < steps:
                where = f"go on from step {done} of {steps}" if follow.checkpoints else "fine-tune from the start"
                raise TryAgain(f"stopped; run again to {where}")


def _finite_mean(loss_sum: float, count: int, gradient_norm: float, step: int) -> float:
    """The mean loss; raises ``CheckFailed`` where it, or the last gradient, is not finite."""
    for what, value in (("loss", loss_sum / count), ("gradient norm", gradient_norm)):
        if not math.isfinite(value):
            raise CheckFailed(
                f"the {what} is not finite ({value}) at step {step}",
                place="task.learning_rate",
                next_step="lower task.learning_rate and task.encoder_learning_rate, or set pretrain.precision: float32",
            )
    return loss_sum / count
