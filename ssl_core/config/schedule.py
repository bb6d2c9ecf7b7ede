"""When Airflow starts a project's DAGs by itself, and how long and how often a task may try."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from ssl_core.config.base import Section

PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
_CRON_FIELDS = 5


class ScheduleConfig(Section):
    """Crons, one a DAG template. Assets wake the rest: a dataset version wakes pretrain and monitor, a new encoder or drift wakes
    finetune.

    A cron has five fields (minute, hour, day of month, month, day of week) or is @hourly, @daily, @weekly, @monthly,
    @quarterly or @yearly.
    """

    ingest: str | None = Field(default=None, description="When to look for new data; default: when triggered by hand")
    pretrain: str | None = Field(default=None, description="When to pretrain again; needs `pretrain.when: cron`")
    finetune: str | None = Field(
        default=None,
        description="Floor cadence: fine-tune at least so often, on what is newest then, beside the runs that a new encoder wakes",
    )
    monitor: str | None = Field(default=None, description="When to look for drift, beside each new dataset version")
    fire_drill: str | None = Field(
        default=None,
        description="When to test the guards of promotion and drift with planted faults, for example @weekly",
    )
    timezone: str = Field(default="UTC", description="Time zone of the crons, for example Europe/Berlin")

    @field_validator("ingest", "pretrain", "finetune", "monitor", "fire_drill")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        if value is None or value in PRESETS:
            return value
        from croniter import CroniterBadDateError, croniter

        # croniter also knows `R`, a minute or hour drawn anew at each reading.
        random = re.search(r"(?<![a-z])r(?![a-z])", value, re.IGNORECASE)
        if len(value.split()) != _CRON_FIELDS or random or not croniter.is_valid(value):
            raise ValueError(f"is no cron of five fields, such as '0 3 * * 1', nor one of {', '.join(PRESETS)}")
        try:
            croniter(value).get_next()
        except CroniterBadDateError:
            raise ValueError("is a cron whose day never comes") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:  # an unknown zone, or a name that is no file name
            raise ValueError("is no known time zone, such as UTC or Europe/Berlin") from error
        return value


class LimitsConfig(Section):
    """How often Airflow tries a task again, and how long a task and a run may take."""

    retries: int = Field(
        default=2,
        ge=0,
        le=20,
        description="Tries after the first, where trying again can help: an outage or a killed process, never bad input",
    )
    retry_seconds: float = Field(
        default=10,
        ge=1,
        le=86_400,
        description="Wait before the first retry; each further one waits twice as long, up to half an hour",
    )
    step_hours: float = Field(default=24, gt=0, le=8760, description="A step that takes longer is stopped")
    run_hours: float = Field(default=72, gt=0, le=8760, description="A DAG run that takes longer fails")
