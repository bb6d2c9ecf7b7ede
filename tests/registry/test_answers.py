"""A registered version's answers: from its record, else inferred once with its own weights."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.contracts import ModelRef
from ssl_core.errors import UserError
from ssl_core.evaluation.predictions import Predictions
from ssl_core.models.classifier import load_classifier
from ssl_core.registry import answers
from ssl_core.step import StepContext
from tests.registry.conftest import World, predictions_with


@pytest.fixture
def ask(world: World):
    """``ask(version, ...)``: what a step of the run on ``tiny@v2`` gets."""
    first = world.register("a", right=150, n=200)
    second = world.register("b", right=290, n=300, dataset=2)

    def run(version: str | ModelRef = "1", **how: object) -> Predictions:
        found: list[Predictions] = []

        def step(ctx: StepContext):
            from ssl_core.step import StepOutput

            found.append(answers.answers(ctx, version, **how))
            return StepOutput()

        world.step("gate", step, second)
        return found[0]

    run.first, run.second = first, second
    return run


def inferred(world: World, inputs: dict, sample_ids: list[str]) -> np.ndarray:
    """A slow reference: the decoded images through the weights."""
    from ssl_core.data.memory import open_images

    images = open_images(world.datasets[2], world.settings, size=8, channels=1)
    rows = [images.manifest["sample_id"].tolist().index(sample) for sample in sample_ids]
    return load_classifier(world.store.fetch(inputs["registered_model"])).predict_proba(images.pixels[rows])


def test_what_is_on_record_is_read_and_the_rest_inferred(world: World, ask) -> None:
    found = ask()
    ids, labels, scores = predictions_with(150)
    assert len(found.sample_ids) == 300
    np.testing.assert_array_equal(found.scores[:200], scores)
    np.testing.assert_array_equal(found.labels[:200], labels)
    assert set(ids).isdisjoint(found.sample_ids[200:])
    np.testing.assert_allclose(found.scores[200:], inferred(world, ask.first, list(found.sample_ids[200:])), atol=1e-6)


def test_it_is_inferred_once(world: World, ask, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask()
    sha256 = ask.first["registered_model"].sha256
    kept = world.store.names(f"tiny/answers/{sha256}")
    assert len(kept) == 1

    def never(*arguments: object) -> None:
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(answers, "infer", never)
        np.testing.assert_array_equal(ask().scores, first.scores)
    world.store.write(f"tiny/answers/{sha256}/{kept[0]}", b"torn")
    np.testing.assert_array_equal(ask().scores, first.scores)


def test_windows_and_splits(world: World, ask) -> None:
    assert len(ask(windows=[1]).sample_ids) == 200
    new = ask(windows=[2])
    assert new.sample_ids == tuple(f"s{i:05d}" for i in range(200, 300))
    assert ask(windows=[9]).sample_ids == ()
    assert ask(split="train").split == "train"
    chosen = ask(sample_ids=["s00250", "s00003"])
    assert chosen.sample_ids == ("s00003", "s00250")
    reference = ask(ask.second["registered_model"], windows=[2])
    assert reference.quality.mean() == pytest.approx(0.9)


def test_truth_is_the_datasets(world: World, ask) -> None:
    """A label that was corrected since the evaluation counts as it is now."""

    def corrected(manifest):
        manifest.loc[manifest["sample_id"] == "s00000", "label"] = "cat"

    found = ask(dataset=world.dataset(3, 200, change=corrected), sample_ids=["s00000", "s00001"])
    assert [found.classes[k] for k in found.labels] == ["cat", "bee"]
    assert found.quality.tolist() == [0, 1]


def test_what_cannot_be_answered_is_told(world: World, ask) -> None:
    with pytest.raises(UserError, match="1 of 2 samples are not in this dataset version"):
        ask(sample_ids=["s00001", "nowhere"])
    with pytest.raises(UserError, match="version 9 is not in the registry"):
        ask("9")
    world.store.remove("tiny/finetune/a")
    assert len(ask(windows=[1]).sample_ids) == 200, "its record is enough"
    with pytest.raises(UserError, match="weights of tiny version 1 are gone"):
        ask()
    world.client.set_model_version_tag("tiny", "2", "ssl.encoder_version", "77")
    with pytest.raises(UserError, match="encoder of tiny version 2"):
        ask("2", split="train")
