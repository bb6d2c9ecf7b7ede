"""``validate``: the floors and the project's suite over one manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import pandas as pd

from ssl_core.config.project import ExpectationConfig, ValidationConfig
from ssl_core.validation.floors import Counts, Floor, expectation_floors, plain_floors
from ssl_core.validation.gx_runner import Outcome, build, run
from ssl_core.validation.report import CheckResult, Example, ValidationReport, printable


def validate(
    frame: pd.DataFrame, config: ValidationConfig, *, counts: Counts | None = None, now: datetime | None = None
) -> ValidationReport:
    """Judges a manifest, one row a sample.

    Args:
        frame: the manifest.
        config: the floors' thresholds and the suite.
        counts: what ``dataset.json`` says; its classes are those that labels may name. Without it, those that the
            labels name.
        now: the moment that freshness is judged at, with a time zone.

    Raises:
        UserError: the suite names an expectation or an argument that Great Expectations does not have.
    """
    frame = frame.reset_index(drop=True)
    suite = build(config.expectations)
    classes = counts.classes if counts is not None else _classes(frame)
    one_class = counts is None or counts.label_type == "class"
    floors = expectation_floors(config, classes if one_class else (), now or datetime.now(UTC))
    outcomes = run(frame, [*build([floor.expectation for floor in floors], "floors"), *suite])
    checks = [_floor(frame, floor, outcome) for floor, outcome in zip(floors, outcomes[: len(floors)], strict=True)]
    checks += plain_floors(frame, counts, classes)
    checks += [
        _expectation(frame, index, expectation, outcome)
        for index, (expectation, outcome) in enumerate(zip(config.expectations, outcomes[len(floors) :], strict=True))
    ]
    return ValidationReport(checks=tuple(checks))


def _classes(frame: pd.DataFrame) -> Sequence[str]:
    return sorted({str(label) for label in frame["label"].dropna()}) if "label" in frame.columns else []


def _floor(frame: pd.DataFrame, floor: Floor, outcome: Outcome) -> CheckResult:
    return CheckResult(
        name=floor.name, origin="floor", place=floor.place, title=floor.title, expected=floor.expected,
        passed=outcome.passed, observed=outcome.observed, reason=outcome.reason, examples=_examples(frame, outcome),
    )  # fmt: skip


def _expectation(frame: pd.DataFrame, index: int, config: ExpectationConfig, outcome: Outcome) -> CheckResult:
    title, expected = describe(config)
    return CheckResult(
        name=config.type, origin="suite", place=f"validation.expectations[{index}]", title=title, expected=expected,
        severity=config.severity, passed=outcome.passed, observed=outcome.observed, reason=outcome.reason,
        examples=_examples(frame, outcome), meta=config.meta,
    )  # fmt: skip


def describe(config: ExpectationConfig) -> tuple[str, str]:
    """``(title, arguments)`` of an expectation in words: ``width values to be between``, ``min_value: 16``."""
    words = config.type.removeprefix("expect_").replace("_", " ")
    arguments = dict(config.kwargs)
    if isinstance(arguments.get("column"), str) and words.startswith("column "):
        words = f"{printable(arguments.pop('column'), 60)} {words.removeprefix('column ')}"
    return words, " · ".join(f"{name}: {_argument(value)}" for name, value in arguments.items())


def _argument(value: object) -> str:
    if isinstance(value, list | tuple):
        shown: Iterable[str] = (printable(v, 60) for v in value[:12])
        return "[" + ", ".join(shown) + (f", … {len(value)} in all]" if len(value) > 12 else "]")
    return printable(value)


def _examples(frame: pd.DataFrame, outcome: Outcome) -> tuple[Example, ...]:
    name = next((c for c in ("source", "sample_id") if c in frame.columns), None)
    return tuple(
        Example(
            value=", ".join(printable(frame[column].iloc[row]) for column in outcome.columns),
            sample=printable(frame[name].iloc[row]) if name else f"row {row}",
        )
        for row in outcome.rows
        if 0 <= row < len(frame)
    )
