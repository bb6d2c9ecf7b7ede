"""What unlabeled images should be: labels spread over the embeddings, and the model's probabilities set by them.

Shapes: N training images, K classes, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ssl_core.models.classifier import ImageClassifier
from ssl_core.models.probes import SpreadGraph

SHARPNESSES = tuple(2 ** (quarter / 4) for quarter in range(17))
"""From as they are (1) to nearly one-hot (16)."""
SHARPNESS_FOLDS = 10
DEFAULT_SHARPNESS = 2.0
"""Where a class has one label and nothing can be cross-validated."""
TEMPERATURE_IMAGES = 5_000


class Graph(Protocol):
    """What is needed of ``models.probes.SpreadGraph``."""

    def spread(self, labels: np.ndarray, classes: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Targets:
    """What each training image should be, and how much it counts."""

    positions: np.ndarray
    """Rows of the pixels, int64 ``(N,)``."""
    probabilities: np.ndarray
    """float32 ``(N, K)``."""
    weights: np.ndarray
    """float32 ``(N,)``: 1 for a label, the certainty for a spread one."""
    labels: int
    """How many of them, the first ones, are labels."""


def hard_targets(positions: np.ndarray, labels: np.ndarray, classes: int) -> Targets:
    """Labels ``(N,)`` as certain targets."""
    probabilities = np.zeros((len(labels), classes), dtype=np.float32)
    probabilities[np.arange(len(labels)), labels] = 1
    return Targets(positions, probabilities, np.ones(len(labels), dtype=np.float32), len(labels))


def spread_targets(features: np.ndarray, labelled: Targets, unlabeled: np.ndarray, seed: int = 0) -> Targets:
    """Adds soft targets for ``unlabeled`` by label spreading (Zhou et al. 2004) over features ``(N, D)``, labelled first.

    An unlabeled image counts ``1 - H(p) / ln K``: 1 where its neighbours agree, 0 where every class is as likely.

    The spread mass of a class reaches everywhere, so its shares are far less sure than they are right: they are
    sharpened, ``p^s / sum p^s``, by the s with which the shares of left-out labels are most likely.
    """
    count, classes = labelled.probabilities.shape
    known = np.full(count + len(unlabeled), -1, dtype=np.int64)
    known[:count] = labelled.probabilities.argmax(axis=1)
    graph = SpreadGraph(features)
    soft = _sharpen(graph.spread(known, classes)[count:], choose_sharpness(graph, known, classes, seed))
    entropy = -(soft * np.log(np.maximum(soft, 1e-12))).sum(axis=1)
    certainty = np.clip(1 - entropy / math.log(classes), 0, 1)
    return Targets(
        np.concatenate([labelled.positions, unlabeled]),
        np.concatenate([labelled.probabilities, soft]).astype(np.float32),
        np.concatenate([labelled.weights, certainty]).astype(np.float32),
        count,
    )


def choose_sharpness(graph: Graph, known: np.ndarray, classes: int, seed: int) -> float:
    """Of ``SHARPNESSES``, the one with the lowest log loss in stratified cross-validation inside the labels ``known >= 0``."""
    rows = np.flatnonzero(known >= 0)
    labels = known[rows]
    folds = min(SHARPNESS_FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return DEFAULT_SHARPNESS
    fold, rng = np.empty(len(labels), dtype=np.int64), np.random.default_rng(seed)
    for one in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == one))
        fold[members] = np.arange(len(members)) % folds
    losses = np.zeros(len(SHARPNESSES))
    for out in (np.flatnonzero(fold == number) for number in range(folds)):
        inside = known.copy()
        inside[rows[out]] = -1
        shares = graph.spread(inside, classes)[rows[out]]
        for i, sharpness in enumerate(SHARPNESSES):
            right = _sharpen(shares, sharpness)[np.arange(len(out)), labels[out]]
            losses[i] -= np.log(np.maximum(right, 1e-12)).sum()
    return SHARPNESSES[int(losses.argmin())]


def _sharpen(shares: np.ndarray, sharpness: float) -> np.ndarray:
    """``p^s`` scaled to sum to one, float64 ``(N, K)``."""
    powers = np.maximum(shares.astype(np.float64), 1e-12) ** sharpness
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def temper(model: ImageClassifier, pixels: np.ndarray, targets: Targets) -> float:
    """Scales the head's weights by ``1 / T`` (temperature scaling, Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    T has the lowest cross-entropy between the soft targets of the unlabeled images and the model's probabilities for
    them. In a short training the head stays less sure than its targets; which class is the likeliest does not change.
    Departure from the paper: no held-out labels, since all of the budget is trained on; the targets are calibrated
    inside it. Returns T.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(targets.labels, len(targets.positions))
    rows = rows[:: -(-len(rows) // TEMPERATURE_IMAGES)]
    wanted = targets.probabilities[rows]
    log_p = np.log(np.maximum(model.predict_proba(pixels[targets.positions[rows]]).astype(np.float64), 1e-30))

    def loss(log_t: float) -> float:
        scaled = log_p / math.exp(log_t)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - (wanted * scaled).sum(axis=1)).mean())

    temperature = math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.div_(temperature)
    return temperature
