"""How models are optimised here: AdamW without decay on norms and biases, linear warm-up, cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups of ``module``: matrices and kernels decay; biases and norm scales (one dimension) do not.

    Each group remembers its own peak rate as ``peak``, which ``set_rates`` scales.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group | {"lr": learning_rate, "peak": learning_rate} for group in groups if group["params"]]


def adamw(groups: Iterable[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), fused: one kernel for all parameters."""
    return torch.optim.AdamW(list(groups), fused=True)


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Share of the peak rate at ``step`` of ``total``: rises linearly over ``warmup`` steps, then a half cosine to 0.

    A function of the step alone, so there is no scheduler whose state could be lost.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets every group's rate to ``share`` of its ``peak``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
