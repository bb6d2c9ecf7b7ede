"""Going on from the champion: it learns what is new, and what keeps it from forgetting the old is decided here.

Four things work together. *Replay*: a share of the labels that it knows is trained on again, stratified. *Small steps*: the task's
rates times ``continual.rate``. *An anchor*: L2-SP, and elastic weight consolidation where that is asked for (``models.anchors``).
*Interpolation*: how far to go from the champion's weights to the new ones is chosen on split val, old and new windows alike.

A window is what one dataset version brought: the rows of the manifest with that ``first_version``. Windows up to the
champion's dataset version are old, later ones are new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.config.continual import ContinualConfig
from ssl_core.config.tasks import TaskConfig
from ssl_core.contracts import DatasetRef, ModelRef
from ssl_core.data.budgets import nested_draws
from ssl_core.data.table import SampleTable
from ssl_core.data.windows import version_number
from ssl_core.errors import UserError
from ssl_core.models.anchors import anchored, fisher_information, interpolate
from ssl_core.step import StepContext
from ssl_core.training.bench import Bench, Start
from ssl_core.training.seeds import quality

TRAINING_FILE = "training.json"
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""0 is the champion, 1 the newly trained model."""
UNCHOSEN_ALPHA = 0.5
"""Where split val has no label to choose by: "a good default" (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, section 1)."""
CHOOSING_SAMPLES = 1000
"""Of each side of split val at most so many are asked: each alpha is a pass over them."""
FISHER_SAMPLES = 256


@dataclass(frozen=True)
class Course:
    """How one fine-tuning goes on from the champion."""

    start: Start
    task: TaskConfig
    """The project's, at lower rates."""
    labelled: np.ndarray
    """Positions in the table that are trained on: what is new, and what is replayed."""
    unlabeled: np.ndarray
    val_old: np.ndarray
    """Labelled samples of split val, by window."""
    val_new: np.ndarray
    learned: list[str]
    """The sample_ids of all labels that the champion has learned from, itself or as what it went on from."""
    record: dict[str, Any]
    """JSON values for ``training.json``."""


@dataclass(frozen=True)
class Mixture:
    """The model between champion and newly trained one, and how it was chosen."""

    model: Any
    alpha: float
    score: float | None
    """Mean quality on val, old and new windows weighted alike."""
    curve: list[dict[str, Any]]


def plan(ctx: StepContext, bench: Bench, labelled: np.ndarray, unlabeled: np.ndarray) -> Course | str:
    """How to go on from ``ctx.inputs["champion"]``, or why that cannot be done: then one starts from the encoder.

    ``labelled`` are the labels of the budget; no other is read, but those of split val.

    Raises:
        UserError: ``continual.ewc`` is asked of a task that it does not fit.
        TryAgain: the champion's weights differ from their digest, or the store cannot be reached.
    """
    champion: ModelRef = ctx.input("champion")
    config, task = ctx.project.continual, ctx.project.task
    found = _champion(ctx, bench, champion)
    if isinstance(found, str):
        return found
    model, training, window = found
    learned = {str(i) for i in training.get("sample_ids", [])}
    known = np.isin(bench.table.manifest["sample_id"].to_numpy()[labelled].astype(str), list(learned))
    if known.all():
        return "no label is new to it"
    old = bench.table.manifest["first_version"].to_numpy() <= window
    replayed = replay(bench.table, labelled[known], config.replay, task.seed)
    spread = bool(getattr(task, "spread_labels", False))
    again = some(unlabeled[old[unlabeled]], config.replay, task.seed) if spread else unlabeled[:0]
    others = unlabeled[~old[unlabeled]] if spread else unlabeled[:0]
    val = bench.table.positions("val", labelled=True)
    record = {
        "champion": champion.version, "champion_sha256": champion.sha256, "champion_dataset": training["dataset"],
        "new_labels": int((~known).sum()), "replayed_labels": len(replayed), "known_labels": int(known.sum()),
        "new_unlabeled": len(others), "replayed_unlabeled": len(again),
        "replay": config.replay, "rate": config.rate, "anchor": config.anchor, "ewc": config.ewc, "interpolate": config.interpolate,
    }  # fmt: skip
    return Course(
        Start(model, anchored(config.anchor, config.ewc, _importance(bench, model, config, task, old))),
        slower(task, config),
        np.sort(np.concatenate([labelled[~known], replayed])), np.sort(np.concatenate([others, again])),
        val[old[val]], val[~old[val]], sorted(learned), record,
    )  # fmt: skip


def _champion(ctx: StepContext, bench: Bench, champion: ModelRef) -> tuple[Any, dict[str, Any], int] | str:
    """The champion's model, its ``training.json`` and the newest window that it knows; or why one cannot go on from it."""
    if not ctx.store.exists(champion.uri):
        return "its weights are not in the store any more"
    folder = ctx.store.fetch(champion)
    training = _training(folder)
    window = version_number(str(training.get("dataset", "")))
    if window is None:
        return "it is not known which dataset version it was trained on"
    if reason := _apart(training, window, ctx.input("dataset"), ctx.input("registered_encoder")):
        return reason
    try:
        model = bench.load(folder)
    except UserError as error:
        return f"it cannot be loaded ({error.cause})"
    return bench.suits(model) or (model, training, window)


def _apart(training: Mapping[str, Any], window: int, dataset: DatasetRef, encoder: ModelRef) -> str:
    now = version_number(dataset.tag or "")
    if now is None:
        return "the dataset is a candidate without a version"
    if now <= window:
        return f"it knows {dataset.tag} already"
    ours = f"{encoder.name}/{encoder.version}"
    return "" if training.get("encoder") == ours else f"it stands on {training.get('encoder')}, and this run on {ours}"


def replay(table: SampleTable, known: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A stratified ``share`` of the positions ``known``, ascending: at least one of each class, unless the share is 0."""
    if share == 0 or len(known) == 0:
        return known[:0]
    labels = table.labels[known]
    count = max(round(share * len(known)), len(np.unique(labels)))
    return np.sort(known[nested_draws(labels, [count], 1, seed)[0][count]])


def some(positions: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A random ``share`` of ``positions``, ascending; equal seeds give equal ones."""
    rng = np.random.default_rng([seed, 1])
    return np.sort(rng.permutation(positions)[: round(share * len(positions))])


def slower(task: TaskConfig, config: ContinualConfig) -> TaskConfig:
    """The task at ``continual.rate`` times its rates. The anchor takes the place of weight decay: both would pull apart."""
    changes: dict[str, Any] = {
        name: getattr(task, name) * config.rate
        for name in ("learning_rate", "encoder_learning_rate")
        if hasattr(task, name)
    }
    if config.anchor > 0:
        changes["weight_decay"] = 0.0
    return task.model_copy(update=changes)


def mix(bench: Bench, course: Course, trained: Any, interpolating: bool) -> Mixture:
    """Chooses on split val between the champion and ``trained``; of equally good ones the closest to the champion."""
    champion = course.start.model
    # By old labels alone, the champion would always be the best: they say nothing of what is new.
    if interpolating and len(course.val_new) == 0:
        return Mixture(interpolate(champion, trained, UNCHOSEN_ALPHA), UNCHOSEN_ALPHA, None, [])
    alphas = ALPHAS if interpolating else ALPHAS[-1:]
    curve = [_measure(bench, course, interpolate(champion, trained, alpha), alpha) for alpha in alphas]
    best = choose(curve) if interpolating else curve[0]
    return Mixture(interpolate(champion, trained, best["alpha"]), best["alpha"], best["score"], curve)


def choose(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The point of the highest score; of several, the one with the lowest alpha: the closest to the champion."""
    return max(curve, key=lambda point: (point["score"], -point["alpha"]))


def _measure(bench: Bench, course: Course, model: Any, alpha: float) -> dict[str, Any]:
    """Quality on val by window; ``score`` is their mean, None without any label."""
    sides = {
        "old": quality(bench, model, _spaced(course.val_old)),
        "new": quality(bench, model, _spaced(course.val_new)),
    }
    known = [value for value in sides.values() if value is not None]
    # Rounded, so that a tie is one: the mean of many equal numbers may differ in its last bits.
    return {"alpha": alpha, **sides, "score": round(float(np.mean(known)), 9) if known else None}


def _spaced(positions: np.ndarray) -> np.ndarray:
    return positions[:: -(-len(positions) // CHOOSING_SAMPLES) or 1]


def _importance(
    bench: Bench, model: Any, config: ContinualConfig, task: TaskConfig, old: np.ndarray
) -> Mapping[str, Any] | None:
    """The Fisher information on old training samples, by the champion's own answers: no label is read."""
    if config.ewc == 0:
        return None
    if task.method != "full" or bench.table.label_type == "number":
        raise UserError(
            "elastic weight consolidation is for task.method: full, and for classes",
            place="continual.ewc",
            next_step="set continual.ewc to 0: replay, anchor and interpolation do without it",
        )
    train = bench.table.positions("train")
    rows = np.random.default_rng([task.seed, 2]).permutation(train[old[train]])[:FISHER_SAMPLES]
    one = partial(_one, bench, model, rows)
    return fisher_information(model, one, len(rows), bench.table.label_type, task.seed)


def _one(bench: Bench, model: Any, rows: np.ndarray, row: int) -> Any:
    return bench.logits(model, rows[row : row + 1])


def _training(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
