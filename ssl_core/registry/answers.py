"""What a registered version answers on labelled samples of a dataset version: read where it is on record, else inferred once.

Each version was evaluated on the test split of its own dataset version; as data grows, a champion has to answer for samples
that it was never asked about. Those answers are inferred with its own encoder and preprocessing, and kept in the store at
``<project>/answers/<SHA-256 of the weights folder>/<digest of the sample ids>.parquet``: a sample id is the digest of the
content, so the two name all that an answer follows from. Truth is never taken from there: labels may have been corrected
since, and are read from the dataset version that is asked about.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef
from ssl_core.data import reader
from ssl_core.data.dataset import INFO_FILE, DatasetInfo
from ssl_core.data.table import SampleTable
from ssl_core.errors import StepError, UserError, shortened
from ssl_core.evaluation.metrics import label_spread
from ssl_core.evaluation.predictions import Predictions, make_predictions, read_predictions, write_predictions
from ssl_core.evaluation.predictions import test_set_digest as digest_of
from ssl_core.modalities import part
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.step import StepContext
from ssl_core.training.bench import Bench
from ssl_core.training.runtime import resolve_runtime

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREDICTIONS_FILE = "predictions.parquet"


def answers(
    ctx: StepContext,
    version: str | ModelRef,
    *,
    split: str = "test",
    windows: Collection[int] | None = None,
    sample_ids: Collection[str] | None = None,
    dataset: DatasetRef | None = None,
) -> Predictions:
    """The predictions of ``version`` on the labelled samples of a split, beside the labels that the dataset version has.

    Args:
        ctx: the step; its project names the model, its input ``dataset`` the dataset version, unless ``dataset`` does.
        version: of the project's model, or a reference to a version of any name.
        split: which samples; the vault is the gate's alone.
        windows: only samples that came with these dataset versions (``first_version``).
        sample_ids: exactly these instead of split and windows.
        dataset: the dataset version.

    Raises:
        UserError: the version is not in the registry, a sample is not there or has no label, or the version knows classes
            that the dataset lacks.
        TryAgain: its weights or the dataset cannot be read.
    """
    dataset = dataset or ctx.input("dataset")
    table = read_table(ctx, dataset)
    positions = asked(table, split=split, windows=windows, sample_ids=sample_ids)
    entry = registered(ctx, version)
    known = recorded(ctx, entry)
    ids = ids_at(table, positions)
    there = set(known.sample_ids) if known is not None and known.label_type == table.label_type else set()
    missing = [sample for sample in ids if sample not in there]
    sources = [known] if known is not None and len(missing) < len(ids) else []
    if missing:
        sources.append(_inferred(ctx, entry, dataset, missing))
    return _together(sources, table, positions)


def infer(
    ctx: StepContext, folder: Path, encoder: ModelRef, dataset: DatasetRef, sample_ids: Iterable[str]
) -> Predictions:
    """The predictions of the model in ``folder``, which was fine-tuned from ``encoder``; nothing is read from or kept in the store.

    Raises ``UserError`` where the model knows classes that the dataset lacks.
    """
    bench = open_bench(ctx, encoder, dataset)
    table, model = bench.table, bench.load(folder)
    if unknown := [name for name in getattr(model, "classes", ()) if name not in table.classes]:
        raise UserError(
            f"the model knows classes that {dataset.tag or dataset.name} lacks: {shortened(unknown)}",
            place="data.classes",
            next_step="list all classes under data.classes, so that no dataset version loses one",
        )
    positions = asked(table, sample_ids=list(sample_ids))
    return _predictions(table, positions, bench.scores(model, positions), table.classes)


def open_bench(ctx: StepContext, encoder: ModelRef, dataset: DatasetRef) -> Bench:
    """A dataset version as ``encoder`` sees it, whichever encoder the run itself is about."""
    seen = replace(ctx, inputs={**ctx.inputs, "registered_encoder": encoder, "dataset": dataset})
    bench: Bench = part(ctx.project.modality, "bench")(seen, dataset, resolve_runtime(ctx.project.pretrain))
    return bench


def read_table(ctx: StepContext, dataset: DatasetRef) -> SampleTable:
    """The rows of a dataset version; its samples are not fetched."""
    manifest = reader.read_manifest(dataset, ctx.settings)
    info = DatasetInfo.model_validate_json(reader.fetch_file(dataset, ctx.settings, INFO_FILE).read_bytes())
    return SampleTable(manifest, list(info.classes), info.label_type)


def asked(
    table: SampleTable,
    *,
    split: str = "test",
    windows: Collection[int] | None = None,
    sample_ids: Collection[str] | None = None,
) -> np.ndarray:
    """Positions of the labelled samples that are meant, ascending; see ``answers``."""
    if sample_ids is None:
        positions = table.positions(split, labelled=True)
        if windows is not None:
            positions = positions[np.isin(table.manifest["first_version"].to_numpy()[positions], list(windows))]
        return positions
    chosen = table.manifest["sample_id"].isin(list(sample_ids)) & table.manifest["label"].notna()
    if (found := int(chosen.sum())) < len(set(sample_ids)):
        raise UserError(
            f"{len(set(sample_ids)) - found} of {len(set(sample_ids))} samples are not in this dataset version, or have no label",
            place="sample_ids",
        )
    return np.flatnonzero(chosen.to_numpy())


def ids_at(table: SampleTable, positions: np.ndarray) -> list[str]:
    """The sample ids at these rows."""
    return [str(i) for i in table.manifest["sample_id"].to_numpy()[positions]]


def registered(ctx: StepContext, version: str | ModelRef) -> ModelVersion:
    """The registry's record of a version; ``UserError`` where there is none."""
    name, number = (ctx.project.name, version) if isinstance(version, str) else (version.name, version.version)
    with mlflow_errors(ctx.settings):
        entry = versions.get_version(connect(ctx.settings), name, number)
    if entry is None:
        raise UserError(f"{name} version {number} is not in the registry any more", place=ctx.settings.tracking_url)
    return entry


def recorded(ctx: StepContext, entry: ModelVersion) -> Predictions | None:
    """The predictions that a version was evaluated with; None where they are not on record, or gone."""
    tags = entry.tags
    try:
        ref = ArtifactRef(
            kind="evaluation", uri=tags["ssl.evaluation_uri"], sha256=tags["ssl.evaluation_sha256"],
            producer=tags["ssl.evaluation_producer"],
        )  # fmt: skip
        return read_predictions(ctx.store.fetch(ref) / PREDICTIONS_FILE)
    except (KeyError, StepError):
        return None


def encoder_of(ctx: StepContext, entry: ModelVersion) -> ModelRef:
    """The registered encoder that a model version was fine-tuned from; ``UserError`` where it is gone."""
    name, number = entry.tags.get("ssl.encoder", ""), entry.tags.get("ssl.encoder_version", "")
    with mlflow_errors(ctx.settings):
        found = versions.get_version(connect(ctx.settings), name, number) if name else None
    if found is None:
        raise UserError(
            f"the encoder of {entry.name} version {entry.version} ({name or 'not on record'} {number}) is not in the registry any more",
            place=ctx.settings.tracking_url,
        )
    return versions.to_ref(found)


def _inferred(ctx: StepContext, entry: ModelVersion, dataset: DatasetRef, sample_ids: list[str]) -> Predictions:
    """Kept answers on exactly these samples, or new ones, which are kept."""
    model = versions.to_ref(entry)
    uri = f"{ctx.project.name}/answers/{model.sha256}/{digest_of(sample_ids)}.parquet"
    with ctx.store.scratch() as scratch:
        local = scratch / "answers.parquet"
        if raw := ctx.store.read(uri):
            local.write_bytes(raw)
            try:
                found = read_predictions(local)
                if found.sample_ids == tuple(sorted(sample_ids)):
                    return found
            except UserError:  # damaged: made again
                pass
        if not ctx.store.exists(model.uri):  # else the storage itself may be away: that is for another try
            raise UserError(
                f"the weights of {model.name} version {model.version} are gone from the store",
                place=ctx.store.path(model.uri),
                next_step=f"restore them from a backup, or make them again: {model.producer}",
            )
        ctx.progress.note(f"asking {model.name} version {model.version} about {len(sample_ids):,} samples")
        made = infer(ctx, ctx.store.fetch(model), encoder_of(ctx, entry), dataset, sample_ids)
        write_predictions(local, made)
        ctx.store.write(uri, local.read_bytes())
    return made


def _together(sources: list[Predictions], table: SampleTable, positions: np.ndarray) -> Predictions:
    """One set of predictions from several, by sample id; classes by name, the dataset's first."""
    names = list(table.classes)
    for source in sources:
        names += [name for name in source.classes if name not in names]
    row = {sample: i for i, sample in enumerate(ids_at(table, positions))}
    scores = np.zeros((len(positions), 1 if table.label_type == "number" else len(names)), dtype=np.float32)
    for source in sources:
        pairs = [(row[sample], i) for i, sample in enumerate(source.sample_ids) if sample in row]
        to, of = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
        columns = np.asarray([names.index(name) for name in source.classes] or [0])
        scores[np.ix_(to, columns)] = source.scores[of]
    return _predictions(table, positions, scores, names)


def _predictions(table: SampleTable, positions: np.ndarray, scores: np.ndarray, names: list[str]) -> Predictions:
    kind = table.label_type
    targets = None if kind == "class" else table.targets[positions]
    if kind == "classes" and targets is not None:
        targets = np.pad(targets, ((0, 0), (0, len(names) - targets.shape[1])))
    split = table.manifest["split"].to_numpy()[positions]
    return make_predictions(
        ids_at(table, positions), table.labels[positions], scores, names, str(split[0]) if len(split) else "test",
        label_type=kind, targets=targets,
        spread=label_spread(table.targets[table.positions("train", labelled=True)]) if kind == "number" else None,
    )  # fmt: skip
