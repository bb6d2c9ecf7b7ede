"""What a label is to a loss, and the three losses: one class a text, any number of classes, a number.

Shapes: n labelled texts, N texts of a batch, K classes (1 for numbers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ssl_core.config.tasks import TextClassificationConfig
from ssl_core.data.table import LabelType, SampleTable
from ssl_core.errors import UserError


@dataclass(frozen=True)
class Targets:
    """What n texts are trained towards; made from their own labels and no other."""

    label_type: LabelType
    values: np.ndarray
    """float32 ``(n, K)``: 1 for a class that a text has, else 0; numbers with mean 0 and variance 1."""
    weights: np.ndarray
    """float32 ``(n, K)``: how much each entry counts; 1 on average."""
    strata: np.ndarray
    """int64 ``(n,)``: texts with equal ones stand for each other where some are held out."""
    mean: float = 0.0
    scale: float = 1.0
    """What numbers were standardised with."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: np.ndarray) -> Targets:
        part = self.values[rows], self.weights[rows], self.strata[rows]
        return Targets(self.label_type, *part, self.mean, self.scale)

    def smoothed(self, share: float) -> np.ndarray:
        """``values`` with ``share`` of each label spread evenly: over the K classes, or over yes and no. Numbers stay."""
        if self.label_type == "number" or share == 0:
            return self.values
        even = 1 / self.values.shape[1] if self.label_type == "class" else 0.5
        return (self.values * (1 - share) + share * even).astype(np.float32)


def make_targets(table: SampleTable, positions: np.ndarray, config: TextClassificationConfig) -> Targets:
    """The targets of the texts at ``positions``. Raises ``UserError`` where numbers are to be balanced as classes."""
    # A table of these rows alone: no other label is so much as parsed, and strata and scale come from the budget.
    own = SampleTable(table.manifest.iloc[positions], table.classes, table.label_type)
    values = own.targets
    weights = np.ones_like(values)
    if table.label_type == "number":
        if config.class_weights != "none":
            raise UserError(
                "numbers have no classes that could be balanced",
                place="task.class_weights",
                next_step="set task.class_weights to none, or data.label_type to class",
            )
        mean, scale = float(values.mean()), float(values.std())
        scale = scale if scale > 1e-6 * max(1.0, abs(mean)) else 1.0  # equal labels: only the mean is there to learn
        standard = ((values - mean) / scale).astype(np.float32)
        return Targets("number", standard, weights, own.labels, mean, scale)
    if config.class_weights == "balanced":
        weights = balanced_weights(values, table.label_type)
    return Targets(table.label_type, values, weights, own.labels)


def balanced_weights(values: np.ndarray, label_type: LabelType) -> np.ndarray:
    """float32 ``(n, K)``. class: a text weighs ``n / (present classes * n_k)``, so that every class weighs the same in all.

    classes: within each class, those that have it weigh as much as those that have it not, ``n / (2 n_yes)`` and
    ``n / (2 n_no)``; 1 where all are alike.
    """
    n = len(values)
    yes = values.sum(axis=0)
    if label_type == "class":
        each = np.divide(n, (yes > 0).sum() * yes, out=np.zeros_like(yes), where=yes > 0)
        return np.repeat((values @ each)[:, None], values.shape[1], axis=1).astype(np.float32)
    mixed = (yes > 0) & (yes < n)
    yes, no = np.where(mixed, yes, n / 2), np.where(mixed, n - yes, n / 2)
    return np.where(values > 0, n / (2 * yes), n / (2 * no)).astype(np.float32)


def loss_of(label_type: LabelType, logits_NK: Tensor, targets_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """The mean over a batch, a scalar; t targets, w weights, z logits.

        class     -1/N  sum_n w_n sum_k t_nk log softmax(z_n)_k
        classes   -1/NK sum_nk w_nk (t_nk log s(z_nk) + (1 - t_nk) log(1 - s(z_nk))),  s the sigmoid
        number     1/N  sum_n (z_n - t_n)^2

    Weights are 1 on average over the training set, so batches are divided by their size and not by their weight: a
    batch of one class only would lose its weights otherwise.
    """
    z = logits_NK.float()
    if label_type == "class":
        return -(targets_NK * weights_NK * F.log_softmax(z, dim=1)).sum(dim=1).mean()
    if label_type == "classes":
        return F.binary_cross_entropy_with_logits(z, targets_NK, weight=weights_NK)
    return F.mse_loss(z, targets_NK)


def loss_of_scores(targets: Targets, scores: np.ndarray) -> float:
    """The same loss of answers ``(n, K)``: probabilities, or standardised numbers. For texts that were held out."""
    values, weights = targets.values, targets.weights
    if targets.label_type == "number":
        return float(((scores - values) ** 2).mean())
    p = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    if targets.label_type == "class":
        return float(-(values * weights * np.log(p)).sum(axis=1).mean())
    return float(-(weights * (values * np.log(p) + (1 - values) * np.log(1 - p))).mean())
