"""The pretraining loop: setup, then fit. Read this file to know what a training step does.

A step is: fetch uint8 pixels, objective (views, encoder, loss), backward, clip, AdamW. Everything random in it follows
from (seed, step), so a run that was killed and goes on from a checkpoint makes the same weights, bit by bit on a CPU
with as many threads, as one that was not.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ssl_core.config.project import PretrainConfig
from ssl_core.errors import TryAgain
from ssl_core.models.optim import adamw, parameter_groups, set_rates, warmup_cosine
from ssl_core.step import Progress, Tracker
from ssl_core.training.batches import Batches
from ssl_core.training.health import Gauge, Monitor, Unhealthy, gauge_steps
from ssl_core.training.runtime import Runtime
from ssl_core.training.state import CheckpointFiles

GRADIENT_NORM_LIMIT = 1.0
"""Gradients are scaled down to this norm: one odd batch cannot throw the run."""
_CURVE_POINTS = 200
_LONGEST_SILENCE = 20
"""Steps between two looks at the loss, at most: reading it makes a GPU wait."""


@dataclass
class Pace:
    """How far and how fast; travels in the checkpoint, so the final report covers all attempts of a run."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of ``seconds`` in which the loop stood still for data."""
    loss_sum: float = 0.0
    loss_count: int = 0
    """Losses since the last gauge."""

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0


def setup(runtime: Runtime) -> Accelerator:
    """An ``Accelerator`` for ``runtime``; it places, casts and prepares, and seeds or logs nothing."""
    # Accelerate keeps its state per process; a second run in this process may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=runtime.device == "cpu", mixed_precision="bf16" if runtime.precision == "bfloat16" else "no")


def fit(
    objective: nn.Module,
    pixels: np.ndarray,
    positions: np.ndarray,
    config: PretrainConfig,
    runtime: Runtime,
    *,
    monitor: Monitor,
    checkpoints: CheckpointFiles,
    tracker: Tracker,
    progress: Progress,
    stop: threading.Event,
) -> Pace:
    """Trains ``objective`` in place on the rows ``positions`` of ``pixels`` (uint8 ``(N, C, H, W)``); returns the pace.

    ``objective(pixels uint8, seed=, step=, positions=) -> (loss, metrics)``, where ``positions`` number the samples
    within the global batch. Goes on from the newest checkpoint, if there is one.

    Raises:
        Unhealthy: the loss or a gradient is not finite, or the gauges show a collapse.
        TryAgain: ``stop`` was set; a checkpoint was saved first.
    """
    accelerator = setup(runtime)
    objective.to(accelerator.device)
    optimizer = adamw(parameter_groups(objective, config.learning_rate, config.weight_decay))
    start, record = checkpoints.restore(objective, optimizer)
    pace = Pace(**record["pace"]) if record else Pace()
    monitor.history[:] = [Gauge(**gauge) for gauge in record.get("history", [])]
    batches = Batches(pixels, positions, config.batch_size, config.seed, str(accelerator.device))
    total = config.epochs * batches.per_epoch
    warmup = round(config.warmup * total)
    gauges = gauge_steps(total)
    look_every = max(1, min(_LONGEST_SILENCE, total // _CURVE_POINTS))
    in_batch = torch.arange(batches.size, device=accelerator.device)
    model, prepared = accelerator.prepare(objective, optimizer)
    window = _Window(pace, tracker)

    def save(done: int) -> None:
        record = {"pace": asdict(pace), "history": [asdict(gauge) for gauge in monitor.history]}
        checkpoints.save(done, objective, optimizer, record)

    def learn(step: int) -> None:
        set_rates(optimizer, warmup_cosine(step, total, warmup))
        clock = time.perf_counter()
        batch = batches.fetch(step)
        waited = time.perf_counter() - clock
        torch.manual_seed(_step_seed(config.seed, step))  # for objectives that draw; augmentation has its own
        loss, metrics = model(batch, seed=config.seed, step=step, positions=in_batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(objective.parameters(), GRADIENT_NORM_LIMIT)
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        window.add(loss.detach(), norm, metrics, len(batch), waited)

    saved_at = time.monotonic()
    objective.train()
    with torch.random.fork_rng(), progress.bar("pretrain", total - start, "steps") as bar:
        try:
            for step in range(start, total):
                learn(step)
                done = step + 1
                epoch_ends = done % batches.per_epoch == 0
                due = epoch_ends if config.checkpoint_seconds == 0 else time.monotonic() - saved_at >= config.checkpoint_seconds
                stopping = stop.is_set()
                # Before the state is stored or looked at, the losses up to here are read and found finite.
                if done % look_every == 0 or done in gauges or due or stopping:
                    steps, shown = window.close(done, optimizer.param_groups[0]["lr"])
                    bar.advance(steps, epoch=f"{math.ceil(done / batches.per_epoch)}/{config.epochs}", loss=f"{shown:.3f}")
                if done in gauges:
                    gauge = monitor.observe(done, pace.loss_sum / pace.loss_count, warmup)
                    tracker.metrics(gauge.metrics(), done)
                    pace.loss_sum, pace.loss_count = 0.0, 0
                    window.restart_clock()
                if due or stopping or done == total:
                    save(done)
                    saved_at = time.monotonic()
                    window.restart_clock()
                if stopping and done < total:
                    raise TryAgain(f"stopped; run again to go on from step {done} of {total}")
        finally:
            batches.close()
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # gives the objective its own forward back
    return pace


class _Window:
    """The steps since the loss was last read: values stay on the device until ``close``."""

    def __init__(self, pace: Pace, tracker: Tracker) -> None:
        self._pace, self._tracker = pace, tracker
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._metrics: dict[str, Tensor | float] = {}
        self._images, self._waited, self._clock = 0, 0.0, time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor, metrics: dict[str, Any], images: int, waited: float) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self._metrics = metrics
        self._images += images
        self._waited += waited

    def close(self, done: int, learning_rate: float) -> tuple[int, float]:
        """Reads the window after ``done`` steps; returns how many steps it held and their mean loss.

        Raises ``Unhealthy`` where a loss or a gradient norm is not finite, naming the step.
        """
        losses = torch.stack(self._losses).double().tolist()
        norms = torch.stack(self._norms).double().tolist()
        first = done - len(losses)
        for what, values in (("loss", losses), ("gradient norm", norms)):
            for i, value in enumerate(values):
                if not math.isfinite(value):
                    raise Unhealthy(f"the {what} is not finite ({value}) at step {first + i + 1}")
        pace, seconds = self._pace, time.perf_counter() - self._clock
        pace.steps = done
        pace.images += self._images
        pace.seconds += seconds
        pace.waited += self._waited
        pace.loss_sum += sum(losses)
        pace.loss_count += len(losses)
        mean = sum(losses) / len(losses)
        curves = {name: float(value) for name, value in self._metrics.items()} | {
            "loss": mean, "learning_rate": learning_rate, "gradient_norm": norms[-1],
            "images_per_second": self._images / seconds, "data_wait_share": self._waited / seconds,
        }
        self._tracker.metrics(curves, done)
        self._losses, self._norms, self._images, self._waited = [], [], 0, 0.0
        self.restart_clock()
        return len(losses), mean

    def restart_clock(self) -> None:
        """What happened since (gauges, checkpoints) is not training."""
        self._clock = time.perf_counter()


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


