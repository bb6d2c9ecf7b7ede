"""How far a run is: counted in steps, or in time where ``pretrain.budget`` is set. Rates, gauges and the end follow from it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ssl_core.config.pretrain import PretrainConfig
from ssl_core.models.optim import warmup_cosine
from ssl_core.training.health import GAUGES_A_RUN, gauge_steps

_LOOKING = 0.1
"""Share of the time of a timed run that gauges may take."""
_PARTS = 1_000_000  # a share of the time as whole numbers, which the schedule takes


class StepCourse:
    """A run of ``epochs * per_epoch`` steps: all that it says follows from the step number."""

    unit = "steps"

    def __init__(self, config: PretrainConfig, per_epoch: int) -> None:
        self.total = config.epochs * per_epoch
        self.warmup = round(config.warmup * self.total)
        self._gauges = gauge_steps(self.total)

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at ``step``."""
        return warmup_cosine(step, self.total, self.warmup)

    def ended(self, done: int) -> bool:
        return done >= self.total

    def gauge_due(self, done: int) -> bool:
        return done in self._gauges

    def moved(self, done: int, before: int) -> float:
        """What a progress bar advances by, in ``unit``, from ``before`` to ``done`` steps."""
        return done - before

    def remaining(self, start: int) -> float:
        """How much of it is left after ``start`` steps, in ``unit``."""
        return self.total - start

    def place(self, done: int) -> str:
        return f"step {done} of {self.total}"

    def elapsed(self) -> float:
        """Seconds that a resumed run has to know of: none, the step number says all."""
        return 0.0


class TimedCourse:
    """A run that ends when ``budget`` seconds are spent, those of earlier attempts included.

    Learning rate and gauges follow the share of the time that is gone, so another machine, or a pause, makes other weights.
    Gauges of a large network take their time: they get a tenth of it, and the one at the end is always taken.
    """

    unit = "s"

    def __init__(
        self, config: PretrainConfig, budget: float, spent: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._budget = budget
        self.warmup = 0
        self._share, self._spent, self._clock = config.warmup, spent, clock
        self._started, self._shown = clock(), spent
        self._gauged = int(GAUGES_A_RUN * spent / budget)
        self._looked: float | None = None
        self._next_look = 0.0

    def elapsed(self) -> float:
        return self._spent + self._clock() - self._started

    def rate(self, step: int) -> float:
        now = self.elapsed()
        if self._looked is not None:  # the first step after a gauge
            self._next_look, self._looked = now + (now - self._looked) / _LOOKING, None
        share = min(1.0, now / self._budget)
        if share < self._share:
            self.warmup = step + 1  # for the health check, which counts in steps
        return warmup_cosine(int(share * _PARTS), _PARTS, int(self._share * _PARTS))

    def ended(self, done: int) -> bool:
        return self.elapsed() >= self._budget

    def gauge_due(self, done: int) -> bool:
        now = self.elapsed()
        due = min(GAUGES_A_RUN, int(GAUGES_A_RUN * now / self._budget))
        if due <= self._gauged or self._next_look > now < self._budget:
            return False
        self._gauged, self._looked = due, now
        return True

    def moved(self, done: int, before: int) -> float:
        now = min(self._budget, self.elapsed())
        moved, self._shown = now - self._shown, now
        return moved

    def remaining(self, start: int) -> float:
        return self._budget - self._spent

    def place(self, done: int) -> str:
        return f"step {done}, {min(self._budget, self.elapsed()):.0f} s of {self._budget:.0f} s"


Course = StepCourse | TimedCourse


def make_course(config: PretrainConfig, per_epoch: int, spent: float) -> Course:
    """The course that the configuration asks for; ``spent``: seconds of the attempts before."""
    budget = config.budget_seconds
    return StepCourse(config, per_epoch) if budget is None else TimedCourse(config, budget, spent)
