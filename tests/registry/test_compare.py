"""The statistics of the gate: closed forms, slow references, simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from ssl_core.evaluation.predictions import Predictions, make_predictions
from ssl_core.registry.compare import compare, compare_quality, holm
from tests.registry.conftest import CLASSES, predictions_with


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
    assert not result.better
    assert not result.worse


def test_a_handful_of_samples_is_not_for_sure() -> None:
    """The bootstrap of five wins and no loss lies above 0, the exact test does not follow."""
    result = compare(predictions(155), predictions(150), resamples=2000, seed=0)
    assert result.low > 0
    assert result.p_value == pytest.approx(2 * 0.5**5)
    assert not result.better


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


def quality(n: int, b: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """``b`` samples that only the first has right, ``c`` only the second, of ``n``."""
    first, second = np.ones(n), np.ones(n)
    second[:b] = 0
    first[b : b + c] = 0
    return first, second


@pytest.mark.parametrize("n", [30, 450, 5000])
def test_without_any_disagreement_the_floor_is_tangos_closed_form(n: int) -> None:
    z = 2.575829
    found = compare_quality(*quality(n, 0, 0), "class", resamples=10, seed=0)
    assert (found.low, found.high) == (0, 0)  # what the bootstrap makes of it
    assert found.floor == pytest.approx(-(z**2) / (n + z**2), rel=1e-6)


def test_the_ceiling_is_the_floor_of_the_other_at_a_higher_level() -> None:
    found = compare_quality(*quality(450, 20, 10), "class", resamples=10, seed=0)
    turned = compare_quality(*quality(450, 10, 20), "class", resamples=10, seed=0)
    assert found.ceiling > -turned.floor > found.difference
    assert compare_quality(*quality(450, 0, 0), "class", resamples=10, seed=0).ceiling == pytest.approx(
        3.290527**2 / (450 + 3.290527**2), rel=1e-6
    )


def test_with_many_disagreements_the_floor_is_the_normal_bound() -> None:
    found = compare_quality(*quality(100_000, 6000, 5500), "class", resamples=10, seed=0)
    wald = 0.005 - 2.575829 * np.sqrt(0.115 - 0.005**2) / np.sqrt(100_000)
    assert found.floor == pytest.approx(wald, abs=2e-5)


@pytest.mark.parametrize(("n", "disagree"), [(100, 0.1), (450, 0.04), (450, 0.08), (2000, 0.08)])
def test_a_true_loss_is_below_the_floor_one_time_in_two_hundred(n: int, disagree: float) -> None:
    loss = 0.02
    shares = [(disagree - loss) / 2, (disagree + loss) / 2, 1 - disagree]
    counts = np.random.default_rng(0).multinomial(n, shares, size=4000)
    known: dict[tuple[int, int], float] = {}
    missed = 0
    for b, c, _ in counts.tolist():
        if (b, c) not in known:
            known[b, c] = compare_quality(*quality(n, b, c), "class", resamples=1, seed=0).floor
        missed += known[b, c] > -loss
    assert missed / 4000 < 0.009


def test_numbers_have_a_floor_below_their_interval() -> None:
    gaps = np.random.default_rng(0).normal(0.01, 0.1, 500)
    found = compare_quality(0.5 + gaps, np.full(500, 0.5), "number", resamples=2000, seed=0)
    assert found.floor < found.low < found.difference
    same = compare_quality(np.full(50, 0.5), np.full(50, 0.5), "number", resamples=10, seed=0)
    assert same.floor < -0.02


def test_holm_by_the_book() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    rng = np.random.default_rng(0)
    families = rng.random((2000, 12))
    assert np.mean([min(holm(row.tolist())) < 0.05 for row in families]) < 0.07
