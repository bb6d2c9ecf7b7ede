"""Registered model versions: from MLflow's records to references and back, by alias, by tag, and as loaded models.

Everything a reference needs is in the version's tags, so that the registry alone is enough to go on from.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import ModelRef
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.modalities import fingerprint
from ssl_core.pipeline import digest, recipe_digest
from ssl_core.serving import prediction_log

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
GOLDEN_TOLERANCE = 1e-5
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow says the second where an alias is missing
_NOT_THERE = r"\b404 Client Error|No such file|NoSuchKey|No such artifact"
_MOST_VERSIONS = 1000


def encoder_name(project: str) -> str:
    """The registered name of a project's encoder."""
    return f"{project}-encoder"


def encoder_recipe(project: ProjectConfig) -> str:
    """Names how an encoder is made, the same on every machine: the thread count that ``resolve`` froze is left out.

    Files that pretraining reads beside the dataset (a list of entities, a checkpoint) are part of it by their content.
    """
    recipe, files = recipe_digest(_machine_independent(project), "pretrain"), fingerprint(project)
    return digest([recipe, files]) if files else recipe


def model_recipe(project: ProjectConfig, encoder: str) -> str:
    """Names how a model is made: fine-tuning, and the recipe of its encoder."""
    return digest({"encoder": encoder, "finetune": recipe_digest(_machine_independent(project), "finetune")})


def _machine_independent(project: ProjectConfig) -> ProjectConfig:
    return project.model_copy(update={"pretrain": project.pretrain.model_copy(update={"threads": "auto"})})


def to_ref(version: ModelVersion) -> ModelRef:
    """The reference of a version that this platform registered; ``KeyError`` for one that it did not."""
    tags = version.tags
    return ModelRef(
        kind=tags["ssl.kind"], name=version.name, version=str(version.version), model_id=tags["ssl.model_id"],
        run_id=version.run_id or "", uri=tags["ssl.uri"], sha256=tags["ssl.sha256"], producer=tags["ssl.producer"],
    )  # fmt: skip


def _or_none(call: Any, *arguments: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return call(*arguments)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


def get_version(client: MlflowClient, name: str, version: str) -> ModelVersion | None:
    """The version, None where it is not there (any more)."""
    return _or_none(client.get_model_version, name, version)


def by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that ``alias`` names, None where there is none."""
    return _or_none(client.get_model_version_by_alias, name, alias)


def by_tag(client: MlflowClient, name: str, tag: str, value: str) -> list[ModelVersion]:
    """The usable versions with this tag, newest first."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'", max_results=_MOST_VERSIONS)
    return sorted((v for v in found if v.status == "READY"), key=lambda v: -int(v.version))


def set_alias(client: MlflowClient, name: str, alias: str, version: str | None) -> bool:
    """Moves ``alias`` to ``version`` (None: takes it away); False where it is there already."""
    now = by_alias(client, name, alias)
    if (str(now.version) if now else None) == version:
        return False
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)
    return True


@contextmanager
def unchanged_path() -> Iterator[None]:
    """MLflow puts a model's code on ``sys.path`` for good; our own package must stay the first."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.mkdtemp(prefix="ssl-core-model-")
    except OSError as error:
        raise _try_again("no temporary folder for the model", error, tempfile.tempdir or "TMPDIR") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(model_uri: str, folder: Path) -> str:
    """The model's files below ``folder``. ``CheckFailed`` only where they are known not to be there."""
    import mlflow
    import requests

    try:
        return str(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(folder)))
    except Exception as error:
        response = getattr(error, "response", None)
        if isinstance(error, requests.HTTPError) and response is not None and response.status_code in (401, 403):
            raise  # refused credentials are told by `mlflow_errors`, as is a server that is away
        if "API request" in str(error):
            raise
        # MLflow collects what the single files ended with in the text of one exception.
        absent = getattr(error, "error_code", "") in _ABSENT or re.search(_NOT_THERE, str(error))
        if absent or isinstance(error, FileNotFoundError):
            raise CheckFailed(f"the model's files are not there: {_words(error)}", place=model_uri) from error
        raise _try_again("the model cannot be fetched now", error, model_uri) from error


def _is_of_this_machine(error: BaseException) -> bool:
    """Whether a full disk, a failing one or too little memory is behind ``error``, rather than the model's files."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return True
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _try_again(what: str, error: Exception, place: str) -> TryAgain:
    return TryAgain(
        f"{what}: {_words(error)}",
        place=place,
        next_step="see that MLflow and its artifacts answer and that the disk has room, then run the same command again",
    )


@contextmanager
def loaded(model_uri: str) -> Iterator[Any]:
    """The pyfunc model at ``model_uri``, as a server would load it, for as long as its files are here.

    Raises ``CheckFailed`` where it is not there or cannot be loaded; ``TryAgain`` where it cannot be fetched now, or this
    machine's disk or memory is full.
    """
    import mlflow

    with _temporary_folder() as folder:
        local = _download(model_uri, folder)
        os.environ.pop(prediction_log.VARIABLE, None)  # what the platform itself asks a model is nobody's request
        try:
            with unchanged_path():
                model = mlflow.pyfunc.load_model(local)
        except Exception as error:
            raise _unusable(error, model_uri) from error
        yield model


def _unusable(error: Exception, model_uri: str) -> CheckFailed | TryAgain:
    if _is_of_this_machine(error):
        return _try_again("the model cannot be loaded now", error, model_uri)
    return CheckFailed(f"the model cannot be loaded and called: {_words(error)}", place=model_uri)


def replay_golden(model_uri: str, golden: Path) -> float:
    """Largest difference (of features: as a share of the largest one) between what the model at ``model_uri`` answers and what the trainer's network did.

    Its samples go in as a request does, through the served model's own preprocessing. Raises
    ``CheckFailed`` where the model is not there, cannot be loaded or called, or answers in another shape; ``TryAgain`` where
    that says nothing about the model: it cannot be fetched now, or this machine's disk or memory is full.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from ssl_core.serving.package import Kind, answer_array, package_of

    expected = load_file(golden)
    kind: Kind = "classifier" if "probabilities" in expected else "encoder"
    wanted = expected["probabilities" if kind == "classifier" else "features"]
    with loaded(model_uri) as model:
        try:
            answer = answer_array(kind, model.predict(package_of(expected).request(expected)))
        except Exception as error:
            raise _unusable(error, model_uri) from error
    if answer.shape != wanted.shape or not np.isfinite(answer).all():
        raise CheckFailed(
            f"the model answers {answer.shape}, the trainer's had {wanted.shape}, or not with finite numbers",
            place=model_uri,
        )
    # Features may be large numbers; probabilities are compared as they are.
    return float(np.abs(answer - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def require_golden(model_uri: str, golden: Path) -> float:
    """``replay_golden``, and ``CheckFailed`` above the tolerance."""
    difference = replay_golden(model_uri, golden)
    if not difference <= GOLDEN_TOLERANCE:
        raise CheckFailed(
            f"the model does not answer as the trained network did: off by {difference:.3g} on the golden batch, allowed {GOLDEN_TOLERANCE:g}",
            place=model_uri,
            next_step="its weights are not the trained ones; remove the step's folder in the store and run again",
        )
    return difference
