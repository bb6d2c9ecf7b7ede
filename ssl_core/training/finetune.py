"""The ``finetune`` step: a model from the registered encoder and the labels of the budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ssl_core.config.tasks import TaskConfig
from ssl_core.contracts import GOLDEN_FILE, DatasetRef, ModelRef
from ssl_core.data.budgets import nested_draws
from ssl_core.data.table import SampleTable
from ssl_core.errors import UserError, shortened
from ssl_core.evaluation.metrics import HEADLINES
from ssl_core.modalities import noun, part
from ssl_core.pipeline import digest, recipe_digest
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.training.bench import Bench, Trained
from ssl_core.training.continual import TRAINING_FILE, Course, mix, plan
from ssl_core.training.runtime import resolve_runtime
from ssl_core.training.seeds import SeedTracker, Trial, loss, middle, quality
from ssl_core.training.state import CheckpointFiles


def run(ctx: StepContext) -> StepOutput:
    """Fine-tunes the registered encoder on ``task.labels`` labelled samples of split train, ``task.seeds`` times; keeps the median.

    Where the run has a champion to go on from, it does that instead (``training.continual``), if it can.

    Makes ``model/``: the model, ``training.json`` (budget, sample_ids, seeds, how it went on) and ``golden.safetensors``.

    Raises:
        UserError: there are fewer labels than asked for, or than classes.
        CheckFailed: the loss is not finite.
        TryAgain: told to stop; the next call goes on from the checkpoint, in the seed that was being trained.
    """
    task = ctx.project.task
    dataset: DatasetRef = ctx.input("dataset")
    registered: ModelRef = ctx.input("registered_encoder")
    runtime = resolve_runtime(ctx.project.pretrain)
    bench: Bench = part(ctx.project.modality, "bench")(ctx, dataset, runtime)
    labelled, unlabeled = split_labels(bench.table, task)
    course = plan(ctx, bench, labelled, unlabeled) if "champion" in ctx.inputs else None
    document: dict[str, Any] = {"schema_version": 1, "label_budget": task.labels}
    learned: set[str] = set()
    if isinstance(course, Course):
        labelled, unlabeled, learned = course.labelled, course.unlabeled, set(course.learned)
    elif course is not None:
        ctx.progress.note(f"not going on from the champion: {course}")
        document["not_going_on"] = course
        course = None
    folder = ctx.out / "model"
    trials, made = _train(ctx, bench, labelled, unlabeled, course, folder)
    chosen = middle(trials)
    # Computed by what was read back: registration compares with it.
    model = bench.load(folder)
    save_file(bench.golden(model, bench.table.positions("train")), folder / GOLDEN_FILE)
    sample_ids = {str(i) for i in bench.table.manifest["sample_id"].to_numpy()[labelled]}
    document |= {
        "labels": len(sample_ids), "sample_ids": sorted(sample_ids | learned), "unlabeled": len(unlabeled), "method": task.method,
        "seed": task.seed, "seeds": [trial.as_dict() for trial in trials], "chosen": trials[chosen].seed, **made.record,
        "dataset": dataset.tag or dataset.revision, "encoder": f"{registered.name}/{registered.version}", **bench.resolved(),
    }  # fmt: skip
    (folder / TRAINING_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    ctx.tracker.params({"resolved": {k: v for k, v in document.items() if k != "sample_ids"}})
    metrics = {"labels": float(len(sample_ids))}
    summary = _summary(ctx, made, course, len(sample_ids))
    if (value := quality(bench, model, bench.table.positions("val", labelled=True))) is not None:
        headline = HEADLINES[bench.table.label_type]
        name = "val_accuracy" if headline == "accuracy" else "val_quality"
        metrics[name] = value
        ctx.tracker.metrics({name: value})
        summary += f" {headline[0].upper()}{headline[1:]} on val: {value:.3f}"
        known = [trial.val_quality for trial in trials if trial.val_quality is not None]
        summary += (
            f", the median of {len(trials)} seeds ({min(known):.3f} to {max(known):.3f})." if len(trials) > 1 else "."
        )
    return StepOutput(outputs={"model": Output("model", "model")}, metrics=metrics, summary=summary)


def _train(
    ctx: StepContext, bench: Bench, labelled: np.ndarray, unlabeled: np.ndarray, course: Course | None, folder: Path
) -> tuple[list[Trial], Trained]:
    """A model for each seed; that of ``middle`` ends in ``folder``, and is returned without its weights.

    Seeds are trained one after the other, each with checkpoints of its own: one that was finished before the process was
    killed is restored from its last one.
    """
    task = course.task if course else ctx.project.task
    inputs = [
        recipe_digest(ctx.project, "finetune"),
        ctx.input("dataset").sha256,
        ctx.input("registered_encoder").sha256,
    ]
    recipe = digest([*inputs, ctx.input("champion").sha256] if course else inputs)
    trials: list[Trial] = []
    trained: list[Trained] = []
    with ctx.store.scratch() as scratch:
        for number, seed in enumerate(range(task.seed, task.seed + task.seeds)):
            if task.seeds > 1:
                ctx.progress.note(f"seed {seed}: {number + 1} of {task.seeds}")
            once: dict[str, Any] = {"folds": 0} if number and hasattr(task, "folds") else {}
            made = bench.finetune(
                labelled, unlabeled, task=task.model_copy(update={"seed": seed, **once}), start=course.start if course else None,
                checkpoints=CheckpointFiles(ctx.checkpoints.part(f"seed-{seed}"), ctx.store.scratch, recipe, ctx.progress.note),
                stop=ctx.stop, progress=ctx.progress, tracker=SeedTracker(ctx.tracker, seed) if number else ctx.tracker,
            )  # fmt: skip
            made, value = _mixed(ctx, bench, course, made) if course else (made, _on_val(bench, made.model))
            trials.append(Trial(seed, value, loss(bench, made.model, labelled)))
            bench.save(scratch / str(seed), made.model)
            trained.append(replace(made, model=None))
        chosen = middle(trials)
        shutil.move(scratch / str(trials[chosen].seed), folder)
    record = trained[chosen].record
    if (folds := trained[0].record.get("cross_validation")) is not None:
        record = record | {"cross_validation": folds}
    return trials, replace(trained[chosen], record=record, note=trained[0].note)


def _mixed(ctx: StepContext, bench: Bench, course: Course, made: Trained) -> tuple[Trained, float | None]:
    """What lies between the champion and the newly trained model, and its quality on val with old and new windows weighted alike."""
    mixture = mix(bench, course, made.model, ctx.project.continual.interpolate)
    going_on = course.record | {"alpha": mixture.alpha, "curve": mixture.curve}
    return Trained(mixture.model, made.record | {"going_on": going_on}, made.note), mixture.score


def _on_val(bench: Bench, model: Any) -> float | None:
    return quality(bench, model, bench.table.positions("val", labelled=True))


def _summary(ctx: StepContext, made: Trained, course: Course | None, labels: int) -> str:
    registered: ModelRef = ctx.input("registered_encoder")
    what, method = noun(ctx.project.modality), ctx.project.task.method
    if course is None:
        return f"Fine-tuned {registered.name} version {registered.version} ({method}) on {labels:,} labelled {what}{made.note}."
    how = made.record["going_on"]
    return (
        f"Went on from {ctx.project.name} version {how['champion']} ({method}) with {how['new_labels']:,} new labels and "
        f"{how['replayed_labels']:,} of {how['known_labels']:,} known ones{made.note}; "
        f"of the way from its weights to the new ones {how['alpha']:.0%} is gone."
    )


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
