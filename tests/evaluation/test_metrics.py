"""Metrics against closed forms and scikit-learn; the bootstrap's coverage on simulated data."""

import numpy as np
import pytest
from sklearn import metrics as reference

from ssl_core.evaluation.metrics import (
    Bootstrap,
    Interval,
    accuracy,
    balanced_accuracy,
    class_quality,
    classes_quality,
    confusion,
    describe,
    expected_calibration_error,
    label_spread,
    macro_f1,
    number_quality,
)

ANY = Interval(0.5, 0.4, 0.6)


def test_metrics_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.choice(5, 300, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    predicted = np.where(generator.random(300) < 0.6, labels, generator.integers(0, 5, 300))
    matrix = confusion(labels, predicted, 6)  # one class never occurs
    assert matrix[:5, :5].tolist() == reference.confusion_matrix(labels, predicted).tolist()
    assert matrix[5].sum() == matrix[:, 5].sum() == 0
    assert accuracy(matrix) == pytest.approx(reference.accuracy_score(labels, predicted))
    assert balanced_accuracy(matrix) == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert macro_f1(matrix) == pytest.approx(reference.f1_score(labels, predicted, average="macro"))


def test_calibration_error_of_known_scores():
    scores = np.array([[0.8, 0.2]] * 10)
    assert expected_calibration_error(scores, np.array([0] * 8 + [1] * 2)) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(scores, np.array([0] * 3 + [1] * 7)) == pytest.approx(0.5)
    certain = np.array([[1.0, 0.0]] * 4)
    assert expected_calibration_error(certain, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    # Two bins whose gaps would cancel if they were not taken one by one.
    mixed = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    assert expected_calibration_error(mixed, np.array([0] * 7 + [1] * 3 + [0] * 8 + [1] * 2)) == pytest.approx(0.2)


def test_description_counts_everything_once():
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    labels = np.array([0, 0, 1])
    boot = Bootstrap(1, 3, resamples=200)
    report = describe(scores, labels, boot.interval(np.array([[1, 0, 1]])))
    assert report["n"] == 3
    assert report["headline"] == "accuracy"
    assert report["quality"] == report["accuracy"]
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["balanced_accuracy"] == pytest.approx(0.75)
    assert report["confusion"] == [[1, 1], [0, 1]]
    assert 0 <= report["low"] <= report["accuracy"] <= report["high"] <= 1


def test_quality_of_each_prediction():
    assert class_quality(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0])).tolist() == [1, 0]
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.2, 0.49], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]])
    targets = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
    # {0, 1} against {0, 2}: one of three; empty against empty; the same; empty against one.
    assert classes_quality(scores, targets).tolist() == pytest.approx([1 / 3, 1, 1, 0])
    # An error of half the spread, none, one beyond it.
    numbers = number_quality(np.array([[1.0], [5.0], [0.0]]), np.array([[2.0], [5.0], [9.0]]), 2.0)
    assert numbers.tolist() == pytest.approx([0.5, 1, 0])
    with pytest.raises(ValueError, match="positive"):
        number_quality(np.zeros((1, 1)), np.zeros((1, 1)), 0.0)


def test_spread_of_labels_ignores_a_few_wild_ones_and_is_never_zero():
    assert label_spread(np.arange(101.0)) == pytest.approx(90)
    assert label_spread(np.append(np.arange(101.0), [1e9])) == pytest.approx(90, rel=0.02)
    assert label_spread(np.array([0.0] * 99 + [7.0])) == 7
    assert label_spread(np.array([3.0, 3.0])) == 1


def test_the_mean_quality_of_numbers_follows_the_mean_error():
    """Nothing but the scale: 1 - MAE / spread, where no error is beyond the spread."""
    generator = np.random.default_rng(0)
    truth = generator.normal(50, 10, (500, 1))
    guess = truth + generator.normal(0, 5, (500, 1))
    spread = label_spread(truth)
    report = describe(guess, truth, ANY, "number")
    assert number_quality(guess, truth, spread).mean() == pytest.approx(1 - report["mae"] / spread)


def test_several_classes_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    targets = (generator.random((300, 5)) < [0.5, 0.3, 0.1, 0.02, 0]).astype(int)  # one class never occurs
    scores = np.clip(targets * 0.4 + generator.random((300, 5)) * 0.6, 0, 1)
    scores[:, 4] = 0.1
    predicted = (scores >= 0.5).astype(int)
    report = describe(scores, targets, ANY, "classes")
    assert report["headline"] == "Jaccard index"
    assert (report["quality"], report["low"], report["high"]) == (0.5, 0.4, 0.6)
    assert report["micro_f1"] == pytest.approx(reference.f1_score(targets, predicted, average="micro"))
    assert report["macro_f1"] == pytest.approx(reference.f1_score(targets[:, :4], predicted[:, :4], average="macro"))
    assert report["subset_accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    jaccard = reference.jaccard_score(targets, predicted, average="samples", zero_division=1)
    assert report["jaccard"] == pytest.approx(jaccard)
    both = (targets & predicted).sum(axis=0)
    assert [one["both"] for one in report["counts"]] == both.tolist()
    nothing = describe(np.zeros((3, 2)), np.zeros((3, 2)), ANY, "classes")
    assert (nothing["micro_f1"], nothing["macro_f1"], nothing["subset_accuracy"]) == (1, 1, 1)


def test_numbers_agree_with_scikit_learn_and_scipy():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    truth = generator.normal(size=(200, 1)).round(1)  # with ties
    guess = truth * 0.5 + generator.normal(size=(200, 1))
    report = describe(guess.astype(np.float32), truth, ANY, "number")
    assert report["mae"] == pytest.approx(reference.mean_absolute_error(truth, guess), rel=1e-5)
    assert report["rmse"] == pytest.approx(reference.root_mean_squared_error(truth, guess), rel=1e-5)
    assert report["r2"] == pytest.approx(reference.r2_score(truth, guess), rel=1e-5)
    assert report["spearman"] == pytest.approx(spearmanr(truth[:, 0], guess[:, 0]).statistic, rel=1e-5)


def test_what_is_not_defined_is_none():
    flat = describe(np.ones((4, 1)), np.full((4, 1), 2.0), ANY, "number")
    assert (flat["r2"], flat["spearman"], flat["mae"]) == (None, None, 1)
    one = describe(np.ones((1, 1)), np.ones((1, 1)), ANY, "number")
    assert (one["r2"], one["spearman"]) == (None, None)


def test_interval_of_one_draw_is_that_of_a_proportion():
    """With one row only samples are resampled: about p +- 1.96 sqrt(p (1 - p) / n)."""
    right = np.zeros((1, 400))
    right[0, :300] = 1
    interval = Bootstrap(1, 400, resamples=5000, seed=1).interval(right)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.mean == 0.75
    assert interval.low == pytest.approx(0.75 - half, abs=0.005)
    assert interval.high == pytest.approx(0.75 + half, abs=0.005)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Draws and samples both vary; resampling only one of them would cover far less than 95%."""
    truth, trials, draws, samples = 0.7, 300, 20, 80
    generator = np.random.default_rng(0)
    both = columns = 0
    for trial in range(trials):
        chance = truth + generator.normal(0, 0.06, (draws, 1)) + generator.normal(0, 0.15, (1, samples))
        table = generator.random((draws, samples)) < chance
        interval = Bootstrap(draws, samples, resamples=400, seed=trial).interval(table)
        both += interval.low <= truth <= interval.high
        narrow = Bootstrap(1, samples, resamples=400, seed=trial).interval(table.mean(axis=0, keepdims=True))
        columns += narrow.low <= truth <= narrow.high
    assert 0.92 <= both / trials <= 0.995
    assert columns / trials < 0.92


def test_differences_are_paired():
    generator = np.random.default_rng(0)
    first = generator.random((20, 100)) < 0.7
    boot = Bootstrap(20, 100, resamples=1000)
    same = boot.difference(first, first)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    # One sample more is right in every draw: the difference hardly varies, the accuracies do.
    second = first.copy()
    second[:, :5] = False
    better = first.copy()
    better[:, :5] = True
    gap, alone = boot.difference(better, second), boot.interval(first)
    assert gap.mean == pytest.approx(0.05)
    assert 0 < gap.low < gap.high
    swapped = boot.difference(second, better)
    assert (swapped.low, swapped.high) == pytest.approx((-gap.high, -gap.low))
    assert alone.high - alone.low > 0


def test_equal_seeds_give_equal_intervals_and_other_shapes_are_refused():
    table = np.random.default_rng(0).random((5, 30)) < 0.5
    assert Bootstrap(5, 30, seed=3).interval(table) == Bootstrap(5, 30, seed=3).interval(table)
    with pytest.raises(ValueError, match="made for 5 x 30"):
        Bootstrap(5, 30).interval(table.T)
