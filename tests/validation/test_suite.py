"""Every floor fails on planted data; nothing that could not be judged passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ssl_core.config.project import ValidationConfig
from ssl_core.errors import UserError
from ssl_core.validation.floors import Counts
from ssl_core.validation.report import CheckResult, ValidationReport
from ssl_core.validation.suite import validate

NOW = datetime(2026, 1, 12, tzinfo=UTC)
COUNTS = Counts(200, 60, ("cat", "dog"))


def judge(
    frame: pd.DataFrame, *expectations: dict[str, Any], counts: Counts | None = COUNTS, **config: Any
) -> ValidationReport:
    return validate(frame, ValidationConfig(expectations=list(expectations), **config), counts=counts, now=NOW)


def floor(report: ValidationReport, name: str) -> CheckResult:
    return next(check for check in report.checks if check.origin == "floor" and check.name == name)


def suite(report: ValidationReport) -> list[CheckResult]:
    return [check for check in report.checks if check.origin == "suite"]


def with_value(frame: pd.DataFrame, column: str, value: object, row: int = 7) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[row, column] = value
    return frame


def test_a_sound_manifest_passes_every_floor(manifest: pd.DataFrame) -> None:
    report = judge(manifest, max_age_days=5)
    assert report.passed
    assert not report.failed
    assert not report.warnings
    assert report.evaluated == len(report.checks) == 11


def test_a_manifest_read_back_from_parquet_passes(manifest: pd.DataFrame, tmp_path: Any) -> None:
    manifest["label"] = None  # no label at all is the normal case
    path = tmp_path / "manifest.parquet"
    manifest.to_parquet(path)
    report = judge(pd.read_parquet(path), counts=Counts(200, 0, ()))
    assert report.passed, [check for check in report.checks if not check.passed]


PLANTED: list[tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = [
    ("rows", lambda f: f.head(49)),
    ("sample-id-present", lambda f: with_value(f, "sample_id", None)),
    ("sample-id-unique", lambda f: with_value(f, "sample_id", f["sample_id"][0])),
    ("split-known", lambda f: with_value(f, "split", "training")),
    ("train-present", lambda f: f.assign(split="test")),
    ("label-known", lambda f: with_value(f, "label", "cta")),
    ("fresh", lambda f: f.assign(arrived_at=f["arrived_at"] - timedelta(days=10))),
    ("fresh", lambda f: f.assign(arrived_at=f["arrived_at"] + timedelta(days=10))),
    ("columns", lambda f: f.drop(columns="contrast")),
    ("columns", lambda f: f.assign(width=f["width"].astype(str))),
    ("columns", lambda f: f.assign(arrived_at=f["arrived_at"].dt.tz_localize(None))),
    ("columns", lambda f: f.assign(label=list(range(len(f))))),
    ("complete", lambda f: with_value(f, "brightness", np.nan)),
    ("complete", lambda f: with_value(f, "contrast", np.inf)),
    ("complete", lambda f: with_value(f, "source", "")),
    ("complete", lambda f: with_value(f, "split", None)),
    ("groups", lambda f: with_value(f, "group", f["group"][9])),
    ("counts", lambda f: f.tail(150)),
]


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=[f"{n}-{i}" for i, (n, _) in enumerate(PLANTED)])
def test_each_floor_fails_on_planted_data(
    manifest: pd.DataFrame, name: str, plant: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    report = judge(plant(manifest), max_age_days=5)
    assert not report.passed
    assert name in {check.name for check in report.failed}


def test_a_failing_floor_shows_the_sample(manifest: pd.DataFrame) -> None:
    check = floor(judge(with_value(manifest, "label", "cta")), "label-known")
    assert [(e.value, e.sample) for e in check.examples] == [("cta", "pets/7.png")]
    torn = floor(judge(with_value(manifest, "group", manifest["group"][9])), "groups")
    assert torn.examples[0].value.endswith("train, val")


@pytest.mark.parametrize("column", ["sample_id", "split", "group", "label", "arrived_at"])
def test_a_missing_fixed_column_never_passes(manifest: pd.DataFrame, column: str) -> None:
    report = judge(manifest.drop(columns=column), max_age_days=5)
    assert not report.passed
    missing = [
        check
        for check in report.failed
        if f"no column '{column}'" in check.reason or f"no column {column}" in check.reason
    ]
    assert missing or column == "label"
    assert f"{column}: missing" in floor(report, "columns").examples[-1].value


def test_no_rows_and_no_columns_never_pass(manifest: pd.DataFrame) -> None:
    suite_of_one = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "width", "min_value": 1}}
    for empty in (manifest.head(0), pd.DataFrame(), pd.DataFrame(index=range(500))):
        report = judge(empty, suite_of_one, counts=Counts(0, 0, ()), min_rows=1)
        assert not report.passed
        assert suite(report)[0].reason
        assert not suite(report)[0].passed


def test_zero_evaluated_checks_never_pass() -> None:
    assert not ValidationReport(checks=()).passed
    unjudged = CheckResult(name="x", origin="suite", title="x", severity="info", passed=False, reason="an exception")
    report = ValidationReport(checks=(unjudged,))
    assert not report.passed
    assert report.verdict == "no check could be judged"


def test_only_critical_failures_stop_the_run(manifest: pd.DataFrame) -> None:
    wide = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "width", "min_value": 1000}}
    report = judge(manifest, wide | {"severity": "warning"}, wide | {"severity": "info"})
    assert report.passed
    assert len(report.warnings) == 2
    assert "2 warnings" in report.verdict
    assert not judge(manifest, wide | {"severity": "critical"}).passed
    assert not judge(manifest, wide).passed  # Great Expectations' own default


def test_the_suite_is_in_great_expectations_own_form(manifest: pd.DataFrame) -> None:
    manifest.loc[:9, "width"] = 4  # 5% of the rows
    text = """
    - {type: expect_column_values_to_be_between, kwargs: {column: width, min_value: 16, mostly: 0.94}, severity: critical}
    - {type: expect_column_values_to_be_between, kwargs: {column: width, min_value: 16, mostly: 0.96}, severity: warning, meta: {notes: small ones}}
    - type: expect_column_pair_values_a_to_be_greater_than_b
      kwargs: {column_A: width, column_B: height, or_equal: true, mostly: 0.01}
    - {type: expect_compound_columns_to_be_unique, kwargs: {column_list: [sample_id, split]}}
    - {type: expect_column_mean_to_be_between, kwargs: {column: brightness, min_value: 0.1, max_value: 0.9}}
    - {type: expect_column_quantile_values_to_be_between, kwargs: {column: contrast, quantile_ranges: {quantiles: [0.5], value_ranges: [[0.0, 0.9]]}}}
    - {type: expect_table_column_count_to_equal, kwargs: {value: 13}}
    - {type: expect_column_values_to_match_regex, kwargs: {column: source, regex: '\\.png$'}}
    - {type: expect_column_values_to_be_in_set, kwargs: {column: label, value_set: [cat], row_condition: 'split=="nowhere"', condition_parser: pandas}, severity: warning}
    """
    checks = suite(judge(manifest, *yaml.safe_load(text)))
    assert [check.passed for check in checks] == [True, False, True, True, True, True, True, True, False]
    assert checks[1].meta == {"notes": "small ones"}
    assert checks[1].place == "validation.expectations[1]"
    assert checks[1].observed == "10 of 200 values unexpected (5%)"
    assert (checks[1].examples[0].value, checks[1].examples[0].sample) == ("4", "pets/0.png")
    assert checks[1].title == "width values to be between"
    assert checks[1].expected == "min_value: 16 · mostly: 0.96"
    assert "no row fulfils row_condition" in checks[8].reason  # over no rows it would pass unseen


@pytest.mark.parametrize(
    ("expectation", "reason"),
    [
        ({"type": "expect_column_values_to_be_between", "kwargs": {"column": "widht", "min_value": 1}}, "no column 'widht', did you mean `width`?"),
        ({"type": "expect_column_mean_to_be_between", "kwargs": {"column": "zzz", "min_value": 1}}, "there are sample_id"),
        ({"type": "expect_column_pair_values_to_be_equal", "kwargs": {"column_A": "width", "column_B": "nope"}}, "no column 'nope'"),
        ({"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["split", "nope"]}}, "no column 'nope'"),
        ({"type": "expect_column_values_to_match_regex", "kwargs": {"column": "source", "regex": "("}}, "regular expression"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"column": "source", "min_value": 1}}, "type"),
        ({"type": "expect_column_max_to_be_between", "kwargs": {"column": "width", "min_value": 1, "row_condition": "nope > 1", "condition_parser": "pandas"}}, "nope"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_fails_with_a_reason(
    manifest: pd.DataFrame, expectation: dict[str, Any], reason: str
) -> None:
    sound = {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "sample_id"}}
    report = judge(manifest, expectation, sound)
    check, after = suite(report)
    assert not check.passed
    assert not report.passed
    assert reason in check.reason
    assert "Traceback" not in check.reason
    assert after.passed
    assert after.evaluated


def test_nan_counts_as_empty_not_as_fine(manifest: pd.DataFrame) -> None:
    manifest["brightness"] = np.float32("nan")
    mean = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "brightness", "min_value": 0}}
    present = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "brightness"}}
    report = judge(manifest, mean, present)
    assert [check.passed for check in suite(report)] == [False, False]
    assert not floor(report, "complete").passed


@pytest.mark.parametrize(
    ("expectation", "place", "cause"),
    [
        ({"type": "expect_column_values_to_be_betwen"}, "validation.expectations[1].type", "did you mean `expect_column_values_to_be_between`?"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"colum": "width", "min_value": 1}}, "validation.expectations[1].kwargs", "unknown argument `colum`, did you mean `column`?"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"column": "width", "mostly": 3, "min_value": 1}}, "validation.expectations[1].kwargs", "`mostly`: ensure this value is less than or equal to 1"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"column": "width"}}, "validation.expectations[1].kwargs", "min_value and max_value"),
        ({"type": "expect_column_values_to_be_unique", "kwargs": {}}, "validation.expectations[1].kwargs", "`column` is required"),
        ({"type": "expect_column_values_to_be_unique", "kwargs": {"column": "width", "severity": "info"}}, "validation.expectations[1].kwargs.severity", "beside kwargs"),
        ({"type": "expect_column_values_to_be_unique", "kwargs": {"column": "width", "result_format": "BASIC"}}, "validation.expectations[1].kwargs.result_format", "set by the platform"),
    ],
)  # fmt: skip
def test_a_wrong_suite_is_the_users_error(
    manifest: pd.DataFrame, expectation: dict[str, Any], place: str, cause: str
) -> None:
    sound = {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "sample_id"}}
    with pytest.raises(UserError) as caught:
        judge(manifest, sound, expectation)
    assert caught.value.place == place
    assert cause in caught.value.cause


def test_a_hundred_thousand_rows_take_seconds(make_manifest: Callable[..., pd.DataFrame]) -> None:
    frame = make_manifest(100_000, 1_000)
    expectation = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "width", "min_value": 1}}
    judge(frame.head(200), expectation)  # the import is not what is timed
    start = time.process_time()
    report = judge(frame, *[expectation] * 5, counts=Counts(100_000, 1_000, ("cat", "dog")))
    assert report.passed
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("label_type", "labels", "classes", "passed"),
    [
        ("classes", ['["a", "b"]', "[]", None], ("a", "b"), True),
        ("classes", ['["a", "c"]', "[]", None], ("a", "b"), False),
        ("classes", ["a", "[]", None], ("a", "b"), False),
        ("number", ["1.5", "-2.0", None], (), True),
        ("number", ["1.5", "nan", None], (), False),
        ("number", ["1.5", "many", None], (), False),
    ],
)
def test_labels_of_each_type(label_type, labels, classes, passed):
    count = 60
    frame = pd.DataFrame({
        "sample_id": [f"{i:064d}" for i in range(count)], "split": ["train"] * count, "group": [str(i) for i in range(count)],
        "label": pd.Series(labels * (count // 3), dtype=object), "source": ["a.jsonl"] * count,
        "arrived_at": pd.Timestamp(NOW), "first_version": 1, "characters": 9, "words": 2, "bytes": 9, "letters": 0.9,
    })  # fmt: skip
    counts = Counts(count, int(frame["label"].notna().sum()), classes, "text", label_type)
    report = validate(frame, ValidationConfig(), counts=counts, now=NOW)
    (found,) = [check for check in report.checks if check.name == "label-known"]
    assert found.passed == passed
    assert bool(found.examples) != passed
    assert {check.name for check in report.failed} <= {"label-known"}
