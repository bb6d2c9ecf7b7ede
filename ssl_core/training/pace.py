"""How far a loop is, how fast it goes, and its curves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_core.step import Tracker
from ssl_core.training.health import Unhealthy


@dataclass
class Pace:
    """How far and how fast; travels in the checkpoint, so the final report covers all attempts of a run."""

    steps: int = 0
    samples: int = 0
    """Images, or tokens: what the run counts by."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of ``seconds`` in which the loop stood still for data."""
    loss_sum: float = 0.0
    loss_count: int = 0
    """Losses since the last gauge."""

    @property
    def per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0


class Window:
    """The steps since the loss was last read: values stay on the device until ``close``."""

    def __init__(self, pace: Pace, tracker: Tracker, unit: str) -> None:
        self._pace, self._tracker, self._unit = pace, tracker, unit
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._metrics: dict[str, Tensor | float] = {}
        self._samples, self._waited, self._clock = 0, 0.0, time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor, metrics: dict[str, Any], samples: int, waited: float) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self._metrics = metrics
        self._samples += samples
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
        pace.samples += self._samples
        pace.seconds += seconds
        pace.waited += self._waited
        pace.loss_sum += sum(losses)
        pace.loss_count += len(losses)
        mean = sum(losses) / len(losses)
        curves = {name: float(value) for name, value in self._metrics.items()} | {
            "loss": mean,
            "learning_rate": learning_rate,
            "gradient_norm": norms[-1],
            f"{self._unit}_per_second": self._samples / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._tracker.metrics(curves, done)
        self._losses, self._norms, self._samples, self._waited = [], [], 0, 0.0
        self.restart_clock()
        return len(losses), mean

    def restart_clock(self) -> None:
        """What happened since (gauges, checkpoints) is not training."""
        self._clock = time.perf_counter()
