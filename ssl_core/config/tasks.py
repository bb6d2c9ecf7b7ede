"""Downstream tasks, one class each: what ``task:`` in a project may hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ssl_core.config.base import IN_FORM, Section


class TaskConfig(Section):
    """What every task has."""

    name: str = Field(description="The task")
    labels: int | Literal["all"] = Field(
        default="all",
        description="Label budget of the registered model: so many labelled training samples, or all",
        json_schema_extra=IN_FORM,
    )
    method: str = Field(description="What is trained")
    epochs: int = Field(ge=1, le=10_000, description="Passes over what is trained on")
    seed: int = Field(default=0, ge=0, description="Seed of the label draw, the head and the batches")
    seeds: int = Field(
        default=3,
        ge=1,
        le=20,
        description="Train so many models, of seed, seed + 1 and so on, and register the one of median quality: it stands for the "
        "recipe, and not for luck",
    )


class ImageClassificationConfig(TaskConfig):
    """Put each image into one of the classes that its labels name."""

    name: Literal["image-classification"] = "image-classification"
    method: Literal["full", "linear"] = Field(
        default="full", description="Train encoder and head (full), or the head on a frozen encoder (linear)"
    )
    spread_labels: bool = Field(
        default=True,
        description="Spread the labels over the unlabeled training images' embeddings first, and train on those too, "
        "weighted by how certain they are. The model's probabilities are then calibrated on them",
    )
    epochs: int = Field(
        default=30,
        ge=1,
        le=10_000,
        description="Passes over the training images; more where these are fewer than 100 steps, the least that is taken",
        json_schema_extra=IN_FORM,
    )
    batch_size: int = Field(default=128, ge=2, le=65_536, description="Images a step, over all devices")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=10, description="Peak learning rate of the head", json_schema_extra=IN_FORM
    )
    encoder_learning_rate: float = Field(
        default=2e-4, ge=0, le=10, description="Peak learning rate of the encoder (full)"
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="AdamW's weight decay")
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a label given to the other classes; makes the model less sure. Spread labels are soft anyway",
    )


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685); merged into the weights before the model is saved."""

    rank: int = Field(default=8, ge=1, le=1024, description="Rank of each adapter")
    alpha: float = Field(default=16.0, gt=0, description="Scale of the adapters: alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters")


class TextClassificationConfig(TaskConfig):
    """Put each text into one class or several, or give it a number, as ``data.label_type`` says."""

    name: Literal["text-classification"] = "text-classification"
    method: Literal["full", "linear", "lora"] = Field(
        default="full",
        description="Train encoder and head (full), the head on a frozen encoder (linear), or the head and low-rank adapters (lora)",
    )
    epochs: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="Passes over the labelled texts; more where these are fewer than 300 steps",
        json_schema_extra=IN_FORM,
    )
    batch_size: int = Field(default=32, ge=1, le=65_536, description="Texts a step")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=10, description="Peak learning rate of the head", json_schema_extra=IN_FORM
    )
    encoder_learning_rate: float = Field(
        default=2e-4,
        ge=0,
        le=10,
        description="Peak learning rate of the encoder's last layer (full), or of the adapters (lora)",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Each layer below learns so much slower than the one above (full); 1: all alike",
    )
    frozen_layers: int = Field(
        default=0,
        ge=0,
        le=96,
        description="So many of the first layers, and the embeddings, stay as they are (full); 0: none",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description="The adapters of method lora")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout of encoder and head while fine-tuning")
    weight_decay: float = Field(default=1e-2, ge=0, le=1, description="AdamW's weight decay")
    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="balanced: a label of a rare class counts more, so that every class counts the same in all",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of a label given to the other classes; makes the model less sure"
    )
    early_stopping: int = Field(
        default=0,
        ge=0,
        description="Stop after so many epochs without a better loss on a tenth of the label budget, held out; 0: never, and all labels train",
    )
    folds: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Cross-validate inside the label budget with so many folds (2 to 20), and report it; 0: not",
    )
    stride: int = Field(
        default=32,
        ge=0,
        description="Tokens that neighbouring windows of a long text share; a text's scores are its windows' mean",
    )

    @field_validator("folds")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold leaves nothing to train on; must be 0, or 2 to 20")
        return value
