"""A dataset version seen through an encoder: all that the steps finetune and evaluate need of a modality."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ssl_core.config.tasks import TaskConfig
from ssl_core.data.table import SampleTable
from ssl_core.models.anchors import Penalty
from ssl_core.step import Progress, Tracker
from ssl_core.training.state import CheckpointFiles

Array = np.ndarray

GOLDEN_SAMPLES = 16


@dataclass(frozen=True)
class Trained:
    """A model that was just fine-tuned, and what there is to say about how."""

    model: Any
    record: dict[str, Any] = field(default_factory=dict)
    """JSON values for ``training.json``: steps, epochs, folds, ..."""
    note: str = ""
    """How, as the end of a sentence: "and the labels spread over 900 more images"."""


@dataclass(frozen=True)
class Start:
    """What a fine-tuning goes on from, instead of the registered encoder and a head that knows nothing."""

    model: Any
    """As ``Bench.load`` gives it."""
    penalty: Penalty


class Classical(Protocol):
    """The classical baselines of a modality on one train split and one set of test samples."""

    @property
    def names(self) -> Mapping[str, str]:
        """Short name to a name for people, for example ``svm`` to "SVM (RBF) on pixels"."""
        ...

    def predictions(self, draws: Array) -> dict[str, Array]:
        """By short name, predicted classes ``(B, M)`` for each draw of labels ``(B, N)``, -1 = unknown."""
        ...

    def notes(self, labels: int) -> list[str]:
        """What a reader has to know where so many labels are used."""
        ...


class Bench(Protocol):
    """What a modality does with a registered encoder and a dataset version."""

    @property
    def table(self) -> SampleTable: ...

    def finetune(
        self,
        labelled: Array,
        unlabeled: Array,
        *,
        task: TaskConfig | None = None,
        random: bool = False,
        start: Start | None = None,
        checkpoints: CheckpointFiles | None = None,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
        tracker: Tracker | None = None,
    ) -> Trained:
        """A recipe from the registered encoder, from a random one, or from ``start``: the same labels, the same batches.

        ``labelled`` and ``unlabeled`` are positions in the table; no label but those of ``labelled`` is read. ``task`` is the
        project's with another seed or other rates; default: the project's own.
        """
        ...

    def suits(self, model: Any) -> str:
        """Why a loaded model cannot be gone on from on this table, and with this encoder; empty where it can."""
        ...

    def logits(self, model: Any, positions: Array) -> Tensor:
        """``(n, K)`` before softmax or sigmoid, with gradients; of a sample that is cut into parts, of the first one."""
        ...

    def save(self, folder: Path, model: Any) -> None:
        """Writes the model's files into ``folder``, which is made."""
        ...

    def load(self, folder: Path) -> Any:
        """The model that ``save`` wrote, in eval mode on the CPU. Raises ``UserError`` where its files do not fit together."""
        ...

    def scores(self, model: Any, positions: Array) -> Array:
        """float32 ``(n, K)``: probabilities of the dataset's classes (rows sum to 1 for ``class``), or numbers ``(n, 1)``."""
        ...

    def golden(self, model: Any, positions: Array) -> dict[str, Array]:
        """At most ``GOLDEN_SAMPLES`` of these as a request, and ``probabilities``: the model's answers. For ``golden.safetensors``."""
        ...

    def embed(self, positions: Array, random: int | None = None) -> Array:
        """float32 ``(n, D)`` by the registered encoder, or by the random one of seed ``pretrain.seed + random``."""
        ...

    def classical(self, train: Array, test: Array) -> Classical:
        """The baselines, on the samples at these positions."""
        ...

    def resolved(self) -> Mapping[str, Any]:
        """What was decided for this machine and dataset: device, precision, threads, ..."""
        ...
