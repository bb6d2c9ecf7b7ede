"""From a registered model version to the evaluation that it was registered with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_core.config.settings import Settings
from ssl_core.contracts import ArtifactRef, Verdict
from ssl_core.errors import UserError, did_you_mean
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors, version_link
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_LISTED = 20
_MOST_MODELS = 1000


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
            raise _nothing(client, settings, project, version)
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


def _nothing(client: MlflowClient, settings: Settings, project: str, version: str | None) -> UserError:
    """Why there is nothing to report, and what there is instead."""
    place = settings.tracking_url
    there = sorted(client.search_model_versions(f"name = '{_quoted(project)}'"), key=lambda v: -int(v.version))
    if there and version is not None:
        known = ", ".join(str(v.version) for v in reversed(there[:_LISTED]))
        return UserError(f"'{project}' has no version {version} (there: {known})", place=place)
    if there:
        newest = there[0]
        return UserError(
            f"'{project}' has no champion yet: {_state(newest)}",
            place=place,
            next_step=f"ssl-core report {project} --version {newest.version}",
        )
    models = {m.name: m.tags for m in client.search_registered_models(max_results=_MOST_MODELS)}
    if project in _project_files(settings) or versions.encoder_name(project) in models:
        return UserError(
            f"project '{project}' has no registered model yet"
            + ("" if version is None else f", so no version {version}"),
            place=place,
            next_step=f"run `ssl-core run {project}`; with labels it ends with a champion, or says why not",
        )
    reportable = sorted(name for name, tags in models.items() if tags.get("ssl.project") == name)
    return UserError(
        f"neither a project nor a registered model is called '{project}'"
        + did_you_mean(project, [*_project_files(settings), *reportable])
        + f" (projects in {settings.projects_dir}: {_listed(_project_files(settings))}; registered: {_listed(reportable)})",
        place=place,
        next_step="ssl-core report NAME with one of these, or set SSL_PROJECTS_DIR or MLFLOW_TRACKING_URI",
    )


def _state(version: ModelVersion) -> str:
    """Where the gate, or a person after it, left a version that is no champion."""
    name = f"version {version.version}"
    if version.tags.get("ssl.action") == "DECLINED":
        return f"{name} was declined by {version.tags.get('ssl.decided_by', 'a person')}"
    verdict = version.tags.get("ssl.verdict")
    if verdict == Verdict.REJECT:
        return f"{name} was rejected by the gate"
    if verdict == Verdict.NEEDS_HUMAN:
        return f"{name} waits for a person, who decides with ssl-core promote"
    return f"the newest is version {version.version}"


def _project_files(settings: Settings) -> list[str]:
    return sorted(path.stem for path in settings.projects_dir.glob("*.y*ml"))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "") or "none"


def _quoted(name: str) -> str:
    """Inside of a filter string; MLflow knows no escape for a quote, and no name of ours has one."""
    return name.replace("'", "")
