"""Encoder architectures, one class each; ``ssl_core.models`` builds what they describe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ssl_core.config.base import Section


class ResNetConfig(Section):
    """A CIFAR-style residual network for small images: 3x3 stem, no max-pooling, global average pooling."""

    arch: Literal["resnet"] = "resnet"
    widths: tuple[int, ...] = Field(
        default=(32, 64, 128),
        min_length=1,
        max_length=5,
        description="Channels of each stage; every stage after the first halves height and width",
    )
    blocks: int = Field(default=1, ge=1, le=8, description="Residual blocks per stage")
    norm: Literal["batch", "group"] = Field(
        default="batch", description="Normalisation: batch statistics, or group (independent of the batch)"
    )


EncoderConfig = ResNetConfig
