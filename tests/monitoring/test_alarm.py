"""The rule, and that its thresholds keep the budget: in closed form, exactly for any distribution, and simulated."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.monitoring.alarm import alarm_rate, is_alarm, threshold, window_rate, windows_needed


def test_the_rate_of_two_of_five_in_closed_form() -> None:
    p = window_rate(2, 2, 5)
    assert p * (1 - (1 - p) ** 4) * 365 == pytest.approx(2)
    assert p == pytest.approx(0.0380, abs=5e-4)
    assert window_rate(2, 1, 5) == pytest.approx(2 / 365), "the latest alone"
    assert window_rate(2, 3, 3) == pytest.approx((2 / 365) ** (1 / 3)), "three in a row"


@pytest.mark.parametrize(("budget", "k", "m"), [(2, 0, 5), (2, 6, 5), (0, 2, 5), (365, 2, 5)])
def test_what_cannot_be_kept_is_refused(budget: float, k: int, m: int) -> None:
    with pytest.raises(ValueError, match=r"k of m|budget"):
        window_rate(budget, k, m)


def test_a_further_window_exceeds_the_threshold_as_often_as_asked() -> None:
    generator = np.random.default_rng(0)
    rate, count = 0.04, 49
    draws = generator.standard_cauchy((20_000, count + 1))  # no moments: no assumption on the distribution helps
    exceeded = [row[-1] > threshold(row[:-1], rate) for row in draws]
    assert np.mean(exceeded) == pytest.approx(rate, abs=3 * np.sqrt(rate / 20_000))


def test_too_few_stable_windows_give_no_threshold() -> None:
    rate = window_rate(2, 2, 5)
    needed = windows_needed(rate)
    assert needed == 26
    assert threshold(np.arange(needed), rate) == needed - 1
    with pytest.raises(ValueError, match=f"at least {needed}"):
        threshold(np.arange(needed - 1), rate)


@pytest.mark.parametrize(
    ("exceeded", "expected"),
    [
        ([], False),
        ([True], False),
        ([True, True], True),
        ([True, False, False, False, True], True),
        ([True, False, False, False, False, True], False),
        ([True, True, False], False),
    ],
    ids=["none", "one", "two", "within five", "too long ago", "not the latest"],
)
def test_two_of_the_last_five_and_the_latest(exceeded: list[bool], expected: bool) -> None:
    assert is_alarm(exceeded, 2, 5) is expected


def test_alarms_of_the_rule_come_at_the_rate_that_the_formula_says() -> None:
    exceeded = np.random.default_rng(1).random(60_000) < 0.05
    alarms = [is_alarm(exceeded[max(0, end - 5) : end].tolist(), 2, 5) for end in range(1, len(exceeded) + 1)]
    assert np.mean(alarms) == pytest.approx(alarm_rate(0.05, 2, 5), rel=0.1)
