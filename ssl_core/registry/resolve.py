"""Step ``resolve``: freezes the configuration for a whole run and decides whether a registered encoder is reused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import usable_cpus
from ssl_core.contracts import ModelRef, Ref
from ssl_core.errors import UserError
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def run(ctx: StepContext) -> StepOutput:
    """Writes ``config.json`` with every ``auto`` that depends on the machine resolved.

    Adds the output ``registered_encoder`` where ``pretrain.when`` lets one be reused; pretraining is then left out.
    """
    project = freeze(ctx.project)
    (ctx.out / "config.json").write_text(
        json.dumps(project.model_dump(mode="json"), indent=1, sort_keys=True), encoding="utf-8"
    )
    outputs: dict[str, Output | Ref] = {"config": Output("config", "config.json")}
    summary = f"configuration frozen, {project.pretrain.threads} threads"
    with mlflow_errors(ctx.settings):
        encoder = reusable_encoder(connect(ctx.settings), ctx.store, project)
    if encoder is not None:
        outputs["registered_encoder"] = encoder
        summary += f"; {encoder.name} version {encoder.version} is reused (pretrain.when: {project.pretrain.when})"
    return StepOutput(outputs=outputs, summary=summary)


def freeze(project: ProjectConfig) -> ProjectConfig:
    """The configuration with ``pretrain.threads`` as a number: equal threads are part of "the same result, bit by bit"."""
    if project.pretrain.threads != "auto":
        return project
    return project.model_copy(update={"pretrain": project.pretrain.model_copy(update={"threads": usable_cpus()})})


def reusable_encoder(client: MlflowClient, store: Store, project: ProjectConfig) -> ModelRef | None:
    """The encoder that ``pretrain.when`` says to reuse: of this recipe (first), any (manual), or none (always)."""
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
