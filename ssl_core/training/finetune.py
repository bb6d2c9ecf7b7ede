"""The ``finetune`` step: a model from the registered encoder and the labels of the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ssl_core.config.tasks import TaskConfig
from ssl_core.contracts import GOLDEN_FILE, DatasetRef, ModelRef
from ssl_core.data.budgets import nested_draws
from ssl_core.data.table import SampleTable
from ssl_core.errors import UserError, shortened
from ssl_core.evaluation.metrics import HEADLINES, class_quality, classes_quality, label_spread, number_quality
from ssl_core.modalities import noun, part
from ssl_core.pipeline import digest, recipe_digest
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.training.bench import Bench
from ssl_core.training.runtime import resolve_runtime
from ssl_core.training.state import CheckpointFiles

TRAINING_FILE = "training.json"


def run(ctx: StepContext) -> StepOutput:
    """Fine-tunes the registered encoder on ``task.labels`` labelled samples of split train.

    Makes ``model/``: the model, ``training.json`` (budget, sample_ids, seeds) and ``golden.safetensors``.

    Raises:
        UserError: there are fewer labels than asked for, or than classes.
        CheckFailed: the loss is not finite.
        TryAgain: told to stop; the next call goes on from the checkpoint.
    """
    task, what = ctx.project.task, noun(ctx.project.modality)
    dataset: DatasetRef = ctx.input("dataset")
    registered: ModelRef = ctx.input("registered_encoder")
    runtime = resolve_runtime(ctx.project.pretrain)
    bench: Bench = part(ctx.project.modality, "bench")(ctx, dataset, runtime)
    recipe = digest([recipe_digest(ctx.project, "finetune"), dataset.sha256, registered.sha256])
    labelled, unlabeled = split_labels(bench.table, task)
    made = bench.finetune(
        labelled, unlabeled, checkpoints=CheckpointFiles(ctx.checkpoints, ctx.store.scratch, recipe, ctx.progress.note),
        stop=ctx.stop, progress=ctx.progress, tracker=ctx.tracker,
    )  # fmt: skip
    folder = ctx.out / "model"
    bench.save(folder, made.model)
    # Computed by what was read back: registration compares with it.
    golden = bench.golden(bench.load(folder), bench.table.positions("train"))
    save_file(golden, folder / GOLDEN_FILE)
    sample_ids = bench.table.manifest["sample_id"].to_numpy()[labelled].tolist()
    document = {
        "schema_version": 1, "label_budget": task.labels, "labels": len(sample_ids), "sample_ids": sorted(sample_ids),
        "unlabeled": len(unlabeled), "method": task.method, "seed": task.seed, **made.record,
        "dataset": dataset.tag or dataset.revision, "encoder": f"{registered.name}/{registered.version}", **bench.resolved(),
    }  # fmt: skip
    (folder / TRAINING_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    ctx.tracker.params({"resolved": {k: v for k, v in document.items() if k != "sample_ids"}})
    metrics = {"labels": float(len(sample_ids))}
    summary = f"Fine-tuned {registered.name} version {registered.version} ({task.method}) on {len(sample_ids):,} labelled {what}{made.note}."
    if (quality := _quality(bench, made.model, "val")) is not None:
        headline = HEADLINES[bench.table.label_type]
        name = "val_accuracy" if headline == "accuracy" else "val_quality"
        metrics[name] = quality
        ctx.tracker.metrics({name: quality})
        summary += f" {headline[0].upper()}{headline[1:]} on val: {quality:.3f}."
    return StepOutput(outputs={"model": Output("model", "model")}, metrics=metrics, summary=summary)


def split_labels(table: SampleTable, task: TaskConfig) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training samples whose labels are used, and of those whose labels, if any, are not read."""
    labelled = draw_labels(table, task)
    return labelled, np.setdiff1d(table.positions("train"), labelled)


def draw_labels(table: SampleTable, task: TaskConfig) -> np.ndarray:
    """Positions of the labelled training samples within the budget ``task.labels``, ascending; stratified and seeded.

    Raises ``UserError`` where there are fewer than asked for, or a class would have none.
    """
    available = table.positions("train", labelled=True)
    labels = table.labels[available]
    if len(available) == 0:
        raise UserError(
            "no labelled training sample", place="data.labels", next_step="label some samples and run again"
        )
    missing = _unlabeled_classes(labels, table.classes) if table.label_type == "class" else []
    if missing:
        raise UserError(
            f"no labelled training sample of {shortened(missing)} ({len(available)} labelled in all, {len(table.classes)} classes)",
            place="data.labels",
            next_step="label at least one sample of each class (two or more are better), or list fewer data.classes",
        )
    if task.labels == "all":
        return available
    if task.labels > len(available):
        raise UserError(
            f"asks for {task.labels} labels, but the training split has {len(available)}",
            place="task.labels",
            next_step=f"set task.labels to all, or to {len(available)} or less",
        )
    if table.label_type == "class" and task.labels < len(table.classes):
        raise UserError(
            f"asks for {task.labels} labels, but there are {len(table.classes)} classes",
            place="task.labels",
            next_step=f"set task.labels to {len(table.classes)} or more",
        )
    drawn = nested_draws(labels, [task.labels], 1, task.seed)[0][task.labels]
    return np.sort(available[drawn])


def _unlabeled_classes(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    present = set(labels.tolist())
    return [name for i, name in enumerate(classes) if i not in present]


def _quality(bench: Bench, model: Any, split: str) -> float | None:
    """The mean quality of the model's answers on the labelled samples of a split; None where it has none."""
    table = bench.table
    positions = table.positions(split, labelled=True)
    if len(positions) == 0:
        return None
    scores = bench.scores(model, positions)
    if table.label_type == "class":
        return float(class_quality(scores, table.labels[positions]).mean())
    if table.label_type == "classes":
        return float(classes_quality(scores, table.targets[positions]).mean())
    spread = label_spread(table.targets[table.positions("train", labelled=True)])
    return float(number_quality(scores, table.targets[positions], spread).mean())
