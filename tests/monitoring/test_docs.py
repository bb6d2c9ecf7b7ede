"""What docs/monitoring.md says is so: keys, columns, numbers, and the code that it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ssl_core.config.monitor import MonitorConfig
from ssl_core.monitoring import columns, document, evidence, prediction_log, report, triage
from ssl_core.serving import prediction_log as writer
from tests.monitoring.test_report import full

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "monitoring.md").read_text(encoding="utf-8")
PLAIN = re.sub(r"\s+", " ", TEXT)


def test_the_section_shown_is_valid_and_names_keys_that_are_there() -> None:
    block = re.search(r"```yaml\n(monitor:.*?)```", TEXT, re.DOTALL)
    assert block is not None
    assert MonitorConfig.model_validate(yaml.safe_load(block[1])["monitor"]).predictions
    for key in re.findall(r"`monitor\.(\w+)`", TEXT):
        assert key in MonitorConfig.model_fields


def test_every_column_of_a_prediction_log_is_told() -> None:
    for name in writer.schema().names:
        assert f"| `{name}` |" in TEXT
    assert writer.VARIABLE in TEXT


def test_every_finding_and_action_is_told() -> None:
    for kind in get_args(document.Kind):
        assert f"**{report.TITLES[kind].lower()}**" in TEXT
    for action in set(get_args(document.Action)) - {"none"}:
        assert f"`{action}`" in TEXT


@pytest.mark.parametrize(
    "said",
    [
        f"at least {triage.MOST_QUARANTINED:.0%} of the window's files",
        f"at least {triage.BEYOND:.0%} of the window is farther",
        f"at least {triage.FARTHER:g} times as far",
        f"at least {triage.SERVES:.0%} of what they reach",
        f"at least {triage.SURE_ENOUGH:.0%} of its confidence",
        f"at least {triage.FEWEST_LABELS} labels",
        f"p above {triage.SURE:g}",
        f"PSI is at least {triage.CHANGED:g} and p at most {triage.SURE:g}",
        f"PSI is at least {columns.CHANGED:g} and q at most {columns.LEVEL:g}",
        f"the {evidence.NEIGHBOURS} nearest neighbours",
        f"the newest {prediction_log.MOST_ROWS:,}",
        f"every {writer.SECONDS:g} seconds or {writer.ROWS:,} answers",
        f"up to {writer.MOST_HELD:,} rows",
        f"more than {document.BYTES_LIMIT // 1024} KB",
    ],
)
def test_numbers_are_those_of_the_code(said: str) -> None:
    assert said in PLAIN


def test_the_code_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    report.write(full(), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block.replace("s3://bucket/digits-log", "no-such-folder"), "docs/monitoring.md", "exec"), {})  # fmt: skip
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == report.render(full())


def test_the_picture_is_there_and_small() -> None:
    assert (DOCS / "images" / "drift-report.png").stat().st_size < 200_000
