"""What is held out is held out fairly, and from the budget."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.config.tasks import TextClassificationConfig
from ssl_core.errors import UserError
from ssl_core.tasks.text_folds import assign_folds, cross_validate, hold_out, measure, require_enough
from ssl_core.tasks.text_targets import Targets, make_targets
from tests.texts import make_texts, sentences

STRATA = np.array([0] * 53 + [1] * 20 + [2] * 7 + [3])


def targets(label_type: str = "class", count: int = 20) -> Targets:
    labels = {
        "class": [*"ab"] * (count // 2), "classes": [["a"], ["a", "b"]] * (count // 2), "number": list(range(count)),
    }[label_type]  # fmt: skip
    table = make_texts(sentences(count), labels, label_type=label_type).table  # type: ignore[arg-type]
    return make_targets(table, np.arange(count), TextClassificationConfig())


def test_folds_are_stratified_and_of_equal_size() -> None:
    fold = assign_folds(STRATA, 5, seed=3)
    sizes = np.bincount(fold, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for kind in range(4):
        shares = np.bincount(fold[kind == STRATA], minlength=5)
        assert shares.max() - shares.min() <= 1
    assert np.array_equal(fold, assign_folds(STRATA, 5, seed=3))
    assert not np.array_equal(fold, assign_folds(STRATA, 5, seed=4))


def test_a_tenth_is_held_out_and_never_the_only_one_of_its_kind() -> None:
    for seed in range(30):
        held = hold_out(STRATA, seed)
        assert 8 <= held.sum() + (STRATA[assign_folds(STRATA, 10, seed) == 0] == 3).sum() <= 9
        assert not held[STRATA == 3].any()
    assert not hold_out(np.arange(5), 0).any(), "one label a class: there is none to spare"
    assert hold_out(np.array([0, 0, 0, 1]), 0).sum() == 1


def test_each_text_is_scored_once_by_a_model_that_has_not_seen_it() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def train(inside: np.ndarray):  # type: ignore[no-untyped-def]
        def scores(outside: np.ndarray) -> np.ndarray:
            seen.append((inside.tolist(), outside.tolist()))
            return np.tile(np.float32([0.8, 0.2]), (len(outside), 1))

        return scores

    found = cross_validate(train, targets(), 4, seed=0)
    assert sorted(row for _, outside in seen for row in outside) == list(range(20))
    assert all(sorted(inside + outside) == list(range(20)) for inside, outside in seen)
    # "a" is always said, of two classes of ten: right in half of every stratified fold, off by at most one text.
    assert found["metric"] == "accuracy"
    assert found["mean"] == pytest.approx(0.5, abs=0.01)
    assert found["std"] == pytest.approx(np.std(found["values"], ddof=1), abs=1e-6)
    assert found["loss"]["mean"] == pytest.approx(-0.5 * (np.log(0.8) + np.log(0.2)), abs=0.1)


def test_too_few_labels_for_the_folds() -> None:
    with pytest.raises(UserError, match=r"task\.folds: 20 labels are too few for 11 folds"):
        require_enough(20, 11)
    require_enough(20, 10)
    require_enough(1, 0)


def test_metrics_by_hand() -> None:
    several = targets("classes", 2)  # a; a and b
    assert measure(several, np.array([[0.9, 0.6], [0.4, 0.5]])) == ("micro_f1", pytest.approx(2 * 2 / (2 * 2 + 2)))
    assert measure(several, several.values) == ("micro_f1", 1)
    numbers = targets("number", 4)
    assert measure(numbers, np.array([[0.0], [1], [2], [5]])) == ("mean_absolute_error", pytest.approx(0.5))
