"""What a validation found: one record per check, and the verdict over all of them."""

from __future__ import annotations

import json
import unicodedata
from numbers import Integral, Real
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Severity = Literal["critical", "warning", "info"]
_SHOWN_CHARACTERS = 160


class Example(BaseModel):
    """A value that a check did not expect, and the sample that it stands in."""

    model_config = ConfigDict(frozen=True)

    value: str
    sample: str = Field(default="", description="The sample's source, or its id")


class CheckResult(BaseModel):
    """One check: a floor that is always on, or an expectation of the project's suite."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The floor's name or the expectation's type")
    origin: Literal["floor", "suite"]
    place: str = Field(default="", description="The project key that set it, for example validation.expectations[2]")
    title: str
    expected: str = ""
    severity: Severity = "critical"
    passed: bool
    observed: str = ""
    reason: str = Field(default="", description="Why it could not be judged; such a check never passes")
    examples: tuple[Example, ...] = ()
    meta: dict[str, Any] | None = None

    @property
    def evaluated(self) -> bool:
        """Whether it was judged on data at all."""
        return not self.reason


class ValidationReport(BaseModel):
    """All checks of one dataset. It passes where at least one check was judged and no critical one failed."""

    model_config = ConfigDict(frozen=True)

    checks: tuple[CheckResult, ...]

    @property
    def evaluated(self) -> int:
        return sum(check.evaluated for check in self.checks)

    @property
    def failed(self) -> list[CheckResult]:
        """The critical checks that did not pass: these stop the run."""
        return [check for check in self.checks if not check.passed and check.severity == "critical"]

    @property
    def warnings(self) -> list[CheckResult]:
        """The other checks that did not pass: shown, without consequence."""
        return [check for check in self.checks if not check.passed and check.severity != "critical"]

    @property
    def passed(self) -> bool:
        return self.evaluated > 0 and not self.failed

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.failed:
            return f"{len(self.failed)} of {len(self.checks)} checks failed"
        if not self.evaluated:
            return "no check could be judged"
        if self.warnings:
            return f"passed, with {plural(len(self.warnings), 'warning')}"
        return f"all {len(self.checks)} checks passed"

    def to_json(self, **more: Any) -> str:
        """The report as JSON, verdict first; ``more`` says what was judged."""
        whole = {
            "passed": self.passed,
            "verdict": self.verdict,
            "evaluated": self.evaluated,
            "failed": len(self.failed),
            "warnings": len(self.warnings),
            **more,
            "checks": [check.model_dump(mode="json") for check in self.checks],
        }
        return json.dumps(whole, indent=1, default=str) + "\n"


def plural(count: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(value: object, limit: int = _SHOWN_CHARACTERS) -> str:
    """``value`` as one short line of visible text.

    Data may be hostile: control characters, lone surrogates (undecodable file names) and the marks that turn the
    reading direction are shown as escapes, and what is longer than ``limit`` is cut. Escaping for HTML or Markdown is
    the renderer's.
    """
    if isinstance(value, str | bool) or not isinstance(value, Real):
        text = str(value)
    else:
        text = str(value) if isinstance(value, Integral) else f"{float(value):.6g}"
    cut = text[:limit]
    shown = "".join(
        c
        if c == " " or unicodedata.category(c)[0] not in "CZ"
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in cut
    )
    return f"{shown}… ({len(text):,} characters)" if len(text) > limit else shown
