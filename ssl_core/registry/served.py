"""A registered model of a project, loaded to answer requests in this process as it would on a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_core.config.settings import Settings
from ssl_core.errors import UserError
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.serving.package import Kind

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_LISTED = 20


@dataclass(frozen=True)
class Served:
    """A version that answers."""

    name: str
    version: str
    modality: str
    model: Any
    """MLflow's pyfunc model."""

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@contextmanager
def served(settings: Settings, project: str, kind: Kind, version: str | None = None) -> Iterator[Served]:
    """The encoder or the classifier of ``project``: ``version``, else the champion; of encoders else the newest.

    Raises ``UserError`` where there is none, ``CheckFailed`` where it cannot be loaded, ``TryAgain`` where MLflow is away.
    """
    with mlflow_errors(settings):
        entry = _find(connect(settings), settings, project, kind, version)
        with versions.loaded(f"models:/{entry.name}/{entry.version}") as model:
            modality = str((model.metadata.metadata or {}).get("modality", "image"))
            yield Served(entry.name, str(entry.version), modality, model)


def _find(client: MlflowClient, settings: Settings, project: str, kind: Kind, version: str | None) -> ModelVersion:
    name = versions.encoder_name(project) if kind == "encoder" else project
    there = versions.by_tag(client, name, "ssl.project", project)
    if version is not None:
        chosen = [entry for entry in there if str(entry.version) == version]
    else:
        champion = versions.by_alias(client, name, versions.CHAMPION)
        chosen = [champion] if champion else there[:1] if kind == "encoder" else []
    if chosen:
        return chosen[0]
    if not there:
        what = "encoder" if kind == "encoder" else "model"
        raise UserError(
            f"project '{project}' has no registered {what} yet", place=settings.tracking_url, next_step=f"ssl-core run {project}"
        )  # fmt: skip
    if version is None:
        newest = there[0].version
        raise UserError(
            f"'{name}' has no champion yet; its newest is version {newest}", place=settings.tracking_url,
            next_step=f"add --version {newest} to use that one, or see why it was not promoted: ssl-core report {project} --version {newest}",
        )  # fmt: skip
    known = ", ".join(str(entry.version) for entry in reversed(there[:_LISTED]))
    raise UserError(f"'{name}' has no version {version} (there: {known})", place=settings.tracking_url)
