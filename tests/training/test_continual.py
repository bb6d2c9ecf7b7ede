"""Going on from the champion: what is trained on again, what is chosen on val, and when it starts from the encoder instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ssl_core.config.project import ProjectConfig
from ssl_core.config.tasks import ImageClassificationConfig
from ssl_core.contracts import ModelRef
from ssl_core.data.memory import Images
from ssl_core.data.samples import shift
from ssl_core.data.table import SampleTable
from ssl_core.errors import TryAgain, UserError
from ssl_core.models.classifier import load_classifier
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing, save_encoder
from ssl_core.step import StepContext
from ssl_core.store import path_sha256
from ssl_core.tasks import image_classification as classification
from ssl_core.training import continual, finetune, image_bench
from ssl_core.training.continual import choose, replay, slower, some
from tests.training.conftest import CLASSES, DATASET, ENCODER, TINY, striped_pixels
from tests.training.test_finetune import Killed, Steps

TASK = {"epochs": 6, "batch_size": 16, "seeds": 1, "learning_rate": 2e-2, "encoder_learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "MIN_STEPS", 2)


def two_windows(*, only_old: bool = False, classes: list[str] = CLASSES, hide: Callable[[pd.DataFrame], Any] | None = None) -> Images:  # fmt: skip
    """Window 1: striped images; window 2: others of them, turned. Each 32 of train, 12 of val and of test."""
    pixels, numbers = striped_pixels(112)
    pixels[56:, 0] = shift.rotate(pixels[56:, 0], 45)
    manifest = pd.DataFrame(
        {
            "sample_id": [f"{row:064x}" for row in range(112)],
            "split": (["train"] * 32 + ["val"] * 12 + ["test"] * 12) * 2,
            "label": pd.Series([classes[number] for number in numbers], dtype=object),
            "first_version": [1] * 56 + [2] * 56,
        }
    )
    if hide is not None:
        manifest.loc[hide(manifest), "label"] = None
    rows = slice(0, 56) if only_old else slice(None)
    return Images(pixels=pixels[rows], manifest=manifest.iloc[rows], classes=classes)


class Going:
    """A champion on window 1, and runs that go on from it, each with inputs of its own."""

    def __init__(self, make_project: Any, make_context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make_project, self.make_context, self.patch = make_project, make_context, monkeypatch
        self.encoder: ModelRef | None = None
        self.champion = self.register(
            self.run("champion", two_windows(only_old=True), version=1), "tiny", "registered-model"
        )

    def context(self, key: str, images: Images, *, version: int = 2, **sections: Any) -> StepContext:
        self.patch.setattr(image_bench, "open_images", lambda ref, settings, **_: images)
        sections["task"] = TASK | sections.get("task", {})
        inputs = {"dataset": DATASET.model_copy(update={"tag": f"tiny@v{version}", "sha256": f"{version:064x}"})}
        ctx = self.make_context(self.make_project(**TINY, **sections), step="finetune", key=key, inputs=inputs)
        if self.encoder is None:
            folder = Path(ctx.store.path("tiny/pretrain/e/out/encoder"))
            preprocessing = measure_preprocessing(images.pixels, images.positions("train"))
            save_encoder(folder, build_encoder(ENCODER, 1, seed=0), EncoderInfo(ENCODER, preprocessing, 16))
            self.encoder = self.register(folder, "tiny-encoder", "registered-encoder", ctx)
        ctx.inputs = {**inputs, "registered_encoder": self.encoder}
        return ctx

    def run(self, key: str, images: Images, *, version: int, **sections: Any) -> Path:
        ctx = self.context(key, images, version=version, **sections)
        finetune.run(ctx)
        kept = Path(ctx.store.path(f"tiny/finetune/{key}/out/model"))
        shutil.copytree(ctx.out / "model", kept)
        self.store = ctx.store
        return kept

    def register(self, folder: Path, name: str, kind: Any, ctx: StepContext | None = None) -> ModelRef:
        root = (ctx.store if ctx else self.store).root
        return ModelRef(
            kind=kind, name=name, version="3", model_id="m", run_id="r", uri=folder.relative_to(root).as_posix(),
            sha256=path_sha256(folder), producer="finetune/champion",
        )  # fmt: skip

    def on(self, key: str = "on", images: Images | None = None, **sections: Any) -> tuple[StepContext, dict[str, Any]]:
        """Goes on; the context, and training.json."""
        ctx = self.context(key, images or two_windows(), version=sections.pop("version", 2), **sections)
        ctx.inputs = {**ctx.inputs, "champion": self.champion}
        finetune.run(ctx)
        return ctx, json.loads((ctx.out / "model" / "training.json").read_text())


@pytest.fixture
def going(make_project: Callable[..., ProjectConfig], make_context: Any, monkeypatch: pytest.MonkeyPatch) -> Going:
    return Going(make_project, make_context, monkeypatch)


def accuracy(folder: Path, images: Images, window: int) -> float:
    rows = np.flatnonzero((images.manifest["first_version"] == window) & (images.manifest["split"] == "test"))
    predicted = load_classifier(folder).predict_proba(np.ascontiguousarray(images.pixels[rows])).argmax(axis=1)
    return float((predicted == images.labels[rows]).mean())


def test_it_learns_the_new_and_keeps_the_old(going: Going) -> None:
    images = two_windows()
    ctx, document = going.on(task={"epochs": 20}, continual={"rate": 1.0})
    champion = Path(ctx.store.path(going.champion.uri))
    folder = ctx.out / "model"
    assert accuracy(folder, images, 1) >= accuracy(champion, images, 1) - 0.1
    assert accuracy(folder, images, 2) > accuracy(champion, images, 2) + 0.1
    how = document["going_on"]
    assert (how["champion"], how["champion_dataset"]) == ("3", "tiny@v1")
    assert (how["new_labels"], how["known_labels"], how["replayed_labels"]) == (32, 32, 10)
    assert document["labels"] == 42
    assert len(document["sample_ids"]) == 64, "what it knows from the champion is known still"
    assert [point["alpha"] for point in how["curve"]] == list(continual.ALPHAS)
    assert how["alpha"] == choose(how["curve"])["alpha"]
    assert ctx.tracker.logged_metrics  # type: ignore[attr-defined]


def test_the_champion_itself_is_kept_where_nothing_is_better(going: Going) -> None:
    ctx, document = going.on(task={"learning_rate": 1e-12, "encoder_learning_rate": 0})
    assert document["going_on"]["alpha"] == 0.0
    model, champion = (
        load_classifier(f).state_dict() for f in (ctx.out / "model", Path(ctx.store.path(going.champion.uri)))
    )
    assert all(torch.equal(tensor, model[name]) for name, tensor in champion.items())


def test_of_equal_scores_the_closest_to_the_champion_is_chosen() -> None:
    curve = [{"alpha": a, "score": s} for a, s in ((0.0, 0.8), (0.2, 0.9), (0.4, 0.9), (1.0, 0.85))]
    assert choose(curve)["alpha"] == 0.2
    assert choose([{"alpha": a, "score": 0.5} for a in (0.0, 0.5, 1.0)])["alpha"] == 0.0


def test_without_labels_on_val_the_middle_is_taken(going: Going) -> None:
    _, document = going.on(images=two_windows(hide=lambda rows: rows["split"] == "val"))
    assert (document["going_on"]["alpha"], document["going_on"]["curve"]) == (0.5, [])
    assert document["seeds"][0]["val_quality"] is None


def test_old_labels_on_val_alone_do_not_hold_it_at_the_champion(going: Going) -> None:
    _, document = going.on(
        images=two_windows(hide=lambda rows: (rows["split"] == "val") & (rows["first_version"] == 2))
    )
    assert (document["going_on"]["alpha"], document["going_on"]["curve"]) == (0.5, [])


def test_old_and_new_windows_count_alike(going: Going) -> None:
    # One labelled sample of val in the new window, twelve in the old one.
    images = two_windows(hide=lambda rows: (rows["split"] == "val") & (rows["first_version"] == 2) & (rows.index > 88))
    _, document = going.on(images=images)
    for point in document["going_on"]["curve"]:
        assert point["score"] == pytest.approx((point["old"] + point["new"]) / 2)


def test_replay_is_stratified_seeded_and_a_share() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    manifest = pd.DataFrame({"split": "train", "label": pd.Series(labels, dtype=object)})
    table = SampleTable(manifest, ["a", "b", "c"])
    known = np.arange(100)
    chosen = replay(table, known, 0.3, 0)
    assert np.bincount(table.labels[chosen]).tolist() == [18, 9, 3]
    assert np.array_equal(chosen, replay(table, known, 0.3, 0))
    assert not np.array_equal(chosen, replay(table, known, 0.3, 1))
    assert len(replay(table, known, 0.0, 0)) == 0
    assert len(replay(table, known, 0.001, 0)) == 3, "one of each class at least"
    assert np.array_equal(replay(table, known, 1.0, 0), known)
    assert len(some(known, 0.25, 0)) == 25


def test_the_anchor_takes_the_place_of_weight_decay(make_project: Callable[..., ProjectConfig]) -> None:
    task = ImageClassificationConfig(weight_decay=0.1, learning_rate=1e-2, encoder_learning_rate=1e-3)
    config = make_project(continual={"rate": 0.1, "anchor": 0.01}).continual
    slow = slower(task, config)
    assert isinstance(slow, ImageClassificationConfig)
    assert (slow.learning_rate, slow.encoder_learning_rate) == (pytest.approx(1e-3), pytest.approx(1e-4))
    assert slow.weight_decay == 0
    assert slower(task, config.model_copy(update={"anchor": 0.0})).weight_decay == 0.1  # type: ignore[attr-defined]


def test_unlabeled_images_of_old_windows_are_replayed_in_the_same_share(going: Going) -> None:
    def hide(rows: pd.DataFrame) -> pd.Series:
        return (rows["split"] == "train") & (rows.index % 56 >= 16)

    _, document = going.on(images=two_windows(hide=hide))
    how = document["going_on"]
    assert (how["new_labels"], how["new_unlabeled"], how["replayed_unlabeled"]) == (16, 16, 5)
    assert document["spread"] is True


@pytest.mark.parametrize("how", [{"ewc": 5.0, "replay": 0.0}, {"interpolate": False, "anchor": 0.0}])
def test_other_ways_of_going_on(going: Going, how: dict[str, Any]) -> None:
    _, document = going.on(continual=how)
    assert (document["going_on"]["replayed_labels"] == 0) is (how.get("replay") == 0)
    assert len(document["going_on"]["curve"]) == (1 if "interpolate" in how else 6)


def test_elastic_weights_are_for_a_trained_encoder(going: Going) -> None:
    with pytest.raises(UserError, match=r"continual\.ewc"):
        going.on(continual={"ewc": 1.0}, task={"method": "linear"})


def test_linear_goes_on_with_the_champions_head(going: Going) -> None:
    ctx, document = going.on(task={"method": "linear"})
    assert document["going_on"]["champion"] == "3"
    champion = load_classifier(Path(ctx.store.path(going.champion.uri)))
    encoder = load_classifier(ctx.out / "model").encoder.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in champion.encoder.state_dict().items())


@pytest.mark.parametrize("killed_at", [(3, 5)])
def test_resumed_equals_uninterrupted(
    going: Going, monkeypatch: pytest.MonkeyPatch, killed_at: tuple[int, ...]
) -> None:
    monkeypatch.setattr(classification, "CHECKPOINT_SECONDS", 0)
    images = two_windows()

    def context(key: str) -> StepContext:
        ctx = going.context(key, images, task={"seeds": 2, "epochs": 2}, continual={"ewc": 1.0})
        return replace(ctx, inputs={**ctx.inputs, "champion": going.champion})

    whole, broken = context("whole"), context("broken")
    steps = Steps(monkeypatch)
    finetune.run(whole)
    count = len(steps.taken)
    steps.taken.clear()
    for moment in killed_at:
        before = len(steps.taken)
        steps.before = lambda step, moment=moment, before=before: _die(len(steps.taken) - before == moment)
        with pytest.raises(Killed):
            finetune.run(broken)
    steps.leave_alone()
    finetune.run(broken)
    assert len(steps.taken) == count, "no step was taken twice"
    assert path_sha256(whole.out / "model") == path_sha256(broken.out / "model")


def _die(now: bool) -> None:
    if now:
        raise Killed


def test_no_label_outside_the_budget_and_val_is_read(going: Going) -> None:
    images = two_windows()
    _, first = going.on("first", images, task={"labels": 24})
    budget = finetune.draw_labels(images, ImageClassificationConfig(labels=24, **TASK))
    manifest = images.manifest.copy()
    hidden = np.setdiff1d(np.arange(len(manifest)), np.concatenate([budget, images.positions("val")]))
    manifest.loc[hidden, "label"] = [CLASSES[(CLASSES.index(name) + 1) % 4] for name in manifest.loc[hidden, "label"]]
    going.patch.setattr(
        finetune, "split_labels", lambda table, task: (budget, np.setdiff1d(table.positions("train"), budget))
    )
    _, second = going.on("second", replace(images, manifest=manifest), task={"labels": 24})
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    folders = [Path(going.store.root).parents[1] / "out" / "finetune" / key / "model" for key in ("first", "second")]
    assert path_sha256(folders[0]) == path_sha256(folders[1])


# ---- what cannot be gone on from


def test_other_classes_start_from_the_encoder(going: Going) -> None:
    _, document = going.on(images=two_windows(classes=["left", "right", "top", "under"]))
    assert document["not_going_on"] == "it knows other classes"
    assert "going_on" not in document
    assert document["labels"] == 64


def test_weights_that_are_gone_start_from_the_encoder(going: Going) -> None:
    going.store.remove(going.champion.uri)
    assert "not in the store any more" in going.on()[1]["not_going_on"]


def test_weights_that_were_changed_are_an_error(going: Going) -> None:
    (Path(going.store.path(going.champion.uri)) / "head.safetensors").write_bytes(b"torn")
    with pytest.raises(TryAgain, match="differs from its digest"):
        going.on()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dataset": "tiny@v2"}, "knows tiny@v2 already"),
        ({"dataset": "0" * 40}, "not known which dataset version"),
        ({"encoder": "tiny-encoder/2"}, "stands on tiny-encoder/2, and this run on tiny-encoder/3"),
        ({"sample_ids": [f"{row:064x}" for row in range(112)]}, "no label is new to it"),
    ],
)
def test_a_champion_that_does_not_fit_starts_from_the_encoder(going: Going, change: dict[str, Any], says: str) -> None:
    folder = Path(going.store.path(going.champion.uri))
    path = folder / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    going.champion = going.champion.model_copy(update={"sha256": path_sha256(folder)})
    _, document = going.on()
    assert says in document["not_going_on"]


def test_a_model_that_cannot_be_loaded_starts_from_the_encoder(going: Going) -> None:
    folder = Path(going.store.path(going.champion.uri))
    (folder / "head.safetensors").unlink()
    going.champion = going.champion.model_copy(update={"sha256": path_sha256(folder)})
    assert "cannot be loaded" in going.on()[1]["not_going_on"]
