"""Matrix products in float32 on CPUs by oneDNN, which torch has beside the library it uses by default.

On processors that are not Intel's, MKL takes kernels of half the vector width; oneDNN takes what the processor has (measured:
105 against 250 GFLOP/s on one core of an AMD EPYC with AVX-512). The rule is a rule, not a trial, so that a resumed run
computes with the same kernels. Everywhere else (GPUs, bfloat16, autocast, builds without oneDNN) torch decides.

Kernels are made for a shape and kept: a shape that is new at every call costs milliseconds each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``: ``F.linear`` of ``x`` ``(m, k)``, ``weight`` ``(n, k)`` and ``bias`` ``(n,)``, differentiable."""
    if not takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    output: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return output


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; what is more than a plain linear layer, such as one with an adapter, computes for itself."""
    return product(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


def takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these two."""
    return (
        _AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 2
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` where ``takes_onednn``, for code that has its own backward; any strides."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


# The operator that torch.compile uses for linear layers; it has no derivative of its own.
_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            onednn(grad, weight.t()) if wanted[0] else None,
            onednn(grad.t(), x.t()) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )
