"""The drift report as a record: what the monitor found in one window, why, and what follows. ``drift.json`` is this.

Everything drawn or written for people (``drift.html``, ``drift.png``) is drawn from it alone. It stays below
``BYTES_LIMIT`` whatever the data holds: lists have a fixed length at most, and texts of the data are cut and made visible when they come in.
Pydantic only: whoever reads a report needs nothing heavy.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field

from ssl_core.contracts import Record

SCHEMA_VERSION = 1
BYTES_LIMIT = 128 * 1024
MOST_COLUMNS = 40
MOST_CLASSES = 60
MOST_SOURCES = 20
MOST_HISTORY = 100
MOST_POINTS = 400
"""On each side of the embedding map."""
MOST_REASONS = 12
NAME_CHARACTERS = 80
SENTENCE_CHARACTERS = 400
OTHER = "(other)"
"""What holds the rest, where there are more names than fit."""

T = TypeVar("T")


def _visible(limit: int) -> BeforeValidator:
    """Control characters, marks of reading direction and lone surrogates as escapes; then cut to ``limit``."""

    def clean(value: object) -> object:
        if not isinstance(value, str):
            return value
        shown = "".join(
            c
            if c == " " or unicodedata.category(c)[0] not in "CZ"
            else c.encode("unicode_escape", "surrogatepass").decode()
            for c in value[:limit]
        )
        return shown if len(value) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"

    return BeforeValidator(clean)


Name = Annotated[str, _visible(NAME_CHARACTERS)]
Sentence = Annotated[str, _visible(SENTENCE_CHARACTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Point = tuple[Number, Number]

Kind = Literal["quiet", "cannot-tell", "data-bug", "prior-shift", "covariate-shift", "new-territory"]
Action = Literal["none", "quarantine", "recalibrate", "finetune", "pretrain"]


class SourceCount(Record):
    """How many samples of the window came from one source."""

    name: Name
    rows: Count


class Window(Record):
    """What is judged: the samples that one dataset version brought, without the vault."""

    name: Name = Field(description="The version, for example v4; of prediction logs their days")
    rows: Count
    labelled: Count = 0
    sources: list[SourceCount] = Field(default_factory=list, max_length=MOST_SOURCES, description="Most samples first")


class Reference(Record):
    """What it is compared with."""

    rows: Count
    what: Sentence = Field(default="", description="In words: which splits and versions")


class EmbeddingTests(Record):
    """Two-sample tests on the champion's frozen encoder. Medians over ``draws`` subsamples."""

    auc: Share = Field(
        description="Cross-validated AUC of a classifier that tells window from reference; 0.5: it cannot"
    )
    auc_p: Share
    auc_threshold: Number
    mmd: Number = Field(description="Unbiased squared maximum mean discrepancy; about 0 where nothing differs")
    mmd_p: Share
    mmd_threshold: Number
    draws: int = Field(ge=1)
    exceeded: bool = Field(description="Above a threshold, and large enough to matter")


class ColumnDrift(Record):
    """One column of the manifest; see ``monitoring.columns.Column``."""

    name: Name
    kind: Literal["number", "category"]
    psi: Number
    statistic: Number
    p: Share
    q: Share
    drifted: bool


class ClassShare(Record):
    """How often the champion answers one class."""

    name: Name
    reference: Share
    window: Share


class Predictions(Record):
    """The champion's answers on both sides."""

    psi: Number
    q: Share
    classes: list[ClassShare] = Field(max_length=MOST_CLASSES, description="In the order of the reference's shares")
    confidence_reference: Share = Field(description="Mean probability of the answer")
    confidence_window: Share


class Performance(Record):
    """How good the champion is on the labelled samples of the window."""

    n: Count
    metric: Name = "accuracy"
    quality: Number
    reference_quality: Number
    difference: Number
    low: Number = Field(description="95% interval of the difference")
    high: Number


class Novelty(Record):
    """How far the window's samples lie from the reference: distance to their k nearest neighbours there."""

    beyond: Share = Field(description="Share of the window farther away than 95% of the reference's own samples")
    median_ratio: Number = Field(ge=0, description="Median distance, divided by the reference's own; 1: alike")


class PastWindow(Record):
    """One window of the score history."""

    window: Name
    score: Number | None = Field(
        description="The larger of AUC and MMD, each as a share of what its threshold lies above chance; None: not judged"
    )
    exceeded: bool
    alarm: bool = False
    kind: Kind = "quiet"


class Rule(Record):
    """When it is an alarm: ``k`` of the last ``m`` windows exceed, the latest among them."""

    k: int = Field(ge=1)
    m: int = Field(ge=1)
    false_alarms: Number = Field(gt=0, description="The budget: false alarms in 365 windows")
    calibrated_by: Literal["history", "resampling"]
    windows_used: Count = Field(description="Stable windows of the history, or resampled ones")


class ClassPrior(Record):
    """One class before and after."""

    name: Name
    before: Share = Field(description="Its share in what the champion was trained on")
    after: Share = Field(description="Its estimated share in the window")


class Recalibration(Record):
    """What to multiply the champion's probabilities by, if only the mix of classes changed."""

    classes: list[ClassPrior] = Field(max_length=MOST_CLASSES)
    changed: Share = Field(description="Share of the window's answers that would change")
    expected_gain: Number = Field(description="Expected accuracy after minus before, by the corrected probabilities")


class EmbeddingMap(Record):
    """Both sides in two dimensions, at most ``MOST_POINTS`` of each."""

    method: Name = "principal components"
    reference: list[Point] = Field(max_length=MOST_POINTS)
    window: list[Point] = Field(max_length=MOST_POINTS)


class Finding(Record):
    """What kind of change it is, why, and what is to be done about it by whom."""

    kind: Kind
    reasons: list[Sentence] = Field(max_length=MOST_REASONS)
    action: Action = "none"
    who: Literal["platform", "person"] = "platform"


class DriftReport(Record):
    """All of it. ``retrain`` is the one thing that wakes ``finetune``."""

    schema_version: int = SCHEMA_VERSION
    project: Name
    champion_version: Name
    encoder_version: Name
    dataset: Name = Field(description="The dataset version that was looked at, <name>@vN")
    at: str = Field(default="", description="UTC, ISO 8601")
    window: Window
    reference: Reference
    embedding: EmbeddingTests | None = None
    columns: list[ColumnDrift] = Field(default_factory=list, max_length=MOST_COLUMNS)
    predictions: Predictions | None = None
    performance: Performance | None = None
    novelty: Novelty | None = None
    recalibration: Recalibration | None = None
    map: EmbeddingMap | None = None
    history: list[PastWindow] = Field(
        default_factory=list, max_length=MOST_HISTORY, description="In the order of time, this window last"
    )
    rule: Rule
    alarm: bool = False
    finding: Finding
    retrain: bool = False
    held_back: Sentence = Field(default="", description="Why a justified retraining does not start: cool-down, cap")

    def to_json(self) -> str:
        """As ``drift.json``; ``DriftReport.model_validate_json`` reads it back, equal."""
        return self.model_dump_json(indent=1) + "\n"


def first(items: Sequence[T], most: int) -> list[T]:
    """The first ``most``; for lists that are ordered by importance."""
    return list(items[:most])


def last(items: Sequence[T], most: int) -> list[T]:
    """The last ``most``; for lists in the order of time."""
    return list(items[-most:])
