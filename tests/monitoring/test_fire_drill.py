"""The drill itself: it passes where the guards are whole, names the one that is broken, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ssl_core.contracts import Verdict
from ssl_core.errors import CheckFailed
from ssl_core.monitoring import fire_drill
from ssl_core.monitoring.calibrate import Thresholds
from ssl_core.registry import checks, gate
from ssl_core.registry.client import connect
from ssl_core.registry.judge import Decision
from ssl_core.registry.ledger import Ledger
from tests.monitoring.world import World


def test_whole_guards_catch_everything_and_nothing_stays_behind(world: World) -> None:
    before = connect(world.settings).get_model_version_by_alias("tiny", "champion").version
    ctx = world.context()
    made = fire_drill.run(ctx)
    report = (ctx.out / "drill.md").read_text()
    assert made.metrics == {"planted": 7.0, "missed": 0.0}, report
    assert made.alert == ""
    assert report.count("| ok |") == 7
    client = connect(world.settings)
    assert [m.name for m in client.search_registered_models() if "drill" in m.name] == []
    assert client.get_model_version_by_alias("tiny", "champion").version == before
    for folder in ("", "ledger", "monitor"):
        assert not [name for name in world.store.names(folder) if "drill" in name]
    assert Ledger(world.store, "tiny").entries() == []


@pytest.mark.parametrize(
    ("broken", "missed"),
    [
        ("quality", "a challenger whose answers are shuffled"),
        ("copies", "a copy of the champion"),
        ("age", "a stale challenger"),
        ("everything is refused", "a better challenger"),
        ("the chain", "a changed entry in the ledger"),
        ("no alarm", "2 windows from one corner of the known world"),
        ("always alarm", "windows like the reference"),
    ],
)
def test_a_broken_guard_is_named(world: World, monkeypatch: pytest.MonkeyPatch, broken: str, missed: str) -> None:
    def blind(*_: object, **__: object) -> Decision:
        return Decision(Verdict.PROMOTE, ["blind"])

    def strict(*_: object, **__: object) -> Decision:
        return Decision(Verdict.REJECT, ["strict"])

    if broken == "quality":
        monkeypatch.setattr(gate, "judge", blind)
    elif broken == "copies":
        monkeypatch.setattr(checks, "copy_of_champion", lambda *_: [])
    elif broken == "age":
        monkeypatch.setattr(checks, "stale", lambda *_: [])
    elif broken == "everything is refused":
        monkeypatch.setattr(gate, "judge", strict)
    elif broken == "the chain":
        monkeypatch.setattr("ssl_core.registry.ledger.entry_digest", lambda raw: "the same for all")
    else:
        low = broken == "always alarm"  # thresholds that everything exceeds, or nothing
        monkeypatch.setattr(Thresholds, "score", lambda *_: 3.0 if low else 0.5)
    ctx = world.context()
    with pytest.raises(CheckFailed, match="MISSED") as failed:
        fire_drill.run(ctx)
    assert missed in str(failed.value)
    assert failed.value.output.alert.startswith("fire-drill: ")
    assert "MISSED" in (ctx.out / "drill.md").read_text()
    assert [m.name for m in connect(world.settings).search_registered_models() if "drill" in m.name] == []


def test_without_a_champion_there_is_nothing_to_drill(bare: World) -> None:
    made = fire_drill.run(bare.context())
    assert (made.summary, made.news) == ("no drill: there is no champion yet", False)


def test_spoiled_answers_differ_on_the_share_that_was_asked_for(world: World) -> None:
    from ssl_core.registry.answers import answers

    ctx = world.context()
    good = answers(ctx, "1")
    bad = fire_drill.spoil(good, 0.5, np.random.default_rng(0))
    changed = (good.scores != bad.scores).any(axis=1).mean()
    assert 0.4 < changed <= 0.51
    assert bad.quality.mean() < good.quality.mean() - 0.2
    assert replace(bad, scores=good.scores).sample_ids == good.sample_ids
