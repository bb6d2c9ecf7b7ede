"""The step: what it writes, logs and raises."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import RESULT_BYTES_LIMIT, SUMMARY_BYTES_LIMIT, DatasetRef
from ssl_core.data import reader
from ssl_core.data.dataset import DatasetInfo, SplitCounts, write_dataset
from ssl_core.data.splits import SIDES
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.step import NoTracker, Output, StepContext, StepOutput
from ssl_core.validation import validate
from ssl_core.validation.report import printable

WIDE = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "width", "min_value": 1000}}


class LinkingTracker(NoTracker):
    def artifact(self, path: Path, folder: str = "") -> str:
        super().artifact(path, folder)
        return f"http://tracking/{path.name}"


@pytest.fixture
def step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manifest: pd.DataFrame, make_candidate: Callable[..., DatasetRef],
    make_project: Callable[..., ProjectConfig], make_context: Callable[..., StepContext],
) -> Callable[..., StepContext]:  # fmt: skip
    """``step(frame, validation={...})``: the context of a validate step whose candidate is ``frame``."""

    def make(
        frame: pd.DataFrame = manifest, *, said: int = 200, tracker: NoTracker | None = None, **sections: Any
    ) -> StepContext:
        info = DatasetInfo(
            name="pets", rows=said, labelled=60, classes=["cat", "dog"], quarantined=1, duplicates=2, near_duplicate_groups=0, files={},
            modality="image", summary={"median_width": 30, "median_height": 30, "has_colour": True},
            counts={side: SplitCounts(rows=int((frame["split"] == side).sum()), labelled=0, classes={}) for side in SIDES},
        )  # fmt: skip
        (tmp_path / "dataset.json").write_text(info.model_dump_json())
        monkeypatch.setattr(reader, "read_manifest", lambda ref, settings: frame)
        monkeypatch.setattr(reader, "fetch_file", lambda ref, settings, name: tmp_path / name)
        return make_context(
            make_project(**sections),
            step="validate",
            inputs={"candidate": make_candidate()},
            tracker=tracker or NoTracker(),
        )

    return make


def page(ctx: StepContext) -> str:
    return (ctx.out / "validation" / "report.html").read_text(encoding="utf-8")


def test_sound_data_passes_and_leaves_a_report(step: Callable[..., StepContext]) -> None:
    ctx = step(tracker=LinkingTracker())
    output = validate.run(ctx)
    assert output.outputs == {"validation": Output("validation", "validation")}
    assert output.metrics == {"evaluated": 10, "failed": 0, "warnings": 0}
    assert output.links == {"Validation report": "http://tracking/report.html"}
    assert "All 10 checks passed" in output.summary
    assert "200 samples (60 labelled)" in output.summary
    found = json.loads((ctx.out / "validation" / "validation.json").read_text())
    assert found["passed"] is True
    assert found["dataset"]["rows"] == 200
    assert len(found["checks"]) == 10
    assert isinstance(ctx.tracker, NoTracker)
    assert set(ctx.tracker.logged_artifacts) == {"validation/report.html", "validation/validation.json"}
    assert "✓ Passed" in page(ctx)


def test_a_real_dataset_is_read_from_the_remote_by_its_address(
    tmp_path: Path, manifest: pd.DataFrame, make_candidate: Callable[..., DatasetRef],
    make_project: Callable[..., ProjectConfig], make_context: Callable[..., StepContext],
) -> None:  # fmt: skip
    folder, objects = tmp_path / "dataset", tmp_path / "remote" / "files" / "md5"

    def put(data: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(data).hexdigest() + suffix
        (objects / md5[:2]).mkdir(parents=True, exist_ok=True)
        (objects / md5[:2] / md5[2:]).write_bytes(data)
        return md5

    write_dataset(folder, manifest, lambda row: b"image", name="pets", modality="image", classes=["cat", "dog"])
    listing = [{"md5": put(path.read_bytes()), "relpath": path.name} for path in sorted(folder.iterdir())]
    candidate = make_candidate(remote=str(tmp_path / "remote"), md5=put(json.dumps(listing).encode(), ".dir"))
    ctx = make_context(make_project(), step="validate", inputs={"candidate": candidate})
    assert validate.run(ctx).metrics == {"evaluated": 10, "failed": 0, "warnings": 0}
    assert '<th scope="row"><bdi>cat</bdi></th>' in page(ctx)


def test_a_critical_failure_ends_with_a_report_that_is_named(step: Callable[..., StepContext]) -> None:
    ctx = step(validation={"expectations": [WIDE]})
    with pytest.raises(CheckFailed) as caught:
        validate.run(ctx)
    error = caught.value
    assert error.exit_code == 3
    assert "width values to be between: 200 of 200 values unexpected" in error.cause
    assert "report.html" in error.next_step
    assert isinstance(error.output, StepOutput)
    assert error.output.outputs == {"validation": Output("validation", "validation")}
    assert error.output.metrics["failed"] == 1
    assert "1 of 11 checks failed" in error.output.summary
    assert "✗ Failed" in page(ctx)
    assert "pets/0.png" in page(ctx)


def test_warnings_are_shown_and_stop_nothing(step: Callable[..., StepContext]) -> None:
    ctx = step(validation={"expectations": [WIDE | {"severity": "warning", "meta": {"why": "only a hint"}}]})
    output = validate.run(ctx)
    assert output.metrics["warnings"] == 1
    assert "- warning:" in output.summary
    assert "Passed, with warnings" in page(ctx)
    assert "only a hint" in page(ctx)


def test_a_manifest_that_lost_rows_does_not_pass(step: Callable[..., StepContext]) -> None:
    with pytest.raises(CheckFailed, match=r"dataset\.json says 5,000 rows"):
        validate.run(step(said=5000))


@pytest.mark.parametrize("frame", [pd.DataFrame(), pd.DataFrame({"sample_id": ["a"] * 80, "split": ["train"] * 80})])
def test_a_manifest_without_rows_or_columns_fails_readably(
    step: Callable[..., StepContext], manifest: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame
) -> None:
    ctx = step(manifest)
    monkeypatch.setattr(reader, "read_manifest", lambda ref, settings: frame)
    with pytest.raises(CheckFailed):
        validate.run(ctx)
    assert "there is no column" in page(ctx)


def test_a_signal_inside_of_an_expectation_is_not_a_failed_check(step: Callable[..., StepContext]) -> None:
    ctx = step(validation={"expectations": [WIDE]})
    ctx.stop.set()
    with pytest.raises(TryAgain):
        validate.run(ctx)


HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "{{ 7*7 }}{% for %}", "' onmouseover='alert(1)",
    "`code` **bold** [x](javascript:alert(1))", "\u202egnp.exe", "a\x00b\x1b[31m\r\nc", "x" * 1_000_000, "日本語 ✓",
]  # fmt: skip


def test_hostile_strings_stay_text(step: Callable[..., StepContext], manifest: pd.DataFrame) -> None:
    manifest["label"] = [HOSTILE[i % len(HOSTILE)] if i < 60 else None for i in range(len(manifest))]
    assert printable("lone \udce4 surrogate") == "lone \\udce4 surrogate"
    manifest["source"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(manifest))]
    manifest["<b>column"] = "<i>value"
    mean = {
        "type": "expect_column_values_to_be_in_set", "kwargs": {"column": "source", "value_set": ["<u>set"]},
        "meta": {"<em>why": "<script>meta</script>"},
    }  # fmt: skip
    ctx = step(manifest, validation={"expectations": [mean]})
    with pytest.raises(CheckFailed) as caught:
        validate.run(ctx)
    html = page(ctx)
    for inert in ("<script", "<img", "<b>column", "<i>value", "<u>set", "<em>why"):
        assert inert not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7*7 }}" in html
    assert "日本語 ✓" in html
    assert not set(html) & {"\u202e", "\x00", "\x1b", "\r"}
    assert "\\u202egnp.exe" in html
    assert "(1,000,000 characters)" in html
    assert len(html) < 200_000
    summary = caught.value.output.summary
    assert len(summary.encode()) < SUMMARY_BYTES_LIMIT
    assert "\x1b" not in str(caught.value)
    json.loads((ctx.out / "validation" / "validation.json").read_text(encoding="utf-8"))


def test_the_page_loads_nothing_from_anywhere(step: Callable[..., StepContext]) -> None:
    ctx = step()
    validate.run(ctx)
    html = page(ctx)
    for reference in ("http://", "https://", "src=", "href=", "url(", "@import", "<script", "<link"):
        assert reference not in html


def test_many_failures_fit_into_a_result(step: Callable[..., StepContext]) -> None:
    ctx = step(validation={"expectations": [WIDE] * 40})
    with pytest.raises(CheckFailed) as caught:
        validate.run(ctx)
    assert "and 35 more" in caught.value.output.summary
    assert len(caught.value.output.summary.encode()) < SUMMARY_BYTES_LIMIT < RESULT_BYTES_LIMIT


def test_the_same_data_gives_the_same_files(step: Callable[..., StepContext]) -> None:
    pages = []
    for _ in range(2):
        ctx = step()
        validate.run(ctx)
        folder = ctx.out / "validation"
        pages.append([path.read_bytes() for path in sorted(folder.iterdir())])
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert pages[0] == pages[1]


def test_the_date_is_part_of_the_key_only_where_freshness_is_judged(make_project: Callable[..., ProjectConfig]) -> None:
    assert validate.fingerprint(make_project()) == ""
    assert validate.fingerprint(make_project(validation={"max_age_days": 3})) == f"{datetime.now(UTC):%Y-%m-%d}"


def test_looking_at_the_step_does_not_import_great_expectations() -> None:
    heavy = ("great_expectations", "pandas", "torch", "mlflow")
    code = f"import sys, ssl_core.validation.validate; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_label_budget_below_the_classes_is_refused_before_anything_is_trained(make_project):
    validate.require_budgets_that_fit(make_project(), classes=200)
    validate.require_budgets_that_fit(make_project(evaluate={"label_budgets": [5, 10]}), classes=0)
    with pytest.raises(UserError, match=r"evaluate.label_budgets: 5 labels cannot hold one of each of 10 classes"):
        validate.require_budgets_that_fit(make_project(evaluate={"label_budgets": [5, 20]}), classes=10)
    with pytest.raises(UserError, match=r"task.labels: 7 labels"):
        validate.require_budgets_that_fit(make_project(task={"labels": 7}), classes=10)
