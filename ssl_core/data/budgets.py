"""Label budgets: which few samples get to keep their label. Honest comparisons need the same draws for every method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssl_core.errors import UserError

_PLACE = "evaluate.label_budgets"


def nested_draws(labels: np.ndarray, budgets: Sequence[int], draws: int, seed: int) -> list[dict[int, np.ndarray]]:
    """Draws ``draws`` nested, stratified label budgets.

    Each draw orders the samples once, and a budget of ``n`` is the first ``n`` of that order: smaller budgets are
    contained in larger ones, as ``draw[50][:10] == draw[10]``. The order takes one sample of each class first, then follows
    the Sainte-Laguë method (the next sample goes to the class with the largest ``n_c / (2 s_c + 1)``, ``n_c`` its size, ``s_c``
    what it has), so that each prefix has the classes' shares as closely as whole samples allow. Chance decides which
    samples a class gives and which of equally entitled classes comes first. Draw ``i`` depends on ``seed`` and ``i`` only.

    Args:
        labels: ``(N,)`` integers >= 0, the class of each labelled sample.
        budgets: labels in all, each at least the number of classes and at most ``N``.
        draws: how many.
        seed: of all draws.

    Returns:
        One dict per draw from budget to ``(budget,)`` int64 positions into ``labels``.

    Raises:
        UserError: a budget that is smaller than the number of classes or larger than ``N``.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (labels < 0).any():
        raise ValueError("labels must be (N,) integers of at least 0")
    classes, sizes = np.unique(labels, return_counts=True)
    for budget in budgets:
        if budget < len(classes):
            raise UserError(
                f"a budget of {budget} labels cannot hold one of each of the {len(classes)} classes",
                place=_PLACE,
                next_step=f"use budgets of at least {len(classes)}",
            )
        if budget > len(labels):
            raise UserError(
                f"a budget of {budget} labels is more than the {len(labels)} labelled training samples",
                place=_PLACE,
                next_step=f"use budgets of at most {len(labels)}, or label more samples",
            )
    members = [np.flatnonzero(labels == label) for label in classes]
    result = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        order = _one_order(members, sizes, max(budgets, default=0), rng)
        result.append({budget: order[:budget] for budget in budgets})
    return result


def _one_order(members: list[np.ndarray], sizes: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    queues = [rng.permutation(of_class) for of_class in members]
    rank = rng.permutation(len(sizes))  # between equally entitled classes, the one that comes first here goes first
    given = np.zeros(len(sizes), dtype=np.int64)
    order = np.empty(length, dtype=np.int64)
    for position in range(length):
        if position < len(sizes):
            chosen = int(rank[position])
        else:
            claims = np.where(given < sizes, sizes / (2 * given + 1), -1.0)
            chosen = int(rank[np.argmax(claims[rank])])
        order[position] = queues[chosen][given[chosen]]
        given[chosen] += 1
    return order
