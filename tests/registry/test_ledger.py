"""The ledger under concurrent writers and under tampering."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ssl_core.config.settings import Settings
from ssl_core.contracts import LedgerEntry, RunContext, Verdict
from ssl_core.errors import CheckFailed
from ssl_core.registry.ledger import Ledger, Standing, standing, terminal
from ssl_core.store import Store


def fields(action: str = "PROMOTED", version: str = "1", **changes: Any) -> dict[str, Any]:
    return {
        "action": action, "model_version": version, "encoder_version": "1", "dataset": "tiny@v1", "recipe": "r", "verdict": Verdict.PROMOTE,
        "reasons": ["because"], "report_digest": "d" * 64, "user": "tester", "run": RunContext(run_id="x"), **changes,
    }  # fmt: skip


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    return Ledger(Store(settings.store_url, settings.cache), "tiny")


def path(ledger: Ledger, seq: int) -> Path:
    return Path(ledger._store.path(f"ledger/tiny/{seq:08d}.json"))


def test_entries_come_back_in_order(ledger: Ledger) -> None:
    assert ledger.entries() == []
    made = [ledger.append(lambda entries, n=n: fields(version=str(n))) for n in range(12)]
    assert ledger.entries() == made
    assert [e.seq for e in ledger.entries()] == list(range(1, 13))
    assert ledger.entries()[0].previous == ""
    assert len({e.previous for e in ledger.entries()}) == 12


def test_nothing_is_appended_when_there_is_nothing_to_do(ledger: Ledger) -> None:
    assert ledger.append(lambda entries: None) is None
    assert ledger.entries() == []


@pytest.mark.parametrize(
    ("fault", "seq"),
    [
        (lambda p: p(1).write_text(p(1).read_text().replace("tester", "mallory")), 1),
        (lambda p: p(2).write_text(p(2).read_text() + " "), 2),
        (lambda p: p(2).unlink(), 2),
        (lambda p: p(2).write_text("{}"), 2),
        (lambda p: p(3).write_text(json.dumps(json.loads(p(3).read_text()) | {"seq": 4})), 3),
        (lambda p: p(1).write_text(json.dumps(json.loads(p(1).read_text()) | {"previous": "0" * 64})), 1),
    ],
    ids=["changed", "a blank added", "removed", "emptied", "renumbered", "first with a past"],
)
def test_tampering_is_found_and_named(
    ledger: Ledger, fault: Callable[[Callable[[int], Path]], object], seq: int
) -> None:
    for n in range(3):
        ledger.append(lambda entries, n=n: fields(version=str(n)))
    fault(lambda number: path(ledger, number))
    with pytest.raises(CheckFailed, match=f"broken at entry {seq}"):
        ledger.entries()
    with pytest.raises(CheckFailed):
        ledger.append(lambda entries: fields())


def test_threads_append_in_one_chain(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: ledger.append(lambda entries: fields(version=str(n))), range(24)))
    assert sorted(e.seq for e in made if e) == list(range(1, 25))
    assert {e.model_version for e in ledger.entries()} == {str(n) for n in range(24)}


def test_processes_append_in_one_chain(ledger: Ledger, tmp_path: Path) -> None:
    script = tmp_path / "append.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from ssl_core.contracts import RunContext, Verdict\n"
        "from ssl_core.registry.ledger import Ledger\n"
        "from ssl_core.store import Store\n"
        "ledger = Ledger(Store(sys.argv[1], Path(sys.argv[2])), 'tiny')\n"
        "for n in range(5):\n"
        "    ledger.append(lambda entries: dict(action='REJECTED', model_version=sys.argv[3], encoder_version='1', dataset='d', recipe='r',\n"
        "        verdict=Verdict.REJECT, reasons=['x'], report_digest='d', user='u', run=RunContext(run_id='r')))\n"
    )
    command = [sys.executable, str(script), ledger._store.url, str(tmp_path / "cache")]
    workers = [subprocess.Popen([*command, str(n)]) for n in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    entries = ledger.entries()
    assert [e.seq for e in entries] == list(range(1, 16))
    assert {n: sum(e.model_version == n for e in entries) for n in "012"} == {"0": 5, "1": 5, "2": 5}


def test_a_lost_race_decides_again(ledger: Ledger) -> None:
    """A decision is made on what is there when it is written, never on what was there before."""
    seen: list[int] = []

    def once(entries: list[LedgerEntry]) -> dict[str, Any] | None:
        seen.append(len(entries))
        if len(seen) == 1:  # somebody else is faster, between our look and our write
            ledger.append(lambda _: fields(version="other"))
        return None if any(e.model_version == "other" for e in entries) else fields(version="mine")

    assert ledger.append(once) is None
    assert seen == [0, 1]
    assert [e.model_version for e in ledger.entries()] == ["other"]


def test_terminal_is_the_last_word_on_data_and_recipe(ledger: Ledger) -> None:
    ledger.append(lambda e: fields("REJECTED", "1"))
    ledger.append(lambda e: fields("PROMOTED", "2", dataset="tiny@v2"))
    assert terminal(ledger.entries(), "tiny@v1", "r").seq == 1
    assert ledger.terminal("tiny@v1", "other") is None
    assert ledger.terminal("tiny@v3", "r") is None


def test_standing_follows_promotions_and_roll_backs(ledger: Ledger) -> None:
    steps = [
        (fields("PROMOTED", "1"), Standing("1", None, "1", None)),
        (fields("REJECTED", "2"), Standing("1", None, "1", None)),
        (fields("PROMOTED", "3", encoder_version="2"), Standing("3", "1", "2", "1")),
        (fields("PROMOTED", "4", encoder_version="2"), Standing("4", "3", "2", "1")),
        (fields("ROLLED_BACK", "3", encoder_version="2", replaced_version="4"), Standing("3", "1", "2", "1")),
        (fields("DECLINED", "5"), Standing("3", "1", "2", "1")),
        (fields("ROLLED_BACK", "1", encoder_version="1"), Standing("1", None, "1", None)),
        (fields("ROLLED_BACK", "", encoder_version=""), Standing()),
    ]
    for content, expected in steps:
        ledger.append(lambda entries, content=content: content)
        assert standing(ledger.entries()) == expected
