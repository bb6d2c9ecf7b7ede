"""Probes against slow references, scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs, make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading

from ssl_core.errors import UserError
from ssl_core.models import probes
from ssl_core.models.probes import SpreadGraph, knn_scores, label_spreading_scores, linear_scores, spread_labels


@pytest.fixture
def blobs():
    x, y = make_blobs(300, centers=4, n_features=6, cluster_std=2.5, random_state=0)
    return x.astype(np.float32), y.astype(np.int64)


def few(y, per_class, seed=0):
    """Labels with all but ``per_class`` of each class hidden."""
    order = np.random.default_rng(seed).permutation(len(y))
    labels = np.full(len(y), -1)
    for k in np.unique(y):
        chosen = order[y[order] == k][:per_class]
        labels[chosen] = k
    return labels


def test_knn_agrees_with_the_obvious_loop(blobs):
    x, y = blobs
    train, labels, test = x[:200], few(y[:200], 9), x[200:]
    scores = knn_scores(train, labels, test, k=5, classes=4)
    known = np.flatnonzero(labels >= 0)
    for i, sample in enumerate(test):
        cosine = [float(sample @ train[j] / np.linalg.norm(sample) / np.linalg.norm(train[j])) for j in known]
        votes = np.zeros(4)
        for j in np.argsort(cosine)[::-1][:5]:
            votes[labels[known[j]]] += np.exp(cosine[j] / probes.KNN_TEMPERATURE)
        np.testing.assert_allclose(scores[i], votes / votes.sum(), atol=1e-4)


def test_knn_with_fewer_labels_than_neighbours_uses_them_all_and_ignores_the_hidden_ones():
    train = np.array([[1, 0], [0, 1], [0.9, 0.1]])
    scores = knn_scores(train, np.array([0, 1, -1]), np.array([[2.0, 0.0]]), k=20)
    share = 1 / (1 + np.exp(-1 / probes.KNN_TEMPERATURE))
    np.testing.assert_allclose(scores, [[share, 1 - share]], atol=1e-6)


@pytest.mark.parametrize("c", [1.0, 10.0])
def test_logistic_regression_reaches_scikit_learns_optimum(blobs, c):
    x, y = blobs
    x = (x - x.mean(0)) / x.std(0)
    ours = probes._softmax(x, probes._fit_logistic(x, y, 4, c))
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_linear_probe_separates_what_is_separable_and_gives_probabilities(blobs):
    x, y = make_blobs(200, centers=3, n_features=5, cluster_std=0.5, random_state=1)
    scores = linear_scores(x[:100], few(y[:100], 5), x[100:], classes=5)
    assert (scores.argmax(1) == y[100:]).all()
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    assert (scores[:, 3:] == 0).all()  # classes without a label


def test_linear_probe_chooses_its_penalty_inside_the_given_labels(blobs, monkeypatch):
    x, y = blobs
    labels = few(y[:200], 6)
    seen = []
    monkeypatch.setattr(probes, "_choose_c", lambda x, y, folds, seed: seen.append((len(x), sorted(y), folds)) or 1.0)
    linear_scores(x[:200], labels, x[200:])
    assert seen == [(24, sorted([0, 1, 2, 3] * 6), 3)]
    linear_scores(x[:200], few(y[:200], 1), x[200:])  # one label a class: nothing to cross-validate
    assert len(seen) == 1


def test_cross_validation_prefers_a_strong_penalty_where_labels_are_noise():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 40)), generator.integers(0, 2, 60)
    assert probes._choose_c(x, y, 3, 0) == probes.LINEAR_GRID[0]
    assert probes._choose_c(y[:, None] + 0.01 * x[:, :1], y, 3, 0) == probes.LINEAR_GRID[-1]


def test_linear_probe_with_one_class_or_one_label_a_class():
    x = np.random.default_rng(0).normal(size=(20, 4))
    only = np.full(20, -1)
    only[3] = 1
    assert (linear_scores(x, only, x, classes=3)[:, 1] == 1).all()
    pair = only.copy()
    pair[4] = 0
    scores = linear_scores(x, pair, x, classes=2)
    assert scores[3].argmax() == 1
    assert scores[4].argmax() == 0


def test_spreading_solves_the_equation_of_the_paper(blobs):
    """F* = (1 - a)(I - aS)^-1 Y, by a dense inverse of the very graph."""
    x, y = blobs
    labels = few(y, 2)
    graph = SpreadGraph(x, class_mass=False)
    s = graph.normalised.toarray()
    np.testing.assert_allclose(s, s.T, atol=1e-6)
    seeds = np.eye(5)[labels][:, :4]  # -1 takes the last column, which is cut
    expected = np.linalg.inv(np.eye(len(s)) - probes.SPREAD_ALPHA * s) @ seeds
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(graph.spread(labels, 4), expected, atol=1e-4)


def test_spreading_agrees_with_scikit_learn_on_the_same_graph(blobs):
    x, y = blobs
    labels = few(y, 3)
    graph = SpreadGraph(x, alpha=0.9, class_mass=False)

    theirs = LabelSpreading(kernel=lambda a, b: graph.weights.toarray(), alpha=0.9, max_iter=5000, tol=1e-9).fit(
        x, labels
    )
    np.testing.assert_allclose(graph.spread(labels, 4), theirs.label_distributions_, atol=1e-4)


def test_conjugate_gradient_gives_what_the_factorisation_gives(blobs):
    x, y = blobs
    draws = np.stack([few(y, 3, seed) for seed in range(4)])
    dense, sparse = SpreadGraph(x), SpreadGraph(x, dense_limit=0)
    np.testing.assert_allclose(dense.spread(draws, 4), sparse.spread(draws, 4), atol=1e-3)


def test_draws_together_equal_draws_alone(blobs, monkeypatch):
    x, y = blobs
    draws = np.stack([few(y[:200], 2, seed) for seed in range(5)])
    graph = SpreadGraph(x[:200])
    together = graph.scores(draws, x[200:], 4)
    for labels, scores in zip(draws, together, strict=True):
        np.testing.assert_allclose(scores, label_spreading_scores(x[:200], labels, x[200:], 4), atol=1e-5)
    monkeypatch.setattr(probes, "_SOLVE_VALUES", 1)  # one draw at a time
    np.testing.assert_allclose(SpreadGraph(x[:200]).scores(draws, x[200:], 4), together, atol=1e-5)


def test_one_label_a_moon_is_enough_where_distance_alone_fails():
    x, y = make_moons(400, noise=0.05, random_state=0)
    labels = few(y, 1, seed=3)
    spread = SpreadGraph(x, metric="euclidean", alpha=0.99).spread(labels).argmax(1)
    known = np.flatnonzero(labels >= 0)
    nearest = labels[known][((x[:, None] - x[known]) ** 2).sum(-1).argmin(1)]
    assert (spread == y).mean() > 0.97 > (nearest == y).mean()


def test_clusters_without_a_label_are_still_reached():
    """Three far clusters, labels in two of them: the third takes the side of its nearer neighbour."""
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(centre, 0.1, (30, 2)) for centre in (0, 100, 130)])
    labels = np.full(90, -1)
    labels[[0, 30]] = [0, 1]
    scores = SpreadGraph(x, metric="euclidean", k=5).spread(labels)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    assert (scores[60:].argmax(1) == 1).all()
    assert (scores[:30].argmax(1) == 0).all()


def test_order_of_samples_does_not_matter(blobs):
    x, y = blobs
    labels = few(y, 2)
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(spread_labels(x, labels)[order], spread_labels(x[order], labels[order]), atol=1e-3)


def test_identical_samples_and_a_constant_encoder_give_finite_answers():
    x = np.ones((50, 8), dtype=np.float32)
    labels = np.full(50, -1)
    labels[:2] = [0, 1]
    for scores in (
        spread_labels(x, labels),
        label_spreading_scores(x, labels, x[:5]),
        knn_scores(x, labels, x[:5]),
        linear_scores(x, labels, x[:5]),
    ):
        assert np.isfinite(scores).all()
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)


def test_cosine_geometry_ignores_length(blobs):
    x, y = blobs
    labels = few(y, 3)
    scaled = x * np.random.default_rng(0).uniform(0.5, 2, (len(x), 1)).astype(np.float32)
    np.testing.assert_allclose(spread_labels(x, labels), spread_labels(scaled, labels), atol=1e-3)


def test_bad_input_is_named():
    x = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(UserError, match="not finite"):
        SpreadGraph(np.where(x > 1, np.nan, x))
    with pytest.raises(ValueError, match="at least one label"):
        SpreadGraph(x).spread(np.full(10, -1))
    with pytest.raises(ValueError, match="outside of 2 classes"):
        knn_scores(x, np.full(10, 3), x, classes=2)
