"""The project schema: the one source of YAML validation, CLI help, trigger forms and docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ModelWrapValidatorHandler, TypeAdapter, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ssl_core.config.base import IN_FORM, Section
from ssl_core.config.continual import ContinualConfig
from ssl_core.config.data import DataConfig, ImageDataConfig, TextDataConfig
from ssl_core.config.encoders import LAYERS, EncoderConfig, ResNetConfig, TransformerConfig
from ssl_core.config.monitor import MonitorConfig
from ssl_core.config.objectives import MLMConfig, ObjectiveConfig, SimCLRConfig
from ssl_core.config.pretrain import ImagePretrainConfig, PretrainConfig, TextPretrainConfig
from ssl_core.config.promotion import PromotionConfig
from ssl_core.config.runner import RunnerConfig, RunnerField
from ssl_core.config.schedule import LimitsConfig, ScheduleConfig
from ssl_core.config.tasks import ImageClassificationConfig, TaskConfig, TextClassificationConfig
from ssl_core.config.tokenizer import TokenizerConfig

NAME_PATTERN = r"^[a-z][a-z0-9-]*$"
ProbeName = Literal["knn", "linear", "label-spreading"]


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
    random_encoders: int = Field(
        default=3,
        ge=1,
        le=20,
        description="So many encoders of random weights stand for random init, in turns; fewer where the encoder is large and time short",
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


class TextEvaluateConfig(EvaluateConfig):
    """How "did pretraining help?" is answered."""

    probe: ProbeName = Field(
        default="linear",
        description="The probe of the frozen encoder that the table shows; fixed here, never chosen on test data",
    )


class ProjectConfig(Section):
    """One project: the only file a team has to write. What is validated by this class becomes one of the classes of its modality."""

    noun: ClassVar[str] = "samples"
    """What samples are called, in the plural."""

    name: str = Field(
        pattern=NAME_PATTERN, max_length=40, description="Lower-case letters, digits and dashes; names everything made"
    )
    description: str = Field(default="", description="One sentence for people")
    owner: str = Field(default="", description="Who to ask: a person or a team")
    tags: tuple[str, ...] = Field(default=(), description="Free words to find the project by")
    modality: str = Field(description="What a sample is")
    data: DataConfig = Field(description="Samples, labels and splits")
    validation: ValidationConfig = Field(default_factory=ValidationConfig, description="What the data must fulfil")
    encoder: EncoderConfig = Field(description="The network that is pretrained and transferred")
    objective: ObjectiveConfig = Field(description="The self-supervised training task")
    pretrain: PretrainConfig = Field(description="The pretraining loop")
    task: TaskConfig = Field(description="What the labels are for")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Did it help?")
    continual: ContinualConfig = Field(default_factory=ContinualConfig, description="How a champion learns on")
    promotion: PromotionConfig = Field(default_factory=PromotionConfig, description="From challenger to champion")
    monitor: MonitorConfig = Field(default_factory=MonitorConfig, description="What counts as drift, and what follows")
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

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_modality(cls, data: Any, handler: ModelWrapValidatorHandler[ProjectConfig]) -> ProjectConfig:
        if cls is ProjectConfig and isinstance(data, Mapping):
            return project_class(data).model_validate(data)
        return handler(data)


class ImageProject(ProjectConfig):
    """A project on images."""

    noun: ClassVar[str] = "images"
    modality: Literal["image"] = Field(default="image", description="What a sample is: an image")
    data: ImageDataConfig = Field(description="Images, labels and splits")
    encoder: ResNetConfig = Field(
        default_factory=ResNetConfig, description="The network that is pretrained and transferred"
    )
    objective: SimCLRConfig = Field(default_factory=SimCLRConfig, description="The self-supervised training task")
    pretrain: ImagePretrainConfig = Field(default_factory=ImagePretrainConfig, description="The pretraining loop")
    task: ImageClassificationConfig = Field(
        default_factory=ImageClassificationConfig, description="What the labels are for"
    )


class TextProject(ProjectConfig):
    """A project on texts."""

    noun: ClassVar[str] = "texts"
    modality: Literal["text"] = Field(description="What a sample is: a text")
    data: TextDataConfig = Field(description="Texts, labels and splits")
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="How text becomes tokens")
    encoder: TransformerConfig = Field(
        default_factory=TransformerConfig, description="The network that is pretrained and transferred"
    )
    objective: MLMConfig = Field(default_factory=MLMConfig, description="The self-supervised training task")
    pretrain: TextPretrainConfig = Field(default_factory=TextPretrainConfig, description="The pretraining loop")
    task: TextClassificationConfig = Field(
        default_factory=TextClassificationConfig, description="What the labels are for"
    )
    evaluate: TextEvaluateConfig = Field(default_factory=TextEvaluateConfig, description="Did it help?")

    @model_validator(mode="after")
    def _task_fits(self) -> TextProject:
        """What would else be found when the encoder is already pretrained, or even fine-tuned."""
        task, encoder = self.task, self.encoder
        if task.class_weights == "balanced" and self.data.label_type == "number":
            message = "numbers have no classes that could be balanced; write `none`, or another `data.label_type`"
            raise PydanticCustomError("elsewhere", message, {"key": "task.class_weights"})
        if task.labels != "all" and task.labels < 2 * task.folds:
            message = f"{task.labels} labels are too few for {task.folds} folds of two or more"
            raise PydanticCustomError("elsewhere", message, {"key": "task.folds"})
        layers = encoder.layers or (LAYERS if encoder.init_from is None else None)
        if task.method == "full" and layers is not None and task.frozen_layers > layers:
            message = f"asks for {task.frozen_layers} frozen layers, but the encoder has {layers}"
            raise PydanticCustomError("elsewhere", message, {"key": "task.frozen_layers"})
        return self


PROJECTS: dict[str, type[ProjectConfig]] = {"image": ImageProject, "text": TextProject}
"""The class of a project by its modality."""


def project_class(data: Mapping[str, Any]) -> type[ProjectConfig]:
    """The class that a project file's content belongs to: by its ``modality``, an image where it names none or no known one."""
    modality = data.get("modality", "image")
    return PROJECTS.get(modality, _AnyProject) if isinstance(modality, str) else _AnyProject


def project_schema() -> dict[str, Any]:
    """The JSON schema of a project file."""
    schema: dict[str, Any] = TypeAdapter(ImageProject | TextProject).json_schema()
    return {"title": "Project"} | schema


class _AnyProject(ImageProject):
    """What a modality that there is not is judged by."""

    modality: Literal["image", "text"] = Field(description="What a sample is")  # type: ignore[assignment]
