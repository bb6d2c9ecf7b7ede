"""Encoder architectures, one class each; ``ssl_core.models`` builds what they describe."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ssl_core.config.base import IN_FORM, Section

LAYERS, HIDDEN, HEAD_WIDTH = 2, 128, 64
"""Of a transformer from scratch, where the project does not say."""

CHECKPOINT_FORMS = "a folder in Hugging Face form, sample://minilm, models:/NAME/VERSION or hf://ORGANISATION/NAME"
REGISTERED = re.compile(r"models:/([^/@]+)/([0-9]+)")
"""Name and version of an encoder that this platform registered."""
ON_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
"""Repository and revision on the Hugging Face hub."""


def check_init_from(value: str) -> None:
    """Raises ``ValueError`` where ``value`` has none of ``CHECKPOINT_FORMS``; whether anything lies there is not looked at."""
    scheme, found, rest = value.partition("://")
    if value.startswith("models:"):
        if not REGISTERED.fullmatch(value):
            raise ValueError(
                "does not name a version; write models:/NAME/VERSION with the version's number, as MLflow's registry shows it "
                "(an alias may move)"
            )
    elif found and scheme == "hf":
        if not ON_HUB.fullmatch(value) or ".." in value:
            raise ValueError("is no name on the hub; write hf://ORGANISATION/NAME, or add @REVISION")
    elif found and scheme == "sample":
        if rest != "minilm":
            raise ValueError("is no bundled checkpoint; sample://minilm is")
    elif found:
        raise ValueError(f"{scheme}:// cannot be read; name {CHECKPOINT_FORMS}")


class EncoderConfig(Section):
    """What every encoder has."""

    arch: str = Field(description="The architecture")


class ResNetConfig(EncoderConfig):
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


class TransformerConfig(EncoderConfig):
    """A transformer encoder for text, as the transformers library builds it: from scratch, or from a checkpoint."""

    arch: Literal["bert", "modernbert"] = Field(
        default="bert",
        description="bert (Devlin et al. 2019), or modernbert (Warner et al. 2024: rotary positions, local and global attention)",
    )
    layers: int | None = Field(default=None, ge=1, le=96, description="Default: 2, or what init_from has")
    hidden: int | None = Field(
        default=None, ge=16, le=8192, description="Width, a multiple of heads. Default: 128, or what init_from has"
    )
    heads: int | None = Field(
        default=None, ge=1, le=128, description="Attention heads. Default: one for 64 of hidden, or what init_from has"
    )
    intermediate: int | None = Field(
        default=None, ge=16, le=65_536, description="Width of the feed-forward part. Default: 4 * hidden"
    )
    max_length: int = Field(
        default=128,
        ge=8,
        le=8192,
        description="Tokens that the encoder sees at once, special tokens included; longer texts are seen window by window",
        json_schema_extra=IN_FORM,
    )
    pooling: Literal["mean", "cls"] = Field(
        default="mean", description="A text's embedding: the mean of its tokens' outputs, or the first token's"
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="Weights and tokenizer to start from: a folder in Hugging Face form (safetensors only), sample://minilm, a registered "
        "encoder models:/NAME/VERSION, or a hub id hf://ORGANISATION/NAME where the network allows it",
        json_schema_extra=IN_FORM,
    )

    @field_validator("init_from")
    @classmethod
    def _known_form(cls, value: str | None) -> str | None:
        if value is not None:
            check_init_from(value)
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> TransformerConfig:
        if self.init_from is None:
            hidden = self.hidden or HIDDEN
            heads = self.heads or max(1, hidden // HEAD_WIDTH)
            if hidden % heads:
                raise ValueError(f"hidden ({hidden}) must be a multiple of heads ({heads})")
            if self.arch == "modernbert" and hidden // heads % 2:
                raise ValueError(
                    f"hidden ({hidden}) must be an even multiple of heads ({heads}): rotary positions turn pairs of features"
                )
        return self
