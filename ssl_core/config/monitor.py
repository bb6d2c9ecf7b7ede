"""What counts as drift, and what is done about it: the section ``monitor:``."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ssl_core.config.base import IN_FORM, Section


class MonitorConfig(Section):
    """What counts as drift, and what is done about it."""

    min_samples: int = Field(
        default=50, ge=20, description="A window of fewer samples is not judged: cannot tell", json_schema_extra=IN_FORM
    )
    false_alarms: float = Field(
        default=2.0,
        gt=0,
        lt=365,
        description="False alarms that are tolerated in 365 windows; the thresholds follow from it",
        json_schema_extra=IN_FORM,
    )
    windows: int = Field(default=5, ge=1, le=100, description="The alarm rule looks at so many last windows")
    alarm_windows: int = Field(
        default=2, ge=1, le=100, description="and needs so many of them above the threshold, the latest among them"
    )
    subsample: int = Field(
        default=500,
        ge=50,
        le=5000,
        description="Samples a side in one two-sample test; more tests where there are more samples",
    )
    min_auc: float = Field(
        default=0.55,
        ge=0.5,
        le=1,
        description="However sure, a classifier that tells old from new no better than this finds no drift",
    )
    cooldown_days: float = Field(default=0, ge=0, description="No second retraining within so many days")
    retrains_per_month: int = Field(
        default=4, ge=0, description="At most so many retrainings in 30 days; then a person decides"
    )
    predictions: str | None = Field(
        default=None, description="Folder or s3:// prefix of prediction logs (Parquet), as docs/monitoring.md describes"
    )

    @model_validator(mode="after")
    def _k_of_m(self) -> MonitorConfig:
        if self.alarm_windows > self.windows:
            message = f"{self.alarm_windows} of the last {self.windows} windows can never be above"
            raise PydanticCustomError("elsewhere", message, {"key": "monitor.alarm_windows"})
        return self
