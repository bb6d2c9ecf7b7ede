"""Gauges against closed forms, and the alarm: it fires on a planted collapse and stays silent on a healthy run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_core.config.encoders import ResNetConfig
from ssl_core.models.encoder import build_encoder, measure_preprocessing
from ssl_core.training import health
from ssl_core.training.health import Gauge, Monitor, Unhealthy, diagnose
from tests.training.conftest import Bench, striped_pixels

GOOD = Gauge(
    step=10, loss=2.0, chance_loss=math.log(31), spread=0.5, effective_rank=8.0, alignment=0.3, uniformity=-1.0
)


def test_spread_is_one_for_isotropic_and_zero_for_constant_features() -> None:
    isotropic = np.random.default_rng(0).standard_normal((20_000, 16))
    assert health.spread(isotropic) == pytest.approx(1, abs=0.01)
    assert health.spread(np.full((50, 16), 3.0)) == pytest.approx(0, abs=1e-9)
    assert health.spread(isotropic * 7) == pytest.approx(health.spread(isotropic))


def test_effective_rank_counts_equal_directions() -> None:
    for rank in (1, 3, 16):
        features = np.zeros((64, 16))
        features[np.arange(64), np.arange(64) % rank] = 1
        if 64 % rank == 0:
            assert health.effective_rank(features) == pytest.approx(rank, rel=1e-6)
    assert health.effective_rank(np.ones((64, 16))) == pytest.approx(1, abs=1e-3)
    assert health.effective_rank(np.zeros((8, 4))) == 1
    # Singular values 3 and 1: shares 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert health.effective_rank(np.diag([3.0, 1.0])) == pytest.approx(expected)


def test_alignment_and_uniformity_against_loops() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 5))
    x1, y1 = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    aligned = sum(float(((a - b) ** 2).sum()) for a, b in zip(x1, y1, strict=True)) / 20
    pairs = [math.exp(-2 * float(((x1[i] - x1[j]) ** 2).sum())) for i in range(20) for j in range(i)]
    assert health.alignment(x, y) == pytest.approx(aligned)
    assert health.uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert health.alignment(x, 5 * x) == pytest.approx(0)
    assert health.uniformity(np.ones((10, 4))) == pytest.approx(0)


def test_chance_is_the_loss_of_constant_features() -> None:
    from ssl_core.objectives.simclr import nt_xent

    constant = torch.ones(16, 8)
    assert float(nt_xent(constant, constant, 0.2)) == pytest.approx(health.chance_loss(16), abs=1e-6)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"spread": 0.001}, "same features"),
        ({"effective_rank": 1.05}, "effective rank"),
        ({"loss": math.log(31) - 0.001}, "nothing is learned"),
    ],
)
def test_alarm_needs_the_fault_twice_in_a_row_after_the_warm_up(fault: dict[str, float], words: str) -> None:
    def at(step: int, bad: bool) -> Gauge:
        return replace(GOOD, step=step, **(fault if bad else {}))

    assert words in str(diagnose([at(100, False), at(200, True), at(300, True)], warmup=50))
    assert diagnose([at(100, True), at(200, True), at(300, False)], warmup=50) is None
    assert diagnose([at(100, True), at(200, False), at(300, True)], warmup=50) is None
    assert diagnose([at(100, True), at(200, True), at(300, True)], warmup=200) is None
    assert diagnose([at(100, True)], warmup=50) is None


def test_first_steps_may_lie_above_chance() -> None:
    early = [replace(GOOD, step=step, loss=9.0) for step in (2, 4)]
    assert diagnose(early, warmup=0) is None


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_silent_on_untrained_encoders_of_ordinary_size(norm: str) -> None:
    """An alarm that a random encoder sets off would stop runs that have only begun."""
    pixels, _ = striped_pixels(64)
    preprocessing = measure_preprocessing(pixels, np.arange(64))
    for seed in range(3):
        encoder = build_encoder(ResNetConfig(widths=(16, 32), norm=norm), 1, seed=seed)
        monitor = Monitor(encoder, preprocessing, pixels, np.arange(64), 16, views=lambda x, _: preprocessing.apply(x))
        for step in (1, 2, 3):
            monitor.observe(step, 2.0, warmup=0)
        assert monitor.history[-1].alignment == 0


def test_healthy_run_raises_nothing_and_ends_with_a_report(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(config={"epochs": 12})
    pace = bench.start()
    document = health.report(bench.monitor, {"images_per_second": pace.per_second}, None)
    assert document["healthy"]
    assert document["step"] == 36
    assert document["spread"] == bench.monitor.history[-1].spread
    assert len(document["gauges"]) == health.GAUGES_A_RUN
    assert document["knn_accuracy"] > 0.9, "bars at four places are easy"


def test_features_that_are_not_finite_raise(bench: Bench) -> None:
    bench.start()
    next(iter(bench.objective.encoder.parameters())).data.fill_(float("nan"))
    with pytest.raises(Unhealthy, match="not finite"):
        bench.monitor.observe(99, 1.0, warmup=0)


def test_looking_changes_nothing(bench: Bench) -> None:
    bench.start()
    bench.objective.train()
    views = bench.monitor.views

    def drawing(pixels: torch.Tensor, view: int) -> torch.Tensor:
        torch.rand(3)  # an objective whose views draw from the global generator
        return views(pixels, view)

    bench.monitor.views = drawing
    before, state = bench.weights(), torch.random.get_rng_state()
    first = bench.monitor.observe(50, 1.0, warmup=0)
    second = bench.monitor.observe(50, 1.0, warmup=0)
    assert first == second
    assert all(np.array_equal(before[name], value) for name, value in bench.weights().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert bench.objective.encoder.training


def test_weights_do_not_depend_on_who_watches(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, alone = make_bench(), make_bench()
    watched.start()
    monkeypatch.setattr("ssl_core.training.course.gauge_steps", lambda total: frozenset({total}))
    alone.start()
    assert all(np.array_equal(value, alone.weights()[name]) for name, value in watched.weights().items())


def test_gauge_steps_end_with_the_last_step() -> None:
    assert max(health.gauge_steps(400)) == 400
    assert len(health.gauge_steps(400)) == health.GAUGES_A_RUN
    assert health.gauge_steps(1) == {1}
    assert health.gauge_steps(3) == {1, 2, 3}
