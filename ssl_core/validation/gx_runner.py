"""The only file that imports Great Expectations. The import takes seconds: nothing but the validate step loads it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ssl_core.config.project import ExpectationConfig
from ssl_core.errors import StepError, UserError, did_you_mean
from ssl_core.validation.report import plural, printable

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import time

import great_expectations as gx
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.registry import get_expectation_impl, list_registered_expectation_implementations

# Some of its modules set their own loggers to INFO when imported. What it finds is in the report.
for _name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "great_expectations"]:
    logging.getLogger(_name).setLevel(logging.ERROR)

_BESIDE = ("severity", "meta", "description", "notes")
_OURS = ("id", "batch_id", "rendered_content", "windows", "result_format", "catch_exceptions")
_COLUMN_ARGUMENTS = ("column", "column_A", "column_B")
_EXAMPLES = 10


@dataclass(frozen=True)
class Outcome:
    """What one expectation found. ``rows`` are positions of unexpected values, ``columns`` where they stand."""

    passed: bool
    observed: str = ""
    reason: str = ""
    rows: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()


def build(configs: Sequence[ExpectationConfig], place: str = "validation.expectations") -> list[Expectation]:
    """The expectations that ``configs`` describe.

    Raises:
        UserError: an unknown type or argument, with the place and the near miss.
    """
    return [_build(config, f"{place}[{index}]") for index, config in enumerate(configs)]


def _build(config: ExpectationConfig, place: str) -> Expectation:
    known = list_registered_expectation_implementations()
    if config.type not in known:
        raise UserError(
            f"Great Expectations has no '{config.type}'{did_you_mean(config.type, known)}",
            place=f"{place}.type",
            next_step="see the list in the Great Expectations documentation, or docs/validation.md",
        )
    if misplaced := sorted(set(config.kwargs) & set(_BESIDE)):
        raise UserError(f"`{misplaced[0]}` belongs beside kwargs, not into it", place=f"{place}.kwargs.{misplaced[0]}")
    if fixed := sorted(set(config.kwargs) & set(_OURS)):
        raise UserError(
            f"`{fixed[0]}` is set by the platform", place=f"{place}.kwargs.{fixed[0]}", next_step="remove it"
        )
    kind: Any = get_expectation_impl(config.type)
    try:
        expectation: Expectation = kind(**config.kwargs, severity=config.severity, meta=config.meta)
        return expectation
    except (ValueError, TypeError) as error:  # pydantic v1's ValidationError is a ValueError
        arguments = sorted(set(kind.__fields__) - {*_BESIDE, *_OURS})
        raise UserError(
            f"{config.type}: " + "; ".join(_problems(error, arguments)),
            place=f"{place}.kwargs",
            next_step=f"its arguments are {', '.join(arguments)}",
        ) from error


def _problems(error: Exception, arguments: list[str]) -> list[str]:
    """One phrase per wrong argument: pydantic reports each alternative of a union, and the first is the telling one."""
    details: list[Any] = error.errors() if hasattr(error, "errors") else [{"loc": (), "msg": str(error), "type": ""}]
    problems: dict[str, str] = {}
    for detail in details:
        name: str = ".".join(str(part) for part in detail["loc"] if part != "__root__")
        if detail["type"] == "value_error.extra":
            message = f"unknown argument `{name}`{did_you_mean(name, arguments)}"
        elif detail["type"] == "value_error.missing":
            message = f"`{name}` is required"
        else:
            message = f"`{name}`: {detail['msg']}" if name else detail["msg"]
        problems.setdefault(name, printable(message, 300))
    # An unknown or missing argument explains the rest (a misspelt one leaves both behind): it comes first.
    return sorted(problems.values(), key=lambda text: (not text.startswith("unknown"), " is required" not in text))


def run(frame: pd.DataFrame, expectations: Sequence[Expectation]) -> list[Outcome]:
    """Judges ``frame`` (with a plain RangeIndex) by each expectation; one outcome each, in the same order.

    Each is judged by itself, so that an exception inside of one cannot take the others with it. What cannot be judged
    (a missing column, no rows, an exception) has a ``reason`` and does not pass.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("manifest")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_judge(frame, batch, expectation) for expectation in expectations]


def _judge(frame: pd.DataFrame, batch: Any, expectation: Expectation) -> Outcome:
    kind = expectation.expectation_type
    kwargs = expectation.configuration.kwargs
    columns = tuple(kwargs[a] for a in _COLUMN_ARGUMENTS if isinstance(kwargs.get(a), str))
    columns += tuple(
        c for c in kwargs.get("column_list") or () if isinstance(c, str) and not kind.startswith("expect_table_")
    )
    if kind != "expect_column_to_exist" and (lost := [c for c in columns if c not in frame.columns]):
        there = [str(c) for c in frame.columns]
        hint = did_you_mean(lost[0], there) or f"; there are {', '.join(there)}"
        return Outcome(False, reason=printable(f"there is no column '{lost[0]}'{hint}", 400))
    if frame.empty and not kind.startswith("expect_table_"):
        return Outcome(False, reason="there are no rows to judge")
    try:
        if (condition := kwargs.get("row_condition")) and not _matches(batch, kwargs):
            return Outcome(False, reason=f"no row fulfils row_condition {printable(condition)}")
        result = batch.validate(expectation, result_format="SUMMARY")
    except StepError:
        raise
    except Exception as error:  # whatever an expectation throws is a failed expectation, never a pass
        return Outcome(False, reason=f"{type(error).__name__}: {printable(error, 400)}")
    if message := _exception(result.exception_info):
        return Outcome(False, reason=message)
    return _outcome(result, columns)


def _matches(batch: Any, kwargs: dict[str, Any]) -> bool:
    """Whether any row fulfils the row condition: over none, most expectations would pass unseen."""
    count: Any = get_expectation_impl("expect_table_row_count_to_be_between")
    some = count(min_value=1, row_condition=kwargs["row_condition"], condition_parser=kwargs.get("condition_parser"))
    result = batch.validate(some, result_format="SUMMARY")
    if message := _exception(result.exception_info):
        raise ValueError(message)
    return bool(result.success)


def _exception(info: dict[str, Any] | None) -> str:
    """The message of the exception that Great Expectations caught, or nothing. It keeps two forms of the record."""
    if not info:
        return ""
    for record in (info, *info.values()):
        if isinstance(record, dict) and record.get("raised_exception"):
            return printable(record.get("exception_message") or "an exception without a message", 400)
    return ""


def _outcome(result: Any, columns: tuple[str, ...]) -> Outcome:
    found: dict[str, Any] = result.result or {}
    total, missing, unexpected = (
        found.get("element_count"),
        found.get("missing_count") or 0,
        found.get("unexpected_count"),
    )
    if total == 0:
        return Outcome(False, reason="there are no rows to judge")
    if total is not None and unexpected is not None:
        judged = total - missing
        observed = f"{unexpected:,} of {plural(judged, 'value')} unexpected"
        if judged and unexpected:
            observed += f" ({100 * unexpected / judged:.3g}%)"
        if missing:
            observed += f", {missing:,} empty"
    elif (value := found.get("observed_value")) is not None:
        observed = f"{value:,}" if isinstance(value, int) else printable(value, 300)
    else:
        parts = [
            f"{name.removeprefix('partial_')}: {printable(found[name], 300)}"
            for name in found
            if found[name] and name != "observed_value"
        ]
        observed = "; ".join(parts) or ("as expected" if result.success else "")
    rows = tuple(i for i in (found.get("partial_unexpected_index_list") or ()) if isinstance(i, int))[:_EXAMPLES]
    return Outcome(bool(result.success), observed, rows=rows, columns=columns)
