"""Texts held out inside the label budget: a tenth for early stopping, or each part in turn for cross-validation.

Nothing here reads a label outside the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ssl_core.errors import UserError
from ssl_core.tasks.text_targets import Targets, loss_of_scores

HELD_OUT = 10
"""One text in so many is held out for early stopping."""


def assign_folds(strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int64 ``(n,)`` fold numbers: each fold holds an equal share of every stratum, as closely as whole texts allow.

    Members of a stratum are dealt out in a random order, one stratum after the other, the largest first, and each goes on
    where the one before ended: so neither sizes nor shares differ by more than one text.
    """
    rng = np.random.default_rng([seed, folds])
    kinds, sizes = np.unique(strata, return_counts=True)
    members = [rng.permutation(np.flatnonzero(strata == kind)) for kind in kinds[np.argsort(-sizes, kind="stable")]]
    assigned = np.empty(len(strata), dtype=np.int64)
    assigned[np.concatenate(members)] = np.arange(len(strata)) % folds
    return assigned


def hold_out(strata: np.ndarray, seed: int) -> np.ndarray:
    """bool ``(n,)``: about one text in ten, stratified; never the only one of its stratum, which has to be learned from."""
    _, position, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    return (assign_folds(strata, HELD_OUT, seed) == 0) & (sizes[position] > 1)


def require_enough(labels: int, folds: int) -> None:
    """Raises ``UserError`` where there are fewer labels than twice the folds. To be asked before anything is trained."""
    if labels < 2 * folds:
        raise UserError(
            f"{labels} labels are too few for {folds} folds of two or more",
            place="task.folds",
            next_step=f"set task.folds to {labels // 2 if labels >= 4 else 0} or less, or raise task.labels",
        )


def cross_validate(
    train: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]], targets: Targets, folds: int, seed: int
) -> dict[str, Any]:
    """Trains on all folds but one and scores that one, for each fold in turn; mean and standard deviation over folds.

    Args:
        train: called with the rows ``(m,)`` of ``targets`` to learn from; returns a function that scores rows, ``(h,)`` to
            ``(h, K)`` probabilities or numbers.

    Returns JSON values: ``folds``, ``metric`` and for it and the ``loss`` ``mean``, ``std`` and ``values``. The metric is the
    accuracy (class), the micro-averaged F1 of what is at 0.5 or more (classes), or the mean absolute error (number).
    """
    fold = assign_folds(targets.strata, folds, seed)
    metrics, losses = [], []
    for one in range(folds):
        inside, outside = np.flatnonzero(fold != one), np.flatnonzero(fold == one)
        scores = train(inside)(outside)
        name, value = measure(targets[outside], scores)
        standard = (scores - targets.mean) / targets.scale if targets.label_type == "number" else scores
        metrics.append(value)
        losses.append(loss_of_scores(targets[outside], standard))
    return {"folds": folds, "metric": name, **_spread(metrics), "loss": _spread(losses)}


def measure(targets: Targets, scores: np.ndarray) -> tuple[str, float]:
    """``(name, value)`` of the metric of the label type; scores are probabilities, or numbers as people know them."""
    if targets.label_type == "number":
        return "mean_absolute_error", float(np.abs(scores - (targets.values * targets.scale + targets.mean)).mean())
    if targets.label_type == "class":
        return "accuracy", float((scores.argmax(axis=1) == targets.values.argmax(axis=1)).mean())
    said, true = scores >= 0.5, targets.values > 0
    hits = int((said & true).sum())
    wrong = int((said != true).sum())
    # Nothing to find and nothing said is as right as can be.
    return "micro_f1", 2 * hits / (2 * hits + wrong) if hits + wrong else 1.0


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": round(float(np.mean(values)), 6),
        "std": round(float(np.std(values, ddof=1)), 6),
        "values": [round(value, 6) for value in values],
    }
