"""Removing registered versions: only those that nothing needs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ssl_core.errors import UserError
from ssl_core.registry.removal import remove_version
from tests.registry.conftest import World


@pytest.fixture
def four(after_three: World) -> World:
    """Champions 1, 2 and 3 one after the other, and a rejected 4."""
    return after_three


def remove(world: World, version: str, *, encoder: bool = False) -> str:
    return remove_version(world.settings, world.store, "tiny", version, encoder=encoder)


def left(world: World, name: str = "tiny") -> list[str]:
    return sorted(str(v.version) for v in world.versions(name))


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("3", "the alias champion names it"),
        ("03", "tiny version 3.*the alias champion names it"),
        (" 3", "the alias champion names it"),
        ("2", "the alias previous names it"),
        ("1", "one that can be gone back to"),
        ("9", "is not in the registry"),
        ("x", "is not in the registry"),
    ],
)
def test_what_is_needed_is_kept(four: World, version: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        remove(four, version)
    assert left(four) == ["1", "2", "3", "4"]


def test_what_nobody_needs_goes(four: World) -> None:
    assert remove(four, "4") == "tiny version 4"
    assert left(four) == ["1", "2", "3"]


def test_the_ledger_is_asked_where_an_alias_was_taken_away_by_hand(four: World) -> None:
    four.client.delete_registered_model_alias("tiny", "champion")
    with pytest.raises(UserError, match="the ledger says that it is the champion"):
        remove(four, "3")


def test_a_challenger_that_waits_is_kept(four: World) -> None:
    four.register("e", 100, dataset=5)
    with pytest.raises(UserError, match="the alias challenger"):
        remove(four, "5")


def test_what_was_rolled_away_may_go(four: World) -> None:
    four.roll_back()
    remove(four, "3")
    assert left(four) == ["1", "2", "4"]
    four.roll_back()
    assert four.aliases() == {"champion": "1"}


def test_an_encoder_is_kept_as_long_as_a_model_was_made_from_it(world: World) -> None:
    world.register("a", 150)
    world.register_encoder("e2", dataset=2, seed=1)
    with pytest.raises(UserError, match="tiny version 1 was made from it"):
        remove(world, "1", encoder=True)
    world.client.set_registered_model_alias("tiny-encoder", "mine", "2")
    with pytest.raises(UserError, match="the alias mine names it"):
        remove(world, "2", encoder=True)
    world.client.delete_registered_model_alias("tiny-encoder", "mine")
    assert remove(world, "2", encoder=True) == "tiny-encoder version 2"
    assert left(world, "tiny-encoder") == ["1"]


def test_the_command(four: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_core.cli.rollback import delete_version as command

    monkeypatch.setenv("SSL_HOME", str(four.settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", four.settings.mlflow_tracking_uri)
    assert isinstance(CliRunner().invoke(command, ["tiny", "3"]).exception, UserError)
    done = CliRunner().invoke(command, ["tiny", "4"])
    assert done.exit_code == 0, done.output
    assert "tiny version 4 is not in the registry any more" in done.output
    assert (four.store.fetch(next(iter(four.versions())) and _ref(four))).is_dir(), "what lies in the store stays"


def _ref(world: World):
    from ssl_core.registry import versions

    return versions.to_ref(world.client.get_model_version("tiny", "3"))
