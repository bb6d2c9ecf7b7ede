"""Classical baselines on raw pixels: what a team would get without any pretraining.

An SVM with an RBF kernel (labels only) and label spreading (labels and unlabeled images), on the same draws of labels and
the same test samples as the encoders. Nothing here is tuned on test samples, and nothing is weakened: label spreading runs
on the same graph as our own probe, whose two constants were set on raw pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssl_core.models.probes import SpreadGraph

Array = np.ndarray

SVM_PENALTY = 10.0
SVM_MOST_LABELS = 20_000
"""An SVM's cost grows with the square of its samples: beyond this, it learns from so many of the labels."""

LARGEST_SIDE = 32
"""Larger images are averaged down first: pixel classifiers gain nothing from more, and memory is saved."""
PCA_ABOVE = 256
PCA_COMPONENTS = 60
_PCA_FIT_ROWS = 10_000


def pixel_features(pixels: Array) -> Array:
    """uint8 images ``(N, C, H, W)`` to float32 ``(N, D)`` in 0..1, averaged down to at most 32 x 32."""
    side = max(pixels.shape[-2:])
    step = -(-side // LARGEST_SIDE)
    parts = []
    for start in range(0, len(pixels), 4096):
        x = np.asarray(pixels[start : start + 4096], dtype=np.float32) / 255
        if step > 1:
            n, c, h, w = x.shape
            x = x[:, :, : h // step * step, : w // step * step]
            x = x.reshape(n, c, h // step, step, w // step, step).mean(axis=(3, 5))
        parts.append(x.reshape(len(x), -1))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Pixels:
    """Raw pixels of the train split (labelled or not) and of the test samples, ready for both baselines."""

    train: Array
    test: Array
    svm_train: Array
    svm_test: Array

    @classmethod
    def of(cls, train: Array, test: Array) -> Pixels:
        """From uint8 ``(N, C, H, W)`` and ``(M, C, H, W)``. Many dimensions are reduced to 60 by a PCA of train pixels."""
        a, b = pixel_features(train), pixel_features(test)
        if a.shape[1] <= PCA_ABOVE or len(a) <= PCA_COMPONENTS:
            return cls(a, b, a, b)
        from sklearn.decomposition import PCA

        rows = np.linspace(0, len(a) - 1, min(len(a), _PCA_FIT_ROWS)).astype(int)
        pca = PCA(PCA_COMPONENTS, svd_solver="randomized", random_state=0).fit(a[rows])
        return cls(a, b, pca.transform(a), pca.transform(b))


NAMES = {"svm": "SVM (RBF) on pixels", "label-spreading": "label spreading on pixels"}


class ImageBaselines:
    """Both baselines on one train split and one set of test samples; see ``training.bench.Classical``."""

    names = NAMES

    def __init__(self, train: Array, test: Array, classes: int, seed: int = 0) -> None:
        """From uint8 pixels ``(N, C, H, W)`` and ``(M, C, H, W)``."""
        self._pixels, self._classes, self._seed = Pixels.of(train, test), classes, seed
        self._graph = pixel_graph(self._pixels)

    def predictions(self, draws: Array) -> dict[str, Array]:
        """Classes ``(B, M)`` by both baselines, for each draw of labels ``(B, N)``, -1 = unknown."""
        return {
            "svm": svm_predictions(self._pixels, draws, self._seed),
            "label-spreading": spreading_predictions(self._pixels, draws, self._classes, self._graph),
        }

    def notes(self, labels: int) -> list[str]:
        """What a reader has to know where so many labels are used."""
        if labels <= SVM_MOST_LABELS:
            return []
        return [f"with all labels, the SVM learns from {SVM_MOST_LABELS:,} of them"]


def svm_predictions(pixels: Pixels, draws: Array, seed: int = 0) -> Array:
    """SVM-RBF (C = 10, gamma = 1 / (D var)) for each draw of labels ``(B, N)``, -1 = unknown; returns ``(B, M)`` classes."""
    from sklearn.svm import SVC

    predicted = np.empty((len(draws), len(pixels.svm_test)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for i, labels in enumerate(draws):
        known = np.flatnonzero(labels >= 0)
        if len(known) > SVM_MOST_LABELS:
            known = np.sort(generator.permutation(known)[:SVM_MOST_LABELS])
        if len(np.unique(labels[known])) == 1:
            predicted[i] = labels[known[0]]
            continue
        model = SVC(C=SVM_PENALTY, gamma="scale", cache_size=500).fit(pixels.svm_train[known], labels[known])
        predicted[i] = model.predict(pixels.svm_test)
    return predicted


def spreading_predictions(pixels: Pixels, draws: Array, classes: int, graph: SpreadGraph | None = None) -> Array:
    """Label spreading on raw pixels for each draw ``(B, N)``; returns ``(B, M)`` classes. ``graph``: one of ``pixel_graph``."""
    graph = graph or pixel_graph(pixels)
    return graph.scores(draws, pixels.test, classes).argmax(axis=-1)


def pixel_graph(pixels: Pixels) -> SpreadGraph:
    """The graph of raw pixels, to be made once for all budgets; Euclidean distance, as pixel methods use."""
    return SpreadGraph(pixels.train, metric="euclidean")
