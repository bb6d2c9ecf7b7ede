"""The project schema: the one source of YAML validation, CLI help, trigger forms and docs."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ssl_core.config.base import IN_FORM, Section
from ssl_core.config.encoders import EncoderConfig
from ssl_core.config.objectives import ObjectiveConfig
from ssl_core.config.runner import RunnerConfig, RunnerField
from ssl_core.config.schedule import LimitsConfig, ScheduleConfig
from ssl_core.config.tasks import TaskConfig

NAME_PATTERN = r"^[a-z][a-z0-9-]*$"
ProbeName = Literal["knn", "linear", "label-spreading"]


class SplitConfig(Section):
    """Shares of the four splits. A sample's side follows from its content, so it never changes as data grows."""

    train: float = Field(default=0.70, gt=0, lt=1, description="Seen by pretraining and fine-tuning")
    val: float = Field(default=0.05, gt=0, lt=1, description="Watched during training, never trained on")
    test: float = Field(default=0.20, gt=0, lt=1, description="Read by evaluate and gate only")
    vault: float = Field(default=0.05, gt=0, lt=1, description="Held back; read by gate only")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.val + self.test + self.vault
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test + vault must be 1, not {total:g}")
        return self


def _check_bucket(address: str) -> None:
    """What follows ``s3://``. The names that S3 servers allow differ; this keeps out what none of them can mean."""
    bucket = address.partition("/")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise ValueError("names no bucket; write s3://bucket/prefix, with a bucket of letters, digits, dots and dashes")


class DataConfig(Section):
    """Where the samples come from and how they become a dataset version."""

    source: str = Field(
        min_length=1,
        description="A folder (class folders, or files plus labels.csv, or just files), the same in S3: s3://bucket/prefix, "
        "or a bundled sample: sample://digits, sample://animals. A relative folder is taken from the project file's folder",
        json_schema_extra=IN_FORM,
    )
    labels: str | None = Field(
        default=None,
        description="CSV file with the columns file,label; default: labels.csv in the source, if there is one. A file, an object "
        "s3://bucket/key, or with a source in S3 the name of an object there (then a file starts with / or ./)",
    )
    classes: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="The classes that labels may name; default: those found"
    )
    image_size: int | Literal["auto"] = Field(
        default="auto", description="Side in pixels that encoders see (8 to 512); auto: the median side, at most 96"
    )
    channels: Literal["auto", 1, 3] = Field(
        default="auto", description="1 grey, 3 colour; auto: 3 if any image has colour"
    )
    max_pixels: int = Field(default=50_000_000, ge=1, description="A larger image is quarantined, not decoded")
    min_side: int = Field(default=4, ge=1, description="An image with a shorter side is quarantined, pixels")
    max_quarantined: float = Field(
        default=0.02, ge=0, le=1, description="Largest share of unreadable files before ingest fails with exit code 3"
    )
    near_duplicates: bool = Field(
        default=True, description="Find near-duplicates and keep each cluster on one side of the split"
    )
    split: SplitConfig = Field(default_factory=SplitConfig, description="Shares of train, val, test and vault")

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        scheme, found, rest = value.partition("://")
        if found and scheme == "s3":
            _check_bucket(rest)
        elif found and scheme != "sample":
            # What follows may hold a password: it is not repeated.
            raise ValueError(
                f"{scheme}:// is no source; a folder, s3://bucket/prefix, sample://digits or sample://animals is"
            )
        return value

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, value: str | None) -> str | None:
        scheme, found, rest = (value or "").partition("://")
        if found and scheme != "s3":
            raise ValueError(f"{scheme}:// holds no labels; a file or s3://bucket/key does")
        if found:
            _check_bucket(rest)
            if not rest.partition("/")[2].strip("/"):
                raise ValueError("names a bucket and no object in it; write s3://bucket/key")
        return value

    @field_validator("image_size")
    @classmethod
    def _size_in_range(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 8 <= value <= 512:
            raise ValueError("must be between 8 and 512, or auto")
        return value

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a class is listed twice")
        return value


class ExpectationConfig(Section):
    """One expectation in Great Expectations' own form."""

    type: str = Field(pattern=r"^expect_[a-z0-9_]+$", description="For example expect_column_values_to_be_between")
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Its arguments, for example {column: width, min_value: 16}"
    )
    severity: Literal["critical", "warning", "info"] = Field(
        default="critical", description="Only a failing critical expectation stops the run"
    )
    meta: dict[str, Any] | None = Field(default=None, description="Free notes, shown in the report")


class ValidationConfig(Section):
    """What a dataset version must fulfil. It is judged on the manifest, one row a sample."""

    min_rows: int = Field(default=50, ge=1, description="Fewer samples never pass", json_schema_extra=IN_FORM)
    max_age_days: float | None = Field(
        default=None, gt=0, description="The newest sample must have arrived within so many days; default: any age"
    )
    expectations: tuple[ExpectationConfig, ...] = Field(
        default=(),
        description="Great Expectations suite over the manifest's columns, beside the floors that are always on",
    )


class PretrainConfig(Section):
    """How the encoder is trained on the unlabeled training images."""

    epochs: int = Field(
        default=100, ge=1, le=100_000, description="Passes over the training images", json_schema_extra=IN_FORM
    )
    batch_size: int = Field(
        default=256,
        ge=2,
        le=65_536,
        description="Images a step, over all devices; each gives two views",
        json_schema_extra=IN_FORM,
    )
    learning_rate: float = Field(
        default=2e-3,
        gt=0,
        le=100,
        description="Peak learning rate of AdamW, reached after the warm-up",
        json_schema_extra=IN_FORM,
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="AdamW's weight decay")
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises linearly"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the hardware computes in it, else float32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    threads: int | Literal["auto"] = Field(
        default="auto", description="CPU threads; resolved once and stored with the run"
    )
    seed: int = Field(default=0, ge=0, description="Seed of the weights, the order and the augmentations")
    checkpoint_seconds: float = Field(default=30, ge=0, description="Time between checkpoints; 0: after every epoch")
    when: Literal["first", "always", "manual", "cron"] = Field(
        default="first",
        description="first: once per recipe, then reuse the registered encoder; always: for every dataset version; "
        "manual: only when asked for (--pretrain, or the DAG triggered by hand; `ssl-core run` also where there is no encoder yet); "
        "cron: as manual, and by schedule.pretrain",
        json_schema_extra=IN_FORM,
    )

    @field_validator("threads")
    @classmethod
    def _threads_in_range(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 1024:
            raise ValueError("must be between 1 and 1024, or auto")
        return value


class EvaluateConfig(Section):
    """How "did pretraining help?" is answered."""

    label_budgets: tuple[int, ...] | Literal["auto"] = Field(
        default="auto",
        description="Labels in all, ascending; each budget contains the smaller ones, and all labels are always added. "
        "auto: 1, 2, 5 and 10 labels a class",
    )
    draws: int = Field(default=20, ge=3, le=1000, description="Random draws of labels, the same for every method")
    probe: ProbeName = Field(
        default="label-spreading",
        description="The probe of the frozen encoder that the table shows; fixed here, never chosen on test data",
    )
    bootstrap: int = Field(default=2000, ge=100, le=100_000, description="Resamples for the 95% intervals")
    seed: int = Field(default=0, ge=0, description="Seed of the draws and resamples")

    @field_validator("label_budgets")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | str) -> tuple[int, ...] | str:
        if not isinstance(value, str) and (any(b < 2 for b in value) or list(value) != sorted(set(value))):
            raise ValueError("must be ascending numbers of at least 2")
        if len(value) > 20 and not isinstance(value, str):
            raise ValueError("at most 20 budgets")
        return value

    def budgets(self, classes: int) -> tuple[int, ...]:
        """The label budgets for so many classes."""
        if self.label_budgets == "auto":
            return tuple(each * classes for each in (1, 2, 5, 10))
        return self.label_budgets


class PromotionConfig(Section):
    """When a challenger becomes the champion."""

    approval: Literal["auto", "human"] = Field(
        default="auto", description="auto: the gate's PROMOTE is enough; human: a person approves the report's digest"
    )
    margin: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Accuracy that a challenger may lose against the champion, at the interval's lower end",
    )


class ProjectConfig(Section):
    """One project: the only file a team has to write."""

    name: str = Field(
        pattern=NAME_PATTERN, max_length=40, description="Lower-case letters, digits and dashes; names everything made"
    )
    description: str = Field(default="", description="One sentence for people")
    owner: str = Field(default="", description="Who to ask: a person or a team")
    tags: tuple[str, ...] = Field(default=(), description="Free words to find the project by")
    modality: Literal["image"] = Field(default="image", description="What a sample is")
    data: DataConfig = Field(description="Samples, labels and splits")
    validation: ValidationConfig = Field(default_factory=ValidationConfig, description="What the data must fulfil")
    encoder: EncoderConfig = Field(
        default_factory=EncoderConfig, description="The network that is pretrained and transferred"
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="The self-supervised training task")
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig, description="The pretraining loop")
    task: TaskConfig = Field(default_factory=TaskConfig, description="What the labels are for")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Did it help?")
    promotion: PromotionConfig = Field(default_factory=PromotionConfig, description="From challenger to champion")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="When Airflow starts what by itself")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="Retries and time-outs in Airflow")
    runner: RunnerField = Field(default_factory=RunnerConfig, description="Where Airflow runs the steps")

    @model_validator(mode="after")
    def _cron_and_when_agree(self) -> ProjectConfig:
        if self.pretrain.when == "cron" and self.schedule.pretrain is None:
            raise PydanticCustomError("elsewhere", "cron needs a cron in `schedule.pretrain`", {"key": "pretrain.when"})
        if self.pretrain.when != "cron" and self.schedule.pretrain is not None:
            raise PydanticCustomError("elsewhere", "a cron needs `pretrain.when: cron`", {"key": "schedule.pretrain"})
        return self
