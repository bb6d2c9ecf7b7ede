"""``ssl-core history``: the ledger for people and for programs, and what it says where the chain does not hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ssl_core.cli.history import history
from ssl_core.config.settings import Settings
from ssl_core.contracts import LedgerEntry, RunContext, Verdict
from ssl_core.errors import CheckFailed, UserError
from ssl_core.registry.ledger import Ledger
from ssl_core.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SSL_HOME", str(tmp_path / "home"))
    settings = Settings()
    return Store(settings.store_url, settings.cache)


def write(store: Store, action: str, version: str, **changes: Any) -> None:
    fields = {
        "action": action, "model_version": version, "encoder_version": "1", "dataset": "tiny@v1", "recipe": "r", "verdict": Verdict.PROMOTE,
        "reasons": ["because it is better"], "report_digest": "d" * 64, "user": "ada", "run": RunContext(run_id="x"), **changes,
    }  # fmt: skip
    Ledger(store, "tiny").append(lambda entries: fields)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(history, arguments)


def test_a_row_for_each_entry(store: Store) -> None:
    write(store, "PROMOTED", "1")
    write(
        store,
        "DECLINED",
        "2",
        verdict=Verdict.NEEDS_HUMAN,
        reasons=["bob: unfair [red]to[/red] ants\x1b[2J\nand"],
        user="bob",
    )
    write(store, "ROLLED_BACK", "", replaced_version="1", verdict=Verdict.REJECT, report_digest="")
    done = call("tiny")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0].split() == [
        "#",
        "when",
        "(UTC)",
        "action",
        "version",
        "replaced",
        "dataset",
        "verdict",
        "who",
        "why",
        "report",
    ]
    assert len(lines) == 5
    for word in ("1", "PROMOTED", "tiny@v1", "PROMOTE", "ada", "because it is better", "d" * 12):
        assert word in lines[1]
    assert "d" * 13 not in done.output
    assert "bob: unfair [red]to[/red] ants [2J and" in lines[2], "what somebody wrote is neither markup nor control"
    assert "\x1b" not in done.output
    assert lines[3].split()[3:6] == ["ROLLED_BACK", "none", "1"]
    assert lines[4] == "3 entries, the chain holds"


def test_the_whole_of_it_as_json(store: Store) -> None:
    write(store, "PROMOTED", "1")
    write(store, "REJECTED", "2")
    documents = json.loads(call("tiny", "--json").output)
    assert [d["sha256"] for d in documents] == [
        hashlib.sha256(store.read(f"ledger/tiny/0000000{n}.json") or b"").hexdigest() for n in (1, 2)
    ]
    assert documents[1]["previous"] == documents[0]["sha256"]
    for document in documents:
        del document["sha256"]
    assert [LedgerEntry.model_validate(d) for d in documents] == Ledger(store, "tiny").entries()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_changed_ledger_is_shown_up_to_there_and_refused(store: Store, as_json: bool) -> None:
    for version in "123":
        write(store, "PROMOTED", version)
    path = Path(store.path("ledger/tiny/00000002.json"))
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"ada"', '"mallory"'))
    done = call("tiny", *(["--json"] if as_json else []))
    assert isinstance(done.exception, CheckFailed)
    assert "broken at entry 2" in str(done.exception)
    assert "chain holds" not in done.output
    assert done.output.count("PROMOTED") == 2


def test_nothing_yet(store: Store) -> None:
    write(store, "PROMOTED", "1")
    done = call("tinny")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "nothing was decided yet, did you mean `tiny`?" in done.stderr
    assert json.loads(call("other", "--json").stdout) == []


@pytest.mark.parametrize("name", ["../tiny", "projects/tiny.yaml", "Tiny", ""])
def test_what_is_no_project_name(store: Store, name: str) -> None:
    assert isinstance(call(name).exception, UserError)
