"""Which encoder is reused, and what is frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import usable_cpus
from ssl_core.contracts import ModelRef
from ssl_core.errors import UserError
from ssl_core.registry import resolve, versions
from ssl_core.registry.resolve import find_encoder, freeze, reusable_encoder
from tests.registry.conftest import World


def test_nothing_registered_nothing_reused(world: World) -> None:
    result = world.step("resolve", resolve.run, {})
    assert set(result.outputs) == {"config"}
    frozen = ProjectConfig.model_validate(json.loads(world.store.fetch(result.outputs["config"]).read_text()))
    assert isinstance(frozen.pretrain.threads, int)
    assert freeze(frozen) == frozen


def test_an_encoder_of_this_recipe_is_reused_on_any_machine(world: World) -> None:
    registered = world.register_encoder().outputs["registered_encoder"]
    result = world.step("resolve", resolve.run, {})
    assert result.outputs["registered_encoder"] == registered
    assert "tiny-encoder version 1 is reused" in result.summary
    other_machine = world.project.model_copy(
        update={"pretrain": world.project.pretrain.model_copy(update={"threads": 64})}
    )
    assert reusable_encoder(world.client, world.store, other_machine) == registered


def test_when_decides(world: World, make_project: Callable[..., ProjectConfig]) -> None:
    world.register_encoder()

    def reused(**pretrain: object) -> ModelRef | None:
        return reusable_encoder(
            world.client,
            world.store,
            make_project(encoder={"widths": [8]}, evaluate={"bootstrap": 500}, pretrain=pretrain),
        )

    assert reused() is not None
    assert reused(when="always") is None
    assert reused(epochs=7) is None, "another recipe is trained"
    assert reused(epochs=7, when="manual") is not None, "unless training was not asked for"


def test_the_champion_comes_first_then_the_newest(world: World) -> None:
    world.register_encoder("e1", dataset=1)
    world.register_encoder("e2", dataset=2)
    recipe = versions.encoder_recipe(world.project)
    assert find_encoder(world.client, world.store, "tiny", recipe=recipe).version == "2"
    world.client.set_registered_model_alias("tiny-encoder", "champion", "1")
    assert find_encoder(world.client, world.store, "tiny", recipe=recipe).version == "1"
    assert find_encoder(world.client, world.store, "tiny", version="2").version == "2"
    with pytest.raises(UserError, match="no usable version 9"):
        find_encoder(world.client, world.store, "tiny", version="9")


def test_an_encoder_whose_weights_are_gone_is_trained_again(world: World) -> None:
    world.register_encoder()
    world.store.remove("tiny/pretrain/e1")
    assert reusable_encoder(world.client, world.store, world.project) is None


@pytest.mark.parametrize(
    ("text", "most"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10_000), ("", 10_000)]
)
def test_a_containers_quota_counts(tmp_path: Path, text: str, most: int) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert 1 <= usable_cpus(path) <= most
