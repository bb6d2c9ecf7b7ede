"""How far a run is: by steps, and by the clock."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ssl_core.config.pretrain import ImagePretrainConfig
from ssl_core.models.optim import warmup_cosine
from ssl_core.training.course import StepCourse, TimedCourse, make_course
from ssl_core.training.health import GAUGES_A_RUN


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed(budget: float = 60.0, spent: float = 0.0, **config: float) -> tuple[TimedCourse, Clock]:
    clock = Clock()
    return TimedCourse(ImagePretrainConfig.model_validate(config), budget, spent, clock), clock


def test_steps_say_all() -> None:
    course = make_course(ImagePretrainConfig(epochs=3, warmup=0.25), 4, 99.0)
    assert isinstance(course, StepCourse)
    assert (course.total, course.warmup, course.remaining(5)) == (12, 3, 7)
    assert [course.rate(step) for step in (0, 3, 11)] == [warmup_cosine(step, 12, 3) for step in (0, 3, 11)]
    assert [course.ended(done) for done in (11, 12)] == [False, True]
    assert course.gauge_due(12)
    assert course.elapsed() == 0


def test_a_budget_of_time_ends_when_it_is_spent() -> None:
    course, clock = timed(60)
    assert not course.ended(1_000_000)
    clock.now += 59.9
    assert not course.ended(1)
    clock.now += 0.1
    assert course.ended(1)
    assert course.elapsed() == pytest.approx(60)


def test_earlier_attempts_count() -> None:
    course, clock = timed(60, spent=45)
    assert course.remaining(10) == 15
    clock.now += 15
    assert course.ended(10)


def test_the_rate_follows_the_share_of_time() -> None:
    course, clock = timed(100, warmup=0.1)
    assert course.rate(0) < 0.01
    clock.now += 5
    assert course.rate(7) == pytest.approx(0.5, abs=0.01)
    assert course.warmup == 8
    clock.now += 5
    assert course.rate(9) == pytest.approx(1.0, abs=0.01)
    clock.now += 45
    assert course.rate(20) == pytest.approx(0.5, abs=0.01)
    assert course.warmup == 8, "the health check knows when the warm-up was over"
    clock.now += 50
    assert course.rate(30) == pytest.approx(0, abs=1e-6)


def test_gauges_are_taken_as_time_goes_by_and_at_the_end() -> None:
    course, clock = timed(60)
    taken = 0
    for _ in range(60):
        clock.now += 1
        taken += course.gauge_due(1)
    assert taken == GAUGES_A_RUN
    course, clock = timed(60, spent=35)  # three were taken before the interruption
    clock.now += 25
    assert course.gauge_due(1)
    assert not course.gauge_due(1)


def test_gauges_of_a_large_network_take_a_tenth_of_the_time_at_most() -> None:
    course, clock = timed(600)
    taken: list[float] = []
    while not course.ended(0):
        course.rate(0)
        clock.now += 1
        if course.gauge_due(0):
            taken.append(course.elapsed())
            clock.now += 12
    assert 3 <= len(taken) <= 1 + 600 * 0.1 / 12
    clock.now += 1
    assert taken[-1] >= 588 or course.gauge_due(0), "the last one is always taken"


def test_the_bar_moves_with_the_clock() -> None:
    course, clock = timed(60, spent=10)
    clock.now += 5
    assert course.moved(3, 0) == pytest.approx(5)
    clock.now += 100
    assert course.moved(4, 3) == pytest.approx(45)
    assert course.place(4) == "step 4, 60 s of 60 s"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200)])
def test_budgets_in_words(text: str, seconds: float) -> None:
    assert ImagePretrainConfig(budget=text).budget_seconds == seconds
    assert ImagePretrainConfig().budget_seconds is None


@pytest.mark.parametrize("text", ["10", "0m", "-5m", "1.5h", "ten minutes", "5d", ""])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="90s, 10m or 2h"):
        ImagePretrainConfig(budget=text)
