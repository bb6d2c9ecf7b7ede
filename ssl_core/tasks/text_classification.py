"""Text classification: a head on the encoder, trained with it or without it on the labels of the budget.

Shapes: n labelled texts, N texts of a batch, W windows, D features, K classes (1 for numbers).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core.config.tasks import TextClassificationConfig
from ssl_core.data.table import SampleTable
from ssl_core.errors import CheckFailed, UserError
from ssl_core.models.anchors import Penalty
from ssl_core.models.optim import adamw, parameter_groups
from ssl_core.models.text_classifier import TextClassifier, build_classifier
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from ssl_core.models.text_windows import Windows, cut, evaluating, mean_by_text, values_of_windows
from ssl_core.step import NoProgress, NoTracker, Progress, Tracker
from ssl_core.tasks.text_batches import Order
from ssl_core.tasks.text_descent import Checkpoints, Follower, Watch, descend
from ssl_core.tasks.text_folds import cross_validate, hold_out, require_enough
from ssl_core.tasks.text_targets import Targets, loss_of, loss_of_scores, make_targets

if TYPE_CHECKING:
    from ssl_core.data.text.tokenizer import Tokenizer
    from ssl_core.models.text_weights import TextInfo

MIN_STEPS = 300
"""Few labels make short epochs, and few steps leave the encoder where it was (Mosbach et al. 2021, https://arxiv.org/abs/2006.04884).
On texts held out of the training split of the sample reviews, 300 steps instead of 100 were worth 1.7 points with 750 labels."""
MIN_HEAD_STEPS = 1000
"""Of a head on frozen features: a step costs next to nothing, and the head has to converge."""
HEAD_BATCH = 256
MERGE_TOLERANCE = 1e-3
"""Largest difference of logits, as a share of the largest one, that merging adapters may make: rounding, and no more."""
_ATTENTION = {"bert": ("query", "key", "value"), "modernbert": ("Wqkv",)}
"""Names of the attention projections, which get the adapters."""


class Texts(Protocol):
    """What is needed of ``data.text.tokens.Tokens``."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def table(self) -> SampleTable: ...


def train_classifier(
    encoder: TextEncoder,
    info: TextInfo,
    tokenizer: Tokenizer,
    texts: Texts,
    labelled: np.ndarray,
    config: TextClassificationConfig,
    *,
    mlm_head: MLMHead | None = None,
    head: nn.Module | None = None,
    penalty: Penalty | None = None,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    checkpoints: Checkpoints | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
) -> tuple[TextClassifier, dict[str, Any]]:
    """A classifier on a copy of ``encoder``, in eval mode on the CPU, and a record of how it was made.

    ``config.method`` full trains encoder and head; linear the head on the frozen encoder's features; lora the head and
    low-rank adapters of the attention projections, which are merged into the weights at the end. AdamW with warm-up and
    cosine; cross-entropy, binary cross-entropy or squared error by ``data.label_type``. Equal seeds and threads give equal
    bits on a CPU. Of the labels, those at ``labelled`` ``(n,)`` alone are read. ``mlm_head`` goes along, to be saved.
    ``head`` is where the head starts from, instead of knowing nothing; ``penalty`` is added to the loss.

    With ``checkpoints``, full and lora go on from the newest one, to the same bits as if they had never stopped; linear
    and the folds of a cross-validation take little time and start again.

    Raises:
        UserError: the task does not fit the data or the encoder (frozen layers, folds, class weights).
        CheckFailed: the loss or a gradient is not finite, or merged adapters answer otherwise than adapters did.
        TryAgain: ``stop`` was set; a checkpoint was saved first, where there are ``checkpoints``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    targets = make_targets(texts.table, labelled, config)
    require_enough(len(targets), config.folds)
    follow = Follower(stop or threading.Event(), progress or NoProgress(), tracker or NoTracker(), checkpoints)
    classes = texts.table.classes if targets.label_type != "number" else []

    def train(rows: np.ndarray, follow: Follower) -> tuple[TextClassifier, dict[str, Any]]:
        model = build_classifier(
            copy.deepcopy(encoder), info, tokenizer, classes, targets.label_type, config.stride, mlm_head
        )
        if head is not None:
            model.head.load_state_dict(head.state_dict())
            _standardise(model, targets)
        model.to(device)
        with torch.random.fork_rng():
            work = _Work(model, texts, labelled[rows], targets[rows], config, precision, follow, penalty)
            record = {"linear": _train_head, "full": _train_all, "lora": _train_adapters}[config.method](work)
        _unstandardise(model, targets)
        return model.eval(), record

    def fold(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        model, _ = train(rows, follow.alone())
        return lambda held: model.predict_tokens(texts.ids, texts.offsets, labelled[held])

    model, record = train(np.arange(len(labelled)), follow)
    if config.folds:
        record["cross_validation"] = cross_validate(fold, targets, config.folds, config.seed)
    return model.cpu(), record


class _Work:
    """One training: a model, the texts that it learns from, and those that it is stopped by."""

    def __init__(
        self,
        model: TextClassifier,
        texts: Texts,
        positions: np.ndarray,
        targets: Targets,
        config: TextClassificationConfig,
        precision: str,
        follow: Follower,
        penalty: Penalty | None,
    ) -> None:
        held = hold_out(targets.strata, config.seed) if config.early_stopping else np.zeros(len(targets), dtype=bool)
        self.model, self.texts, self.config, self.precision, self.follow = model, texts, config, precision, follow
        self.penalty = penalty
        self.device = next(model.parameters()).device
        self.positions, self.targets = positions[~held], targets[~held]
        self.held_positions, self.held_targets = positions[held], targets[held]
        self.windows: Windows = cut(texts.offsets, self.positions, model.room, model.stride)
        smoothed = self.targets.smoothed(config.label_smoothing)
        self._values = torch.from_numpy(smoothed).to(self.device)
        self._weights = torch.from_numpy(self.targets.weights).to(self.device)

    def order(self, batch_size: int) -> Order:
        return Order(self.windows, min(batch_size, len(self.positions)), self.config.seed)

    def logits(self, chosen: np.ndarray) -> Tensor:
        """Of the windows ``chosen`` ``(N,)``: ``(N, K)``."""
        tokenizer = self.model.tokenizer
        batch = self.windows.sequences(self.texts.ids, chosen, tokenizer.cls_id, tokenizer.sep_id)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.model.logits(batch.to(self.device))

    def loss(self, chosen: np.ndarray, logits: Tensor) -> Tensor:
        rows = torch.from_numpy(self.windows.rows[chosen]).to(self.device)
        return loss_of(self.targets.label_type, logits, self._values[rows], self._weights[rows])

    def features(self, windows: Windows) -> Tensor:
        """Of all ``windows``, by the encoder as it is: float32 ``(W, D)``."""
        model = self.model
        with (
            evaluating(model) as device,
            torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            values = values_of_windows(
                self.texts.ids, windows, model.tokenizer.cls_id, model.tokenizer.sep_id,
                lambda batch: model.encoder(batch.to(device)),
            )  # fmt: skip
        return torch.from_numpy(values).to(self.device)

    def held_out_loss(self) -> float:
        scores = self.model.predict_tokens(self.texts.ids, self.texts.offsets, self.held_positions)
        return loss_of_scores(self.held_targets, scores)

    def watch(self, trained: nn.Module, score: Callable[[], float]) -> Watch | None:
        """Early stopping, where it is asked for and the budget has a text to spare."""
        if not len(self.held_positions):
            return None
        return Watch(trained, score, self.config.early_stopping)

    def descend(
        self, trained: nn.Module, optimizer: torch.optim.Optimizer, logits: Callable[[np.ndarray], Tensor],
        score: Callable[[], float], batch_size: int, least: int, follow: Follower,
    ) -> dict[str, Any]:  # fmt: skip
        """Trains ``trained``; returns what there is to say about it."""
        order = self.order(batch_size)
        steps = max(self.config.epochs * order.per_epoch, least)
        pull = self.penalty(trained) if self.penalty else None

        def loss(chosen: np.ndarray) -> Tensor:
            value = self.loss(chosen, logits(chosen))
            return value + pull() if pull else value

        done = descend(
            loss, trained, optimizer, order, steps, self.config.seed, follow,
            self.watch(trained, score),
        )  # fmt: skip
        return {
            "texts": len(self.positions), "windows": len(self.windows), "held_out": len(self.held_positions),
            "epochs": round(done["steps"] / order.per_epoch, 2), **done,
        }  # fmt: skip


def _train_all(work: _Work) -> dict[str, Any]:
    """Encoder and head; each layer at its own rate, the lowest ones perhaps not at all."""
    model, config = work.model, work.config
    encoder = encoder_groups(model.encoder, config)
    optimizer = adamw([*encoder, *parameter_groups(model.head, config.learning_rate, config.weight_decay)])
    with dropout(model, config.dropout):
        model.train()
        record = work.descend(
            model, optimizer, work.logits, work.held_out_loss, config.batch_size, MIN_STEPS, work.follow
        )
    model.requires_grad_(True)  # whoever trains it next decides anew
    return record


def encoder_groups(encoder: TextEncoder, config: TextClassificationConfig) -> list[dict[str, Any]]:
    """AdamW's groups of an encoder of n layers, after ``config.frozen_layers`` and the embeddings were frozen.

    Layer i of 1..n has the peak rate ``encoder_learning_rate * layer_decay ** (n - i)``; the embeddings are layer 0, and
    what stands above the layers (a last norm) learns as the last one does. Howard and Ruder 2018
    (https://arxiv.org/abs/1801.06146), section 3.2: lower layers hold what is more general and should change less.
    """
    layers = encoder.layers()
    if config.frozen_layers > len(layers):
        raise UserError(
            f"asks for {config.frozen_layers} frozen layers, but the encoder has {len(layers)}",
            place="task.frozen_layers",
            next_step=f"set task.frozen_layers to {len(layers)} or less, or task.method to linear to freeze all of it",
        )
    parts = [encoder.embeddings, *layers]
    if config.frozen_layers:
        for part in parts[: config.frozen_layers + 1]:
            part.requires_grad_(False)
    inside = {id(p) for part in parts for p in part.parameters()}
    above = nn.ParameterList([p for p in encoder.parameters() if id(p) not in inside])
    top, decay = config.encoder_learning_rate, config.weight_decay
    groups = parameter_groups(above, top, decay)
    for depth, part in enumerate(parts):
        groups += parameter_groups(part, top * config.layer_decay ** (len(layers) - depth), decay)
    return groups


def _train_head(work: _Work) -> dict[str, Any]:
    """The head alone, on standardised features of all windows; the standardisation is then folded into its weights."""
    model, config = work.model, work.config
    head: Any = model.head
    raw = work.features(work.windows)
    mean, std = raw.mean(dim=0), raw.std(dim=0, correction=0).clamp_min(1e-6)
    standard = (raw - mean) / std
    with torch.no_grad():  # a head that knows something answers the same on standardised features
        head.bias.add_(head.weight @ mean)
        head.weight.mul_(std)
    held = cut(work.texts.offsets, work.held_positions, model.room, model.stride)
    held_features = (work.features(held) - mean) / std if len(held) else raw[:0]

    def score() -> float:
        with torch.no_grad():
            answers = model.answer(head(held_features)).cpu().numpy()
        return loss_of_scores(work.held_targets, mean_by_text(held, answers))

    record = work.descend(
        head, adamw(parameter_groups(head, config.learning_rate, config.weight_decay)),
        lambda chosen: head(standard[torch.from_numpy(chosen).to(work.device)]), score,
        max(config.batch_size, HEAD_BATCH), MIN_HEAD_STEPS, work.follow.alone(),
    )  # fmt: skip
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(head.weight @ mean)
    return record


def _train_adapters(work: _Work) -> dict[str, Any]:
    """Head and adapters ``W + alpha / rank * B A`` of the attention projections; then W itself becomes that sum."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    model, config = work.model, work.config
    network = model.encoder.network
    names = _ATTENTION[model.encoder.config.model_type]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # of the adapters' first weights
        adapters = LoraModel(
            network,
            LoraConfig(
                r=config.lora.rank, lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
                lora_dropout=config.lora.dropout, target_modules=list(names)
            ),
            "default",
        )  # fmt: skip
    adapters.to(work.device)
    optimizer = adamw(
        [
            *parameter_groups(network, config.encoder_learning_rate, config.weight_decay),
            *parameter_groups(model.head, config.learning_rate, config.weight_decay),
        ]
    )
    with dropout(model, config.dropout):
        for name, module in network.named_modules():
            if name.endswith("lora_dropout.default") and isinstance(module, nn.Dropout):
                module.p = config.lora.dropout
        model.train()
        record = work.descend(
            model, optimizer, work.logits, work.held_out_loss, config.batch_size, MIN_STEPS, work.follow
        )
    some = np.arange(min(16, len(work.windows)))
    with evaluating(model):
        before = work.logits(some).float()
    model.encoder.network = adapters.merge_and_unload()
    model.requires_grad_(True)
    with evaluating(model):
        difference = float((work.logits(some).float() - before).abs().max() / before.abs().max().clamp_min(1e-6))
    limit = MERGE_TOLERANCE if work.precision == "float32" else 5e-2
    if not difference <= limit:
        raise CheckFailed(
            f"with the adapters merged the model answers otherwise: off by {difference:.3g}, allowed {limit:g}",
            place="task.lora",
            next_step="set pretrain.precision: float32, or task.method: full",
        )
    return {**record, "merge_difference": difference}


def _standardise(model: TextClassifier, targets: Targets) -> None:
    """The inverse of ``_unstandardise``, for a head that answers with numbers as people know them."""
    head: Any = model.head
    with torch.no_grad():
        head.bias.sub_(targets.mean).div_(targets.scale)
        head.weight.div_(targets.scale)


def _unstandardise(model: TextClassifier, targets: Targets) -> None:
    """Numbers as people know them: the scale and mean of training become part of the head."""
    head: Any = model.head
    with torch.no_grad():
        head.weight.mul_(targets.scale)
        head.bias.mul_(targets.scale).add_(targets.mean)


@contextmanager
def dropout(model: TextClassifier, share: float) -> Iterator[None]:
    """Dropout of ``share`` in all of a classifier, for as long as it is trained; then what it came with."""
    before = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    for module in before:
        module.p = share
    try:
        yield
    finally:
        for module, old in before.items():
            module.p = old
