"""Cards say what was done, not what was asked for."""

from __future__ import annotations

import pytest

from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef
from ssl_core.registry.model_card import model_card

DATASET = DatasetRef(
    kind="dataset", name="tiny", tag="tiny@v1", revision="0" * 40, path="tiny/data", md5="0" * 32 + ".dir",
    remote="/nowhere", sha256="a" * 64, producer="publish/k", rows=72, labelled=72, classes=4,
)  # fmt: skip
ENCODER = ModelRef(
    kind="registered-encoder", name="tiny-encoder", version="3", model_id="m-1", run_id="r", uri="tiny/e", sha256="b" * 64,
    producer="pretrain/e",
)  # fmt: skip
MODEL = ArtifactRef(kind="model", uri="tiny/m", sha256="c" * 64, producer="finetune/k")


@pytest.mark.parametrize(
    ("training", "said"),
    [({"steps": 100, "epochs": 33.33}, "33.33 epochs (100 steps)"), ({"steps": 60, "epochs": 20.0}, "20 epochs (60 steps)")],
)  # fmt: skip
def test_the_model_card_tells_the_training_that_was_done(make_project, training, said):
    card = model_card(make_project(task={"epochs": 5}), DATASET, ENCODER, MODEL, {}, training, "")
    assert f"tiny-encoder version 3, {said}, label budget all" in card
    assert "5 epochs" not in card
