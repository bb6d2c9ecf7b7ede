"""Steps ``register-encoder`` and ``register``: from weights in the store to a version in MLflow's registry.

The order matters: log the model, load it back and compare it with the trainer's answers, and only then create the
version. A version that exists has passed. Asked again after a crash in between, the version of the same step key is found.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.config.settings import Settings
from ssl_core.contracts import GOLDEN_FILE, ArtifactRef, DatasetRef, ModelRef, StepResult
from ssl_core.errors import CheckFailed, StepError, UserError
from ssl_core.evaluation.predictions import read_predictions
from ssl_core.pipeline import source_digest
from ssl_core.registry import answers, forgetting, versions
from ssl_core.registry.client import connect, mlflow_errors, version_link
from ssl_core.registry.going_on import CONTINUED_FROM
from ssl_core.registry.model_card import encoder_card, model_card
from ssl_core.serving.package import Kind, carry_code, package_of, requirements, signature, source_file
from ssl_core.step import StepContext, StepOutput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_DESCRIPTION_CHARACTERS = 5000  # the column's width in MLflow's database


def register_encoder(ctx: StepContext) -> StepOutput:
    """Registers the pretrained encoder as ``<project>-encoder``, with its label-free health report in the card."""
    dataset: DatasetRef = ctx.input("dataset")
    encoder: ArtifactRef = ctx.input("encoder")
    folder = ctx.fetch("encoder")
    card = encoder_card(ctx.project, dataset, encoder, _document(ctx, encoder, "health.json"), ctx.tracker.url)
    tags = {"ssl.recipe": versions.encoder_recipe(ctx.project)}
    ref = _register(ctx, "encoder", folder, encoder, versions.encoder_name(ctx.project.name), tags, card)
    return _output(ctx, "registered_encoder", ref)


def register_model(ctx: StepContext) -> StepOutput:
    """Registers the fine-tuned model as ``<project>`` and gives it the alias ``challenger``."""
    dataset: DatasetRef = ctx.input("dataset")
    encoder: ModelRef = ctx.input("registered_encoder")
    model: ArtifactRef = ctx.input("model")
    evaluation: ArtifactRef = ctx.input("evaluation")
    folder = ctx.fetch("model")
    report = json.loads((ctx.fetch("evaluation") / "evaluation.json").read_text(encoding="utf-8"))
    with mlflow_errors(ctx.settings):
        source = versions.get_version(connect(ctx.settings), encoder.name, encoder.version)
    if source is None:
        raise UserError(
            f"the encoder {encoder.name} version {encoder.version} is not in the registry any more",
            place=ctx.settings.tracking_url,
            next_step=f"run again with --pretrain: ssl-core run {ctx.project.name} --pretrain",
        )
    tags = {
        "ssl.recipe": versions.model_recipe(ctx.project, source.tags.get("ssl.recipe", "")),
        "ssl.encoder": encoder.name, "ssl.encoder_version": encoder.version, "ssl.encoder_sha256": encoder.sha256,
        "ssl.evaluation_uri": evaluation.uri, "ssl.evaluation_sha256": evaluation.sha256, "ssl.evaluation_producer": evaluation.producer,
    }  # fmt: skip
    if (quality := (report.get("model") or {}).get("quality")) is not None:
        tags["ssl.accuracy"] = f"{quality:.4f}"
    training = _document(ctx, model, "training.json")
    if going_on := training.get("going_on"):
        tags[CONTINUED_FROM] = str(going_on["champion"])
    remembered = _forgetting(ctx)
    card = model_card(ctx.project, dataset, encoder, model, report, training, ctx.tracker.url, remembered)
    ref = _register(ctx, "classifier", folder, model, ctx.project.name, tags, card)
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        champion = versions.by_alias(client, ref.name, versions.CHAMPION)
        if champion is None or str(champion.version) != ref.version:
            versions.set_alias(client, ref.name, versions.CHALLENGER, ref.version)
    return _output(ctx, "registered_model", ref)


def _forgetting(ctx: StepContext) -> list[str]:
    """The forgetting matrix for the card, and as a picture and JSON in MLflow; empty before the first champion.

    A registration does not fail for it: what cannot be measured now, the gate says again.
    """
    try:
        matrix = forgetting.measure(ctx, read_predictions(ctx.fetch("evaluation") / answers.PREDICTIONS_FILE))
    except StepError as error:
        ctx.progress.note(f"no forgetting matrix: {str(error).splitlines()[0]}")
        return []
    if matrix is None:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "forgetting"
        folder.mkdir()
        (folder / "forgetting.json").write_text(json.dumps(matrix.as_dict(), indent=1) + "\n", encoding="utf-8")
        forgetting.draw(matrix, folder / "forgetting.png", ctx.project.name)
        ctx.tracker.artifact(folder)
    values = {
        "window_mean": matrix.average,
        "backward_transfer": matrix.backward_transfer,
        "worst_window_change": matrix.worst_change,
    }
    ctx.tracker.metrics({name: value for name, value in values.items() if value is not None})
    return forgetting.markdown(matrix)


def still_registered(result: StepResult, settings: Settings) -> bool:
    """Whether the versions that an earlier result names are still in the registry; ``TryAgain`` where it is away."""
    with mlflow_errors(settings):
        client = connect(settings)
        refs = [ref for ref in result.outputs.values() if isinstance(ref, ModelRef)]
        return bool(refs) and all(_holds(versions.get_version(client, ref.name, ref.version), ref) for ref in refs)


def _holds(version: ModelVersion | None, ref: ModelRef) -> bool:
    return version is not None and version.tags.get("ssl.sha256") == ref.sha256


def _output(ctx: StepContext, name: str, ref: ModelRef) -> StepOutput:
    link = version_link(ctx.settings, ref.name, ref.version)
    return StepOutput(
        outputs={name: ref},
        links={"Model" if name == "registered_model" else "Encoder": link},
        summary=f"{ref.name} version {ref.version} registered; it answers as the trained network does",
    )


def _document(ctx: StepContext, ref: ArtifactRef, name: str) -> dict[str, Any]:
    """A JSON file that a step left in its output folder or beside it; empty where there is none."""
    inside = ctx.store.read(f"{ref.uri}/{name}")
    raw = inside if inside is not None else ctx.store.read(f"{ref.uri.rpartition('/')[0]}/{name}")
    return json.loads(raw) if raw else {}


def _register(
    ctx: StepContext, kind: Kind, folder: Path, source: ArtifactRef, name: str, tags: Mapping[str, str], card: str
) -> ModelRef:
    """The version of this step key: found, or made."""
    dataset: DatasetRef = ctx.input("dataset")
    golden = folder / GOLDEN_FILE
    if not golden.is_file():
        raise CheckFailed(
            "the golden batch is missing: nothing to compare the served model with",
            place=str(golden),
            next_step=f"remove its folder and run {source.producer.split('/')[0]} again",
        )
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        _require_own_name(client, ctx, name)
        if earlier := versions.by_tag(client, name, "ssl.key", ctx.key):
            return versions.to_ref(earlier[0])
        model_id, model_uri = _log(ctx, kind, folder, golden, card)
        difference = versions.require_golden(model_uri, golden)
        ctx.tracker.metrics({"golden_difference": difference})
        version = client.create_model_version(
            name, model_uri, run_id=ctx.tracker.run_id, model_id=model_id, description=card[:_DESCRIPTION_CHARACTERS],
            tags={
                "ssl.project": ctx.project.name, "ssl.kind": "registered-encoder" if kind == "encoder" else "registered-model",
                "ssl.uri": source.uri, "ssl.sha256": source.sha256, "ssl.producer": source.producer,
                "ssl.key": ctx.key, "ssl.code": source_digest(), "ssl.model_id": model_id,
                "ssl.dataset": dataset.tag or "candidate", "ssl.dataset_md5": dataset.md5, "ssl.dataset_revision": dataset.revision,
                "ssl.golden": "passed", "ssl.run_url": ctx.tracker.url, "ssl.dag_run_url": ctx.run.url, "ssl.run": ctx.run.run_id,
                **tags,
            },
        )  # fmt: skip
    return versions.to_ref(version)


def _require_own_name(client: MlflowClient, ctx: StepContext, name: str) -> None:
    """Makes the registered model; a name that belongs to something else is refused rather than mixed up."""
    from mlflow.exceptions import MlflowException

    owner = {"ssl.project": ctx.project.name}
    try:
        client.create_registered_model(name, tags=owner, description=ctx.project.description)
        return
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.get_registered_model(name).tags.get("ssl.project")
    if found != ctx.project.name:
        raise UserError(
            f"the registered model '{name}' belongs to "
            + (f"project '{found}'" if found else "something else in this MLflow"),
            place="name",
            next_step="choose another project name",
        )


def _log(ctx: StepContext, kind: Kind, folder: Path, golden: Path, card: str) -> tuple[str, str]:
    """Logs the pyfunc model to the step's run; ``(model id, models:/ address)``."""
    import mlflow
    from mlflow.models import Model
    from safetensors.numpy import load_file

    batch = load_file(golden)
    package = package_of(batch)
    first = package.request(batch).iloc[:1]
    with tempfile.TemporaryDirectory() as scratch, versions.unchanged_path():
        (Path(scratch) / "model_card.md").write_text(card, encoding="utf-8")
        ctx.tracker.artifact(Path(scratch) / "model_card.md")
        info = Model.log(
            artifact_path=None, name=kind, flavor=mlflow.pyfunc, run_id=ctx.tracker.run_id or None,
            python_model=str(source_file(package, kind)), artifacts={"model": str(folder)}, code_paths=[carry_code(package, Path(scratch))],
            signature=signature(package, kind, ctx.project.data.label_type), input_example=first,
            pip_requirements=requirements(package), metadata={"project": ctx.project.name, "modality": ctx.project.modality, "card": "model_card.md"},
        )  # fmt: skip
    assert info.model_id is not None
    return info.model_id, info.model_uri
