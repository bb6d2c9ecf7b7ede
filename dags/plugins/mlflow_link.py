"""Airflow plugin: MLflow in the navigation bar."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from ssl_core.config.settings import Settings


class MlflowLink(AirflowPlugin):
    """A link, not a frame: MLflow refuses to be framed, and that protects it."""

    name = "ssl_mlflow"
    external_views: ClassVar[list[dict[str, Any]]] = [
        {
            "name": "MLflow",
            "href": f"{Settings().browser_mlflow_url}/?workflowType=machine_learning",
            "destination": "nav",
            "nav_top_level": True,
        }
    ]
