"""Artifact references and step results: all that crosses a step boundary.

Plain pydantic records, JSON in and out, small enough for Airflow's XCom (8 KB). Imports nothing heavy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
RESULT_BYTES_LIMIT = 8 * 1024
SUMMARY_BYTES_LIMIT = 4 * 1024
GOLDEN_FILE = "golden.safetensors"
"""Beside saved weights: a few inputs and the trainer's own outputs, which a registered model must reproduce."""


class Record(BaseModel):
    """Base of all records: immutable, and an unknown field is an error rather than silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(Record):
    """Where a step's output lies and what it must hash to."""

    type: Literal["artifact"] = "artifact"
    kind: str = Field(description="What it is: config, encoder, model, evaluation, report, verdict, ...")
    uri: str = Field(description="Path below the store's root, for example digits/pretrain/<key>/out/encoder")
    sha256: str = Field(description="SHA-256 of the file, or of the sorted list of a folder's files and their SHA-256")
    producer: str = Field(description="<step>/<key> of the step that made it")


class DatasetRef(Record):
    """A dataset version (``tag`` set) or an unpublished candidate (``tag`` empty), addressed by content."""

    type: Literal["dataset"] = "dataset"
    kind: Literal["dataset", "candidate"]
    name: str = Field(description="Dataset name; equals the project's name")
    tag: str | None = Field(default=None, description="<dataset>@vN, empty for a candidate")
    revision: str = Field(description="Git commit in the data repository")
    path: str = Field(description="Folder in the data repository, <dataset>/data")
    md5: str = Field(description="DVC's content address of the folder, ends in .dir")
    remote: str = Field(description="URL of the DVC remote that holds the content")
    sha256: str = Field(description="Digest of dataset.json, which holds the digests of all files")
    producer: str
    rows: int = Field(ge=0)
    labelled: int = Field(ge=0, description="How many samples carry a label")
    classes: int = Field(ge=0)


class ModelRef(Record):
    """A registered model version, with the store's folder that holds the same weights."""

    type: Literal["registered"] = "registered"
    kind: Literal["registered-encoder", "registered-model"]
    name: str = Field(description="Name in the MLflow registry: <project> or <project>-encoder")
    version: str
    model_id: str = Field(description="MLflow's id of the logged model (m-...)")
    run_id: str
    uri: str = Field(description="Path below the store's root of the weights folder that was registered")
    sha256: str
    producer: str


Ref = Annotated[ArtifactRef | DatasetRef | ModelRef, Field(discriminator="type")]


class RunContext(Record):
    """Who asked for a step, for lineage tags and the ledger. Never part of a step's key."""

    run_id: str = Field(description="One id for a whole walk of the step table or DAG run")
    user: str = "unknown"
    orchestrator: Literal["local", "airflow", "dvc"] = "local"
    dag_id: str = ""
    task_id: str = ""
    try_number: int = 1
    url: str = Field(default="", description="Link back to the DAG run, where there is one")


class RunRequest(Record):
    """What one DAG run asks for; ``resolve`` turns it into references, once for the whole run."""

    template: Literal["ingest", "pretrain", "finetune", "monitor", "rollback", "fire-drill"]
    dataset: str = Field(default="latest", description="Dataset version: latest, v3, digits@v3, or a commit")
    encoder_version: str = Field(default="", description="Registered encoder version that a person chose, or empty")
    woken_by: str = Field(default="", description="Encoder version whose registration started the run, or empty")
    drift: str = Field(default="", description="SHA-256 of the drift report that started the run, or empty")


class Approval(Record):
    """What a person answered where the gate left it open; without an answer in time it is EXPIRED."""

    answer: Literal["approve", "decline", "expired"]
    user: str = ""
    comment: str = ""


class StepSpec(Record):
    """What ``SSL_STEP_SPEC`` holds: everything one step needs, so that no YAML has to be mounted anywhere.

    The configuration is given whole (``project``), or by the reference (``config``) that ``resolve`` returned.
    """

    schema_version: int = SCHEMA_VERSION
    step: str
    project: dict[str, Any] = Field(default_factory=dict, description="The project configuration, overrides applied")
    config: ArtifactRef | None = Field(default=None, description="The configuration that resolve froze in the store")
    inputs: dict[str, Ref] = Field(default_factory=dict)
    run: RunContext
    request: RunRequest | None = Field(default=None, description="For resolve in a DAG run")
    approval: Approval | None = Field(default=None, description="For promote, where a person was asked")
    rollback_to: str = Field(default="", description="For rollback: the version to go back to; empty: the one before")
    reason: str = Field(default="", description="For rollback: why, as the ledger tells it")

    @model_validator(mode="after")
    def _one_configuration(self) -> StepSpec:
        if bool(self.project) == (self.config is not None):
            raise ValueError("give either project or config")
        return self


class StepStatus(StrEnum):
    """How a step ended. A step that fails without passing judgement leaves no result.

    SKIPPED is written only where a file has to stand for every step (`dvc repro`): there was nothing to do, the summary says
    why, and the outputs are what those after it take instead. No store record has it.
    """

    DONE = "done"
    CHECK_FAILED = "check-failed"
    SKIPPED = "skipped"


class Verdict(StrEnum):
    """The result of the gate."""

    PROMOTE = "PROMOTE"
    REJECT = "REJECT"
    NEEDS_HUMAN = "NEEDS_HUMAN"


class StepResult(Record):
    """What a step writes to ``SSL_RESULT_PATH`` and the store keeps as ``result.json``; its presence is the commit."""

    schema_version: int = SCHEMA_VERSION
    step: str
    key: str
    status: StepStatus
    outputs: dict[str, Ref] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    links: dict[str, str] = Field(default_factory=dict, description="Title to URL: the MLflow run, the report")
    summary: str = Field(default="", description="A few lines of Markdown for a person")
    cached: bool = Field(default=False, description="True where an earlier result was returned")
    news: bool = Field(default=True, description="False where nothing came of it that others should wake up for")
    verdict: Verdict | None = Field(default=None, description="The gate's")
    alert: str = Field(default="", description="What somebody has to be told of, as `cause: words`; empty: nothing")
    run_id: str = Field(default="", description="The run that did it: RunContext.run_id")
    started_at: str = ""
    seconds: float = 0.0


class GateReport(Record):
    """``verdict.json``: what the gate decided and why. ``digest`` is what a person approves."""

    verdict: Verdict
    reasons: list[str]
    summary_md: str = Field(description="At most 4 KB")
    project: str
    challenger: ModelRef
    champion_version: str | None
    dataset: DatasetRef
    recipe: str = Field(description="Digest of the configuration that made the challenger")
    metrics: dict[str, float] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)


class LedgerEntry(Record):
    """One line of a project's history, ``<store>/ledger/<project>/<seq>.json``; written once, never changed."""

    seq: int
    previous: str = Field(description="SHA-256 of the entry before, empty for the first")
    at: str = Field(description="UTC, ISO 8601")
    project: str
    action: Literal["PROMOTED", "REJECTED", "DECLINED", "EXPIRED", "ROLLED_BACK"]
    model_version: str
    encoder_version: str
    replaced_version: str | None = None
    dataset: str = Field(description="<dataset>@vN")
    recipe: str
    verdict: Verdict
    reasons: list[str]
    report_digest: str
    user: str
    run: RunContext
