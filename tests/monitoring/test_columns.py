"""Columns by hand, what is found and what is not, and values that are missing, new or constant."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from ssl_core.monitoring.columns import CHANGED, compare_columns, psi

KINDS = {"size": "number", "label": "category"}


def frame(count: int, seed: int = 0, shift: float = 0.0, share: float = 0.5) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return pd.DataFrame({
        "size": generator.normal(shift, 1, count),
        "label": np.where(generator.random(count) < share, "cat", "dog"),
    })  # fmt: skip


def test_psi_by_hand() -> None:
    r, w = np.array([60.5, 40.5]) / 101, np.array([30.5, 70.5]) / 101
    expected = (w[0] - r[0]) * np.log(w[0] / r[0]) + (w[1] - r[1]) * np.log(w[1] / r[1])
    assert psi(np.array([60, 40]), np.array([30, 70])) == pytest.approx(expected)
    assert psi(np.array([60, 40]), np.array([600, 400])) < 1e-3
    assert np.isfinite(psi(np.array([100, 0]), np.array([0, 100])))


def test_statistics_are_those_of_scipy() -> None:
    reference, window = frame(400), frame(300, seed=1, shift=0.3, share=0.7)
    found = {one.name: one for one in compare_columns(reference, window, KINDS)}
    assert found["size"].statistic == pytest.approx(ks_2samp(reference["size"], window["size"]).statistic)
    assert found["size"].p_value == pytest.approx(ks_2samp(reference["size"], window["size"]).pvalue)
    table = pd.crosstab(np.repeat([0, 1], [400, 300]), pd.concat([reference["label"], window["label"]]).to_numpy())
    assert found["label"].p_value == pytest.approx(chi2_contingency(table, correction=False).pvalue)
    assert all(one.q_value >= one.p_value for one in found.values())


def test_a_change_must_be_large_and_no_chance() -> None:
    same = compare_columns(frame(2000), frame(500, seed=1), KINDS)
    assert not any(one.drifted for one in same)
    moved = {one.name: one.drifted for one in compare_columns(frame(2000), frame(500, seed=1, shift=1.0), KINDS)}
    assert moved == {"size": True, "label": False}
    tiny = {one.name: one for one in compare_columns(frame(200_000), frame(200_000, seed=1, shift=0.05), KINDS)}["size"]
    assert tiny.q_value < 1e-6
    assert tiny.psi < CHANGED
    assert not tiny.drifted, "sure, and too small to matter"
    few = {one.name: one for one in compare_columns(frame(12), frame(12, seed=5, shift=0.3), KINDS)}["size"]
    assert few.psi > CHANGED
    assert not few.drifted, "large, and may be chance"


def test_many_columns_without_a_change_make_no_finding() -> None:
    findings = 0
    for seed in range(20):
        reference, window = (pd.DataFrame(np.random.default_rng([seed, side]).normal(size=(60, 30))) for side in (0, 1))
        columns = dict.fromkeys(map(str, range(30)), "number")
        reference.columns = window.columns = list(columns)
        findings += any(one.q_value <= 0.05 for one in compare_columns(reference, window, columns))
    assert findings <= 4, "30 tests at 5% without correction would find something nearly always"


def test_missing_and_new_values_are_changes() -> None:
    reference, window = frame(400), frame(400, seed=1)
    window.loc[:200, "size"] = np.nan
    window["label"] = window["label"].where(np.arange(400) % 3 > 0, "bird")
    found = {one.name: one for one in compare_columns(reference, window, KINDS)}
    assert found["size"].drifted
    assert found["label"].drifted


@pytest.mark.parametrize("values", [[np.nan] * 50, [3.0] * 50], ids=["nothing there", "constant"])
def test_columns_that_say_nothing_do_no_harm(values: list[float]) -> None:
    both = pd.DataFrame({"size": values})
    [found] = compare_columns(both, both, KINDS)
    assert (found.psi, found.drifted) == (0, False)
    other = pd.DataFrame({"size": np.random.default_rng(0).normal(size=50)})
    [found] = compare_columns(both, other, KINDS)
    assert found.drifted
    assert 0 <= found.p_value <= 1


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="no rows"):
        compare_columns(frame(10), frame(0), KINDS)
    assert compare_columns(frame(10), frame(10)[["size"]], {"label": "category", "other": "number"}) == []
