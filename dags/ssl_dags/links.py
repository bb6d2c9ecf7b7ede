"""Links on a task, in its details: to its MLflow run and to the report that it wrote."""

from __future__ import annotations

from typing import Any

import attrs
from airflow.sdk import BaseOperatorLink

MLFLOW_RUN = "MLflow run"


@attrs.define()
class MlflowRunLink(BaseOperatorLink):
    """The MLflow run of the task's step."""

    @property
    def name(self) -> str:
        return MLFLOW_RUN

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        # Airflow asks this in the worker once the task has ended, well or not, and keeps the answer for the UI.
        return str(getattr(operator, "links", {}).get(MLFLOW_RUN, ""))


@attrs.define()
class ReportLink(BaseOperatorLink):
    """What a person reads of the step: the validation report, the health report, the evaluation, the model version."""

    @property
    def name(self) -> str:
        return "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        links = getattr(operator, "links", {})
        return str(next((url for title, url in links.items() if title != MLFLOW_RUN), ""))
