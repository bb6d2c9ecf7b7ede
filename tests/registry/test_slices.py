"""The test set cut into slices."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ssl_core.config.promotion import PromotionConfig
from ssl_core.data.table import SampleTable
from ssl_core.evaluation.predictions import Predictions, make_predictions
from ssl_core.registry.compare import compare
from ssl_core.registry.slices import Slice, cut
from tests.registry.conftest import CLASSES, manifest_rows

N = 300


def table(first_version: np.ndarray | int = 1) -> SampleTable:
    return SampleTable(manifest_rows([f"s{i:05d}" for i in range(N)], "test", first_version), CLASSES)


def answered(right: np.ndarray) -> Predictions:
    labels = np.arange(N) % 3
    scores = np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
    return make_predictions([f"s{i:05d}" for i in range(N)], labels, scores, CLASSES)


def by_name(slices: list[Slice]) -> dict[str, Slice]:
    return {one.name: one for one in slices}


def promotion(**keys: object) -> PromotionConfig:
    return PromotionConfig.model_validate(keys)


def test_every_label_source_and_window_is_a_slice() -> None:
    windows = np.where(np.arange(N) < 200, 1, np.where(np.arange(N) < 280, 2, 3))
    found = by_name(cut(answered(np.ones(N, bool)), answered(np.ones(N, bool)), table(windows), promotion()))
    assert {name: one.n for name, one in found.items()} == {
        "label=ant": 100, "label=bee": 100, "label=cat": 100, "source=camera-0": 150, "source=camera-1": 150,
        "window=v1": 200, "window=v2": 80, "window=v3": 20,
    }  # fmt: skip
    assert found["window=v3"].comparison is None
    assert found["label=ant"].adjusted == 1


def test_a_slice_is_compared_like_a_test_set_of_its_own() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = answered(rng.random(N) < 0.8), answered(rng.random(N) < 0.9)
    found = by_name(cut(mine, theirs, table(), promotion()))
    rows = np.flatnonzero(np.arange(N) % 3 == 1)
    alone = [
        make_predictions([p.sample_ids[i] for i in rows], p.labels[rows], p.scores[rows], CLASSES)
        for p in (mine, theirs)
    ]
    wanted = compare(*alone, resamples=2000, seed=0)
    got = found["label=bee"].comparison
    assert got is not None
    assert (got.difference, got.p_value, got.floor) == (wanted.difference, wanted.p_value, wanted.floor)


def test_one_broken_slice_shows_after_holm_and_chance_does_not() -> None:
    right = np.ones(N, bool)
    broken = right.copy()
    broken[np.arange(N) % 3 == 2] = np.arange(100) % 4 > 0  # a quarter of the cats
    found = by_name(cut(answered(broken), answered(right), table(), promotion()))
    assert found["label=cat"].adjusted < 1e-4
    assert found["label=ant"].adjusted == 1
    few = right.copy()
    few[np.flatnonzero(np.arange(N) % 3 == 2)[:6]] = False  # six cats: p = 0.03 alone, not among five slices
    c = by_name(cut(answered(few), answered(right), table(), promotion()))["label=cat"]
    assert c.comparison is not None
    assert c.comparison.p_value < 0.05 < c.adjusted


def test_older_windows_are_the_champions() -> None:
    windows = np.where(np.arange(N) < 150, 1, np.where(np.arange(N) < 250, 2, 3))
    right = np.ones(N, bool)
    slices = cut(answered(right), answered(right), table(windows), promotion(), champion_window=2)
    assert slices[0].old
    assert slices[0].n == 250
    assert slices[0].protected
    assert "up to v2" in slices[0].name
    assert not any(
        one.old for one in cut(answered(right), answered(right), table(windows), promotion(), champion_window=3)
    )
    names = by_name(cut(answered(right), answered(right), table(windows), promotion(), champion_window=1))
    assert "window=v1" not in names, "it is the older windows already"


def test_protected_slices_are_there_even_without_a_sample() -> None:
    right = answered(np.ones(N, bool))
    slices = by_name(cut(right, right, table(), promotion(protected_slices=["label=cat", "label=ca", "window=v1"])))
    assert slices["label=cat"].listed
    assert slices["window=v1"].n == N, "listed, though it is the whole test set"
    missing = slices["label=ca"]
    assert (missing.n, missing.comparison) == (0, None)
    assert "label=cat" in missing.hint


@pytest.mark.parametrize("label_type", ["classes", "number"])
def test_other_labels_have_slices_too(label_type: str) -> None:
    ids = [f"s{i:05d}" for i in range(N)]
    frame = manifest_rows(ids, "test")
    if label_type == "number":
        truth = np.linspace(0, 1, N)[:, None]
        frame["label"] = [str(value) for value in truth[:, 0]]
        mine = make_predictions(ids, np.zeros(N), truth, (), label_type="number", targets=truth, spread=1.0)
        names = {"label=lowest fifth": 60, "label=highest fifth": 60}
        classes: list[str] = []
    else:
        truth = np.stack([np.arange(N) % 2, np.arange(N) % 3 == 0, np.ones(N)], axis=1).astype(np.float32)
        frame["label"] = "[]"
        mine = make_predictions(ids, np.zeros(N), truth, CLASSES, label_type="classes", targets=truth)
        names = {"label=ant": 150, "label=bee": 100}
        classes = CLASSES
    found = by_name(cut(mine, mine, SampleTable(pd.DataFrame(frame), classes, label_type), promotion(), resamples=50))  # type: ignore[arg-type]
    assert {name: found[name].n for name in names} == names
