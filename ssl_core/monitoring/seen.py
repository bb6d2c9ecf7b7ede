"""A dataset version as the champion sees it: embeddings by its frozen encoder and its answers, each computed once and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.contracts import DatasetRef, ModelRef
from ssl_core.data.table import SampleTable
from ssl_core.errors import UserError
from ssl_core.evaluation.metrics import class_quality, classes_quality, label_spread, number_quality
from ssl_core.monitoring.kept import ids_digest, kept
from ssl_core.pipeline import digest, source_digest
from ssl_core.registry.answers import open_bench, recorded
from ssl_core.step import StepContext
from ssl_core.training.bench import Bench
from ssl_core.training.runtime import resolve_runtime

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Champion:
    """The model in use, the encoder that it was fine-tuned from, and the data that it knows."""

    model: ModelRef
    encoder: ModelRef
    version: int
    """Of its dataset: samples that came later are new to it."""
    encoder_version: int
    """Of the encoder's dataset: of these the encoder has seen the training samples."""
    entry: ModelVersion = field(repr=False)


def require_artifacts(ctx: StepContext, champion: ModelRef, encoder: ModelRef) -> None:
    """``UserError`` where the store no longer holds the champion's files."""
    for ref in (champion, encoder):
        if not ctx.store.exists(ref.uri):
            raise UserError(
                f"the files of {ref.name} version {ref.version} are not in the store any more, and the champion cannot be asked",
                place=ctx.store.path(ref.uri),
                next_step=f"restore this folder from a backup, or make an earlier champion the champion: ssl-core rollback {ctx.project.name}",
            )


class Seen:
    """Rows of one dataset version through one champion. Samples are only fetched and decoded where something is not kept yet."""

    def __init__(self, ctx: StepContext, dataset: DatasetRef, champion: Champion, table: SampleTable) -> None:
        self._ctx, self._dataset, self._champion, self.table = ctx, dataset, champion, table
        runtime = resolve_runtime(ctx.project.pretrain)
        # What an array follows from, beside the samples; code is part of it: both sides of a comparison must be of one release.
        self._how = [source_digest(), runtime.device, runtime.precision]
        self._ids = table.manifest["sample_id"].to_numpy()

    @cached_property
    def _bench(self) -> Bench:
        return open_bench(self._ctx, self._champion.encoder, self._dataset)

    @cached_property
    def _model(self) -> Any:
        return self._bench.load(self._ctx.store.fetch(self._champion.model))

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        """float32 ``(n, D)`` of the samples at ``rows``."""
        return self._kept(["embeddings", self._champion.encoder.sha256], rows, lambda: self._bench.embed(rows))

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """The champion's answers, float32 ``(n, K)``: probabilities of the dataset's classes, or numbers ``(n, 1)``."""
        what = ["scores", self._champion.model.sha256, self.table.classes]
        return self._kept(what, rows, lambda: self._bench.scores(self._model, rows))

    def unknown_classes(self) -> list[str]:
        """Classes that the champion answers and the dataset version lacks."""
        evaluated = recorded(self._ctx, self._champion.entry)
        return [] if evaluated is None else [name for name in evaluated.classes if name not in self.table.classes]

    def ids(self, rows: np.ndarray) -> str:
        """Names the samples at these rows."""
        return ids_digest(self._ids[rows].tolist())

    def kept(self, what: list[Any], name: str, rows: int, make: Any) -> np.ndarray:
        """An array that follows from ``what`` and the champion's encoder."""
        origin = digest([what, self._champion.encoder.sha256, *self._how])
        return kept(self._ctx.store, self._ctx.project.name, origin, name, rows, make)

    def _kept(self, what: list[Any], rows: np.ndarray, make: Any) -> np.ndarray:
        origin = digest([what, *self._how])
        return kept(self._ctx.store, self._ctx.project.name, origin, self.ids(rows), len(rows), make)

    def quality(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How good each answer is, 0 to 1, float64 ``(n,)``; all ``rows`` have labels. See ``evaluation.metrics``."""
        table = self.table
        if table.label_type == "class":
            return class_quality(scores, table.labels[rows])
        if table.label_type == "classes":
            return classes_quality(scores, table.targets[rows])
        spread = label_spread(table.targets[table.positions("train", labelled=True)])
        return number_quality(scores, table.targets[rows], spread)

    def quality_on_record(self) -> np.ndarray | None:
        """The same of the champion's evaluation, on its own test samples; None where it is gone."""
        evaluated = recorded(self._ctx, self._champion.entry)
        if evaluated is None or evaluated.label_type != self.table.label_type or not len(evaluated.sample_ids):
            return None
        return evaluated.quality
