"""Masked language modelling: hidden tokens are predicted from those around them.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
https://arxiv.org/abs/1810.04805.

Shapes: T tokens of N sequences, k hidden tokens, D features, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.data.text.sequences import Sequences
from ssl_core.models.dense import onednn, takes_onednn
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from ssl_core.objectives.masking import Masker

_LOGITS_AT_ONCE = 1 << 25
"""Numbers in one block of logits, 128 MiB in float32: what they take does not grow with the batch."""


class MLM(nn.Module):
    """Encoder, prediction head and masking: ``forward`` takes a batch of unmasked sequences.

    ``loss = -1/k * sum over hidden tokens i of log P(y_i | x)``, where x is what the encoder sees. What the encoder's last
    layer does after its attention, the head and the softmax are computed for the k hidden tokens alone, and k is the same
    at every step where ``count`` is given: shapes then are, too.

    Departures from the paper: no next-sentence prediction (Liu et al. 2019, RoBERTa, https://arxiv.org/abs/1907.11692,
    section 4.2: it does not help); masks are drawn anew at every step (section 4.1 there); dropout is a choice.
    """

    def __init__(
        self, encoder: TextEncoder, head: MLMHead, masker: Masker, *, count: int | None = None, dropout: float = 0.0
    ) -> None:
        """``count``: tokens to hide in each batch; None: the masking rate of what each batch holds."""
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.masker = masker
        self.count = count
        encoder.set_dropout(dropout)

    def forward(self, sequences: Sequences, *, seed: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and metrics (detached scalars on the device) of sequences whose ids are on the CPU.

        Which tokens are hidden, and how, depends on (seed, step) and the batch alone. Metrics: ``masked_accuracy``, the
        share of hidden tokens that are the most probable ones. A batch without a token to hide has the loss 0.
        """
        lengths = sequences.lengths.numpy()
        count = self.masker.count(lengths) if self.count is None else self.count
        masked = self.masker(sequences.ids.numpy(), lengths, count, np.random.default_rng([seed, step]))
        device = self.head.bias.device
        inputs, positions, targets = (
            torch.from_numpy(part).to(device, torch.int64, non_blocking=True)
            for part in (masked.inputs, masked.positions, masked.targets)
        )
        hidden = self.encoder.hidden(Sequences(inputs, sequences.lengths), positions)
        loss, correct = predict(self.head, hidden, targets)
        return loss, {"masked_accuracy": correct / max(1, len(targets))}


def predict(head: MLMHead, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``-log P(target)`` in float32, and how many targets are most probable, from outputs ``(k, D)``, targets ``(k,)``.

    Both are 0 where k is: nothing is learned from a batch of special tokens ([UNK] is one), and no gradient is missing.
    """
    if len(targets) == 0:
        nothing = hidden.float().sum() * 0
        return nothing, nothing.detach()
    loss, correct = _Prediction.apply(head.transform(hidden), head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
    return loss, correct


class _Prediction(torch.autograd.Function):
    """``cross_entropy(h W^T + b, y)`` with the gradients made on the way, block by block of the rows of ``h``.

    One block of logits is all that is kept, and it is turned in place into probabilities and then into their gradient:
    ``dL/dlogits = (softmax - one-hot) / k``. Memory traffic, not arithmetic, is what a softmax over V costs. A target of a
    probability below 1e-38, the least that float32 has, counts as one of 1e-38; its gradient is exact.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = len(hidden)
        wanted = any(ctx.needs_input_grad)
        loss, correct = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        rows = max(1, _LOGITS_AT_ONCE // len(weight))
        for h, y in zip(hidden.split(rows), targets[:, None].split(rows), strict=True):
            logits = _multiply(h, weight, bias).float()
            correct += (logits.gather(1, y)[:, 0] >= logits.amax(dim=1)).sum()
            torch.softmax(logits, dim=1, out=logits)
            loss -= logits.gather(1, y).clamp_(min=torch.finfo(torch.float32).tiny).log_().sum()
            if wanted:
                logits.scatter_add_(1, y, torch.full_like(y, -1, dtype=torch.float32))
                # The transposed product writes along the rows of the logits, where they lie side by side.
                parts.append((_multiply(logits, weight.t()), _multiply((h / count).t(), logits.t()), logits.sum(0)))
        if wanted:
            ctx.gradients = (
                torch.cat([part[0] for part in parts]).to(hidden.dtype).div_(count),
                _sum([part[1] for part in parts]).t().to(weight.dtype).contiguous(),
                _sum([part[2] for part in parts]).div_(count).to(bias.dtype),
            )
        ctx.mark_non_differentiable(correct)
        return loss.div_(count), correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # autograd goes on adding to what it is given
        if gradients is None:
            raise RuntimeError("backward a second time: the gradients were given away the first time")
        if grad.device.type == "cpu" and float(grad) == 1.0:
            return *gradients, None
        return *(part.mul_(grad) for part in gradients), None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return onednn(x, weight, bias) if takes_onednn(x, weight) else F.linear(x, weight, bias)


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
