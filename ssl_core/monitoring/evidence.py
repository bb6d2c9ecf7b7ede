"""The numbers that triage reads, from embeddings, the champion's answers and the manifest on both sides.

Shapes: n samples of the reference, m of the window, D features, K classes. Whatever the sizes, at most ``MOST`` samples a side
are looked at, so that the cost is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.config.monitor import MonitorConfig
from ssl_core.data.origin import source_names
from ssl_core.models import probes
from ssl_core.monitoring import feed, mix
from ssl_core.monitoring.columns import Column
from ssl_core.monitoring.document import MOST_POINTS, EmbeddingMap, EmbeddingTests, Novelty, Performance, Predictions
from ssl_core.monitoring.mix import Mix
from ssl_core.monitoring.triage import FEWEST_LABELS, LEVEL, Evidence, Part, Probe, Separation
from ssl_core.monitoring.two_sample import FEWEST, classifier_test, subsample
from ssl_core.validation.report import printable

if TYPE_CHECKING:
    import pandas as pd

MOST = 5000
"""Samples a side, of whose neighbours distances are measured."""
NEIGHBOURS = 5
MOST_PARTS = 8
"""Sources that are tried one by one, the largest first."""
_REST = 0.1
"""Share of the window that must be left without a source, at least, to say that it is as ever."""
_BROKEN = 0.65
"""AUC from which a source differs so much that it may be broken."""
_LEFT = 0.5
"""What may be left of a source's effect in the window without it: fewer samples alone hide a small shift that all sources share."""
_PERMUTATIONS = 199


@dataclass(frozen=True)
class Side:
    """Reference or window, row by row."""

    embeddings: np.ndarray
    """``(n, D)`` by the champion's frozen encoder."""
    manifest: pd.DataFrame
    """The rows of the manifest, in the same order."""
    probabilities: np.ndarray | None = None
    """``(n, K)`` by the champion, where a sample has one class."""
    labels: np.ndarray | None = None
    """Positions in the champion's classes ``(n,)``, -1 where there is no label or another; None where labels are no classes."""

    def named(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the samples with a label, and the labels as numbers: any names, not only the champion's classes."""
        known = self.manifest["label"].notna().to_numpy()
        _, numbers = np.unique(self.manifest["label"].to_numpy(dtype=object)[known].astype(str), return_inverse=True)
        return self.embeddings[known], numbers

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: np.ndarray) -> Side:
        return Side(
            self.embeddings[rows],
            self.manifest.iloc[rows],
            None if self.probabilities is None else self.probabilities[rows],
            None if self.labels is None else self.labels[rows],
        )

    def at_most(self, size: int, seed: int) -> Side:
        return self if len(self) <= size else self.take(subsample(len(self), size, seed))


def gather(
    reference: Side,
    window: Side,
    config: MonitorConfig,
    *,
    embedding: EmbeddingTests | None,
    columns: Sequence[Column] = (),
    predictions: Predictions | None = None,
    performance: Performance | None = None,
    nearness: Novelty | None = None,
    shift: Mix | None = None,
    quarantined: float = 0.0,
    seed: int = 0,
) -> Evidence:
    """All that ``triage.triage`` asks. What was found already is passed on; the rest is computed here.

    ``embedding`` None says that the tests could not be made; ``nearness`` and ``shift`` come from ``novelty`` and ``mix.estimate``.
    """
    exceeded = None if embedding is None else embedding.exceeded
    labels = next((one for one in columns if one.name == "label"), None)
    return Evidence(
        samples=len(window),
        exceeded=exceeded,
        auc=None if embedding is None else embedding.auc,
        mmd_ratio=None if embedding is None or embedding.mmd_threshold <= 0 else embedding.mmd / embedding.mmd_threshold,
        schema=feed.schema_differences(reference.manifest, window.manifest),
        quarantined=quarantined,
        broken=feed.broken_columns(reference.manifest, window.manifest),
        drifted=[printable(one.name, 60) for one in columns if one.drifted and one.name != "label"],
        culprit=culprit(reference, window, config, seed) if exceeded else None,
        mix_psi=None if predictions is None else predictions.psi,
        mix_q=None if predictions is None else predictions.q,
        label_psi=None if labels is None else labels.psi,
        label_q=None if labels is None else labels.q_value,
        unexplained=None if shift is None else unexplained(reference, window, shift, config, seed),
        beyond=None if nearness is None else nearness.beyond,
        median_ratio=None if nearness is None else nearness.median_ratio,
        probe=probe(reference, window, seed) if exceeded else None,
        sureness=_sureness(reference, window, shift),
        unknown_labels=_unknown(window),
        quality_low=None if performance is None else performance.low,
        quality_high=None if performance is None else performance.high,
    )  # fmt: skip


def _sureness(reference: Side, window: Side, shift: Mix | None) -> float | None:
    if shift is None or reference.probabilities is None or window.probabilities is None:
        return None
    return sureness(*(mix.tempered(side.probabilities, shift.temperature) for side in (reference, window)))  # type: ignore[arg-type]


def _unknown(window: Side) -> float:
    labelled = window.manifest["label"].notna().to_numpy()
    return 0.0 if window.labels is None or not labelled.any() else float((window.labels[labelled] < 0).mean())


def separation(reference: np.ndarray, window: np.ndarray, size: int, seed: int) -> Separation | None:
    """The classifier two-sample test on at most ``size`` samples a side; None with too few, or numbers that are not finite.

    Beside the embeddings it sees their squares, so that another spread shows as well as another mean: here "no difference" decides.
    """
    sides = [side[subsample(len(side), size, seed)].astype(np.float64) for side in (reference, window)]
    if min(map(len, sides)) < FEWEST or not all(np.isfinite(side).all() for side in sides):
        return None
    middle = sides[0].mean(axis=0)
    both = [np.concatenate([side, (side - middle) ** 2], axis=1) for side in sides]
    found = classifier_test(*both, permutations=_PERMUTATIONS, seed=seed)
    return Separation(found.effect, found.p_value)


def culprit(reference: Side, window: Side, config: MonitorConfig, seed: int = 0) -> Part | None:
    """The source that explains the change alone: it differs from the reference, and the window without it does not.

    Where that is true of several, the one with the most samples. None where the window has one source only: there is nothing to
    compare it with.
    """
    names = source_names(window.manifest)
    counts = names[names != ""].value_counts()
    for name, rows in counts.head(MOST_PARTS).items():
        own = (names == name).to_numpy()
        if rows < FEWEST or (~own).sum() < max(FEWEST, _REST * len(window)):
            continue
        # Small parts may differ by chance; so it has to differ much from both, the reference and the other sources.
        alone, apart = (
            separation(side, window.embeddings[own], config.subsample, seed)
            for side in (reference.embeddings, window.embeddings[~own])
        )
        if alone is None or apart is None or not (alone.is_seen(_BROKEN) and apart.is_seen(_BROKEN)):
            continue
        rest = separation(reference.embeddings, window.embeddings[~own], config.subsample, seed)
        if rest is not None and rest.p_value > LEVEL and rest.auc - 0.5 <= _LEFT * (alone.auc - 0.5):
            return Part(f"the source {printable(name, 80)}", int(rows), alone, rest)
    return None


def unexplained(reference: Side, window: Side, shift: Mix, config: MonitorConfig, seed: int = 0) -> Separation | None:
    """What tells the window from a reference with the same mix of classes; None where too few samples are left of either."""
    if reference.probabilities is None or window.probabilities is None:
        return None
    of_reference, of_window = mix.matched(shift, reference.probabilities, window.probabilities, seed)
    return separation(reference.embeddings[of_reference], window.embeddings[of_window], config.subsample, seed)


def novelty(reference: np.ndarray, window: np.ndarray, seed: int = 0) -> Novelty | None:
    """How far ``window`` ``(m, D)`` lies from ``reference`` ``(n, D)``: mean distance to the nearest neighbours there.

    On unit-length embeddings, as the probes see them (Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest
    Neighbors", https://arxiv.org/abs/2204.06507). The reference's own distances leave each sample out. None with too few.
    """
    sides = [side[subsample(len(side), MOST, seed)] for side in (reference, window)]
    if min(map(len, sides)) < FEWEST or not all(np.isfinite(side).all() for side in sides):
        return None
    known, asked = (probes.unit(side) for side in sides)
    own, there = (
        np.sqrt(probes.nearest_squared(side, known, NEIGHBOURS, skip_self=side is known)[0]).mean(axis=1)
        for side in (known, asked)
    )
    middle = float(np.median(own))
    return Novelty(
        beyond=float((there > np.quantile(own, 0.95)).mean()),
        median_ratio=min(float(np.median(there)) / middle if middle > 0 else 1.0, 1e6),
    )


def probe(reference: Side, window: Side, seed: int = 0) -> Probe | None:
    """Whether the frozen features still tell classes apart: nearest neighbours among as many labels on both sides.

    Each labelled sample is judged by the others of its side. The window's classes may be others than the champion's: it is the
    encoder that is asked. None with fewer than ``FEWEST_LABELS`` labels on a side, or one class.
    """
    if reference.labels is None or window.labels is None:
        return None
    sides = [side.named() for side in (reference, window)]
    count = min(MOST, *(len(labels) for _, labels in sides))
    if count < FEWEST_LABELS or any(labels.max() == 0 for _, labels in sides):
        return None
    reached = []
    for features, labels in sides:
        # Few labels are a matter of luck: the larger side is asked several times.
        times = 1 if len(labels) == count else min(5, max(1, 1000 // count))
        draws = [subsample(len(labels), count, seed + n) for n in range(times)]
        reached.append(float(np.mean([_left_out(features[rows], labels[rows]) for rows in draws])))
    return Probe(count, reached[0], reached[1], float(np.bincount(sides[1][1]).max() / len(sides[1][1])))


def sureness(reference: np.ndarray, window: np.ndarray) -> float | None:
    """Mean confidence on ``window`` above chance, as a share of that on ``reference``; both are probabilities ``(n, K)``."""
    chance = 1 / reference.shape[1]
    there, here = (float(side.max(axis=1).mean()) - chance for side in (reference, window))
    return here / there if there > 1e-6 else None


def _left_out(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the nearest neighbours' vote, each sample left out of its own."""
    points = probes.unit(features)
    _, neighbours = probes.nearest_squared(points, points, min(NEIGHBOURS, len(labels) - 1), skip_self=True)
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    # The nearer one decides where votes are equal.
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[neighbours]), 1 - 1e-3 * np.arange(neighbours.shape[1]))
    return float((votes.argmax(axis=1) == labels).mean())


def flatten(reference: np.ndarray, window: np.ndarray, seed: int = 0) -> EmbeddingMap | None:
    """Both sides on the first two principal components of the pooled samples, as many of each; None with too few."""
    size = min(MOST_POINTS, len(reference), len(window))
    sides = [
        side[subsample(len(side), most, seed)].astype(np.float64)
        for side, most in ((reference, max(size, FEWEST)), (window, MOST_POINTS))
    ]
    if min(map(len, sides)) < 2 or not all(np.isfinite(side).all() for side in sides):
        return None
    pooled = np.concatenate(sides)
    pooled -= pooled.mean(axis=0)
    _, _, axes = np.linalg.svd(pooled, full_matrices=False)
    plane = np.zeros((len(pooled), 2))
    flat = pooled @ axes[:2].T
    plane[:, : flat.shape[1]] = flat
    plane /= max(float(np.abs(plane).max()), 1e-12)
    points = [(round(float(x), 3), round(float(y), 3)) for x, y in plane]
    return EmbeddingMap(reference=points[: len(sides[0])], window=points[len(sides[0]) :])
