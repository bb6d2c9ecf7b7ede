"""The small networks put on an encoder: for the objective while pretraining, for the task afterwards."""

from __future__ import annotations

from typing import Literal

from torch import nn


class ProjectionHead(nn.Sequential):
    """``z = W2 relu(norm(W1 h))``: features ``(N, D)`` to the space in which views are compared ``(N, P)``.

    Chen et al. 2020 (https://arxiv.org/abs/2002.05709), section 4.2: a hidden layer between the representation and the
    contrastive loss makes the representation before it better. It is thrown away after pretraining. ``norm="group"``
    normalises each sample on its own (one group), for encoders that must not see the rest of the batch.
    """

    def __init__(self, features: int, hidden: int, dim: int, norm: Literal["batch", "group"] = "batch") -> None:
        super().__init__(
            nn.Linear(features, hidden, bias=False),
            nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim, bias=False),
        )


class ClassifierHead(nn.Linear):
    """Features ``(N, D)`` to class scores before the softmax ``(N, K)``.

    Starts at zero: every class is equally likely (loss ln K), the start depends on no seed, and the encoder gets its
    first gradient only after the head has learned something.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
