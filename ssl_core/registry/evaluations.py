"""From a registered model version to the evaluation that it was registered with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssl_core.config.settings import Settings
from ssl_core.contracts import ArtifactRef
from ssl_core.errors import UserError
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors, version_link
from ssl_core.store import Store


@dataclass(frozen=True)
class Found:
    """A version, and the local, verified folder of its evaluation."""

    version: str
    alias: str
    dataset: str
    folder: Path
    links: dict[str, str] = field(default_factory=dict)


def find_evaluation(settings: Settings, project: str, version: str | None = None) -> Found:
    """The evaluation of ``version``, or of the champion.

    Raises ``UserError`` where there is no such version, no champion, or a version without an evaluation on record.
    """
    with mlflow_errors(settings):
        client = connect(settings)
        if version is None:
            entry = versions.by_alias(client, project, versions.CHAMPION)
        else:
            entry = versions.get_version(client, project, version) if version.isdigit() else None
    if entry is None:
        what = f"has no version {version}" if version is not None else "has no champion yet"
        raise UserError(
            f"'{project}' {what}",
            place=settings.tracking_url,
            next_step=f"run `ssl-core run {project}`; with labels it ends with a champion, or says why not",
        )
    tags = entry.tags
    try:
        ref = ArtifactRef(
            kind="evaluation",
            uri=tags["ssl.evaluation_uri"],
            sha256=tags["ssl.evaluation_sha256"],
            producer=tags["ssl.evaluation_producer"],
        )
    except KeyError:
        raise UserError(
            f"'{project}' version {entry.version} has no evaluation on record",
            place=settings.tracking_url,
            next_step="register it by `ssl-core run`, or choose another --version",
        ) from None
    links = {"Model": version_link(settings, project, str(entry.version))}
    links |= {
        title: tags[tag]
        for title, tag in (("MLflow run", "ssl.run_url"), ("DAG run", "ssl.dag_run_url"))
        if tags.get(tag)
    }
    folder = Store(settings.store_url, settings.cache).fetch(ref)
    alias = versions.CHAMPION if version is None else ""
    return Found(str(entry.version), alias, tags.get("ssl.dataset", ""), folder, links)
