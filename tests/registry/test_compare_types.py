"""Comparing models whose samples have several classes, or numbers: against tables that can be done by hand and slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ssl_core.evaluation.predictions import Predictions, make_predictions
from ssl_core.registry.compare import compare

IDS = [f"s{i:02d}" for i in range(10)]


def numbers(errors: np.ndarray, spread: float = 2.0) -> Predictions:
    truth = np.linspace(0, 1, len(errors))[:, None]
    return make_predictions(
        IDS[: len(errors)],
        np.zeros(len(errors)),
        truth + errors[:, None],
        (),
        label_type="number",
        targets=truth,
        spread=spread,
    )


def test_numbers_are_compared_by_closeness() -> None:
    one, other = np.full(10, 0.2), np.array([0.2] * 6 + [0.6] * 4)
    found = compare(numbers(one), numbers(other), resamples=2000, seed=0)
    assert (found.headline, found.test) == ("closeness", "sign-flip")
    assert (found.first, found.second) == (pytest.approx(0.9), pytest.approx(0.82))
    assert found.difference == pytest.approx(0.08)
    assert (found.only_first, found.only_second, found.n) == (4, 0, 10)
    # Four equal differences: both tails are 2 of 16 sign patterns.
    assert found.p_value == pytest.approx(2 / 16, abs=0.02)
    assert found.low <= found.difference <= found.high


def test_sign_flips_are_those_of_all_patterns() -> None:
    random = np.random.default_rng(1)
    one, other = np.abs(random.normal(0.1, 0.2, 8)), np.abs(random.normal(0.3, 0.2, 8))
    first, second = numbers(one), numbers(other)
    gaps = first.quality - second.quality
    patterns = np.array(list(itertools.product((-1, 1), repeat=8)))
    exact = (np.abs(patterns @ gaps) >= abs(gaps.sum()) - 1e-12).mean()
    assert compare(first, second, resamples=100, seed=3).p_value == pytest.approx(exact, abs=0.02)


def several(scores: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> Predictions:
    return make_predictions(
        IDS[: len(truth)], np.zeros(len(truth)), scores, classes, label_type="classes", targets=truth.astype(np.float32)
    )


def test_several_classes_are_matched_by_name() -> None:
    truth = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    perfect = several(truth * 0.8, truth, ("a", "b", "c"))
    # The same answers, the classes in another order; one class the other model does not know.
    turned = several(truth[:, ::-1] * 0.8, truth[:, ::-1], ("c", "b", "a"))
    assert compare(perfect, turned, resamples=100, seed=0).difference == 0
    fewer = several(truth[:, :2] * 0.8, truth[:, :2], ("a", "b"))
    found = compare(perfect, fewer, resamples=100, seed=0)
    assert found.second == pytest.approx((1 / 2 + 1 + 1 + 2 / 3) / 4)
    assert (found.only_first, found.headline) == (2, "Jaccard index")


def test_what_is_equal_has_no_difference() -> None:
    same = numbers(np.full(10, 0.1))
    found = compare(same, same, resamples=100, seed=0)
    assert (found.difference, found.low, found.high, found.p_value, found.detectable) == (0, 0, 0, 1, 0)


def test_types_are_not_mixed() -> None:
    one_class = make_predictions(IDS, np.zeros(10), np.tile([0.9, 0.1], (10, 1)), ("a", "b"))
    with pytest.raises(ValueError, match="number and of class"):
        compare(numbers(np.zeros(10)), one_class, resamples=100, seed=0)
