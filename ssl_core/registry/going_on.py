"""Whether a fine-tuning goes on from the champion, and from which version: asked once, when dataset and encoder are known.

A run goes on where ``continual.when`` says so, the dataset is newer than the champion's, the champion stands on the same encoder
version and its weights are still there; but each ``continual.control_every``-th time the model is trained from the encoder on
everything instead, so that what going on may lack is seen. A dataset version that was decided on already is trained as it was
then, so that the same run finds its steps done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, LedgerEntry, ModelRef
from ssl_core.data.windows import version_number
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.ledger import Ledger, standing, terminal
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CONTINUED_FROM = "ssl.continued_from"
"""Tag of a model version: the version that it went on from."""


def champion_to_go_on_from(
    settings: Settings, store: Store, project: ProjectConfig, dataset: DatasetRef, encoder: ModelRef, drift: str = ""
) -> tuple[ModelRef | None, str]:
    """The champion for the optional input of ``finetune``, or None; and why, in a few words (empty: nothing was asked for).

    ``drift`` is the digest of the drift report that woke the run, empty where none did. Raises ``TryAgain`` where MLflow or the
    store is away, ``CheckFailed`` where the ledger was tampered with.
    """
    if project.continual.when == "never" or dataset.tag is None:
        return None, ""
    entries = Ledger(store, project.name).entries()
    with mlflow_errors(settings):
        client = connect(settings)
        settled = _settled(client, project, dataset, encoder, entries)
        if settled is not None:
            parent = _version(client, project, settled.tags.get(CONTINUED_FROM, ""))
            if parent is None or _unfit(parent, store, dataset, encoder):
                return None, ""
            return versions.to_ref(parent), f"goes on from version {parent.version}, as it did before"
        if project.continual.when == "drift" and not drift:
            return None, ""
        champion = _version(client, project, standing(entries).champion or "")
        if champion is None:
            return None, "there is no champion to go on from"
        if reason := _unfit(champion, store, dataset, encoder):
            reason = f"not going on from version {champion.version}: {reason}"
        elif control_due(entries, lambda number: _continued(client, project, number), project.continual.control_every):
            reason = "this time from the encoder on everything, as a control (continual.control_every)"
    return (None, reason) if reason else (versions.to_ref(champion), f"goes on from version {champion.version}")


def control_due(entries: list[LedgerEntry], continued: Callable[[str], bool], every: int) -> bool:
    """Whether the next training is the ``every``-th since the last one from the encoder: promotions in between count, 0 is never.

    ``continued(version)`` says whether a version went on from a champion. A control that was rejected was one all the same.
    """
    promoted = 0
    for entry in reversed(entries):
        if entry.action == "ROLLED_BACK":
            continue
        if every == 0 or promoted + 1 >= every or not continued(entry.model_version):
            break
        promoted += entry.action == "PROMOTED"
    return every > 0 and promoted + 1 >= every


def _settled(
    client: MlflowClient, project: ProjectConfig, dataset: DatasetRef, encoder: ModelRef, entries: list[LedgerEntry]
) -> ModelVersion | None:
    """The version by which this dataset version and recipe were decided; None while they are open."""
    source = versions.get_version(client, encoder.name, encoder.version)
    recipe = versions.model_recipe(project, source.tags.get("ssl.recipe", "") if source else "")
    entry = terminal(entries, dataset.tag or "", recipe)
    return _version(client, project, entry.model_version) if entry else None


def _unfit(version: ModelVersion, store: Store, dataset: DatasetRef, encoder: ModelRef) -> str:
    """Why one cannot go on from a version on this dataset and encoder; empty where one can."""
    theirs, now = version_number(version.tags.get("ssl.dataset", "")), version_number(dataset.tag or "")
    if theirs is None or now is None or now <= theirs:
        return f"{dataset.tag} is not newer than its data"
    if (version.tags.get("ssl.encoder"), version.tags.get("ssl.encoder_version")) != (encoder.name, encoder.version):
        return f"it stands on another encoder than {encoder.name} version {encoder.version}"
    return "" if store.exists(version.tags.get("ssl.uri", "?")) else "its weights are not in the store any more"


def _continued(client: MlflowClient, project: ProjectConfig, number: str) -> bool:
    version = _version(client, project, number)
    return version is not None and CONTINUED_FROM in version.tags


def _version(client: MlflowClient, project: ProjectConfig, number: str) -> ModelVersion | None:
    return versions.get_version(client, project.name, number) if number else None
