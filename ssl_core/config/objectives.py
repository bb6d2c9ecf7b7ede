"""Self-supervised objectives, one class each: what ``objective:`` in a project may hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ssl_core.config.base import Section


class ObjectiveConfig(Section):
    """What every objective has."""

    name: str = Field(description="The objective")


class ImageAugmentConfig(Section):
    """Random changes that make two views of one image; drawn per sample, applied to whole batches on the device.

    What must not change the meaning of your images has to stay off: flips turn a 'b' into a 'd'.
    """

    crop_scale: tuple[float, float] = Field(
        default=(0.5, 1.0), description="Share of the image area that a random crop keeps, smallest and largest"
    )
    rotate: float = Field(default=10.0, ge=0, le=180, description="Largest rotation to either side, degrees")
    translate: float = Field(default=0.1, ge=0, le=0.5, description="Largest shift, as a share of the side")
    shear: float = Field(default=5.0, ge=0, le=45, description="Largest shear to either side, degrees")
    flip: bool = Field(default=False, description="Mirror left-right half of the time; off where handedness matters")
    brightness: float = Field(default=0.3, ge=0, le=1, description="Largest relative change of brightness")
    contrast: float = Field(default=0.3, ge=0, le=1, description="Largest relative change of contrast")
    noise: float = Field(
        default=0.05, ge=0, le=1, description="Largest standard deviation of added noise (images in 0..1)"
    )
    blur: float = Field(default=0.5, ge=0, le=1, description="Probability of a Gaussian blur")
    cutout: float = Field(
        default=0.25, ge=0, le=0.9, description="Largest side of an erased square, as a share of the side"
    )


class SimCLRConfig(ObjectiveConfig):
    """SimCLR: two views of one image attract, all other images of the batch repel (Chen et al. 2020)."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.2, gt=0, le=10, description="Softmax temperature of NT-Xent")
    projection_hidden: int = Field(default=256, ge=8, le=8192, description="Hidden width of the projection head")
    projection_dim: int = Field(default=128, ge=2, le=8192, description="Output width of the projection head")
    augment: ImageAugmentConfig = Field(default_factory=ImageAugmentConfig, description="How views are made")


class MaskingConfig(Section):
    """Which tokens are hidden (Devlin et al. 2019, section 3.1: 15%; 80% of these as [MASK], 10% as a random token, 10% as they are)."""

    strategy: Literal["token", "whole-word", "span", "entity"] = Field(
        default="token",
        description="token: each by itself; whole-word: all pieces of a word together; span: neighbouring tokens (SpanBERT); "
        "entity: the entities of `entities` as wholes first, then whole words",
    )
    rate: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that are predicted")
    mask: float = Field(default=0.8, ge=0, le=1, description="Share of these that the encoder sees as the mask token")
    random: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of these that it sees as a random token; the rest it sees as they are",
    )
    span_length: float = Field(default=3.0, ge=1, le=20, description="Mean length of a span, tokens (span)")
    entities: str | None = Field(
        default=None,
        min_length=1,
        description="A file of entities, one a line, or of a knowledge graph (CSV or TSV: subject, relation, object), whose subjects and "
        "objects are the entities. A relative path is taken from the project file's folder",
    )

    @field_validator("entities")
    @classmethod
    def _a_file(cls, value: str | None) -> str | None:
        scheme, found, _ = (value or "").partition("://")
        if found:
            raise ValueError(f"{scheme}:// cannot be read; name a file on this machine")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> MaskingConfig:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"mask + random must be at most 1, not {self.mask + self.random:g}")
        if (self.strategy == "entity") != (self.entities is not None):
            raise ValueError("strategy: entity and a file of entities go together; give both or none")
        return self


class MLMConfig(ObjectiveConfig):
    """Masked language modelling: hidden tokens are predicted from those around them (Devlin et al. 2019)."""

    name: Literal["mlm"] = "mlm"
    masking: MaskingConfig = Field(default_factory=MaskingConfig, description="What is hidden, and how")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout while pretraining; 0 learns faster in a few passes over the data (Geiping and Goldstein 2022)",
    )
