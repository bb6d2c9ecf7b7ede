"""The comparison's rules, checked with encoders whose worth is known."""

import numpy as np
import pytest

from ssl_core.config.project import EvaluateConfig
from ssl_core.data.budgets import nested_draws
from ssl_core.errors import UserError
from ssl_core.evaluation import helped
from ssl_core.evaluation.helped import Encoded, Task, answer, did_it_help, plan_budgets, summarise
from ssl_core.evaluation.image_baselines import (
    NAMES,
    ImageBaselines,
    Pixels,
    pixel_features,
    spreading_predictions,
    svm_predictions,
)

CLASSES = 3


@pytest.fixture(scope="module")
def scene():
    """Three kinds of 6x6 images: pixels say little, the good encoder says all, random ones say nothing."""
    generator = np.random.default_rng(0)
    labels = np.arange(160) % CLASSES
    pixels = generator.integers(0, 256, (160, 1, 6, 6))
    pixels[np.arange(160), 0, labels, 0] = 255
    good = np.eye(CLASSES)[labels] + generator.normal(0, 0.1, (160, CLASSES))
    noise = [generator.normal(0, 1, (160, 4)) for _ in range(3)]
    train_labels = labels[:120].copy()
    train_labels[90:] = -1  # a part of split train has no label
    task = Task(train_labels, labels[120:], CLASSES)
    pixels = pixels.astype(np.uint8)
    return (
        task, ImageBaselines(pixels[:120], pixels[120:], CLASSES),
        [Encoded(x[:120].astype(np.float32), x[120:].astype(np.float32)) for x in noise],
        Encoded(good[:120].astype(np.float32), good[120:].astype(np.float32)),
    )  # fmt: skip


CONFIG = EvaluateConfig(label_budgets=(3, 12), draws=6, bootstrap=300)


def test_a_good_encoder_helps_and_says_how_much(scene):
    rows, notes = did_it_help(*scene, CONFIG)
    assert notes == []
    assert [row["labels"] for row in rows] == [3, 12, "all"]
    assert [row["count"] for row in rows] == [3, 12, 90]
    assert [row["draws"] for row in rows] == [6, 6, 1]
    for row in rows:
        assert row["pretrained"]["mean"] > 0.95
        assert row["random_init"]["mean"] < 0.6
        assert row["pretrained"]["probe"] == row["random_init"]["probe"] == "label-spreading"
        gap = row["differences"]["pretrained_minus_random_init"]
        assert gap["low"] > 0
        assert gap["mean"] == pytest.approx(row["pretrained"]["mean"] - row["random_init"]["mean"])
        for method in ("classical", "random_init", "pretrained"):
            assert row[method]["low"] <= row[method]["mean"] <= row[method]["high"]
        assert set(row["details"]["pretrained"]) == set(helped.PROBES)


def test_an_encoder_that_is_no_better_than_random_is_not_praised(scene):
    task, pixels, random_init, _ = scene
    generator = np.random.default_rng(9)
    useless = Encoded(
        generator.normal(size=(120, 4)).astype(np.float32), generator.normal(size=(40, 4)).astype(np.float32)
    )
    for row in did_it_help(task, pixels, random_init, useless, CONFIG)[0]:
        assert row["differences"]["pretrained_minus_random_init"]["low"] <= 0


def test_the_best_classical_is_the_better_mean_on_test_at_each_budget(scene):
    rows, _ = did_it_help(*scene, CONFIG)
    for row in rows:
        best = max(row["details"]["classical"].items(), key=lambda item: item[1]["mean"])
        assert row["classical"]["mean"] == best[1]["mean"]
        assert row["classical"]["name"] == NAMES[best[0]]


def test_the_projects_probe_is_in_the_headline(scene):
    config = CONFIG.model_copy(update={"probe": "knn"})
    row = did_it_help(*scene, config)[0][0]
    assert row["pretrained"]["probe"] == "knn"
    assert row["pretrained"]["mean"] == row["details"]["pretrained"]["knn"]["mean"]


def test_all_methods_get_the_draws_of_the_data_module(scene):
    task = scene[0]
    budgets, _ = plan_budgets(task, CONFIG, repeats=2)
    drawn = nested_draws(task.train_labels[:90], (3, 12), 6, CONFIG.seed)
    for budget in budgets[:2]:
        for row, draw in zip(budget.draws, drawn, strict=True):
            known = np.flatnonzero(row >= 0)
            assert sorted(known) == sorted(draw[budget.count])
            np.testing.assert_array_equal(row[known], task.train_labels[known])
    assert budgets[2].draws.shape == (2, 120)
    assert (budgets[2].draws == task.train_labels).all()


def test_no_label_outside_of_the_budget_is_read(scene):
    """Every hidden label is changed to another class: no prediction may change."""
    task, pixels, random_init, good = scene
    budgets, _ = plan_budgets(task, CONFIG, 3)
    one = helped.Budget(budgets[1].labels, 12, budgets[1].draws[:2])
    before = answer(task, [one], pixels, random_init, good)[0].right
    lies = Task(np.where(task.train_labels >= 0, (task.train_labels + 1) % CLASSES, -1), task.test_labels, CLASSES)
    after = answer(lies, [one], pixels, random_init, good)[0].right
    for method, tables in before.items():
        for name, table in tables.items():
            np.testing.assert_array_equal(table, after[method][name])


def test_random_encoders_take_turns(scene):
    """Draw i is judged with random encoder i mod R: a good one among noise shows in its rows alone."""
    task, pixels, random_init, good = scene
    budgets, _ = plan_budgets(task, CONFIG, 2)
    table = answer(task, budgets[1:2], pixels, [random_init[0], good], good)[0].right["random_init"]["knn"]
    assert (table[1::2].mean(axis=1) > 0.95).all()
    assert (table[0::2].mean(axis=1) < 0.7).all()


def test_budgets_beyond_the_labels_are_left_out_with_a_note(scene):
    config = CONFIG.model_copy(update={"label_budgets": (3, 90, 500)})
    budgets, notes = plan_budgets(scene[0], config, 3)
    assert [b.labels for b in budgets] == [3, "all"]
    assert len(notes) == 2
    assert "500" in notes[1]
    assert "90 labelled samples" in notes[1]


def test_bad_label_budgets_are_named(scene):
    task = scene[0]
    with pytest.raises(UserError, match=r"evaluate\.label_budgets"):
        plan_budgets(task, CONFIG.model_copy(update={"label_budgets": (2, 12)}), 3)
    with pytest.raises(UserError, match=r"data\.labels"):
        plan_budgets(Task(np.full(9, -1), task.test_labels, CLASSES), CONFIG, 3)


def test_few_test_samples_are_warned_of(scene):
    task, pixels, random_init, good = scene
    few = Task(task.train_labels, task.test_labels[:10], CLASSES)
    cut = [Encoded(e.train, e.test[:10]) for e in (*random_init, good)]

    class Small(ImageBaselines):
        def predictions(self, draws):
            return {name: found[:, :10] for name, found in pixels.predictions(draws).items()}

    small = object.__new__(Small)
    _, notes = did_it_help(few, small, cut[:3], cut[3], CONFIG.model_copy(update={"label_budgets": (3,)}))
    assert "only 10 labelled test samples" in notes[0]


def test_summary_of_planted_tables():
    """Numbers that can be done in the head: 3/4, 2/4 and 1/4 right, whatever is resampled of equal rows."""
    budget = helped.Budget(4, 4, np.zeros((3, 8), dtype=int))
    rows = {0.75: [1, 1, 1, 0], 0.5: [1, 1, 0, 0], 0.25: [1, 0, 0, 0]}
    tables = {share: np.tile(np.array(row, dtype=bool), (3, 1)) for share, row in rows.items()}
    right = {
        "classical": {"svm": tables[0.25], "label-spreading": tables[0.5]},
        "random_init": dict.fromkeys(helped.PROBES, tables[0.25]),
        "pretrained": dict.fromkeys(helped.PROBES, tables[0.75]),
    }
    row = summarise([helped.Answers(budget, right)], CONFIG, NAMES)[0]
    assert row["classical"]["name"] == "label spreading on pixels"
    assert [row[m]["mean"] for m in ("classical", "random_init", "pretrained")] == [0.5, 0.25, 0.75]
    assert row["differences"]["pretrained_minus_classical"]["mean"] == pytest.approx(0.25)


# ---- classical baselines


def test_pixel_features_are_the_pixels_or_their_means():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(pixel_features(pixels), pixels.reshape(3, -1) / 255, atol=1e-6)
    large = pixels.repeat(3, axis=2).repeat(3, axis=3)  # 96 x 96, each pixel three times
    np.testing.assert_allclose(pixel_features(large), pixel_features(pixels), atol=1e-6)
    assert pixel_features(np.zeros((2, 1, 50, 50), np.uint8)).shape == (2, 25 * 25)


def test_classical_baselines_on_digits_are_as_strong_as_they_are_known_to_be():
    """A baseline that lost its strength would flatter us: raw-pixel digits, 13 labels in all."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 15.9).astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[:1347], order[1347:]
    labels = digits.target.astype(np.int64)
    task = Task(labels[train], labels[test], 10)
    budgets, _ = plan_budgets(task, EvaluateConfig(label_budgets=(13,), draws=8), 1)
    both = Pixels.of(pixels[train], pixels[test])
    assert (svm_predictions(both, budgets[0].draws) == task.test_labels).mean() > 0.62
    assert (spreading_predictions(both, budgets[0].draws, 10) == task.test_labels).mean() > 0.83
    assert (svm_predictions(both, budgets[1].draws[:1]) == task.test_labels).mean() > 0.98


def test_svm_survives_labels_of_one_class_and_too_many_labels(monkeypatch):
    generator = np.random.default_rng(0)
    pixels = Pixels.of(
        generator.integers(0, 255, (40, 1, 20, 20), dtype=np.uint8),
        generator.integers(0, 255, (5, 1, 20, 20), dtype=np.uint8),
    )
    one = np.full((1, 40), -1)
    one[0, 4] = 2
    assert (svm_predictions(pixels, one) == 2).all()
    monkeypatch.setattr("ssl_core.evaluation.image_baselines.SVM_MOST_LABELS", 10)
    assert svm_predictions(pixels, np.tile(np.arange(40) % 2, (1, 1))).shape == (1, 5)
