"""How a champion learns on: the section ``continual:``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ssl_core.config.base import IN_FORM, Section


class ContinualConfig(Section):
    """How fine-tuning goes on from the champion, so that it learns the new without forgetting the old."""

    when: Literal["drift", "always", "never"] = Field(
        default="drift",
        description="drift: a run that drift woke goes on from the champion; always: every run with new data does; never: from the encoder",
        json_schema_extra=IN_FORM,
    )
    replay: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of the old labelled samples that are trained on again, stratified; 0 where that is forbidden",
    )
    rate: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="The task's learning rates times this: going on needs smaller steps than starting",
    )
    anchor: float = Field(
        default=0.01, ge=0, description="Strength of L2-SP: how strongly weights are pulled back to the champion's"
    )
    ewc: float = Field(
        default=0.0, ge=0, description="Strength of elastic weight consolidation, for where replay is forbidden; 0: off"
    )
    interpolate: bool = Field(
        default=True, description="Choose on split val how far to go from the champion's weights to the new ones"
    )
    control_every: int = Field(
        default=4,
        ge=0,
        description="Each so-many-th time, train from the encoder on everything instead, as a control; 0: never",
    )
