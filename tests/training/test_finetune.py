"""The finetune step: honest budgets, a model that loads, clear refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ssl_core.config.project import ImageProject, ProjectConfig
from ssl_core.config.tasks import ImageClassificationConfig, TextClassificationConfig
from ssl_core.contracts import ModelRef
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.models.classifier import load_classifier
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing, save_encoder
from ssl_core.step import NoTracker, Output, StepContext
from ssl_core.store import path_sha256
from ssl_core.tasks import image_classification as classification
from ssl_core.training import finetune, image_bench
from ssl_core.training.image_bench import ImageBench
from ssl_core.training.runtime import Runtime
from tests.texts import make_texts, sentences
from tests.training.conftest import CLASSES, DATASET, ENCODER, TINY, striped_images

RUNTIME = Runtime("cpu", "float32", 1)
QUICK = {"epochs": 2, "batch_size": 16, "seeds": 1}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_core.tasks.image_classification.MIN_STEPS", 2)


@pytest.fixture
def context(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_project: Callable[..., ProjectConfig],
    make_context: Callable[..., StepContext],
) -> Callable[..., StepContext]:
    def make(key: str = "k", *, labelled: int | None = None, **task: Any) -> StepContext:
        images = striped_images(tmp_path / "decoded", labelled=labelled)
        monkeypatch.setattr(image_bench, "open_images", lambda ref, settings, *, size, channels, progress: images)
        registered = ModelRef(
            kind="registered-encoder", name="tiny-encoder", version="3", model_id="m-1", run_id="r", uri="tiny/pretrain/e/out/encoder",
            sha256="", producer="pretrain/e",
        )  # fmt: skip
        ctx = make_context(
            make_project(**TINY, task=QUICK | task), step="finetune", key=key, inputs={"dataset": DATASET}
        )
        preprocessing = measure_preprocessing(images.pixels, images.positions("train"))
        folder = Path(ctx.store.path(registered.uri))
        save_encoder(folder, build_encoder(ENCODER, 1, seed=0), EncoderInfo(ENCODER, preprocessing, 16))
        ctx.inputs = {
            "dataset": DATASET,
            "registered_encoder": registered.model_copy(update={"sha256": path_sha256(folder)}),
        }
        return ctx

    return make


def test_leaves_a_model_its_labels_and_a_golden_batch(context: Callable[..., StepContext]) -> None:
    ctx = context(labels=8, epochs=20, learning_rate=2e-2, encoder_learning_rate=5e-3)
    output = finetune.run(ctx)
    folder = ctx.out / "model"
    assert output.outputs == {"model": Output("model", "model")}
    model, golden = load_classifier(folder), load_file(folder / "golden.safetensors")
    assert model.classes == CLASSES
    assert golden["pixels"].shape == (16, 1, 8, 8)
    assert np.array_equal(model.predict_proba(golden["pixels"]), golden["probabilities"])
    document = json.loads((folder / "training.json").read_text())
    assert document["label_budget"] == document["labels"] == len(set(document["sample_ids"])) == 8
    assert document["encoder"] == "tiny-encoder/3"
    assert document["spread"] is True
    assert (document["steps"], document["epochs"]) == (60, 20), "48 images in batches of 16"
    assert output.metrics["val_accuracy"] > 0.9
    assert "8 labelled images" in output.summary


def test_records_the_steps_and_epochs_that_were_done(
    context: Callable[..., StepContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "MIN_STEPS", 8)
    taken, share = [], classification.warmup_cosine
    monkeypatch.setattr(classification, "warmup_cosine", lambda step, *more: taken.append(step) or share(step, *more))
    ctx = context(labels=8, epochs=1, spread_labels=False, batch_size=4)
    finetune.run(ctx)
    document = json.loads((ctx.out / "model" / "training.json").read_text())
    assert taken == list(range(8))
    assert (document["steps"], document["epochs"]) == (8, 4)


def test_same_seed_same_model(context: Callable[..., StepContext]) -> None:
    folders = []
    for key, seed in (("a", 0), ("b", 0), ("c", 1)):
        ctx = context(key, labels=8, seed=seed)
        finetune.run(ctx)
        folders.append(ctx.out / "model")
    assert path_sha256(folders[0]) == path_sha256(folders[1])
    assert (folders[0] / "head.safetensors").read_bytes() != (folders[2] / "head.safetensors").read_bytes()
    ids = [json.loads((folder / "training.json").read_text())["sample_ids"] for folder in folders]
    assert ids[0] != ids[2]


def bench_on(images: Any, make_project: Callable[..., ProjectConfig], *, labels: int, seed: int = 0) -> ImageBench:
    """The tiny encoder of a seed, and a task with so many labels."""
    project = make_project(**TINY, task=QUICK | {"labels": labels})
    assert isinstance(project, ImageProject)
    info = EncoderInfo(ENCODER, measure_preprocessing(images.pixels, images.positions("train")), 16)
    return ImageBench(project, build_encoder(ENCODER, 1, seed=seed), info, images, RUNTIME)


def test_labels_outside_the_budget_are_never_read(tmp_path: Path, make_project: Callable[..., ProjectConfig]) -> None:
    images = striped_images(tmp_path / "decoded")
    labelled, unlabeled = finetune.split_labels(images, ImageClassificationConfig(labels=8, **QUICK))
    assert (len(labelled), len(unlabeled)) == (8, 40)
    first = bench_on(images, make_project, labels=8).finetune(labelled, unlabeled).model
    manifest = images.manifest.copy()
    hidden = np.setdiff1d(np.arange(len(manifest)), labelled)
    # Shifted labels elsewhere; the draw itself is fixed, so that only a reader of the rest could tell.
    manifest.loc[hidden, "label"] = [CLASSES[(CLASSES.index(label) + 1) % 4] for label in manifest.loc[hidden, "label"]]
    second = bench_on(replace(images, manifest=manifest), make_project, labels=8).finetune(labelled, unlabeled).model
    train = images.pixels[images.positions("train")]
    assert np.array_equal(first.predict_proba(train), second.predict_proba(train))


def test_the_draw_is_stratified_and_knows_no_encoder(tmp_path: Path) -> None:
    images = striped_images(tmp_path / "decoded")
    one, _ = finetune.split_labels(images, ImageClassificationConfig(labels=12, **QUICK))
    assert np.bincount(images.labels[one]).tolist() == [3, 3, 3, 3]


def test_all_takes_every_label_and_leaves_the_others_unlabeled(tmp_path: Path) -> None:
    images = striped_images(tmp_path / "decoded", labelled=20)
    assert np.array_equal(finetune.draw_labels(images, ImageClassificationConfig()), np.arange(20))


@pytest.mark.parametrize(
    ("labelled", "labels", "words"),
    [
        (20, 21, r"task\.labels: asks for 21 labels, but the training split has 20"),
        (None, 3, r"task\.labels: asks for 3 labels, but there are 4 classes"),
        (3, "all", r"no labelled training sample of bottom"),
        (0, "all", r"no labelled training sample\n"),
    ],
)
def test_too_few_labels_is_the_users_error(
    labelled: int | None, labels: int | str, words: str, context: Callable[..., StepContext]
) -> None:
    ctx = context(labelled=labelled, labels=labels)
    with pytest.raises(UserError, match=words) as caught:
        finetune.run(ctx)
    assert caught.value.next_step
    assert not list(ctx.out.iterdir())


def test_many_classes_without_a_label_are_counted_and_a_few_named() -> None:
    table = make_texts(sentences(4), ["a"] * 4, classes=[*"abcdefghij"]).table
    with pytest.raises(
        UserError, match=r"no labelled training sample of b, c, d, e, f and 4 more \(4 labelled in all, 10"
    ):
        finetune.draw_labels(table, TextClassificationConfig())


class Killed(BaseException):
    """What the process would not survive: no handler, no last checkpoint."""


class Steps:
    """Counts the steps that are taken, over all attempts, and may interfere before one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[int] = []
        self.before: Callable[[int], None] = lambda step: None
        share = classification.warmup_cosine

        def watched(step: int, *more: int) -> float:
            self.before(step)
            self.taken.append(step)
            return share(step, *more)

        monkeypatch.setattr(classification, "warmup_cosine", watched)

    def die_before(self, step: int) -> None:
        def die(now: int) -> None:
            if now == step:
                raise Killed

        self.before = die

    def leave_alone(self) -> None:
        self.before = lambda step: None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr(classification, "CHECKPOINT_SECONDS", 0)
    return Steps(monkeypatch)


LONGER = {"labels": 8, "epochs": 4}
"""Twelve steps, three an epoch."""


def again(ctx: StepContext) -> StepContext:
    """The same step, in a process that knows nothing of the one before."""
    for path in sorted(ctx.out.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return replace(ctx, stop=threading.Event(), tracker=NoTracker())


def curve(ctx: StepContext) -> list[tuple[int, dict[str, float]]]:
    assert isinstance(ctx.tracker, NoTracker)
    return [entry for entry in ctx.tracker.logged_metrics if "loss" in entry[1]]


@pytest.mark.parametrize("killed_at", [(0,), (1,), (5, 6), (4, 4, 11), (2, 7, 10)])
def test_resumed_equals_uninterrupted(
    context: Callable[..., StepContext], steps: Steps, killed_at: tuple[int, ...]
) -> None:
    whole, broken = context("whole", **LONGER), context("broken", **LONGER)
    finetune.run(whole)
    assert steps.taken == list(range(12))
    steps.taken.clear()
    curves = []
    for moment in killed_at:
        steps.die_before(moment)
        with pytest.raises(Killed):
            finetune.run(broken)
        curves += curve(broken)
        broken = again(broken)
    steps.leave_alone()
    finetune.run(broken)
    assert steps.taken == list(range(12)), "each step was stored, so none is done twice"
    assert path_sha256(whole.out / "model") == path_sha256(broken.out / "model")
    assert curves + curve(broken) == curve(whole)


def test_stop_saves_the_very_step(
    context: Callable[..., StepContext], steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "CHECKPOINT_SECONDS", 1e9)
    whole, stopped = context("whole", **LONGER), context("stopped", **LONGER)
    finetune.run(whole)
    steps.taken.clear()
    steps.before = lambda step: stopped.stop.set() if step == 4 else None
    with pytest.raises(TryAgain, match="go on from step 5 of 12"):
        finetune.run(stopped)
    steps.leave_alone()
    stopped = again(stopped)
    finetune.run(stopped)
    assert steps.taken == list(range(12))
    assert path_sha256(whole.out / "model") == path_sha256(stopped.out / "model")


def test_checkpoint_of_another_recipe_is_left_with_a_note(
    context: Callable[..., StepContext], steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = context("k", **LONGER, learning_rate=0.1)
    steps.die_before(7)
    with pytest.raises(Killed):
        finetune.run(other)
    steps.leave_alone()
    steps.taken.clear()
    ctx = context("k", **LONGER)
    notes: list[str] = []
    monkeypatch.setattr(ctx.progress, "note", notes.append)
    finetune.run(ctx)
    assert steps.taken == list(range(12))
    assert any("another configuration" in note for note in notes)


def test_a_poisoned_state_is_never_stored(
    context: Callable[..., StepContext], steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = classification.soft_cross_entropy

    def poisoned(*arguments: Any) -> Any:
        return loss(*arguments) * (float("nan") if steps.taken[-1] == 5 else 1.0)

    monkeypatch.setattr(classification, "soft_cross_entropy", poisoned)
    ctx = context(**LONGER)
    with pytest.raises(CheckFailed, match=r"task\.learning_rate: the loss is not finite \(nan\) at step 6"):
        finetune.run(ctx)
    newest = ctx.checkpoints.part("seed-0").newest()
    assert newest is not None
    assert newest[0] == 5


def test_linear_starts_again(context: Callable[..., StepContext], steps: Steps) -> None:
    ctx = context(**LONGER, method="linear")
    ctx.stop.set()
    with pytest.raises(TryAgain, match="from the start"):
        finetune.run(ctx)
    assert ctx.checkpoints.newest() is None
