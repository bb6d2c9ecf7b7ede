"""How `ssl-core demo` ends: the table, what became of the model, the links, and the exit code that says so."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from ssl_core.cli import demo
from ssl_core.config.settings import Settings
from ssl_core.contracts import ModelRef, StepResult, StepStatus
from ssl_core.errors import CheckFailed
from ssl_core.services.follow import Run, Task

MODEL = ModelRef(
    kind="registered-model", name="tiny", version="3", model_id="m-1", run_id="r", uri="u", sha256="0", producer="p/k"
)


def finetune_run(said: str, state: str = "success") -> Run:
    run = Run("tiny.finetune", "r", "woken", "http://here/run", state="success")
    for name in ("resolve", "finetune", "evaluate", "register", "gate", "promote"):
        outputs = {"registered_model": MODEL} if name == "register" else {}
        summary = said if name == "promote" else ""
        result = StepResult(step=name, key="k", status=StepStatus.DONE, outputs=outputs, summary=summary)
        run.tasks[name] = Task(name, state, 1, 1.0, None if state == "skipped" else result)
    return run


@pytest.fixture
def shown(monkeypatch) -> StringIO:
    asked = []

    def find(settings, name, version):
        asked.append((name, version))
        return SimpleNamespace(folder="f")

    monkeypatch.setattr("ssl_core.registry.evaluations.find_evaluation", find)
    monkeypatch.setattr("ssl_core.evaluation.report.read_evaluation", lambda folder: folder)
    monkeypatch.setattr("ssl_core.evaluation.report.render", lambda evaluation: f"THE TABLE of {asked[-1]}")
    return StringIO()


def conclude(run: Run, out: StringIO) -> None:
    demo._conclude(Settings(), "tiny", [run], {"Airflow": "http://here"}, Console(file=out, width=200, highlight=False))


def test_with_a_champion_it_ends_with_the_table_and_the_links(shown, monkeypatch):
    monkeypatch.setattr(demo, "has_champion", lambda settings, name: True)
    conclude(finetune_run("tiny version 3 is the champion (ledger entry 1)"), shown)
    text = shown.getvalue()
    assert "THE TABLE of ('tiny', '3')" in text
    assert text.index("THE TABLE") < text.index("is the champion") < text.index("http://here")


def test_without_a_champion_all_of_it_is_shown_and_the_exit_code_is_3(shown, monkeypatch):
    monkeypatch.setattr(demo, "has_champion", lambda settings, name: False)
    said = "tiny version 3 waits for a person: too few samples\n  promote it: ssl-core promote tiny --approve abc"
    with pytest.raises(CheckFailed, match="has no champion: tiny version 3 waits") as error:
        conclude(finetune_run(said), shown)
    assert error.value.exit_code == 3
    for words in ("THE TABLE", "--approve abc", "http://here"):
        assert words in shown.getvalue()


def test_without_labels_there_is_an_encoder_and_no_complaint(shown):
    conclude(finetune_run("", state="skipped"), shown)
    assert "no labels yet" in shown.getvalue()
    assert "THE TABLE" not in shown.getvalue()
