"""The pretraining loop: what ``pretrain:`` in a project may hold."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ssl_core.config.base import IN_FORM, Section


class PretrainConfig(Section):
    """How the encoder is trained on the unlabeled training samples."""

    epochs: int = Field(
        default=100, ge=1, le=100_000, description="Passes over the training samples", json_schema_extra=IN_FORM
    )
    budget: str | None = Field(
        default=None,
        description="Time instead of epochs, such as 90s, 10m or 2h: the schedule ends when it is spent. Another machine then makes other "
        "weights. Default: epochs decide",
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

    @field_validator("budget")
    @classmethod
    def _known_budget(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9][0-9]{0,5}[smh]", value):
            raise ValueError("must be a whole number of seconds, minutes or hours: 90s, 10m or 2h")
        return value

    @property
    def budget_seconds(self) -> float | None:
        """``budget`` in seconds."""
        if self.budget is None:
            return None
        return float(self.budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.budget[-1]]


class ImagePretrainConfig(PretrainConfig):
    """How the encoder is trained on the unlabeled training images."""

    batch_size: int = Field(
        default=256,
        ge=2,
        le=65_536,
        description="Images a step, over all devices; each gives two views",
        json_schema_extra=IN_FORM,
    )


class TextPretrainConfig(PretrainConfig):
    """How the encoder is trained on the unlabeled training texts."""

    epochs: int = Field(
        default=10, ge=1, le=100_000, description="Passes over the training texts", json_schema_extra=IN_FORM
    )
    batch_tokens: int = Field(
        default=4096,
        ge=64,
        le=16_777_216,
        description="Tokens a step, over all devices; texts are packed, so hardly any of them is padding",
        json_schema_extra=IN_FORM,
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        le=100,
        description="Peak learning rate of AdamW, reached after the warm-up; from a checkpoint, 1e-4 or less is usual",
        json_schema_extra=IN_FORM,
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto: bfloat16 where a trial of some steps finds it faster by a tenth or more, else float32; fine-tuning takes "
        "bfloat16 on a GPU that computes in it",
    )
    weight_decay: float = Field(default=1e-2, ge=0, le=1, description="AdamW's weight decay")
