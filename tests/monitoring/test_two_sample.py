"""The tests against closed forms and slow references; what they find, what they do not cry about, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from ssl_core.monitoring.two_sample import (
    FEWEST,
    FOLDS,
    RIDGE,
    TwoSample,
    classifier_test,
    mmd_test,
    subsample,
)

Test = Callable[..., TwoSample]
both = pytest.mark.parametrize("test", [classifier_test, mmd_test])


def draw(count: int, features: int = 8, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (count, features)).astype(np.float32)


@pytest.mark.parametrize("features", [3, 300])
def test_the_auc_is_that_of_ridge_regressions_trained_fold_by_fold(features: int) -> None:
    reference, window = draw(70, features), draw(50, features, seed=1, shift=0.2)
    found = classifier_test(reference, window, permutations=0, seed=3)
    pooled = np.concatenate([reference, window]).astype(np.float64)
    pooled = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    labels = np.repeat([0.0, 1.0], [70, 50])
    fold = np.random.default_rng([3, 1]).permutation(120) % FOLDS
    aucs = []
    for number in range(FOLDS):
        train, held = fold != number, fold == number
        model = Ridge(alpha=RIDGE * train.sum()).fit(pooled[train], labels[train])
        aucs.append(roc_auc_score(labels[held], model.predict(pooled[held])))
    assert found.effect == pytest.approx(np.mean(aucs), abs=1e-9)


def test_mmd_is_the_sum_over_all_pairs() -> None:
    x, y = draw(25, 4).astype(np.float64), draw(30, 4, seed=1, shift=0.5).astype(np.float64)
    pooled = np.concatenate([x, y])
    squares = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=-1)
    scale = np.sort(squares[np.triu_indices(55, 1)])[(55 * 54 // 2 - 1) // 2]  # the lower median

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / scale))

    xx = np.mean([k(x[i], x[j]) for i in range(25) for j in range(25) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(30) for j in range(30) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert mmd_test(x, y, permutations=1).effect == pytest.approx(xx + yy - 2 * xy, abs=1e-9)
    assert mmd_test(x, y, permutations=0).effect == pytest.approx(xx + yy - 2 * xy, abs=1e-6), (
        "the quick way, for thresholds"
    )


@both
def test_p_values_of_equal_distributions_are_uniform(test: Test) -> None:
    found = [test(draw(60, seed=2 * i), draw(60, seed=2 * i + 1), permutations=99, seed=i).p_value for i in range(200)]
    # 3.3 standard errors of 200 draws; a test that is not exact misses one of these.
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs(np.mean(np.array(found) <= level) - level) < 3.3 * np.sqrt(level * (1 - level) / 200)


@both
def test_a_shift_is_found_and_its_effect_does_not_grow_with_the_samples(test: Test) -> None:
    effects = []
    for count in (200, 800):
        found = test(draw(count), draw(count, seed=1, shift=0.4))
        assert found.p_value < 0.01
        assert found.effect > found.null_95
        effects.append(found.effect)
    assert effects[1] == pytest.approx(effects[0], rel=0.25)


def test_mmd_sees_what_no_mean_tells() -> None:
    reference, window = draw(300), draw(300, seed=1, scale=1.5)
    assert mmd_test(reference, window).p_value < 0.01


@both
def test_equal_seeds_give_equal_answers(test: Test) -> None:
    reference, window = draw(50), draw(40, seed=1)
    assert test(reference, window, seed=5) == test(reference, window, seed=5)
    assert test(reference, window, seed=5).null_95 != test(reference, window, seed=6).null_95


@both
def test_features_that_say_nothing_are_no_drift(test: Test) -> None:
    same = np.ones((50, 4), dtype=np.float32)
    found = test(same, same)
    assert found.p_value == 1
    assert found.effect == pytest.approx(0.5 if test is classifier_test else 0, abs=1e-9)
    constant = draw(200)
    constant[:, 3] = 7
    assert 0 < test(constant[:100], constant[100:]).p_value <= 1


@both
@pytest.mark.parametrize(("n", "m"), [(FEWEST - 1, 50), (50, 0)])
def test_too_few_samples_are_not_judged(test: Test, n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST}"):
        test(draw(n), draw(m))


@both
def test_numbers_that_are_not_finite_are_refused(test: Test) -> None:
    broken = draw(50)
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        test(draw(50), broken)


def test_subsamples_are_of_a_fixed_size() -> None:
    assert subsample(5, 10, 0).tolist() == [0, 1, 2, 3, 4]
    chosen = subsample(1000, 100, 0)
    assert len(set(chosen.tolist())) == 100
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == subsample(1000, 100, 0).tolist() != subsample(1000, 100, 1).tolist()
