"""Probes: how good a frozen encoder is, judged by simple classifiers on its embeddings.

Three probes, all on unit-length embeddings (cosine geometry, Wu et al. 2018): weighted nearest neighbours, a linear
classifier and label spreading. None reads a label beyond those it is given; what can be chosen is a fixed rule or is
chosen by cross-validation inside those labels.

Shapes: N training samples, M test samples, D features, K classes, B draws of labels that are solved together.
Labels are int64 ``(N,)`` class positions; -1 stands for "no label". Scores are probabilities: rows sum to one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ssl_core.errors import UserError

Array = np.ndarray
Metric = Literal["cosine", "euclidean"]

KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
"""Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4."""

GRAPH_NEIGHBOURS = 10
SPREAD_ALPHA = 0.95
"""Zhou et al. 2004 use 0.99. Both numbers were set on raw pixels of digits, hence in favour of the classical baseline."""

LINEAR_GRID = (1.0, 10.0, 100.0)
LINEAR_DEFAULT = 10.0
"""Inverse penalty of the linear probe where the labels are too few to cross-validate."""

_DENSE_LIMIT = 8192  # up to here one dense Cholesky factorisation is faster than iterating
_CHUNK = 2048
_SOLVE_VALUES = 20_000_000  # right-hand sides solved at once: 80 MB


def unit(embeddings: Array) -> Array:
    """Rows of ``(N, D)`` scaled to length one, float32; a row of zeros stays zero.

    Raises ``UserError`` where a value is not finite: such an encoder has diverged.
    """
    x = np.asarray(embeddings, dtype=np.float32)
    if not np.isfinite(x).all():
        raise UserError(
            "the encoder's embeddings are not finite",
            place="encoder",
            next_step="pretrain again with a lower pretrain.learning_rate, or with pretrain.precision: float32",
        )
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


# ---- weighted nearest neighbours


def knn_scores(train: Array, labels: Array, test: Array, k: int = KNN_NEIGHBOURS, classes: int | None = None) -> Array:
    """Vote of the k nearest labelled samples, each weighted by ``exp(cosine / 0.07)`` (Wu et al. 2018).

    Args:
        train: ``(N, D)`` embeddings; those with label -1 are left out.
        labels: ``(N,)``.
        test: ``(M, D)`` embeddings.
        k: neighbours; with fewer labels than that, all of them vote.
        classes: K; default: the largest label + 1.

    Returns ``(M, K)`` probabilities.
    """
    known = labels >= 0
    x, y = unit(train[known]), np.asarray(labels)[known]
    cosine, nearest = _nearest(unit(test), x, min(k, len(x)))
    # Subtracting the row's largest cosine leaves the shares as they are and keeps exp from overflowing.
    weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / KNN_TEMPERATURE)
    scores = np.zeros((len(test), _classes(y, classes)), dtype=np.float32)
    np.add.at(scores, (np.arange(len(test))[:, None], y[nearest]), weight)
    return _probabilities(scores)


# ---- linear classifier


def linear_scores(train: Array, labels: Array, test: Array, classes: int | None = None, *, seed: int = 0) -> Array:
    """Multinomial logistic regression on standardised unit-length embeddings, L2 penalty.

    Mean and scale come from all of ``train``, labelled or not. With at least two labels a class, the penalty is
    chosen by stratified cross-validation inside the labels (log loss, up to three folds); else it is fixed.
    Arguments and result as ``knn_scores``. A class without a label gets probability 0.
    """
    from threadpoolctl import threadpool_limits

    known = labels >= 0
    y = np.asarray(labels)[known]
    total = _classes(y, classes)
    present, position = np.unique(y, return_inverse=True)
    everything = unit(train)
    mean, scale = everything.mean(axis=0), everything.std(axis=0)
    # Unit variance in total, and features that hardly vary are not blown up to noise.
    scale = np.maximum(scale, 0.1 * scale.max() + 1e-4) * np.sqrt(len(scale))
    x, z = ((part - mean) / scale for part in (everything[known], unit(test)))
    scores = np.zeros((len(test), total), dtype=np.float32)
    smallest = int(np.bincount(position).min())
    # Such matrices are too small for threads: they would wait for each other, above all on a busy machine.
    with threadpool_limits(1, user_api="blas"):
        c = _choose_c(x, position, min(3, smallest), seed) if smallest >= 2 and len(present) > 1 else LINEAR_DEFAULT
        scores[:, present] = _softmax(z, _fit_logistic(x, position, len(present), c))
    return scores


def _fit_logistic(x: Array, y: Array, classes: int, c: float, start: Array | None = None) -> Array:
    """Weights ``(D + 1, K)``, the intercept last, that minimise ``c * sum(log loss) + |weights|^2 / 2`` without the intercept.

    The same optimum as scikit-learn's ``LogisticRegression(C=c)`` at a fifth of the time: on a hundred labels its checks
    of every argument in every iteration cost more than the arithmetic.
    """
    from scipy.optimize import minimize

    x = np.asarray(x, dtype=np.float64)
    n, d = x.shape
    rows = np.arange(n)

    def objective(flat: Array) -> tuple[float, Array]:
        w = flat.reshape(d + 1, classes)
        logits = x @ w[:-1] + w[-1]
        logits -= logits.max(axis=1, keepdims=True)
        exp = np.exp(logits)
        z = exp.sum(axis=1, keepdims=True)
        loss = float((np.log(z[:, 0]) - logits[rows, y]).mean() + (w[:-1] ** 2).sum() / (2 * c * n))
        error = exp / z
        error[rows, y] -= 1
        error /= n
        return loss, np.vstack([x.T @ error + w[:-1] / (c * n), error.sum(axis=0)]).ravel()

    first = np.zeros((d + 1) * classes) if start is None else start.ravel()
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-3 / n**0.5})
    return found.x.reshape(d + 1, classes)


def _softmax(x: Array, weights: Array) -> Array:
    logits = x @ weights[:-1] + weights[-1]
    return _probabilities(np.exp(logits - logits.max(axis=1, keepdims=True)))


def _choose_c(x: Array, y: Array, folds: int, seed: int) -> float:
    """The inverse penalty with the lowest log loss in stratified cross-validation; ties go to the stronger penalty."""
    from sklearn.model_selection import StratifiedKFold

    classes = int(y.max()) + 1
    losses = np.zeros(len(LINEAR_GRID))
    for inside, outside in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        weights = None
        for i, c in enumerate(LINEAR_GRID):
            weights = _fit_logistic(x[inside], y[inside], classes, c, weights)
            chance = _softmax(x[outside], weights)[np.arange(len(outside)), y[outside]]
            losses[i] -= np.log(np.maximum(chance, 1e-12)).sum()
    return LINEAR_GRID[int(losses.argmin())]


# ---- label spreading


class SpreadGraph:
    """Label spreading over a nearest-neighbour graph; built once, then solved for many draws of labels.

    Zhou et al. 2004, "Learning with Local and Global Consistency" (NeurIPS):

        S = D^-1/2 W D^-1/2,    F* = (1 - alpha) (I - alpha S)^-1 Y

    W is the symmetric k-nearest-neighbour graph with self-tuned weights ``exp(-d_ij^2 / (s_i s_j))``, where ``s_i`` is
    the distance of sample i to its k-th neighbour (Zelnik-Manor and Perona 2004): no bandwidth has to be chosen.
    Departures from the paper: a sparse graph instead of a full kernel, and separate components are joined by their
    shortest edge, so that every sample is reached; and each class's total is scaled to its share of the labels (class
    mass normalisation, Zhu et al. 2003), so that a label in a dense region does not flood the graph. New samples take the
    weighted vote of their k nearest training samples (Delalleau et al. 2005).
    """

    def __init__(
        self,
        train: Array,
        *,
        k: int = GRAPH_NEIGHBOURS,
        alpha: float = SPREAD_ALPHA,
        metric: Metric = "cosine",
        class_mass: bool = True,
        dense_limit: int = _DENSE_LIMIT,
    ) -> None:
        """``train`` is ``(N, D)``; ``metric="euclidean"`` takes it as it is (raw pixels), cosine scales rows first."""
        if len(train) < 2:
            raise UserError(
                "label spreading needs at least 2 training samples", place="data.source", next_step="add samples"
            )
        self._metric = metric
        self._alpha = alpha
        self._class_mass = class_mass
        self._train = self._prepare(train)
        self._k = min(k, len(train) - 1)
        self._dense = len(train) <= dense_limit
        self._factor: Any = None
        self._scale, self.weights = self._graph()
        """W, sparse ``(N, N)``, symmetric, zero diagonal, one component."""
        inverse = 1 / np.sqrt(np.asarray(self.weights.sum(axis=1)).ravel())
        self.normalised = self.weights.multiply(inverse[:, None]).multiply(inverse[None, :]).tocsr()
        """S, sparse ``(N, N)``, symmetric, eigenvalues in [-1, 1]."""
        self._votes: tuple[Any, Array, Array] | None = None

    def _prepare(self, x: Array) -> Array:
        return unit(x) if self._metric == "cosine" else np.asarray(x, dtype=np.float32)

    def _graph(self) -> tuple[Array, Any]:
        from scipy import sparse

        squared, nearest = nearest_squared(self._train, self._train, self._k, skip_self=True)
        scale = np.sqrt(squared[:, -1])
        # Many identical samples have distance zero to their k-th neighbour; the smallest real distance stands in.
        positive = scale[scale > 0]
        scale = np.maximum(scale, positive.min() * 1e-2 if len(positive) else 1.0)
        rows = np.repeat(np.arange(len(nearest)), self._k)
        columns = nearest.ravel()
        bridges = self._bridges(rows, columns)
        if bridges is not None:
            rows, columns = np.append(rows, bridges[0]), np.append(columns, bridges[1])
            distance = ((self._train[bridges[0]] - self._train[bridges[1]]) ** 2).sum(axis=1)
            squared_edges = np.append(squared.ravel(), distance)
        else:
            squared_edges = squared.ravel()
        # At least exp(-8): a bridge between far clusters is weak, but never rounds to nothing.
        weight = np.exp(-np.minimum(squared_edges / (scale[rows] * scale[columns]), 8.0)).astype(np.float32)
        one_way = sparse.csr_matrix((weight, (rows, columns)), shape=(len(nearest), len(nearest)))
        return scale, one_way.maximum(one_way.T).tocsr()

    def _bridges(self, rows: Array, columns: Array) -> tuple[Array, Array] | None:
        """Shortest edges that join the graph's components into one (Boruvka rounds); None where it is one."""
        from scipy import sparse
        from scipy.sparse.csgraph import connected_components

        n = len(self._train)
        found_i: list[int] = []
        found_j: list[int] = []
        while True:
            i, j = np.append(rows, found_i).astype(np.int64), np.append(columns, found_j).astype(np.int64)
            parts, member = connected_components(
                sparse.csr_matrix((np.ones(len(i), np.int8), (i, j)), shape=(n, n)), directed=False
            )
            if parts == 1:
                return (np.array(found_i), np.array(found_j)) if found_i else None
            largest = np.bincount(member).argmax()
            for part in range(parts):
                if part == largest:
                    continue
                inside, outside = np.flatnonzero(member == part), np.flatnonzero(member != part)
                squared, nearest = nearest_squared(self._train[inside], self._train[outside], 1)
                first = int(squared[:, 0].argmin())
                found_i.append(int(inside[first]))
                found_j.append(int(outside[nearest[first, 0]]))

    def spread(self, labels: Array, classes: int | None = None) -> Array:
        """Probabilities of all training samples, for one or many draws of labels.

        ``labels`` is ``(N,)`` or ``(B, N)`` with -1 where unknown; returns ``(N, K)`` or ``(B, N, K)``. Each draw needs
        at least one label.
        """
        labels = np.asarray(labels)
        single = labels.ndim == 1
        batch = np.atleast_2d(labels)
        if not (batch >= 0).any(axis=1).all():
            raise ValueError("each draw needs at least one label")
        total = _classes(batch, classes)
        b, n = batch.shape
        seeds = np.zeros((n, b, total), dtype=np.float32)
        draw, sample = np.nonzero(batch >= 0)
        seeds[sample, draw, batch[draw, sample]] = 1
        # The factor (1 - alpha) cancels when rows are scaled to sum to one.
        solved = np.maximum(self._solve(seeds.reshape(n, b * total)).reshape(n, b, total), 0)
        if self._class_mass:
            mass = solved.sum(axis=0)
            solved *= seeds.sum(axis=0) / np.where(mass > 0, mass, 1)
        scores = _probabilities(solved).transpose(1, 0, 2)
        return scores[0] if single else scores

    def _solve(self, right: Array) -> Array:
        """``X`` of ``(I - alpha S) X = right`` for all columns at once."""
        if not self._dense:
            return _conjugate_gradient(self.normalised, self._alpha, right)
        from scipy.linalg import cho_factor, cho_solve

        if self._factor is None:
            system = self.normalised.toarray()
            system *= -self._alpha
            system[np.diag_indices_from(system)] += 1
            self._factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        return cho_solve(self._factor, right, check_finite=False)

    def predict(self, test: Array, scores: Array) -> Array:
        """Scores of new samples ``(M, D)`` from those of the training samples, ``(N, K)`` or ``(B, N, K)``.

        Returns ``(M, K)`` or ``(B, M, K)``. The neighbours of the last ``test`` array are kept for the next draw.
        """
        from scipy import sparse

        if self._votes is None or self._votes[0] is not test:
            z = self._prepare(test)
            squared, nearest = nearest_squared(z, self._train, self._k)
            own = np.maximum(np.sqrt(squared[:, -1:]), 1e-12)
            exponent = np.minimum(squared / (own * self._scale[nearest]), 8.0)
            weight = np.exp(-exponent)
            weight /= weight.sum(axis=1, keepdims=True)
            rows = np.repeat(np.arange(len(z)), self._k)
            matrix = sparse.csr_matrix((weight.ravel(), (rows, nearest.ravel())), shape=(len(z), len(self._train)))
            self._votes = (test, matrix, nearest)
        vote = self._votes[1]
        if scores.ndim == 2:
            return np.asarray(vote @ scores, dtype=np.float32)
        b, n, total = scores.shape
        flat = vote @ np.ascontiguousarray(scores.transpose(1, 0, 2)).reshape(n, b * total)
        return np.asarray(flat, dtype=np.float32).reshape(-1, b, total).transpose(1, 0, 2)

    def scores(self, draws: Array, test: Array, classes: int | None = None) -> Array:
        """``spread`` then ``predict`` for draws ``(B, N)``, a few draws at a time where all would not fit: ``(B, M, K)``."""
        total = _classes(draws, classes)
        step = max(1, _SOLVE_VALUES // (draws.shape[1] * total))
        parts = [self.predict(test, self.spread(draws[i : i + step], total)) for i in range(0, len(draws), step)]
        return np.concatenate(parts)


def spread_labels(train: Array, labels: Array, classes: int | None = None) -> Array:
    """Label spreading over the training embeddings ``(N, D)``; labels ``(N,)`` with -1. Returns ``(N, K)`` probabilities."""
    return SpreadGraph(train).spread(labels, classes)


def label_spreading_scores(train: Array, labels: Array, test: Array, classes: int | None = None) -> Array:
    """Label spreading over the training embeddings, then the neighbours' vote for ``test``: ``(M, K)`` probabilities."""
    graph = SpreadGraph(train)
    return graph.predict(test, graph.spread(labels, classes))


# ---- shared


def _classes(labels: Array, classes: int | None) -> int:
    largest = int(labels.max()) + 1
    if classes is not None and classes < largest:
        raise ValueError(f"label {largest - 1} lies outside of {classes} classes")
    return classes or largest


def _probabilities(scores: Array) -> Array:
    """The last axis scaled to sum to one; where all are zero: equal shares."""
    total = scores.sum(axis=-1, keepdims=True)
    return np.where(total > 0, scores / np.where(total > 0, total, 1), 1 / scores.shape[-1]).astype(np.float32)


def _nearest(queries: Array, keys: Array, k: int) -> tuple[Array, Array]:
    """``(cosine, position)`` of the k most similar unit-length keys, each ``(M, k)``, nearest first; ties by position."""
    squared, nearest = nearest_squared(queries, keys, k)
    return 1 - squared / 2, nearest


def nearest_squared(queries: Array, keys: Array, k: int, *, skip_self: bool = False) -> tuple[Array, Array]:
    """Squared Euclidean distance and position of the k nearest keys, each ``(M, k)``, nearest first.

    One matrix product per chunk, so memory stays at a few thousand rows times N. ``skip_self``: queries are the keys.
    """
    norms = (keys**2).sum(axis=1)
    distances = np.empty((len(queries), k), dtype=np.float32)
    positions = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        part = queries[start : start + _CHUNK]
        squared = norms[None, :] - 2 * (part @ keys.T) + (part**2).sum(axis=1)[:, None]
        rows = np.arange(len(part))[:, None]
        if skip_self:
            squared[rows[:, 0], start + rows[:, 0]] = np.inf
        chosen = (
            np.argpartition(squared, k - 1, axis=1)[:, :k]
            if k < squared.shape[1]
            else np.broadcast_to(np.arange(k), (len(part), k))
        )
        value = squared[rows, chosen]
        order = np.lexsort((chosen, value), axis=1)
        chosen = chosen[rows, order]
        # The product form loses digits for near neighbours; the difference form is exact for the k that stay.
        distances[start : start + len(part)] = ((part[:, None, :] - keys[chosen]) ** 2).sum(axis=2)
        positions[start : start + len(part)] = chosen
    return distances, positions


def _conjugate_gradient(s: Any, alpha: float, right: Array, tolerance: float = 1e-5, limit: int = 500) -> Array:
    """Solves ``(I - alpha S) X = right`` for every column; S symmetric with eigenvalues in [-1, 1], so it is positive definite."""
    x = np.zeros_like(right)
    residual = right.copy()
    direction = residual.copy()
    power = np.einsum("nc,nc->c", residual, residual)
    goal = tolerance**2 * power
    for _ in range(limit):
        if (power <= goal).all():
            break
        image = direction - alpha * (s @ direction)
        # A column that is solved has nothing left to move along; dividing by its zero is avoided, not meant.
        curvature = np.einsum("nc,nc->c", direction, image)
        pace = np.where(curvature > 0, power / np.where(curvature > 0, curvature, 1), 0)
        x += pace * direction
        residual -= pace * image
        before, power = power, np.einsum("nc,nc->c", residual, residual)
        direction = residual + np.where(before > 0, power / np.where(before > 0, before, 1), 0) * direction
    return x
