"""The gate's rule and its statistics: closed forms, slow references, planted challengers."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import Verdict
from ssl_core.evaluation.predictions import Predictions, make_predictions
from ssl_core.registry.compare import Comparison, compare
from ssl_core.registry.gate import judge, judge_first
from tests.registry.conftest import CLASSES, World, predictions_with


def predictions(right: int, n: int = 200, wrong_first: bool = False) -> Predictions:
    return make_predictions(*predictions_with(right, n, wrong_first), CLASSES)


def test_mcnemar_is_the_exact_binomial() -> None:
    result = compare(predictions(150), predictions(140), resamples=100, seed=0)
    assert (result.only_first, result.only_second) == (10, 0)
    assert result.p_value == pytest.approx(2 * 0.5**10)
    mixed = compare(predictions(150), predictions(160, wrong_first=True), resamples=100, seed=0)
    b, c = mixed.only_first, mixed.only_second
    assert (b, c) == (40, 50)
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mixed.p_value == pytest.approx(min(1.0, 2 * tail))


def test_the_interval_is_the_paired_bootstrap() -> None:
    first, second = predictions(150), predictions(160, wrong_first=True)
    result = compare(first, second, resamples=20_000, seed=0)
    gains = first.correct.astype(float) - second.correct
    rng = np.random.default_rng(1)
    slow = [gains[rng.integers(0, 200, 200)].mean() for _ in range(20_000)]
    assert result.low == pytest.approx(np.quantile(slow, 0.025), abs=0.006)
    assert result.high == pytest.approx(np.quantile(slow, 0.975), abs=0.006)
    assert result.difference == pytest.approx(gains.mean())


def test_a_model_against_itself() -> None:
    result = compare(predictions(150), predictions(150), resamples=100, seed=0)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_samples_are_matched_by_id_and_classes_by_name() -> None:
    small, large = predictions(40, n=60), predictions(150)
    result = compare(large, small, resamples=100, seed=0)
    assert (result.n, result.only_in_one) == (60, 140)
    assert (result.first, result.second) == (1.0, pytest.approx(40 / 60))
    ids, labels, scores = predictions_with(150)
    turned = make_predictions(ids, 2 - labels, scores[:, ::-1], CLASSES[::-1])
    assert compare(large, turned, resamples=100, seed=0).difference == 0
    with pytest.raises(ValueError, match="no sample in common"):
        compare(
            large,
            make_predictions(["x"], np.array([0]), np.eye(3, dtype=np.float32)[:1], CLASSES),
            resamples=100,
            seed=0,
        )


def comparison(difference: float, low: float, high: float) -> Comparison:
    return Comparison(
        n=100, first=0.9, second=0.9 - difference, difference=difference, low=low, high=high,
        only_first=1, only_second=1, p_value=0.5, detectable=0.04, only_in_one=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "low", "high", "verdict"),
    [
        (0.05, 0.02, 0.08, Verdict.PROMOTE),  # clearly better
        (0.00, -0.015, 0.015, Verdict.PROMOTE),  # as good, within the margin
        (0.01, -0.03, 0.05, Verdict.NEEDS_HUMAN),  # better, but too few samples to rule out a loss
        (-0.01, -0.03, 0.01, Verdict.NEEDS_HUMAN),  # a little worse, perhaps
        (-0.01, -0.018, -0.002, Verdict.REJECT),  # worse for sure, though within the margin
        (-0.04, -0.10, 0.02, Verdict.REJECT),  # loses more than the margin
    ],
)
def test_the_rule(difference: float, low: float, high: float, verdict: Verdict) -> None:
    assert judge(comparison(difference, low, high), margin=0.02).verdict is verdict


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.01, Verdict.PROMOTE), (0.0, Verdict.NEEDS_HUMAN), (-0.01, Verdict.NEEDS_HUMAN), (-0.1, Verdict.REJECT)],
)
def test_the_first_champion_must_be_above_random_init(difference: float, verdict: Verdict) -> None:
    assert judge_first(comparison(difference, difference - 0.02, difference + 0.02)).verdict is verdict


def test_too_few_common_samples_need_a_person(world: World) -> None:
    world.promote(world.gate(world.register("a", right=15, random_right=10, n=20))[1])
    report, _ = world.gate(world.register("b", right=190, dataset=2))
    assert report.verdict is Verdict.NEEDS_HUMAN
    assert "share 20 test samples" in report.reasons[0]


def test_a_champion_without_its_evaluation_needs_a_person(world: World) -> None:
    inputs = world.register("a", right=150)
    world.promote(world.gate(inputs)[1])
    world.store.remove("tiny/evaluate/a")
    report, _ = world.gate(world.register("b", right=190, dataset=2))
    assert report.verdict is Verdict.NEEDS_HUMAN
    assert "cannot be compared" in report.reasons[0]


def test_a_version_without_a_passed_golden_batch_is_rejected(world: World) -> None:
    inputs = world.register("a", right=190)
    world.client.set_model_version_tag("tiny", "1", "ssl.golden", "failed")
    report, _ = world.gate(inputs)
    assert report.verdict is Verdict.REJECT


def test_a_grown_test_set_is_compared_on_what_both_saw(world: World) -> None:
    world.promote(world.gate(world.register("a", right=150, n=200))[1])
    report, _ = world.gate(world.register("b", right=290, n=300, dataset=2))
    assert report.verdict is Verdict.PROMOTE
    assert report.metrics["samples"] == 200
    assert any("100 are in one test set only" in reason for reason in report.reasons)
    assert len(report.summary_md.encode()) <= 4096
    assert "| accuracy on 200 test samples |" in report.summary_md


def test_approval_by_a_person_never_turns_a_rejection_around(
    world: World, make_project: Callable[..., ProjectConfig]
) -> None:
    human: Any = make_project(encoder={"widths": [8]}, promotion={"approval": "human"})
    report, _ = world.gate(world.register("a", right=10, random_right=60), project=human)
    assert report.verdict is Verdict.REJECT
