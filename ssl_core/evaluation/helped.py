"""Did pretraining help? Frozen encoders and classical baselines at several label budgets, judged alike.

The rules, which ``docs/evaluation.md`` explains:

* every method gets the same draws of labels and is scored on the same test samples;
* with a budget of n labels, no other label is read: not to fit, not to choose; the project fixes the probe;
* random init stands for several random encoders: draw i is embedded by random encoder ``i mod R``;
* differences are paired, cell by cell, and intervals are two-level bootstraps over draws and test samples;
* "the best classical" is the baseline with the better mean *on test*, which favours the baseline.

Shapes: N samples of split train (labelled or not), M labelled test samples, B draws, R random encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ssl_core.config.project import EvaluateConfig
from ssl_core.data.budgets import nested_draws
from ssl_core.errors import UserError
from ssl_core.evaluation.metrics import Bootstrap
from ssl_core.models.probes import SpreadGraph, knn_scores, linear_scores
from ssl_core.training.bench import Classical

Array = np.ndarray
Labels = int | Literal["all"]

FEW_TEST_SAMPLES = 20
PROBES = ("knn", "linear", "label-spreading")


@dataclass(frozen=True)
class Encoded:
    """One frozen encoder's embeddings: ``train`` ``(N, D)`` and ``test`` ``(M, D)``."""

    train: Array
    test: Array


@dataclass(frozen=True)
class Task:
    """What all methods are given: ``train_labels`` ``(N,)`` with -1 = none, ``test_labels`` ``(M,)``, and the number of classes."""

    train_labels: Array
    test_labels: Array
    classes: int


@dataclass(frozen=True)
class Budget:
    """One column of the question: so many labels, and the draws ``(B, N)`` of them, -1 = not drawn."""

    labels: Labels
    count: int
    draws: Array


@dataclass
class Answers:
    """``right[method][name]`` is a table ``(B, M)``: True where draw b puts test sample m into its class."""

    budget: Budget
    right: dict[str, dict[str, Array]] = field(default_factory=dict)


def plan_budgets(task: Task, config: EvaluateConfig, repeats: int) -> tuple[list[Budget], list[str]]:
    """The budgets that the labels allow, ascending and ending with all of them, and notes on those left out.

    "all" has one draw; its row is repeated ``repeats`` times, once for each random encoder, so that tables stay paired.
    Raises ``UserError`` where a budget is smaller than the number of classes.
    """
    labelled = np.flatnonzero(task.train_labels >= 0)
    if len(labelled) == 0:
        raise UserError(
            "no labelled sample in split train", place="data.labels", next_step="label some samples and run again"
        )
    wanted = config.budgets(task.classes)
    kept = [b for b in wanted if b < len(labelled)]
    notes = [
        f"a budget of {b} labels is left out: split train has {len(labelled)} labelled samples"
        for b in wanted
        if b >= len(labelled)
    ]
    budgets = []
    if kept:
        drawn = nested_draws(task.train_labels[labelled], kept, config.draws, config.seed)
        for count in kept:
            table = np.full((config.draws, len(task.train_labels)), -1, dtype=np.int64)
            for row, draw in zip(table, drawn, strict=True):
                positions = labelled[draw[count]]
                row[positions] = task.train_labels[positions]
            budgets.append(Budget(count, count, table))
    budgets.append(Budget("all", len(labelled), np.repeat(task.train_labels[None, :], repeats, axis=0)))
    return budgets, notes


def answer(
    task: Task,
    budgets: Sequence[Budget],
    classical: Classical,
    random_init: Sequence[Encoded],
    pretrained: Encoded,
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[Answers]:
    """All methods at all budgets. ``advance`` is called after each of the ``3 * len(budgets)`` pieces of work."""
    answers = [Answers(budget) for budget in budgets]
    for one in answers:
        one.right["classical"] = _right(task, one.budget, classical.predictions)
        advance()
    probe = _Prober(pretrained, task.classes, seed)
    for one in answers:
        one.right["pretrained"] = _right(task, one.budget, probe.predictions)
        advance()
    probers = [_Prober(encoded, task.classes, seed) for encoded in random_init]
    for one in answers:
        one.right["random_init"] = _cycled(task, one.budget, probers)
        advance()
    return answers


class _Prober:
    """All probes of one encoder; its graph is made once for all draws."""

    def __init__(self, encoded: Encoded, classes: int, seed: int) -> None:
        self._encoded, self._classes, self._seed = encoded, classes, seed
        self._graph = SpreadGraph(encoded.train)

    def predictions(self, draws: Array) -> dict[str, Array]:
        """Predicted classes ``(B, M)`` by probe."""
        train, test, classes = self._encoded.train, self._encoded.test, self._classes
        return {
            "knn": np.stack([knn_scores(train, labels, test, classes=classes).argmax(axis=1) for labels in draws]),
            "linear": np.stack(
                [linear_scores(train, labels, test, classes, seed=self._seed).argmax(axis=1) for labels in draws]
            ),
            "label-spreading": self._graph.scores(draws, test, classes).argmax(axis=-1),
        }


def _right(task: Task, budget: Budget, predict: Callable[[Array], dict[str, Array]]) -> dict[str, Array]:
    # All labels are one draw: solved once, and its row repeated.
    draws = budget.draws[:1] if budget.labels == "all" else budget.draws
    return {
        name: np.broadcast_to(predicted == task.test_labels, (len(budget.draws), len(task.test_labels)))
        for name, predicted in predict(draws).items()
    }


def _cycled(task: Task, budget: Budget, probers: Sequence[_Prober]) -> dict[str, Array]:
    right = {name: np.empty((len(budget.draws), len(task.test_labels)), dtype=bool) for name in PROBES}
    for i, prober in enumerate(probers):
        rows = np.arange(i, len(budget.draws), len(probers))
        if len(rows):
            for name, predicted in prober.predictions(budget.draws[rows]).items():
                right[name][rows] = predicted == task.test_labels
    return right


def summarise(answers: Sequence[Answers], config: EvaluateConfig, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """``label_budgets`` of ``evaluation.json``: mean and 95% interval of each method, and the paired differences."""
    rows = []
    bootstraps: dict[tuple[int, int], Bootstrap] = {}
    for one in answers:
        right = one.right
        shape = next(iter(right["classical"].values())).shape
        if shape not in bootstraps:
            bootstraps[shape] = Bootstrap(*shape, resamples=config.bootstrap, seed=config.seed)
        boot = bootstraps[shape]
        best = max(right["classical"], key=lambda name: right["classical"][name].mean())
        tables = {
            "classical": right["classical"][best],
            "random_init": right["random_init"][config.probe],
            "pretrained": right["pretrained"][config.probe],
        }
        intervals = {method: boot.interval(table).as_dict() for method, table in tables.items()}
        rows.append({
            "labels": one.budget.labels,
            "count": one.budget.count,
            "draws": 1 if one.budget.labels == "all" else len(one.budget.draws),
            "classical": {"name": names[best], "short": best, **intervals["classical"]},
            "random_init": {"probe": config.probe, **intervals["random_init"]},
            "pretrained": {"probe": config.probe, **intervals["pretrained"]},
            "differences": {
                f"pretrained_minus_{other}": boot.difference(tables["pretrained"], tables[other]).as_dict()
                for other in ("classical", "random_init")
            },
            "details": {
                method: {name: boot.interval(table).as_dict() for name, table in by_name.items()}
                for method, by_name in right.items()
            },
        })  # fmt: skip
    return rows


def did_it_help(
    task: Task,
    classical: Classical,
    random_init: Sequence[Encoded],
    pretrained: Encoded,
    config: EvaluateConfig,
    *,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """``(label_budgets, notes)``: the whole comparison. See the module for its rules, ``plan_budgets`` for what it raises."""
    budgets, notes = plan_budgets(task, config, len(random_init))
    if len(task.test_labels) < FEW_TEST_SAMPLES:
        notes.append(
            f"WARNING: only {len(task.test_labels)} labelled test samples; the intervals are wide, so decide nothing by them"
        )
    notes += classical.notes(budgets[-1].count)
    answers = answer(task, budgets, classical, random_init, pretrained, seed=config.seed, advance=advance)
    return summarise(answers, config, classical.names), notes
