"""When a challenger becomes the champion: the section ``promotion:``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ssl_core.config.base import IN_FORM, Section


class PromotionConfig(Section):
    """When a challenger becomes the champion."""

    approval: Literal["auto", "human"] = Field(
        default="auto",
        description="auto: the gate's PROMOTE is enough; human: a person approves the report, in Airflow or by its digest",
        json_schema_extra=IN_FORM,
    )
    approval_hours: float = Field(
        default=72, gt=0, le=8760, description="A challenger that nobody decided on within so many hours is turned down"
    )
    motive: Literal["superiority", "non-inferiority"] = Field(
        default="non-inferiority",
        description="superiority: a challenger has to be better for sure; non-inferiority: it must be measured no worse, and a loss of "
        "more than the margin must be ruled out",
        json_schema_extra=IN_FORM,
    )
    margin: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="What a challenger may lose against the champion, of accuracy or what stands for it. auto: a loss of 0.02 must be "
        "ruled out, and one that is measured turns it down from the smallest difference on that the test set can show, if that is larger",
    )
    protected_slices: tuple[str, ...] = Field(
        default=(),
        description="Slices that must not get worse, such as `label=cat`, `source=camera-2` or `window=v3`. One too small to tell needs a person",
    )
    min_slice: int = Field(default=30, ge=5, description="A slice of fewer test samples says nothing")
    max_calibration_loss: float = Field(
        default=0.05, ge=0, le=1, description="So much larger than the champion's may the calibration error (ECE) be"
    )
    max_megabytes: float | None = Field(
        default=None, gt=0, description="Largest size of the model's files; default: any"
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="Longest answer to one sample, 95th percentile, on the machine of the gate; default: any",
    )
    vault: bool = Field(
        default=True, description="Ask the vault, the split that nothing else reads, before a promotion"
    )
