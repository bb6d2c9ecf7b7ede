"""Back to an earlier champion: what moves, what is refused, and what happens when it is cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ssl_core.contracts import RunContext, Verdict
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.registry import rollback, versions
from ssl_core.registry.ledger import Ledger
from tests.registry.conftest import World


def moves(world: World) -> list[tuple[str, str, str | None]]:
    return [(e.action, e.model_version, e.replaced_version) for e in Ledger(world.store, "tiny").entries()]


@pytest.fixture
def three(after_three: World) -> World:
    """Champions 1, 2 and 3, one after the other; 4 was rejected. Ledger entries 1 to 4."""
    return after_three


def test_back_to_the_one_before_and_to_the_one_before_that(three: World) -> None:
    back = three.roll_back(reason="it is slow\n")
    assert "tiny version 2 is the champion again, in place of version 3: it is slow (ledger entry 5)" in back.summary
    assert three.aliases() == {"champion": "2", "previous": "1"}, (
        "and 3, which is rolled away, is not where a next one leads"
    )
    assert "/models/tiny/versions/2" in back.links["Model"]
    three.roll_back()
    assert three.aliases() == {"champion": "1"}
    assert moves(three)[4:] == [("ROLLED_BACK", "2", "3"), ("ROLLED_BACK", "1", "2")]
    with pytest.raises(UserError, match="no champion before version 1") as error:
        three.roll_back()
    assert "--to 3" in error.value.next_step or "--to 2" in error.value.next_step
    entry = Ledger(three.store, "tiny").entries()[4]
    assert (entry.user, entry.reasons, entry.verdict, entry.dataset) == (
        "tester",
        ["it is slow"],
        Verdict.REJECT,
        "tiny@v3",
    )


def test_forward_again_and_back(three: World) -> None:
    three.roll_back()
    three.roll_back(to="3", reason="it was the network")
    assert three.aliases() == {"champion": "3", "previous": "2"}
    three.roll_back(to="1")
    assert three.aliases() == {"champion": "1"}


def test_the_encoder_goes_back_with_its_model(world: World) -> None:
    world.champion("a", 150)
    world.register_encoder("e2", dataset=2, seed=1)
    inputs = world.register("b", 180, dataset=2)
    inputs["registered_encoder"] = world.register_encoder("e2", dataset=2).outputs["registered_encoder"]
    world.client.set_model_version_tag("tiny", "2", "ssl.encoder_version", "2")
    world.promote(world.gate(inputs)[1])
    assert world.aliases("tiny-encoder") == {"champion": "2", "previous": "1"}
    world.roll_back()
    assert world.aliases("tiny-encoder") == {"champion": "1"}


def test_what_was_rolled_away_does_not_come_back_by_itself(world: World) -> None:
    world.champion("a", 150)
    inputs = world.register("b", 180, dataset=2)
    world.promote(world.gate(inputs)[1])
    world.roll_back(reason="it is unfair to ants")
    report, given = world.gate(inputs)
    assert report.verdict is Verdict.REJECT
    assert "ROLLED_BACK" in report.reasons[0]
    world.promote(given)
    assert world.aliases()["champion"] == "1"
    assert world.client.get_model_version("tiny", "2").tags["ssl.action"] == "ROLLED_BACK"
    assert world.champion("c", 185, dataset=3) == "3", "new data open a new decision"


@pytest.mark.parametrize(
    ("prepare", "to", "why"),
    [
        (lambda w: None, "3", "version 3 is the champion already"),
        (lambda w: None, "4", "version 4 never was the champion"),
        (lambda w: None, "99", "version 99 never was the champion"),
        (lambda w: None, "latest", "version latest never was the champion"),
        (lambda w: w.client.delete_model_version("tiny", "2"), "2", "version 2 is not in the registry any more"),
        (lambda w: w.client.delete_model_version("tiny", "2"), "", "version 2 is not in the registry any more"),
        (lambda w: w.store.remove("tiny/finetune/c2"), "2", "the weights of version 2 are not in the store any more"),
    ],
    ids=["already", "never", "unknown", "no number", "deleted", "deleted, by default", "no weights"],
)
def test_what_cannot_be_gone_back_to_is_refused_and_nothing_moves(
    three: World, prepare: Callable[[World], Any], to: str, why: str
) -> None:
    prepare(three)
    before = three.aliases()
    with pytest.raises(UserError, match=why) as error:
        three.roll_back(to=to)
    assert "ssl-core" in error.value.next_step
    assert three.aliases() == before
    assert len(moves(three)) == 4


def test_a_project_without_champions(world: World) -> None:
    with pytest.raises(UserError, match="has no champion, and never had one"):
        world.roll_back()


def test_one_that_does_not_answer_as_it_did_is_not_gone_back_to(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "replay_golden", lambda uri, golden: 0.5 if uri == "models:/tiny/2" else 0.0)
    with pytest.raises(CheckFailed, match="does not answer as the trained network did"):
        three.roll_back()
    assert three.aliases() == {"champion": "3", "previous": "2"}
    assert len(moves(three)) == 4
    three.roll_back(to="1")
    assert three.aliases() == {"champion": "1"}


def test_one_that_fails_by_its_alias_is_taken_back(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(versions, "replay_golden", lambda uri, golden: 0.5 if uri.endswith("@champion") else 0.0)
        with pytest.raises(CheckFailed, match="version 3 is the champion again"):
            three.roll_back()
    assert three.aliases() == {"champion": "3", "previous": "2"}
    assert moves(three)[4:] == [("ROLLED_BACK", "2", "3"), ("ROLLED_BACK", "3", "2")]
    three.roll_back()
    assert three.aliases() == {"champion": "2", "previous": "1"}, "asked again, it goes"


@pytest.mark.parametrize("writes", range(5))
def test_cut_off_between_the_aliases_the_second_try_ends_it(
    three: World, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    real, done = versions.set_alias, []

    def dying(*arguments: Any) -> bool:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)

    three.roll_back()  # so that there is something to write in each place: 2, then 1
    done.clear()
    with monkeypatch.context() as patch:
        patch.setattr(versions, "set_alias", dying)
        try:
            three.roll_back()
        except KeyboardInterrupt:
            three.runs -= 1  # the same run tries again
            patch.undo()
            three.roll_back()
    assert three.aliases() == {"champion": "1"}
    assert moves(three)[4:] == [("ROLLED_BACK", "2", "3"), ("ROLLED_BACK", "1", "2")]


def test_a_champion_gone_back_to_that_could_not_be_asked_is_asked_by_the_next_call(
    three: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(uri: str, golden: Path) -> float:
        asked.append(uri)
        if uri.endswith("@champion") and len(asked) == 2:
            raise TryAgain("the disk is full")
        return 0.0

    monkeypatch.setattr(versions, "replay_golden", away)
    with pytest.raises(TryAgain, match="version 2 is the champion, but was not asked by its alias yet"):
        three.roll_back()
    assert three.aliases()["champion"] == "2"
    inputs = three.register("d", 190, dataset=5)
    promoted = three.promote(three.gate(inputs)[1])
    assert "tiny version 2, gone back to in ledger entry 5, now answered by its alias" in promoted.summary
    assert three.aliases() == {"champion": "5", "previous": "2"}


def test_two_at_once_go_back_once(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen version 3 as the champion; the second must not go one too far."""

    def meanwhile(uri: str, golden: Path) -> float:
        if uri == "models:/tiny/2":
            monkeypatch.setattr(versions, "replay_golden", lambda uri, golden: 0.0)
            three.roll_back(reason="the other")
        return 0.0

    monkeypatch.setattr(versions, "replay_golden", meanwhile)
    with pytest.raises(UserError, match="the champion has changed meanwhile: it is version 2, not 3"):
        three.roll_back()
    assert moves(three)[4:] == [("ROLLED_BACK", "2", "3")]


def test_a_champion_from_before_the_ledger_can_be_gone_back_to(world: World) -> None:
    world.register("a", 150)
    world.client.set_registered_model_alias("tiny", "champion", "1")
    world.client.delete_registered_model_alias("tiny", "challenger")
    world.champion("b", 170, dataset=2)
    world.roll_back()
    assert world.aliases()["champion"] == "1"
    assert world.aliases("tiny-encoder")["champion"] == "1"


def test_the_command(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_core.cli.rollback import rollback as command

    monkeypatch.setenv("SSL_HOME", str(three.settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", three.settings.mlflow_tracking_uri)
    for arguments in (["tiny", "--to", "3"], ["../tiny"], ["projects/tiny.yaml"]):
        assert isinstance(CliRunner().invoke(command, arguments).exception, UserError)
    done = CliRunner().invoke(command, ["tiny", "--reason", "it is slow"])
    assert done.exit_code == 0, done.output
    assert "tiny version 2 is the champion again, in place of version 3: it is slow" in done.output
    assert three.aliases()["champion"] == "2"
    assert rollback.former_champions(Ledger(three.store, "tiny").entries()) == ["1", "3", "2"]
    run = Ledger(three.store, "tiny").entries()[-1].run
    assert run.run_id != RunContext(run_id="x").run_id
