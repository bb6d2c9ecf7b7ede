"""Which version a fine-tuning goes on from, and when it starts from the encoder."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import LedgerEntry, ModelRef, RunContext, Verdict
from ssl_core.registry import versions
from ssl_core.registry.going_on import CONTINUED_FROM, champion_to_go_on_from, control_due
from ssl_core.registry.ledger import Ledger
from ssl_core.registry.model_card import model_card
from tests.registry.conftest import World, dataset_ref


def entry(action: str, version: str, dataset: int = 1, recipe: str = "r") -> dict[str, Any]:
    return {
        "action": action, "model_version": version, "encoder_version": "1", "dataset": f"tiny@v{dataset}", "recipe": recipe,
        "verdict": Verdict.PROMOTE, "reasons": [], "report_digest": "", "user": "tester", "run": RunContext(run_id="r"),
    }  # fmt: skip


class Story:
    """A project's models, each registered and decided on."""

    def __init__(self, world: World) -> None:
        self.world, self.ledger = world, Ledger(world.store, "tiny")
        self.encoder: Any = world.register_encoder().outputs["registered_encoder"]

    def decide(self, dataset: int, action: str = "PROMOTED", continued_from: str = "") -> ModelRef:
        ref = self.world.register(f"m{dataset}-{action}", 150, dataset=dataset, seed=dataset)["registered_model"]
        assert isinstance(ref, ModelRef)
        if continued_from:
            self.world.client.set_model_version_tag("tiny", ref.version, CONTINUED_FROM, continued_from)
        recipe = versions.get_version(self.world.client, "tiny", ref.version).tags["ssl.recipe"]
        self.ledger.append(lambda _: entry(action, ref.version, dataset, recipe))
        return ref

    def ask(self, dataset: int, drift: str = "d", encoder: Any = None, **continual: Any) -> tuple[ModelRef | None, str]:
        sections = self.world.project.model_dump(mode="json")
        sections["continual"] |= continual
        project = ProjectConfig.model_validate(sections)
        return champion_to_go_on_from(
            self.world.settings, self.world.store, project, dataset_ref(dataset), encoder or self.encoder, drift
        )


@pytest.fixture
def story(world: World) -> Story:
    return Story(world)


def test_on_drift_a_run_on_newer_data_goes_on_from_the_champion(story: Story) -> None:
    assert story.ask(1) == (None, "there is no champion to go on from")
    champion = story.decide(1)
    assert story.ask(2) == (champion, "goes on from version 1")
    assert story.ask(2, drift="") == (None, ""), "nothing drifted"
    assert story.ask(2, drift="", when="always")[0] == champion
    assert story.ask(2, when="never") == (None, "")
    assert champion_to_go_on_from(
        story.world.settings, story.world.store, story.world.project, dataset_ref(2).model_copy(update={"tag": None}), story.encoder, "d"
    ) == (None, "")  # fmt: skip


def test_not_on_the_same_data_nor_another_encoder_nor_without_weights(story: Story) -> None:
    champion = story.decide(3)
    assert "tiny@v2 is not newer" in story.ask(2)[1]
    assert "tiny@v3 is not newer" in story.ask(3, rate=0.7)[1], "another recipe on the same data"
    other = story.encoder.model_copy(update={"version": "2"})
    assert "another encoder than tiny-encoder version 2" in story.ask(4, encoder=other)[1]
    story.world.store.remove(champion.uri)
    assert story.ask(4) == (None, "not going on from version 1: its weights are not in the store any more")


def test_a_version_that_is_gone_is_no_champion(story: Story) -> None:
    story.ledger.append(lambda _: entry("PROMOTED", "9"))
    assert story.ask(2) == (None, "there is no champion to go on from")


def test_what_was_decided_is_found_again(story: Story) -> None:
    """The same dataset and recipe give the step the same inputs, whoever is champion by then, and drift or not."""
    first = story.decide(1)
    story.decide(2, continued_from=first.version)
    for drift in ("d", ""):
        assert story.ask(2, drift) == (first, "goes on from version 1, as it did before")
    assert story.ask(1, "d") == (None, ""), "the first came from the encoder"
    assert story.ask(3)[0].version == "2"  # type: ignore[union-attr]


def test_a_rejected_challenger_leaves_the_champion_to_go_on_from(story: Story) -> None:
    first = story.decide(1)
    story.decide(2, "REJECTED", continued_from=first.version)
    assert story.ask(3)[0] == first


def test_each_so_many_th_time_is_a_control(story: Story) -> None:
    before = story.decide(1)
    for number in (2, 3):
        before = story.decide(number, continued_from=before.version)
    assert story.ask(4, control_every=4)[0] == before
    assert story.ask(4, control_every=0)[0] == before
    champion, why = story.ask(4, control_every=3)
    assert champion is None
    assert "as a control" in why
    story.decide(4, "REJECTED")  # the control was no better
    assert story.ask(5, control_every=3)[0] == before


@pytest.mark.parametrize(
    ("actions", "every", "due"),
    [
        ("", 4, False),
        ("P", 1, True),
        ("Pppp", 4, True),
        ("Ppp", 4, False),
        ("Pprrp", 4, False),  # rejected challengers that went on do not count
        ("PpppR", 4, False),  # a rejected control does
        ("PpppbP", 4, False),
        ("Pppbp", 4, True),  # a roll-back is no training
        ("Pppppppp", 0, False),
    ],
)
def test_counting(actions: str, every: int, due: bool) -> None:
    """P, R: promoted, rejected, from the encoder; p, r: going on; b: rolled back."""
    names = {"p": "PROMOTED", "r": "REJECTED", "b": "ROLLED_BACK"}
    entries = [
        LedgerEntry(seq=i, previous="", at="", project="tiny", **entry(names[a.lower()], a)) for i, a in enumerate(actions, 1)
    ]  # fmt: skip
    assert control_due(entries, str.islower, every) is due


def test_registration_records_what_a_model_went_on_from(world: World) -> None:
    inputs = world.model_inputs("m", 150)
    folder = world.store.path(inputs["model"].uri)  # type: ignore[union-attr]
    going_on = {
        "champion": "7", "champion_dataset": "tiny@v1", "new_labels": 20, "known_labels": 60, "replayed_labels": 18, "rate": 0.3,
        "anchor": 0.01, "ewc": 0.0, "alpha": 0.8,
    }  # fmt: skip
    training = {"label_budget": "all", "labels": 38, "going_on": going_on, "chosen": 1, "seeds": [
        {"seed": s, "val_quality": q, "loss": 0.1} for s, q in ((0, 0.9), (1, 0.91), (2, 0.95))
    ]}  # fmt: skip
    card = model_card(world.project, *(inputs[k] for k in ("dataset", "registered_encoder", "model")), {}, training, "")  # type: ignore[arg-type]
    assert "the median of 3 seeds (seed 1, 0.900 to 0.950 on val)" in card
    assert "went on from `tiny` version 7 (tiny@v1): 20 new labels, 18 of 60 known ones again" in card
    assert "80% of the way" in card
    from pathlib import Path

    from ssl_core.registry import register
    from ssl_core.store import path_sha256

    (Path(folder) / "training.json").write_text(json.dumps(training))
    inputs["model"] = inputs["model"].model_copy(update={"sha256": path_sha256(Path(folder))})
    result = world.step("register", register.register_model, inputs)
    ref = result.outputs["registered_model"]
    assert isinstance(ref, ModelRef)
    assert versions.get_version(world.client, "tiny", ref.version).tags[CONTINUED_FROM] == "7"
