"""The pretrain step: what it leaves behind, and what it refuses."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from ssl_core.config.project import ProjectConfig
from ssl_core.data.dataset import write_dataset
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.models.embed import embed
from ssl_core.models.encoder import load_encoder
from ssl_core.objectives.simclr import SimCLR
from ssl_core.step import Output, StepContext
from ssl_core.store import path_sha256
from ssl_core.training import image_pretrain, pretrain
from tests.data.remotes import stored_version
from tests.training.conftest import DATASET, TINY, striped_images

MakeContext = Callable[..., StepContext]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dataset that the step finds; ``images(...)`` replaces it."""

    def use(**more: Any) -> Any:
        found = striped_images(tmp_path / "decoded", **more)
        monkeypatch.setattr(image_pretrain, "open_dataset", lambda ctx, dataset: found)
        return found

    use()
    return use


@pytest.fixture
def context(images: Any, make_project: Callable[..., ProjectConfig], make_context: MakeContext) -> MakeContext:
    def make(key: str = "k", **pretrain_config: Any) -> StepContext:
        project = make_project(**TINY | {"pretrain": {**TINY["pretrain"], **pretrain_config}})
        return make_context(project, step="pretrain", key=key, inputs={"dataset": DATASET})

    return make


def test_leaves_an_encoder_a_golden_batch_and_a_report(context: MakeContext) -> None:
    ctx = context()
    output = pretrain.run(ctx)
    assert output.outputs == {"encoder": Output("encoder", "encoder")}
    assert {p.name for p in (ctx.out / "encoder").iterdir()} == {
        "encoder.safetensors",
        "encoder.json",
        "golden.safetensors",
    }
    encoder, info = load_encoder(ctx.out / "encoder")
    golden = load_file(ctx.out / "encoder" / "golden.safetensors")
    assert golden["pixels"].shape == (16, 1, 8, 8)
    assert np.array_equal(embed(encoder, info.preprocessing, golden["pixels"]), golden["features"])
    document = json.loads((ctx.out / "health.json").read_text())
    assert document["healthy"]
    assert document["loss"] < document["chance_loss"]
    assert document["resolved"]["threads"] == 1
    assert {
        "spread",
        "effective_rank",
        "alignment",
        "uniformity",
        "images_per_second",
        "data_wait_share",
        "knn_accuracy",
    } <= output.metrics.keys()
    assert "48 images" in output.summary
    assert ctx.tracker.logged_artifacts == ["health.json"]  # type: ignore[attr-defined]
    assert ctx.tracker.logged_params["resolved"]["device"] == "cpu"  # type: ignore[attr-defined]


def test_sees_training_pixels_only_and_no_label(images: Any, context: MakeContext) -> None:
    full, unlabeled, other = context("full"), context("unlabeled"), context("other")
    pretrain.run(full)
    images(labelled=0)
    pretrain.run(unlabeled)
    changed = images()
    pixels = np.array(changed.pixels)
    pixels[changed.positions("val")] = 255
    pixels[changed.positions("test")] = 255
    object.__setattr__(changed, "pixels", pixels)
    pretrain.run(other)
    digests = {path_sha256(ctx.out / "encoder") for ctx in (full, unlabeled, other)}
    assert len(digests) == 1
    assert "knn_accuracy" not in json.loads((unlabeled.out / "health.json").read_text()).get("metrics", {})
    assert json.loads((unlabeled.out / "health.json").read_text())["knn_accuracy"] is None


def test_too_few_images_is_the_users_error(images: Any, context: MakeContext) -> None:
    images(train=7)
    with pytest.raises(UserError, match="7 training images") as caught:
        pretrain.run(context())
    assert "data.source" in str(caught.value)


@pytest.mark.parametrize("fault", ["nan", "constant"])
def test_failing_run_ends_with_the_report(fault: str, context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SimCLR.forward

    def spoilt(self: SimCLR, *arguments: Any, step: int, **more: Any) -> Any:
        for module in self.encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.fill_(0.0 if fault == "constant" else float("nan"))
        return forward(self, *arguments, step=step, **more)

    monkeypatch.setattr(SimCLR, "forward", spoilt)
    ctx = context()
    with pytest.raises(CheckFailed) as caught:
        pretrain.run(ctx)
    reason = caught.value.cause
    assert ("collapsed" if fault == "constant" else "not finite") in reason
    assert caught.value.output.outputs == {"health": Output("report", "health.json")}
    document = json.loads((ctx.out / "health.json").read_text())
    assert (document["healthy"], document["reason"]) == (False, reason)
    assert not (ctx.out / "encoder").exists()


def test_stopped_step_goes_on_and_ends_with_the_same_encoder(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = context("whole"), context("broken")
    pretrain.run(whole)
    broken.stop = threading.Event()
    broken.stop.set()
    with pytest.raises(TryAgain, match="from step 1 of 12"):
        pretrain.run(broken)
    assert not list(broken.out.iterdir())
    broken.stop = threading.Event()
    pretrain.run(broken)
    assert path_sha256(whole.out / "encoder") == path_sha256(broken.out / "encoder")


def test_non_finite_numbers_become_null() -> None:
    assert pretrain._finite({"a": [float("nan"), 1.0, {"b": float("inf")}], "c": 2}) == {
        "a": [None, 1.0, {"b": None}],
        "c": 2,
    }


def test_reads_a_stored_dataset_version(
    tmp_path: Path, make_project: Callable[..., ProjectConfig], make_context: MakeContext
) -> None:
    """From Parquet shards in a DVC remote to an encoder, with nothing replaced."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(20):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (10, 12), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    ids = [f"{row:064x}" for row in range(20)]
    manifest = pd.DataFrame(
        {
            "sample_id": ids, "split": ["train"] * 16 + ["val", "test", "test", "vault"], "group": ids,
            "label": pd.Series([None] * 20, dtype=object), "source": ids, "arrived_at": pd.Timestamp("2026-01-01", tz="UTC"),
            "first_version": 1, "width": 12, "height": 10, "channels": 1, "bytes": [len(data) for data in encoded],
            "brightness": 0.5, "contrast": 0.3,
        }
    )  # fmt: skip
    write_dataset(tmp_path / "data", manifest, encoded.__getitem__, name="tiny", modality="image", classes=[])
    ref = stored_version(tmp_path / "data", tmp_path / "remote")
    ctx = make_context(make_project(**TINY), step="pretrain", inputs={"dataset": ref})
    pretrain.run(ctx)
    _, info = load_encoder(ctx.out / "encoder")
    assert (info.preprocessing.size, info.preprocessing.channels) == (12, 1)
    assert load_file(ctx.out / "encoder" / "golden.safetensors")["pixels"].shape == (16, 1, 12, 12)
