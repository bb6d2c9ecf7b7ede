"""Gauges of a text encoder in training: does it guess hidden tokens better than word frequencies do, and do texts differ for it?

Legend: N texts, D features, V vocabulary, T tokens.

As with images the gauges only look: fixed texts, fixed masks, eval mode, no gradient, no random number that training could miss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ssl_core.data.text.packing import Store, windows
from ssl_core.data.text.sequences import SPECIAL, Sequences, gather
from ssl_core.models.probes import knn_scores
from ssl_core.models.text_encoder import Pooling
from ssl_core.models.text_windows import Windows, evaluating, values_of_windows
from ssl_core.objectives.mlm import MLM, predict
from ssl_core.training.health import (
    CHANCE_PATIENCE,
    CHANCE_SHARE,
    GAUGE_SAMPLES,
    RANK_FLOOR,
    SPREAD_FLOOR,
    Gauge,
    Unhealthy,
    effective_rank,
    evenly,
    spread,
)

_BATCH_TOKENS = 4096
_VAL_TOKENS = 65_536
"""Tokens of val texts that a gauge looks at, at most."""
_COUNTED = 10_000_000
"""Training tokens that frequencies are counted in, at most."""
_SEED = 0
"""Of the masks: the same at every gauge of every run."""


@dataclass(frozen=True)
class _Hidden:
    """One batch of val texts with its fixed masks."""

    sequences: Sequences
    positions: torch.Tensor
    targets: torch.Tensor


@dataclass
class TextMonitor:
    """Takes the gauges of one run at fixed steps and raises ``Unhealthy`` where ``diagnose`` finds a fault.

    Texts are seen by their first window: books would make a look endless, and their means alike, whatever the encoder.
    Whether features collapse is told from means of token outputs, which the objective works on; the output of the first
    token is nearly the same for all texts of a random encoder, and no loss asks for anything else.
    ``chance_loss`` is the entropy of the training tokens: the loss of a model that knows how frequent each is, and nothing of what stands around it.
    """

    objective: MLM
    store: Store
    tokenizer: Any
    max_length: int
    train: np.ndarray
    """Positions of training texts ``(N,)``; ``GAUGE_SAMPLES`` of them, evenly spaced, are embedded."""
    val: np.ndarray
    """Positions of val texts, of which tokens are hidden; where there are none to hide, those of ``train`` are taken."""
    device: str = "cpu"
    precision: str = "float32"
    labelled: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
    """Positions and labels of the labelled train texts, then of the labelled val texts."""
    history: list[Gauge] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = self._frequencies()
        counts[list(self.tokenizer.special_ids)] = 0  # [UNK] is often there and never hidden
        share = counts[counts > 0] / max(1, counts.sum())
        self.entropy = float(-(share * np.log(share)).sum())
        self.vocabulary = len(counts)
        self._hidden = self._hide(self.val) or self._hide(self.train)
        common = [float(np.mean(batch.targets.numpy() == counts.argmax())) for batch in self._hidden]
        sizes = [len(batch.targets) for batch in self._hidden]
        self.unigram_accuracy = float(np.average(common, weights=sizes)) if sizes else None
        """What always guessing the most frequent token of the training texts gets; None where no token can be hidden."""
        self.train = evenly(self.train, GAUGE_SAMPLES)
        if self.labelled is not None:
            train, train_labels, val, val_labels = self.labelled
            some, others = evenly(np.arange(len(train)), GAUGE_SAMPLES), evenly(np.arange(len(val)), GAUGE_SAMPLES)
            self.labelled = (train[some], train_labels[some], val[others], val_labels[others])

    def observe(self, step: int, loss: float, warmup: int) -> Gauge:
        """Looks at the encoder, remembers the gauge, and raises ``Unhealthy`` where the run must stop."""
        was_training = self.objective.training
        self.objective.eval()
        try:
            gauge = self._look(step, loss)
        finally:
            self.objective.train(was_training)
        self.history.append(gauge)
        if reason := diagnose(self.history, warmup, self.vocabulary):
            raise Unhealthy(reason)
        return gauge

    def _look(self, step: int, loss: float) -> Gauge:
        features = self._embed(self.train, "mean")
        if not np.isfinite(features).all():
            raise Unhealthy(f"the encoder's features are not finite after step {step}")
        val_loss, accuracy = self._guess()
        return Gauge(
            step=step,
            loss=loss,
            chance_loss=self.entropy,
            spread=spread(features),
            effective_rank=effective_rank(features),
            knn_accuracy=self._knn_accuracy(),
            val_loss=val_loss,
            masked_accuracy=accuracy,
            unigram_accuracy=self.unigram_accuracy,
        )

    def _guess(self) -> tuple[float, float] | tuple[None, None]:
        """Mean loss and accuracy on the hidden tokens of the val texts, where there are any."""
        if not self._hidden:
            return None, None
        loss = correct = total = 0.0
        encoder, head = self.objective.encoder, self.objective.head
        kind = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
            for batch in self._hidden:
                positions, targets = batch.positions.to(self.device), batch.targets.to(self.device)
                mean, right = predict(head, encoder.hidden(batch.sequences.to(self.device), positions), targets)
                loss += float(mean) * len(targets)
                correct += float(right)
                total += len(targets)
        return loss / total, correct / total

    def _knn_accuracy(self) -> float | None:
        if self.labelled is None:
            return None
        train, train_labels, val, val_labels = self.labelled
        scores = knn_scores(self._embed(train), train_labels, self._embed(val))
        return float((scores.argmax(axis=1) == val_labels).mean())

    def _embed(self, positions: np.ndarray, pooling: Pooling | None = None) -> np.ndarray:
        """Features ``(n, D)`` of the texts' first windows."""
        encoder, tokenizer = self.objective.encoder, self.tokenizer
        begin = np.asarray(self.store.offsets[positions], dtype=np.int64)
        lengths = np.asarray(self.store.offsets[positions + 1], dtype=np.int64) - begin
        first = Windows(np.arange(len(positions)), begin, np.minimum(lengths, self.max_length - SPECIAL))
        kind = torch.device(self.device).type
        with evaluating(encoder), torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return values_of_windows(
                self.store.ids, first, tokenizer.cls_id, tokenizer.sep_id,
                lambda batch: encoder(batch.to(self.device), pooling),
            )  # fmt: skip

    def _frequencies(self) -> np.ndarray:
        """How often each token occurs in the training texts, ``(V,)``: in all of them, or in evenly spaced ones."""
        return frequencies(self.store, self.train, int(self.tokenizer.size), _COUNTED)

    def _hide(self, positions: np.ndarray) -> list[_Hidden]:
        starts, lengths = windows(self.store.offsets, evenly(positions, 4 * GAUGE_SAMPLES), self.max_length - SPECIAL)
        # Evenly spaced among all windows, so that one endless text is not all that is looked at.
        few = max(1, int(len(starts) * min(1.0, _VAL_TOKENS / max(1, int(lengths.sum())))))
        chosen = evenly(np.arange(len(starts)), few)
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        found: list[_Hidden] = []
        parts = math.ceil(int((lengths[chosen] + SPECIAL).sum()) / _BATCH_TOKENS)
        for part in np.array_split(chosen, max(1, parts)):
            if len(part) == 0:
                continue
            whole = gather(self.store.ids, starts[part], lengths[part], self.tokenizer.cls_id, self.tokenizer.sep_id)
            sizes, masker = whole.lengths.numpy(), self.objective.masker
            masked = masker(whole.ids.numpy(), sizes, masker.count(sizes), np.random.default_rng([_SEED, len(found)]))
            if len(masked.positions):
                inputs, places, targets = map(torch.from_numpy, (masked.inputs, masked.positions, masked.targets))
                found.append(_Hidden(Sequences(inputs, whole.lengths), places, targets.long()))
        return found


def frequencies(store: Store, positions: np.ndarray, size: int, limit: int) -> np.ndarray:
    """How often each of ``size`` tokens occurs in the texts at ``positions``, ``(size,)``: in about ``limit`` tokens, evenly spaced."""
    counts = np.zeros(size, dtype=np.int64)
    lengths = store.offsets[positions + 1] - store.offsets[positions]
    stride = max(1, math.ceil(float(lengths.sum()) / limit))
    starts, sizes = windows(store.offsets, positions[::stride], 1 << 16)
    ends = sizes.cumsum()
    few = int(np.searchsorted(ends, limit)) + 1  # up to the one with which it is enough
    starts, sizes, ends = starts[:few], sizes[:few], ends[:few]
    # Many windows at once, each token by its place in the store: there are short ones by the hundred thousand.
    for part in np.array_split(np.arange(len(ends)), math.ceil(int(ends[-1]) / 2**20) if len(ends) else 1):
        shift = starts[part] - (sizes[part].cumsum() - sizes[part])
        places = np.arange(int(sizes[part].sum())) + np.repeat(shift, sizes[part])
        counts += np.bincount(store.ids[places], minlength=size)
    return counts


def diagnose(history: Sequence[Gauge], warmup: int, vocabulary: int) -> str | None:
    """Why the run must stop, or None: a fault must show at the last two gauges after the warm-up in a row.

    Faults: spread below ``SPREAD_FLOOR``, effective rank below ``RANK_FLOOR``, a loss above ``CHANCE_SHARE`` of ln V once
    ``CHANCE_PATIENCE`` steps are done. The entropy of the tokens would be a wrong threshold: learning rests there
    for hundreds of steps, before contexts begin to count.
    """
    last = [gauge for gauge in history if gauge.step > warmup][-2:]
    if len(last) < 2:
        return None
    now, uniform = last[-1], math.log(vocabulary)
    if all(gauge.spread < SPREAD_FLOOR for gauge in last):
        return f"the encoder collapsed: all texts get nearly the same features (spread {now.spread:.4f}, below {SPREAD_FLOOR})"
    if all(gauge.effective_rank < RANK_FLOOR for gauge in last):
        return f"the encoder collapsed: its features fill {now.effective_rank:.2f} dimensions (effective rank, below {RANK_FLOOR})"
    if all(gauge.step >= CHANCE_PATIENCE and gauge.loss > CHANCE_SHARE * uniform for gauge in last):
        return f"nothing is learned: the loss {now.loss:.3f} is that of guessing among all {vocabulary:,} tokens, {uniform:.3f}"
    return None
