"""The rule, and that its thresholds keep the budget: in closed form, exactly for any distribution, and simulated."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.monitoring.alarm import alarm_rate, is_alarm, shared_part, threshold, window_rate, windows_needed
from ssl_core.monitoring.two_sample import kernel_scale, mmd_values


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


def test_windows_that_share_their_reference_exceed_together_and_the_rate_allows_for_it() -> None:
    generator = np.random.default_rng(2)
    shared, rate = 0.3, 0.05
    common = np.repeat(generator.standard_normal(12_000), 5)
    scores = np.sqrt(shared) * common + np.sqrt(1 - shared) * generator.standard_normal(60_000)
    exceeded = (scores > 1.6449).reshape(-1, 5)
    alarms = exceeded[:, -1] & (exceeded.sum(axis=1) >= 2)
    assert alarms.mean() == pytest.approx(alarm_rate(rate, 2, 5, shared), rel=0.08)
    assert alarm_rate(rate, 2, 5, shared) > 1.5 * alarm_rate(rate, 2, 5)
    assert window_rate(2, 2, 5, shared) < window_rate(2, 2, 5)
    assert 365 * alarm_rate(window_rate(2, 2, 5, shared), 2, 5, shared) == pytest.approx(2)
    assert alarm_rate(rate, 2, 5, 1e-9) == pytest.approx(alarm_rate(rate, 2, 5)), "of nothing shared, the closed form"
    assert alarm_rate(rate, 2, 5, 1 - 1e-9) == pytest.approx(rate, rel=0.1), "of everything shared, one window is all"


def test_how_much_two_windows_share_is_what_they_show() -> None:
    generator = np.random.default_rng(3)
    n, m = 60, 60
    pairs = []
    for _ in range(400):
        reference = generator.normal(size=(n, 20))
        windows = [generator.normal(size=(m, 20)) for _ in range(2)]
        pairs.append([float(mmd_values(reference, one, permutations=0, scale=40.0)[0]) for one in windows])
    assert np.corrcoef(np.array(pairs).T)[0, 1] == pytest.approx(shared_part(n, n, m), abs=0.12)
    assert shared_part(n, n, m) == pytest.approx(0.25)
    assert shared_part(10 * n, n, m) == pytest.approx(0.0025), "fresh samples each time share next to nothing"
    assert kernel_scale(generator.normal(size=(2000, 20))) == pytest.approx(40, rel=0.1)
