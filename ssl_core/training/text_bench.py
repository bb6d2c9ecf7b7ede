"""Texts through a registered encoder: what finetune and evaluate need; see ``training.bench.Bench``."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssl_core.config.project import TextProject
from ssl_core.config.tasks import TaskConfig, TextClassificationConfig
from ssl_core.contracts import DatasetRef
from ssl_core.data.table import SampleTable
from ssl_core.data.text.tokens import Tokens, open_tokens, read_texts
from ssl_core.models.text_classifier import TextClassifier, load_classifier, save_classifier
from ssl_core.models.text_embed import embed_tokens
from ssl_core.models.text_encoder import TextEncoder
from ssl_core.models.text_golden import pack
from ssl_core.models.text_weights import load_encoder, random_encoder
from ssl_core.models.text_windows import cut
from ssl_core.pipeline import digest, source_digest
from ssl_core.step import Progress, StepContext, Tracker
from ssl_core.store import storage_errors
from ssl_core.tasks.text_classification import train_classifier
from ssl_core.training.bench import GOLDEN_SAMPLES, Classical, Start, Trained
from ssl_core.training.runtime import Runtime
from ssl_core.training.state import CheckpointFiles

Array = np.ndarray

_GOLDEN_TOKENS = 1024
"""A longer text is taken for the golden batch only where there is no other."""


def open_bench(ctx: StepContext, dataset: DatasetRef, runtime: Runtime) -> TextBench:
    """The registered encoder of the step's inputs, and the dataset's texts as its tokenizer sees them."""
    project = ctx.project
    assert isinstance(project, TextProject)
    folder = ctx.fetch("registered_encoder")
    tokenizer = load_encoder(folder)[3]
    tokens = open_tokens(dataset, ctx.settings, tokenizer, progress=ctx.progress, stop=ctx.stop)
    kept = ctx.settings.cache / "embeddings"
    # What an embedding follows from, beside the texts that are asked for; code is part of it.
    origin = digest(
        [dataset.md5, ctx.input("registered_encoder").sha256, source_digest(), runtime.device, runtime.precision]
    )
    return TextBench(project, folder, tokens, runtime, kept, origin)


class TextBench:
    """See ``Bench``."""

    def __init__(
        self,
        project: TextProject,
        folder: Path,
        tokens: Tokens,
        runtime: Runtime,
        kept: Path | None = None,
        origin: str = "",
    ) -> None:
        """``folder`` is the encoder's; embeddings are kept in ``kept``, under a name that ``origin`` is part of."""
        self._project, self._folder, self._tokens, self._runtime = project, folder, tokens, runtime
        self._encoder, self._mlm_head, self._info, self._tokenizer = load_encoder(folder)
        self._kept, self._origin = kept, origin

    @property
    def table(self) -> SampleTable:
        return self._tokens.table

    def resolved(self) -> Mapping[str, Any]:
        return asdict(self._runtime) | {"max_length": self._info.max_length}

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
        task, runtime = task or self._project.task, self._runtime
        assert isinstance(task, TextClassificationConfig)
        if random:  # it is compared with, not reported on: one training is enough
            task = task.model_copy(update={"folds": 0})
        encoder = start.model.encoder if start else self._random(0) if random else self._encoder
        model, record = train_classifier(
            encoder, self._info, self._tokenizer, self._tokens, labelled, task, mlm_head=self._mlm_head,
            head=start.model.head if start else None, penalty=start.penalty if start else None, device=runtime.device, precision=runtime.precision, threads=runtime.threads,
            checkpoints=checkpoints, stop=stop, progress=progress, tracker=tracker,
        )  # fmt: skip
        return Trained(model, record, _note(record))

    def save(self, folder: Path, model: TextClassifier) -> None:
        save_classifier(folder, model)

    def load(self, folder: Path) -> TextClassifier:
        return load_classifier(folder)

    def suits(self, model: TextClassifier) -> str:
        table = self._tokens.table
        if model.label_type != table.label_type:
            return f"its labels are of type {model.label_type}"
        if model.label_type != "number" and model.classes != table.classes:
            return "it knows other classes"
        return "" if model.info == self._info else "it sees texts in another way than the registered encoder"

    def logits(self, model: TextClassifier, positions: Array) -> Tensor:
        windows = cut(self._tokens.offsets, positions, model.room, model.stride)
        first = np.unique(windows.rows, return_index=True)[1]
        batch = windows.sequences(self._tokens.ids, first, model.tokenizer.cls_id, model.tokenizer.sep_id)
        return model.logits(batch.to(next(model.parameters()).device))

    def scores(self, model: TextClassifier, positions: Array) -> Array:
        answers = model.to(self._runtime.device).predict_tokens(self._tokens.ids, self._tokens.offsets, positions)
        model.cpu()
        if model.label_type == "number":
            return answers
        # A version that was trained on fewer classes gives none of the others a chance.
        scores = np.zeros((len(positions), len(self.table.classes)), dtype=np.float32)
        scores[:, [self.table.classes.index(name) for name in model.classes]] = answers
        return scores

    def golden(self, model: TextClassifier, positions: Array) -> dict[str, Array]:
        # The served model gets strings, so the golden answers begin with them too.
        texts = golden_texts(self._tokens, positions)
        return pack(texts) | {"probabilities": model.cpu().predict(texts)}

    def embed(self, positions: Array, random: int | None = None) -> Array:
        seed = None if random is None else self._project.pretrain.seed + random
        asked = hashlib.sha256(np.asarray(positions, dtype=np.int64).tobytes()).hexdigest()
        kept = self._kept / f"{digest([self._origin, asked, seed])[:32]}.npy" if self._kept else None
        if kept is not None and (found := _read(kept, len(positions), self._info.features)) is not None:
            return found
        network = (self._encoder if random is None else self._random(random)).to(self._runtime.device)
        features = embed_tokens(
            network, self._tokenizer, self._info.max_length, self._tokens.ids, self._tokens.offsets, positions,
            precision=self._runtime.precision,
        )  # fmt: skip
        network.cpu()
        if kept is not None:
            _write(kept, features)
        return features

    def classical(self, train: Array, test: Array) -> Classical:
        from ssl_core.evaluation.text_baselines import TextBaselines

        folder, seed = self._tokens.folder, self._project.evaluate.seed
        return TextBaselines(texts_at(folder, train), texts_at(folder, test), seed=seed)

    def _random(self, number: int) -> TextEncoder:
        return random_encoder(self._folder, self._tokenizer, self._project.pretrain.seed + number)


def golden_texts(tokens: Tokens, positions: Array) -> list[str]:
    """The first short ones of the texts at ``positions``, or the shortest if all are long: they travel with every model."""
    lengths = tokens.lengths(positions)
    short = positions[lengths <= _GOLDEN_TOKENS]
    chosen = short if len(short) else positions[[lengths.argmin()]]
    return texts_at(tokens.folder, chosen[:GOLDEN_SAMPLES])


def texts_at(folder: Path, positions: Array) -> list[str]:
    """The texts at these rows of a dataset version, in the order of ``positions``; nothing else stays in memory."""
    wanted = set(positions.tolist())
    found: dict[int, str] = {}
    row = 0
    for _, texts, _ in read_texts(folder):
        if len(found) == len(wanted):
            break
        found |= {number: text for number, text in enumerate(texts, row) if number in wanted}
        row += len(texts)
    return [found[number] for number in positions.tolist()]


def _note(record: Mapping[str, Any]) -> str:
    note = f", {record['held_out']:,} of them held out to stop in time" if record["held_out"] else ""
    if folds := record.get("cross_validation"):
        name = folds["metric"].replace("_", " ")
        note += f"; {folds['folds']} folds within them: {name} {folds['mean']:.3f} ± {folds['std']:.3f}"
    return note


def _read(path: Path, rows: int, features: int) -> Array | None:
    """Kept embeddings; None where there are none, or where they are damaged."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (rows, features) and found.dtype == np.float32 else None


def _write(path: Path, features: Array) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.npy")
    try:
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(temporary, features)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
