"""Several seeds of a recipe: which one is kept, and that a killed run goes on in the seed that it was in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ssl_core.models.classifier import load_classifier
from ssl_core.step import NoTracker, StepContext
from ssl_core.store import path_sha256
from ssl_core.training import finetune
from ssl_core.training.seeds import SeedTracker, Trial, loss, middle
from tests.training.test_finetune import Killed, Steps, _few_steps, again, context, curve, steps

__all__ = ["_few_steps", "context", "steps"]


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([(0.9, 1.0), (0.8, 1.0), (0.85, 1.0)], 2),
        ([(0.9, 1.0), (0.8, 1.0)], 1),  # the lower one
        ([(None, 0.3), (None, 0.1), (None, 0.2)], 2),
        ([(0.9, 0.5), (0.9, 0.1), (0.9, 0.3)], 2),  # a tie: by the loss
        ([(0.9, 0.5)], 0),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 1),
    ],
)
def test_the_middle_one(found: list[tuple[float | None, float]], kept: int) -> None:
    assert middle([Trial(i, quality, value) for i, (quality, value) in enumerate(found)]) == kept


def test_each_seed_is_trained_and_the_median_registered(context: Callable[..., StepContext]) -> None:
    ctx = context(labels=8, epochs=4, seeds=3, seed=5)
    output = finetune.run(ctx)
    document = json.loads((ctx.out / "model" / "training.json").read_text())
    assert [trial["seed"] for trial in document["seeds"]] == [5, 6, 7]
    trials = [Trial(**trial) for trial in document["seeds"]]
    assert document["chosen"] == trials[middle(trials)].seed
    assert output.metrics["val_accuracy"] == trials[middle(trials)].val_quality
    assert "the median of 3 seeds" in output.summary
    alone = context("alone", labels=8, epochs=4, seed=document["chosen"])
    # The label draw is that of task.seed: with it, the chosen one is what a run of that seed alone gives.
    alone.project = alone.project.model_copy(
        update={"task": alone.project.task.model_copy(update={"seed": 5, "seeds": 1})}
    )
    finetune.run(alone)
    if document["chosen"] == 5:
        same = (alone.out / "model" / "head.safetensors").read_bytes()
        assert same == (ctx.out / "model" / "head.safetensors").read_bytes()
    tracked = {name for _, values in ctx.tracker.logged_metrics for name in values}  # type: ignore[attr-defined]
    assert {"loss", "loss_seed_6", "loss_seed_7"} <= tracked


@pytest.mark.parametrize("killed_at", [(6,), (3, 9)])
def test_resumed_over_seeds_equals_uninterrupted(
    context: Callable[..., StepContext], steps: Steps, killed_at: tuple[int, ...]
) -> None:
    """Six steps a seed: killed between the two, or in the first and then in the second."""
    whole, broken = (context(key, labels=8, epochs=2, seeds=2) for key in ("whole", "broken"))
    finetune.run(whole)
    assert len(steps.taken) == 12
    steps.taken.clear()
    curves: list[Any] = []
    for moment in killed_at:

        def die(step: int, moment: int = moment) -> None:
            if len(steps.taken) == moment:
                raise Killed

        steps.before = die
        with pytest.raises(Killed):
            finetune.run(broken)
        curves += curve(broken)
        broken = again(broken)
    steps.leave_alone()
    finetune.run(broken)
    assert len(steps.taken) == 12, "each step was stored, so none is done twice"
    assert path_sha256(whole.out / "model") == path_sha256(broken.out / "model")
    assert curves + curve(broken) == curve(whole)


def test_the_loss_reads_the_given_labels_only(context: Callable[..., StepContext]) -> None:
    ctx = context(labels=8)
    finetune.run(ctx)
    model = load_classifier(ctx.out / "model")

    class Bench:
        from tests.training.test_finetune import striped_images as _make

        table = _make(ctx.settings.root / "again")  # type: ignore[operator]

        @staticmethod
        def scores(model: Any, positions: np.ndarray) -> np.ndarray:
            return np.full((len(positions), 4), 0.25, dtype=np.float32)

    rows = np.array([0, 5, 9])
    Bench.table.manifest.loc[np.setdiff1d(np.arange(72), rows), "label"] = "no class at all"
    assert loss(Bench(), model, rows) == pytest.approx(math.log(4))  # type: ignore[arg-type]


def test_curves_of_a_seed_have_names_of_their_own() -> None:
    inner = NoTracker()
    SeedTracker(inner, 4).metrics({"loss": 0.5}, 7)
    assert inner.logged_metrics == [(7, {"loss_seed_4": 0.5})]
