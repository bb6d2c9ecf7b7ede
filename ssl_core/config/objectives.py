"""Self-supervised objectives, one class each: what ``objective:`` in a project may hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ssl_core.config.base import Section


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


class SimCLRConfig(Section):
    """SimCLR: two views of one image attract, all other images of the batch repel (Chen et al. 2020)."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.2, gt=0, le=10, description="Softmax temperature of NT-Xent")
    projection_hidden: int = Field(default=256, ge=8, le=8192, description="Hidden width of the projection head")
    projection_dim: int = Field(default=128, ge=2, le=8192, description="Output width of the projection head")
    augment: ImageAugmentConfig = Field(default_factory=ImageAugmentConfig, description="How views are made")


# One objective today; a second one makes this a union discriminated by `name`.
ObjectiveConfig = SimCLRConfig
