"""Step ``resolve``: freezes the configuration for a whole run and picks its dataset version and its encoder.

A DAG run's ``RunRequest`` says which of them its template needs. An asset event is a wake-up and not a message: what is
newest is asked of the data repository and the registry, here and once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings, usable_cpus
from ssl_core.contracts import DatasetRef, ModelRef, Ref, RunRequest
from ssl_core.data.repository import DataRepository
from ssl_core.errors import UserError
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.going_on import champion_to_go_on_from
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def run(ctx: StepContext) -> StepOutput:
    """Writes ``config.json`` with every ``auto`` that depends on the machine resolved.

    Adds ``dataset`` in a DAG run that reads one (a roll-back does not: it works while the data are away), and
    ``registered_encoder`` where one is chosen or ``pretrain.when`` lets one be reused; pretraining is then left out;
    ``champion`` where the fine-tuning is to go on from it (``registry.going_on``). Raises ``UserError`` where what was asked for is not there.
    """
    project = freeze(ctx.project)
    (ctx.out / "config.json").write_text(
        json.dumps(project.model_dump(mode="json"), indent=1, sort_keys=True), encoding="utf-8"
    )
    outputs: dict[str, Output | Ref] = {"config": Output("config", "config.json")}
    summary = [f"configuration frozen, {project.pretrain.threads} threads"]
    if ctx.request is not None and ctx.request.template not in ("ingest", "rollback"):
        dataset = find_dataset(ctx.settings, project.name, ctx.request)
        outputs["dataset"] = dataset
        summary.append(f"{dataset.tag or dataset.revision}: {dataset.rows:,} samples, {dataset.labelled:,} labelled")
    encoder = _encoder(ctx, project)
    if encoder is not None:
        outputs["registered_encoder"] = encoder
        summary.append(f"{encoder.name} version {encoder.version} is used")
        if ctx.request is None or ctx.request.template == "pretrain":
            summary[-1] = f"{encoder.name} version {encoder.version} is reused (pretrain.when: {project.pretrain.when})"
        elif ctx.request.template == "finetune":
            champion, why = champion_to_go_on_from(
                ctx.settings, ctx.store, project, dataset, encoder, ctx.request.drift
            )
            outputs |= {"champion": champion} if champion else {}
            summary += [why] if why else []
    return StepOutput(outputs=outputs, summary="; ".join(summary))


def _encoder(ctx: StepContext, project: ProjectConfig) -> ModelRef | None:
    request = ctx.request
    if request is not None and request.template not in ("pretrain", "finetune"):
        return None
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        if request is not None and request.template == "finetune":
            return encoder_to_finetune(client, ctx.store, project.name, request)
        if request is not None and (project.pretrain.when in ("manual", "cron") or request.dataset != "latest"):
            return None  # the pretrain DAG runs because the cron, or somebody, asked for it; or for just this version
        return reusable_encoder(client, ctx.store, project)


def freeze(project: ProjectConfig) -> ProjectConfig:
    """The configuration with ``pretrain.threads`` as a number: equal threads are part of "the same result, bit by bit"."""
    if project.pretrain.threads != "auto":
        return project
    return project.model_copy(update={"pretrain": project.pretrain.model_copy(update={"threads": usable_cpus()})})


def find_dataset(settings: Settings, name: str, request: RunRequest) -> DatasetRef:
    """The published version that the run asks for; ``UserError`` where it is not there or was never published."""
    found = DataRepository(settings).resolve(name, request.dataset)
    if found.kind != "dataset":
        raise UserError(
            f"{request.dataset} is a candidate that was never published",
            place="dataset",
            next_step="choose a published version, such as latest",
        )
    return found


def encoder_to_finetune(client: MlflowClient, store: Store, project: str, request: RunRequest) -> ModelRef:
    """The encoder that a person chose, else the one that woke the run, else the champion, else the newest.

    Raises ``UserError`` where the chosen one cannot be had, or there is none at all.
    """
    if request.encoder_version:
        chosen = find_encoder(client, store, project, version=request.encoder_version)
        assert chosen is not None
        return chosen
    if request.woken_by:
        try:
            woken = find_encoder(client, store, project, version=request.woken_by)
        except UserError:  # removed since: the run goes on with what is there
            woken = None
        if woken is not None:
            return woken
    found = find_encoder(client, store, project)
    if found is None:
        raise UserError(
            f"there is no registered encoder of {project} yet",
            place=versions.encoder_name(project),
            next_step=f"trigger {project}.pretrain first",
        )
    return found


def reusable_encoder(client: MlflowClient, store: Store, project: ProjectConfig) -> ModelRef | None:
    """The encoder that ``pretrain.when`` says to reuse: of this recipe (first), any (manual, cron), or none (always)."""
    if project.pretrain.when == "always":
        return None
    recipe = versions.encoder_recipe(project) if project.pretrain.when == "first" else None
    return find_encoder(client, store, project.name, recipe=recipe)


def find_encoder(
    client: MlflowClient, store: Store, project: str, *, recipe: str | None = None, version: str | None = None
) -> ModelRef | None:
    """A registered encoder whose weights the store still holds: the champion first, else the newest.

    ``recipe`` admits only encoders made that way. ``version`` asks for one and raises ``UserError`` where it cannot be had.
    """
    name = versions.encoder_name(project)
    if version is not None:
        wanted = versions.get_version(client, name, version)
        if wanted is None or not _usable(wanted, store, None):
            raise UserError(
                f"there is no usable version {version} of {name}",
                place="encoder_version",
                next_step="look at the registered versions in MLflow",
            )
        return versions.to_ref(wanted)
    champion = versions.by_alias(client, name, versions.CHAMPION)
    others = versions.by_tag(client, name, "ssl.project", project)
    for candidate in [*([champion] if champion else []), *others]:
        if _usable(candidate, store, recipe):
            return versions.to_ref(candidate)
    return None


def _usable(version: versions.ModelVersion, store: Store, recipe: str | None) -> bool:
    tags = version.tags
    if "ssl.uri" not in tags or (recipe is not None and tags.get("ssl.recipe") != recipe):
        return False
    return store.exists(tags["ssl.uri"])
