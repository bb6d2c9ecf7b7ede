"""Secrets of jobs from Airflow connections: ``ssl_s3`` (access key), ``ssl_mlflow`` and ``ssl_git`` (user and password)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

S3, MLFLOW, GIT = "ssl_s3", "ssl_mlflow", "ssl_git"
_AWS_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def with_connections(
    public: Mapping[str, str], secret: Mapping[str, str], find: Callable[[str], Any | None] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """``(public, secret)`` variables of a job, with what the connections that exist hold; they win, and never by halves.

    ``ssl_s3``: login and password are the access key's id and secret; its extra may hold ``endpoint_url``, ``region_name`` and
    ``aws_session_token``, as those of Airflow's own AWS connections do. ``ssl_git``: user and password (or token) for a data
    repository over https; with a host, for that host only.
    """
    find = find or _find
    public, secret = dict(public), dict(secret)
    if (s3 := find(S3)) is not None:
        extra = s3.extra_dejson or {}
        key = (s3.login or extra.get("aws_access_key_id"), s3.password or extra.get("aws_secret_access_key"))
        if key[0]:  # of one identity as a whole: its session token does not go with another's key
            _replace(secret, _AWS_KEY, (*key, extra.get("aws_session_token")))
        public |= _given(
            {"AWS_ENDPOINT_URL": extra.get("endpoint_url"), "AWS_DEFAULT_REGION": extra.get("region_name")}
        )
    if (mlflow := find(MLFLOW)) is not None and mlflow.login:
        _replace(secret, _MLFLOW_LOGIN, (mlflow.login, mlflow.password, None))
    if (git := find(GIT)) is not None and git.password:
        where = f"https://{git.host.removeprefix('https://').rstrip('/')}/." if git.host else ""
        pair = base64.b64encode(f"{git.login or 'git'}:{git.password}".encode()).decode()
        secret |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{where}extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {pair}",
        }
    return public, secret


def _replace(secret: dict[str, str], names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    for name in names:
        secret.pop(name, None)
    secret |= _given(dict(zip(names, values, strict=True)))


def _given(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value}


def _find(name: str) -> Any | None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return Connection.get(name)
    except AirflowNotFoundException:
        return None
