"""The pretraining loop: setup, then fit. Read this file to know what a training step does.

A step is: fetch a batch, objective (views or masks, encoder, loss), backward, clip, AdamW. Everything random in it follows
from (seed, step), so a run that was killed and goes on from a checkpoint makes the same weights, bit by bit on a CPU
with as many threads, as one that was not (unless ``pretrain.budget`` makes the clock decide).
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ssl_core.config.pretrain import PretrainConfig
from ssl_core.errors import TryAgain, UserError
from ssl_core.models.optim import adamw, parameter_groups, set_rates, step_seed
from ssl_core.step import Progress, Tracker
from ssl_core.training.batches import Feed
from ssl_core.training.course import make_course
from ssl_core.training.health import Gauge, Observer
from ssl_core.training.pace import Pace, Window
from ssl_core.training.runtime import Runtime
from ssl_core.training.state import CheckpointFiles

GRADIENT_NORM_LIMIT = 1.0
"""Gradients are scaled down to this norm: one odd batch cannot throw the run."""
_CURVE_POINTS = 200
_LONGEST_SILENCE = 20
"""Steps between two looks at the loss, at most: reading it makes a GPU wait."""


def setup(runtime: Runtime) -> Accelerator:
    """An ``Accelerator`` for ``runtime``; it places, casts and scales, and seeds or logs nothing."""
    # Accelerate keeps its state per process; a second run in this process may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=runtime.device == "cpu", mixed_precision="bf16" if runtime.precision == "bfloat16" else "no"
    )
    if accelerator.num_processes > 1:
        # Each would train on the same batches: a contrastive loss over several processes has to gather its negatives.
        raise UserError(
            f"{accelerator.num_processes} processes were started, but pretraining runs in one",
            place="pretrain",
            next_step="start the step without torchrun or accelerate launch",
        )
    return accelerator


def fit(
    objective: nn.Module,
    batches: Feed,
    config: PretrainConfig,
    runtime: Runtime,
    *,
    monitor: Observer,
    checkpoints: CheckpointFiles,
    tracker: Tracker,
    progress: Progress,
    stop: threading.Event,
    unit: str = "images",
) -> Pace:
    """Trains ``objective`` in place on ``batches``, which are closed at the end; returns the pace.

    ``objective(batch, seed=, step=) -> (loss, metrics)``. Goes on from the newest checkpoint, if there is one.

    Raises:
        Unhealthy: the loss or a gradient is not finite, or the gauges show a collapse.
        TryAgain: ``stop`` was set; a checkpoint was saved first.
    """
    accelerator = setup(runtime)
    objective.to(accelerator.device)
    optimizer = adamw(parameter_groups(objective, config.learning_rate, config.weight_decay))
    start, record = checkpoints.restore(objective, optimizer)
    pace = Pace(**record["pace"]) if record else Pace()
    course = make_course(config, batches.per_epoch, record.get("elapsed", 0.0))
    monitor.history[:] = [Gauge(**gauge) for gauge in record.get("history", [])]
    look_every = max(1, min(_LONGEST_SILENCE, config.epochs * batches.per_epoch // _CURVE_POINTS))
    # The model itself needs no preparing in one process; it would cost seconds of imports (torch.distributed.tensor).
    prepared = accelerator.prepare_optimizer(optimizer)
    window = Window(pace, tracker, unit)

    def save(done: int) -> None:
        record = {
            "pace": asdict(pace), "history": [asdict(gauge) for gauge in monitor.history], "elapsed": course.elapsed(),
            "runtime": asdict(runtime),
        }  # fmt: skip
        checkpoints.save(done, objective, optimizer, record)

    saved_at = time.monotonic()
    objective.train()
    with torch.random.fork_rng(), progress.bar("pretrain", course.remaining(start), course.unit) as bar:
        try:
            done, ends = start, course.ended(start)
            while not ends:
                set_rates(optimizer, course.rate(done))
                window.add(*train_step(done, objective, prepared, batches, accelerator, config.seed))
                done += 1
                epoch_ends = done % batches.per_epoch == 0
                due = (
                    epoch_ends
                    if config.checkpoint_seconds == 0
                    else time.monotonic() - saved_at >= config.checkpoint_seconds
                )
                stopping, ends, look = stop.is_set(), course.ended(done), course.gauge_due(done)
                # Before the state is stored or looked at, the losses up to here are read and found finite.
                if done % look_every == 0 or look or due or stopping or ends:
                    steps, shown = window.close(done, optimizer.param_groups[0]["lr"])
                    epoch = math.ceil(done / batches.per_epoch)
                    bar.advance(
                        course.moved(done, done - steps),
                        epoch=f"{epoch}/{config.epochs}" if config.budget is None else str(epoch),
                        loss=f"{shown:.3f}",
                    )
                if look or (ends and not monitor.history):
                    gauge = monitor.observe(done, pace.loss_sum / max(1, pace.loss_count), course.warmup)
                    tracker.metrics(gauge.metrics(), done)
                    pace.loss_sum, pace.loss_count = 0.0, 0
                    window.restart_clock()
                if due or stopping or ends:
                    save(done)
                    saved_at = time.monotonic()
                    window.restart_clock()
                if stopping and not ends:
                    raise TryAgain(f"stopped; run again to go on from {course.place(done)}")
        finally:
            batches.close()
    return pace


def train_step(
    step: int, model: nn.Module, optimizer: Any, batches: Feed, accelerator: Accelerator, seed: int
) -> tuple[Tensor, Tensor, dict[str, Any], int, float]:
    """One step of AdamW; returns loss, gradient norm, metrics, number of samples (or tokens) and the seconds waited for them.

    Loss, norm and metrics stay on the device: reading them would make a GPU wait at every step.
    """
    clock = time.perf_counter()
    batch = batches.fetch(step)
    waited = time.perf_counter() - clock
    torch.manual_seed(step_seed(seed, step))  # for objectives that draw; augmentation has its own
    with accelerator.autocast():
        loss, metrics = model(batch, seed=seed, step=step)
    accelerator.backward(loss)
    norm = nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_LIMIT)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm, metrics, batches.count(batch), waited
