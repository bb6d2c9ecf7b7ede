"""The suite that docs/validation.md shows is one that works."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import yaml

from ssl_core.config.project import ValidationConfig
from ssl_core.validation.floors import columns
from ssl_core.validation.suite import validate

TEXT = (Path(__file__).parents[2] / "docs" / "validation.md").read_text(encoding="utf-8")


def test_the_suite_in_the_docs_is_judged(manifest: pd.DataFrame) -> None:
    block = re.search(r"```yaml\n(validation:.*?)```", TEXT, re.DOTALL)
    assert block is not None
    config = ValidationConfig.model_validate(yaml.safe_load(block[1])["validation"])
    report = validate(manifest, config, now=datetime(2026, 1, 12, tzinfo=UTC))
    suite = [check for check in report.checks if check.origin == "suite"]
    assert len(suite) == 5
    assert all(check.evaluated for check in suite)
    assert [check.title for check in suite if not check.passed] == [
        "width values to be between"
    ]  # these images are smaller
    assert {check.name for check in report.failed} == {"rows", "expect_column_values_to_be_between"}


def test_every_floor_and_column_is_documented(manifest: pd.DataFrame) -> None:
    report = validate(manifest, ValidationConfig(max_age_days=1))
    for check in report.checks:
        assert f"`{check.name}`" in TEXT
    for column in {**columns("image"), **columns("text")}:
        assert f"`{column}`" in TEXT
