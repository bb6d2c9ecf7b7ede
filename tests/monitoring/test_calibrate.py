"""Thresholds keep the budget on data of which nothing is known, from resampling and from an own history; and the floors hold."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.config.monitor import MonitorConfig
from ssl_core.monitoring import calibrate
from ssl_core.monitoring.calibrate import needed_windows, replay, resample, set_thresholds
from ssl_core.monitoring.detect import Sizes, compare
from ssl_core.monitoring.two_sample import kernel_scale

CONFIG = MonitorConfig(min_auc=0.5)


def draw(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 5)) + np.array([shift, 0, 0, 0, 0])).astype(np.float32)


def test_an_unchanged_window_exceeds_as_often_as_it_may() -> None:
    sizes, rates, exceeded = Sizes(60, 40), [], []
    for world in range(12):
        reference = draw(300, 1000 + world)
        scale = kernel_scale(reference)
        values = resample(reference, np.arange(300), sizes, scale, count=150, seed=world)
        limits = set_thresholds(values, sizes, len(reference), CONFIG)
        rates.append(limits.rate)
        for window in range(50):
            found = compare(reference, draw(40, 50 * world + window), sizes, scale, permutations=0, seed=window)
            exceeded.append(limits.score(found.auc.effect, found.mmd.effect) > 1)
    rate, error = np.mean(rates), np.sqrt(np.mean(rates) / len(exceeded))
    assert np.mean(exceeded) == pytest.approx(rate, abs=3 * error)
    assert 0.02 < rate < 0.04


def test_the_threshold_of_averaged_draws_is_lower() -> None:
    reference = draw(400, 1)
    values = resample(reference, np.arange(400), Sizes(30, 30), kernel_scale(reference), count=200)
    one, ten = (set_thresholds(values, Sizes(30, 30, draws), 4000, CONFIG) for draws in (1, 10))
    assert one.mmd > 2 * ten.mmd
    assert one.auc - 0.5 > 2 * (ten.auc - 0.5)


def test_near_duplicates_stay_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = np.arange(90, dtype=np.float32)[:, None]
    groups = np.arange(90) // 3
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(calibrate, "_values", lambda x, y, scale, seed: sides.append((x, y)) or (0.5, 0.0))  # type: ignore[func-returns-value]
    resample(reference, groups, Sizes(40, 30), 1.0, count=20)
    for x, y in sides:
        assert (len(x), len(y)) == (40, 30)
        assert not set(groups[x[:, 0].astype(int)]) & set(groups[y[:, 0].astype(int)])


def test_a_long_history_tells_what_days_differ_by() -> None:
    """Days differ by a shift that resampling one pile cannot show: its thresholds would cry every few days."""
    generator = np.random.default_rng(0)
    days = {day: draw(40, day, shift=generator.normal(0, 0.35)) for day in range(1, 61)}
    reference = np.concatenate([one[:10] for one in days.values()])
    versions = np.repeat(list(days), 10)
    scale = kernel_scale(reference)
    needed = needed_windows(CONFIG)
    assert needed == 30
    found = replay(reference, versions, days, 40, 500, scale, fewest=30, needed=needed)
    assert found is not None
    assert found.sizes == Sizes(300, 40)
    assert found.values.shape == (60, 2)
    resampled = resample(reference, np.arange(600), found.sizes, scale, count=150)
    own = set_thresholds(resampled, found.sizes, 600, CONFIG, found.values)
    parts = set_thresholds(resampled, found.sizes, 600, CONFIG)
    assert (own.by, own.windows, parts.by, parts.windows) == ("history", 60, "resampling", 150)
    new = [draw(40, 500 + day, shift=generator.normal(0, 0.35)) for day in range(60)]
    exceeded = {
        limits.by: np.mean([
            limits.score(f.auc.effect, f.mmd.effect) > 1
            for day, one in enumerate(new)
            for f in [compare(reference, one, found.sizes, scale, permutations=0, seed=day)]
        ])
        for limits in (own, parts)
    }  # fmt: skip
    assert exceeded["history"] < 0.1
    assert exceeded["resampling"] > 0.15


def test_a_short_history_is_none() -> None:
    days = {day: draw(40, day) for day in range(1, 30)}
    reference, versions = draw(290, 0), np.repeat(list(days), 10)
    assert replay(reference, versions, days, 40, 500, 1.0, fewest=30, needed=30) is None
    assert replay(reference, versions, days, 40, 500, 10.0, fewest=30, needed=29) is not None
    assert replay(reference, versions, days, 40, 500, 10.0, fewest=50, needed=29) is None, "too small windows"
    assert replay(reference, np.ones(290), days, 40, 500, 10.0, fewest=30, needed=29) is None, (
        "nothing to compare v1 with"
    )


def test_no_threshold_lies_below_what_matters() -> None:
    values = np.column_stack([np.full(200, 0.5) + 1e-4 * np.arange(200), 1e-6 * np.arange(200)])
    limits = set_thresholds(values, Sizes(500, 500, 1), 10_000, MonitorConfig(min_auc=0.6))
    assert limits.auc == 0.6
    assert limits.mmd == pytest.approx(0.2**2 / np.e)
    assert limits.score(0.6, 0.0) == pytest.approx(1)
    assert limits.score(0.55, 2 * limits.mmd) == pytest.approx(2), "the larger of both"
    assert limits.score(0.4, -0.1) < 0
    alike = set_thresholds(np.column_stack([np.full(50, 0.5), np.zeros(50)]), Sizes(20, 20), 100, CONFIG)
    assert alike.score(0.5, 0.0) == 0, "embeddings that say nothing divide by nothing"


def test_a_window_that_is_replaced_in_part_has_the_mmd_that_the_floor_is_made_of() -> None:
    generator = np.random.default_rng(0)
    reference, rest = generator.normal(size=(3000, 30)), generator.normal(size=(3000, 30))
    rest[:600] += 100  # wholly new
    found = compare(reference, rest, Sizes(1500, 1500), kernel_scale(reference), permutations=0)
    assert found.auc.effect == pytest.approx(0.6, abs=0.02)
    assert 0.5 < found.mmd.effect / (0.2**2 / np.e) < 3
