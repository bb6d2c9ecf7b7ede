"""The ``pretrain`` step: an encoder from the unlabeled training samples, and a report on whether it learned."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from ssl_core.contracts import DatasetRef
from ssl_core.errors import CheckFailed
from ssl_core.modalities import part
from ssl_core.pipeline import digest, recipe_digest
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.training.health import Observer, Unhealthy, report
from ssl_core.training.loop import fit
from ssl_core.training.pace import Pace
from ssl_core.training.prepared import Prepared
from ssl_core.training.runtime import resolve_runtime
from ssl_core.training.state import CheckpointFiles

HEALTH_FILE = "health.json"
_GAUGES = (
    "loss", "chance_loss", "spread", "effective_rank", "alignment", "uniformity", "knn_accuracy", "val_loss", "masked_accuracy",
    "unigram_accuracy", "data_wait_share",
)  # fmt: skip


def run(ctx: StepContext) -> StepOutput:
    """Pretrains on the samples of split train, whether labelled or not; no label reaches the objective.

    Makes ``encoder/`` (weights, description, ``golden.safetensors``) and ``health.json``.

    Raises:
        UserError: there are too few training samples, or the device cannot be used.
        CheckFailed: the run collapsed or diverged; ``health.json`` says how.
        TryAgain: told to stop; the next call goes on from the checkpoint.
    """
    project, config = ctx.project, ctx.project.pretrain
    dataset: DatasetRef = ctx.input("dataset")
    runtime = resolve_runtime(config)
    made: Prepared = part(project.modality, "pretrain")(ctx, dataset, runtime)
    runtime = made.runtime or runtime
    resolved = {**asdict(runtime), **made.resolved}
    ctx.tracker.params({"resolved": resolved})
    ctx.progress.note(f"{made.data}, {made.network}, {runtime.device}, {runtime.precision}, {runtime.threads} threads")
    inputs = [ref.sha256 for _, ref in sorted(ctx.inputs.items())]
    checkpoints = CheckpointFiles(
        ctx.checkpoints, ctx.store.scratch, digest([recipe_digest(project, "pretrain"), *inputs]), ctx.progress.note
    )
    try:
        pace = fit(
            made.objective, made.batches, config, runtime,
            monitor=made.monitor, checkpoints=checkpoints, tracker=ctx.tracker, progress=ctx.progress, stop=ctx.stop,
            unit=made.unit,
        )  # fmt: skip
    except Unhealthy as fault:
        output = _publish_health(ctx, report(made.monitor, made.measured | {"resolved": resolved}, str(fault)))
        output.outputs = {"health": Output("report", HEALTH_FILE)}
        raise CheckFailed(
            str(fault), place="pretrain", next_step=f"see {HEALTH_FILE}; {made.mend}", output=output
        ) from fault

    made.save(ctx.out / "encoder")
    measured = _measured(pace, made.unit) | made.measured | {"resolved": resolved}
    output = _publish_health(ctx, report(made.monitor, measured, None))
    output.outputs = {"encoder": Output("encoder", "encoder")}
    output.summary = _summary(ctx, made, made.monitor, pace)
    return output


def _measured(pace: Pace, unit: str) -> dict[str, Any]:
    return {
        f"{unit}_per_second": round(pace.per_second, 1), "data_wait_share": round(pace.wait_share, 4),
        "seconds": round(pace.seconds, 2), "steps": pace.steps,
    }  # fmt: skip


def _publish_health(ctx: StepContext, document: dict[str, Any]) -> StepOutput:
    """Writes and tracks ``health.json``; returns its numbers as the step's metrics."""
    path = ctx.out / HEALTH_FILE
    # NaN is no JSON: what is not finite becomes null, and the reason says so in words.
    path.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    link = ctx.tracker.artifact(path)
    names = [*_GAUGES, *(name for name in document if name.endswith("_per_second"))]
    metrics = {name: float(document[name]) for name in names if document.get(name) is not None}
    return StepOutput(metrics=metrics, links={"Health report": link} if link else {}, summary=document["reason"] or "")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(ctx: StepContext, made: Prepared, monitor: Observer, pace: Pace) -> str:
    gauge = monitor.history[-1]
    lines = [
        f"Pretrained {made.network} with {ctx.project.objective.name} on {made.data}, {pace.steps:,} steps in {pace.seconds:.0f} s "
        f"({pace.per_second:,.0f} {made.unit}/s, {pace.wait_share:.0%} of it waiting for data).",
        f"Loss {gauge.loss:.3f} (chance {gauge.chance_loss:.3f}), feature spread {gauge.spread:.2f}, effective rank "
        f"{gauge.effective_rank:.1f} of {made.features}.",
    ]
    if gauge.masked_accuracy is not None and gauge.unigram_accuracy is not None:
        lines.append(
            f"Hidden tokens of val guessed right: {gauge.masked_accuracy:.3f} (always the most frequent: {gauge.unigram_accuracy:.3f})."
        )
    if gauge.knn_accuracy is not None:
        lines.append(f"kNN accuracy on val: {gauge.knn_accuracy:.3f}.")
    return "\n".join(lines)
