"""How models are optimised here: AdamW without decay on norms and biases, linear warm-up, cosine decay."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
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


class _AdamW(torch.optim.AdamW):
    """Torch's AdamW without the guards that keep ``torch.compile`` out of it: nothing here is compiled.

    A guarded method's first call imports the compiler (torch._dynamo, sympy): seconds, at the start of every step.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def adamw(groups: Iterable[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), fused: one kernel for all parameters."""
    return _AdamW(list(groups), fused=True)


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


def step_seed(seed: int, step: int) -> int:
    """The seed of whatever module draws at ``step``: a function of both numbers, so a resume draws the same."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
