"""S3: which buckets are used, and which rights there are on each."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ssl_core.config.settings import Settings
from ssl_core.doctor.finding import Finding, failed
from ssl_core.s3 import error_code, explain, split_url

_DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden")
_NOT_THERE = ("NoSuchKey", "404", "NotFound")


@dataclass(frozen=True)
class Place:
    """A bucket and prefix; ``use`` says whose, ``write`` whether more than reading is needed."""

    use: str
    url: str
    write: bool

    def __str__(self) -> str:
        return f"{self.use} {self.url}".strip()


def platform_places(settings: Settings) -> list[Place]:
    """Where the platform itself keeps things in S3."""
    kept = {
        "store": settings.store_url,
        "DVC remote": settings.dvc_remote_url,
        "MLflow artifacts": "" if settings.mlflow_tracking_uri else settings.mlflow_artifacts,
    }
    return [Place(use, url, True) for use, url in kept.items() if url.startswith("s3://")]


def client() -> Any:
    """With little patience: a doctor says soon what is wrong."""
    import boto3.session
    from botocore.config import Config

    patience = Config(connect_timeout=4, read_timeout=6, retries={"total_max_attempts": 1})
    return boto3.session.Session().client("s3", config=patience)


def endpoint() -> str:
    return str(client().meta.endpoint_url)


def examine(place: Place, make: Callable[[], Any] = client) -> Finding | None:
    """Tries every right that is needed on a place. None where all are there; else which are missing, or what else is wrong."""
    try:
        return _missing_rights(place, make())
    except Exception as error:
        known = explain(error, place.url)
        if known is not None:
            return failed(f"{place}: {known.cause}", known.next_step)
        if isinstance(error, ValueError):  # botocore repeats the address, which may hold a password
            return failed(f"{place}: AWS_ENDPOINT_URL is no address", "set it to http(s)://host:port")
        raise


def _missing_rights(place: Place, s3: Any) -> Finding | None:
    from botocore.exceptions import ClientError

    missing: list[str] = []
    bucket, path = split_url(place.url)
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    own = f"{prefix}.ssl-core-doctor-{uuid.uuid4().hex}"

    def has(right: str, request: Callable[[], Any]) -> Any:
        """The answer; None where the right is missing. Any other fault of S3 is raised."""
        try:
            return request()
        except ClientError as error:
            if error_code(error) in _DENIED:
                missing.append(right)
                return None
            if error_code(error) in _NOT_THERE:
                return {}
            raise

    listed = has("list", lambda: s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)) or {}
    written = has("put", lambda: s3.put_object(Bucket=bucket, Key=own, Body=b"doctor")) if place.write else None
    # Only what is there can show the right to read: for what is not, S3 answers "denied" where listing is not allowed.
    key = own if written is not None else next((item["Key"] for item in listed.get("Contents", ())), None)
    if key is not None:
        has("get", lambda: s3.get_object(Bucket=bucket, Key=key)["Body"].read(1))
    if place.write:
        has("delete", lambda: s3.delete_object(Bucket=bucket, Key=own))
    if not missing:
        if not place.write and key is None:
            return failed(
                f"{place}: nothing lies there", "correct data.source in the project file; a prefix is a folder's name"
            )
        return None
    left = f"; {own} was left there" if written is not None and "delete" in missing else ""
    needed = "list, get, put and delete" if place.write else "list and get"
    return failed(
        f"{place}: no right to {_and(missing)}{left}",
        f"give these credentials {needed} on {bucket}, or set others (AWS_ACCESS_KEY_ID, AWS_PROFILE)",
    )


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
