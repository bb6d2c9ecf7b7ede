"""Downstream tasks, one class each: what ``task:`` in a project may hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ssl_core.config.base import IN_FORM, Section


class ImageClassificationConfig(Section):
    """Put each image into one of the classes that its labels name."""

    name: Literal["image-classification"] = "image-classification"
    labels: int | Literal["all"] = Field(
        default="all",
        description="Label budget of the registered model: so many labelled training images, or all",
        json_schema_extra=IN_FORM,
    )
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
    seed: int = Field(default=0, ge=0, description="Seed of the label draw, the head and the batches")


# One task today; a second one makes this a union discriminated by `name`.
TaskConfig = ImageClassificationConfig
