"""Label budgets: nested, stratified, at least one a class, the same every time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.budgets import nested_draws
from ssl_core.errors import UserError


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[int], int]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=7))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(draw(st.integers(0, 1000))).permutation(labels)
    budgets = draw(st.lists(st.integers(len(sizes), len(labels)), min_size=1, max_size=5, unique=True))
    return labels, sorted(budgets), draw(st.integers(0, 2**31))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_draws_are_nested_complete_and_repeatable(case: tuple[np.ndarray, list[int], int]) -> None:
    labels, budgets, seed = case
    draws = nested_draws(labels, budgets, 3, seed)
    again = nested_draws(labels, budgets, 2, seed)
    for number, draw in enumerate(draws):
        for budget in budgets:
            assert len(draw[budget]) == len(set(draw[budget].tolist())) == budget
            assert set(labels[draw[budget]]) == set(labels)
        for small, large in pairwise(budgets):
            np.testing.assert_array_equal(draw[small], draw[large][:small])
        if number < 2:  # a draw does not depend on how many there are
            np.testing.assert_array_equal(draw[budgets[-1]], again[number][budgets[-1]])


@settings(max_examples=100, deadline=None)
@given(cases())
def test_larger_classes_never_get_less(case: tuple[np.ndarray, list[int], int]) -> None:
    labels, budgets, seed = case
    sizes = np.bincount(labels)
    for budget, chosen in nested_draws(labels, budgets, 1, seed)[0].items():
        given_ = np.bincount(labels[chosen], minlength=len(sizes))
        for i in range(len(sizes)):
            for j in range(len(sizes)):
                assert sizes[i] <= sizes[j] or given_[i] >= given_[j], (budget, sizes, given_)


def test_shares_follow_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    draw = nested_draws(labels, [10, 100, 1000], 1, 0)[0]
    assert np.bincount(labels[draw[10]]).tolist() == [6, 3, 1]
    assert np.bincount(labels[draw[100]]).tolist() == [60, 30, 10]
    assert np.bincount(labels[draw[1000]]).tolist() == [600, 300, 100]


def test_chance_decides_who_and_which_class_is_favoured() -> None:
    labels = np.repeat(np.arange(10), 30)
    draws = nested_draws(labels, [15], 200, 0)
    favoured = np.sum([np.bincount(labels[d[15]], minlength=10) - 1 for d in draws], axis=0)
    assert favoured.sum() == 200 * 5
    assert favoured.min() > 60  # binomial(200, 1/2): five standard deviations below the mean of 100 is 65
    chosen = np.bincount(np.concatenate([d[15] for d in draws]), minlength=300)
    assert (chosen > 0).all()  # no sample is out of reach
    assert not np.array_equal(draws[0][15], nested_draws(labels, [15], 1, 1)[0][15])


@pytest.mark.parametrize(("budget", "says"), [(2, "3 classes"), (7, "6 labelled")])
def test_impossible_budgets_name_the_key(budget: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        nested_draws(np.array([0, 0, 1, 1, 2, 2]), [3, budget], 1, 0)
    assert error.value.place == "evaluate.label_budgets"
