"""Products by oneDNN are products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_core.models import dense
from ssl_core.models.dense import linear, onednn, product, takes_onednn


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5), (7, 5), (7,))
    x, weight, bias = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("available", [True, False])
def test_a_product_and_its_gradients(
    biased: bool, available: bool, operands: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_AVAILABLE", available and dense._AVAILABLE)
    x, weight, bias = operands
    wanted = [x, weight, *([bias] if biased else [])]
    ours, theirs = product(x, weight, bias if biased else None), F.linear(x, weight, bias if biased else None)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    grad = torch.randn_like(theirs)
    for one, other in zip(
        torch.autograd.grad(ours, wanted, grad), torch.autograd.grad(theirs, wanted, grad), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_frozen_weights_get_no_gradient(operands: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias = operands
    product(x, weight.detach(), bias).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    assert bias.grad is not None


def test_any_strides(operands: tuple[torch.Tensor, ...]) -> None:
    if not dense._AVAILABLE:
        pytest.skip("a torch without oneDNN")
    x, weight, _ = (tensor.detach() for tensor in operands)
    torch.testing.assert_close(onednn(x.t().contiguous().t(), weight.t().contiguous().t()), x @ weight.t())


def test_what_it_leaves_to_torch(operands: tuple[torch.Tensor, ...]) -> None:
    x, weight, _ = (tensor.detach() for tensor in operands)
    assert takes_onednn(x, weight) == dense._AVAILABLE
    assert not takes_onednn(x.double(), weight.double())
    assert not takes_onednn(x.bfloat16(), weight.bfloat16())
    assert not takes_onednn(x[None], weight)
    assert not takes_onednn(x[:0], weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_onednn(x, weight)
        assert product(x, weight).dtype == torch.bfloat16
    assert product(x[:0], weight).shape == (0, 7)


def test_a_layer_that_is_more_than_linear_is_called() -> None:
    class Twice(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    plain, twice, x = nn.Linear(3, 2), Twice(3, 2), torch.randn(4, 3)
    twice.load_state_dict(plain.state_dict())
    torch.testing.assert_close(linear(twice, x), 2 * linear(plain, x))
