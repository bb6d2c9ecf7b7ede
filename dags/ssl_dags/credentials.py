"""Secrets of jobs from Airflow connections: ``ssl_s3`` (access key and secret) and ``ssl_mlflow`` (user and password)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

S3, MLFLOW = "ssl_s3", "ssl_mlflow"


def from_connections(find: Callable[[str], Any | None] | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """``(public, secret)`` variables of a job from the connections that exist. What they leave empty stays as it was.

    ``ssl_s3``: login and password are the access key's id and secret; its extra may hold ``endpoint_url``, ``region_name`` and
    ``aws_session_token``, as those of Airflow's own AWS connections do.
    """
    find = find or _find
    public: dict[str, str | None] = {}
    secret: dict[str, str | None] = {}
    if (s3 := find(S3)) is not None:
        extra = s3.extra_dejson or {}
        secret |= {
            "AWS_ACCESS_KEY_ID": s3.login or extra.get("aws_access_key_id"),
            "AWS_SECRET_ACCESS_KEY": s3.password or extra.get("aws_secret_access_key"),
            "AWS_SESSION_TOKEN": extra.get("aws_session_token"),
        }
        public |= {"AWS_ENDPOINT_URL": extra.get("endpoint_url"), "AWS_DEFAULT_REGION": extra.get("region_name")}
    if (mlflow := find(MLFLOW)) is not None:
        secret |= {"MLFLOW_TRACKING_USERNAME": mlflow.login, "MLFLOW_TRACKING_PASSWORD": mlflow.password}
    return _given(public), _given(secret)


def _given(values: dict[str, str | None]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value}


def _find(name: str) -> Any | None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return Connection.get(name)
    except AirflowNotFoundException:
        return None
