"""The mix of classes in a window, estimated without labels; what of a change it explains; and what to recalibrate to.

Under a prior shift the classes come in other shares, and each class looks as it did: ``p(x | y)`` stays. Then the shares follow
from the champion's probabilities, and so does what its probabilities should have been (Saerens, Latinne and Decaestecker 2002,
"Adjusting the Outputs of a Classifier to New a Priori Probabilities", Neural Computation 14(1), 21-41).

Shapes: n samples, K classes; probabilities are float64 ``(n, K)``, rows sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_core.monitoring.document import MOST_CLASSES, OTHER, ClassPrior, Recalibration

FEWEST_LABELS = 50
"""Labelled samples of the reference, from which on its probabilities are first made honest by a temperature."""
_ROUNDS = 1000
_TOLERANCE = 1e-7
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Mix:
    """Shares of the classes ``(K,)`` before, in the reference, and after, in the window; and the temperature of both."""

    before: np.ndarray
    after: np.ndarray
    temperature: float

    @property
    def ratio(self) -> np.ndarray:
        """What a class is worth in the window, in the reference's terms: ``after / before``."""
        return self.after / self.before

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        """How much more often a sample with these probabilities is to be expected in the window ``(n,)``.

        ``w(x) = sum over y of p(y | x) * after(y) / before(y)``, which is ``p_window(x) / p_reference(x)`` under a prior shift.
        """
        return tempered(probabilities, self.temperature) @ self.ratio

    def corrected(self, probabilities: np.ndarray) -> np.ndarray:
        """``p(y | x) * after(y) / before(y)``, scaled to sum to 1: equation 2.4 of Saerens et al."""
        moved = tempered(probabilities, self.temperature) * self.ratio
        return moved / moved.sum(axis=1, keepdims=True)


def estimate(reference: np.ndarray, window: np.ndarray, labels: np.ndarray | None = None) -> Mix:
    """The mix on both sides, from the champion's probabilities on them; ``labels`` ``(n,)`` of the reference, -1 unknown."""
    temperature = fit_temperature(reference, labels) if labels is not None else 1.0
    before = tempered(reference, temperature).mean(axis=0)
    before = np.maximum(before, _SMALLEST) / np.maximum(before, _SMALLEST).sum()
    return Mix(before, prior(tempered(window, temperature), before), temperature)


def prior(probabilities: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Shares of the classes ``(K,)`` by expectation maximisation: equation 2.9 of Saerens et al., from ``before`` on.

    Each round weighs every sample's probabilities by the ratio of the shares, and takes the mean: the likelihood of the
    samples never falls.
    """
    after = before
    for _ in range(_ROUNDS):
        moved = probabilities * (after / before)
        moved /= np.maximum(moved.sum(axis=1, keepdims=True), 1e-300)
        earlier, after = after, moved.mean(axis=0)
        if np.abs(after - earlier).max() < _TOLERANCE:
            break
    return after


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The power ``1 / T`` that makes probabilities likeliest for the labels (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    1 with fewer than ``FEWEST_LABELS`` labels. Overconfident probabilities would be believed more than they should.
    """
    from scipy.optimize import minimize_scalar

    known = labels >= 0
    if known.sum() < FEWEST_LABELS:
        return 1.0
    rows, right = np.flatnonzero(known), labels[known]

    def loss(log_temperature: float) -> float:
        told = tempered(probabilities[rows], float(np.exp(log_temperature)))[np.arange(len(rows)), right]
        return -float(np.log(np.maximum(told, 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x))


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """``p^(1/T)``, scaled to sum to 1."""
    p = np.asarray(probabilities, dtype=np.float64)
    if temperature == 1.0:
        return p / np.maximum(p.sum(axis=1, keepdims=True), 1e-300)
    logs = np.log(np.maximum(p, 1e-12)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def matched(mix: Mix, reference: np.ndarray, window: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions on both sides whose mix of classes is one, drawn so that nothing else is chosen by.

    A reference sample stays with the chance ``min(1, c w)``, one of the window with ``min(1, 1 / (c w))``: under a prior shift
    both are then draws from one distribution. ``c`` is the one that leaves the most of the smaller side.
    """
    of_reference, of_window = (np.maximum(mix.weights(side), 1e-9) for side in (reference, window))
    scales = np.exp(np.linspace(-np.log(of_reference.max()), -np.log(max(of_reference.min(), 1e-3)), 25))
    kept = [
        min(np.minimum(1, c * of_reference).sum(), np.minimum(1, 1 / (c * of_window)).sum()) for c in scales.tolist()
    ]
    c = scales[int(np.argmax(kept))]
    draws = np.random.default_rng([seed, 2])
    stays = [
        draws.random(len(chance)) < chance
        for chance in (np.minimum(1, c * of_reference), np.minimum(1, 1 / (c * of_window)))
    ]
    return np.flatnonzero(stays[0]), np.flatnonzero(stays[1])


def recalibration(mix: Mix, window: np.ndarray, classes: Sequence[str]) -> Recalibration:
    """What to multiply the champion's probabilities by, and what that would change on the window.

    The expected gain is by the corrected probabilities themselves: how much likelier their answers are than the champion's.
    """
    corrected = mix.corrected(window)
    answers, better = window.argmax(axis=1), corrected.argmax(axis=1)
    rows = np.arange(len(window))
    gain = float((corrected[rows, better] - corrected[rows, answers]).mean()) if len(rows) else 0.0
    return Recalibration(
        classes=_priors(mix, classes), changed=float((answers != better).mean()) if len(rows) else 0.0, expected_gain=gain
    )  # fmt: skip


def _priors(mix: Mix, classes: Sequence[str]) -> list[ClassPrior]:
    """Those that changed most first; the rest, where there are many, as one."""
    order = np.argsort(-np.abs(mix.after - mix.before), kind="stable").tolist()
    shown = order if len(order) <= MOST_CLASSES else order[: MOST_CLASSES - 1]
    priors = [(classes[k], mix.before[k], mix.after[k]) for k in shown]
    if rest := order[len(shown) :]:
        priors.append((OTHER, mix.before[rest].sum(), mix.after[rest].sum()))
    return [ClassPrior(name=name, before=min(1.0, float(b)), after=min(1.0, float(a))) for name, b, a in priors]
