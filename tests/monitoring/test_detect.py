"""Draws of one size: which samples they take, what they find, and that several of them are one exact test."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.monitoring.detect import MOST_DRAWS, Sizes, choose_sizes, compare
from ssl_core.monitoring.two_sample import classifier_test, kernel_scale, mmd_test


def draw(count: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("reference", "window", "expected"),
    [
        (10_000, 200, Sizes(500, 200, 1)),
        (10_000, 100_000, Sizes(500, 500, 10)),
        (100_000, 100_000, Sizes(500, 500, MOST_DRAWS)),
        (530, 100, Sizes(430, 100, 1)),
        (300, 5000, Sizes(150, 150, 1)),
        (2000, 1100, Sizes(500, 500, 2)),
        (30, 5000, None),
        (5000, 19, None),
    ],
)
def test_sizes_leave_room_for_a_window_of_the_references_own(
    reference: int, window: int, expected: Sizes | None
) -> None:
    found = choose_sizes(reference, window, 500)
    assert found == expected
    if found is not None:
        assert found.draws * (found.n + found.m) <= reference or found.draws == 1
        assert found.n + found.m <= reference
        assert found.draws * found.m <= window


def test_one_draw_of_everything_is_the_plain_test() -> None:
    reference, window = draw(60), draw(40, seed=1, shift=0.3)
    found = compare(reference, window, Sizes(60, 40), 12.0, seed=3)
    assert found.auc == classifier_test(reference, window, seed=3)
    assert found.mmd == mmd_test(reference, window, seed=3, scale=12.0)


def test_many_draws_find_what_one_does_not_and_share_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, window = draw(4000), draw(4000, seed=1, shift=0.12)
    scale = kernel_scale(reference)
    one, ten = (compare(reference, window, Sizes(200, 200, draws), scale, seed=1) for draws in (1, 10))
    assert ten.auc.p_value < one.auc.p_value
    assert ten.mmd.p_value < 0.01 < one.mmd.p_value
    assert ten.auc.effect == pytest.approx(one.auc.effect, abs=0.08)
    taken: list[np.ndarray] = []
    monkeypatch.setattr(
        "ssl_core.monitoring.detect.mmd_values",
        lambda x, y, **more: taken.append(x) or classifier_test.__globals__["torch"].zeros(501),  # type: ignore[func-returns-value]
    )
    compare(reference, window, Sizes(200, 200, 10), scale)
    assert len(np.unique(np.concatenate(taken), axis=0)) == 2000


def test_p_values_of_several_draws_are_exact() -> None:
    found = [
        compare(draw(120, 2 * i), draw(120, 2 * i + 1), Sizes(30, 30, 4), 12.0, permutations=99, seed=i).mmd.p_value
        for i in range(100)
    ]
    for level in (0.1, 0.5):
        assert abs(np.mean(np.array(found) <= level) - level) < 3.3 * np.sqrt(level * (1 - level) / 100)
