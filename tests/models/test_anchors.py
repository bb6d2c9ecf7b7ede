"""Anchors and interpolation against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_core.config.encoders import ResNetConfig
from ssl_core.models.anchors import anchored, fisher_information, interpolate
from ssl_core.models.encoder import build_encoder


def linear(weights: list[list[float]], bias: bool = False) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
        if bias:
            layer.bias.zero_()
    return layer


def test_l2_sp_pulls_back_in_proportion_to_the_distance() -> None:
    layer = linear([[1.0, -2.0, 3.0]])
    pull = anchored(0.5)(layer)
    assert float(pull()) == 0.0
    with torch.no_grad():
        layer.weight.add_(torch.tensor([[0.1, 0.0, -2.0]]))
    value = pull()
    value.backward()
    assert float(value) == pytest.approx(0.25 * (0.01 + 4.0))
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.05, 0.0, -1.0]]))


def test_what_is_frozen_is_not_pulled() -> None:
    layer = linear([[1.0, 2.0]], bias=True)
    layer.bias.requires_grad_(False)
    pull = anchored(1.0)(layer)
    with torch.no_grad():
        layer.bias.add_(5.0)
    assert float(pull()) == 0.0


def test_ewc_ends_where_two_quadratics_balance() -> None:
    """Old loss ``a/2 (w - w_A)^2`` with Fisher a, new loss ``b/2 (w - w_B)^2``: the least is at ``(b w_B + k F w_A) / (b + k F)``."""
    start, goal = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 5.0]])
    curvature, importance, strength = 2.0, torch.tensor([[4.0, 0.25]]), 1.5
    layer = linear(start.tolist())
    pull = anchored(0.0, strength, {"weight": importance})(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        loss = 0.5 * curvature * (layer.weight - goal).square().sum() + pull()
        loss.backward()
        optimizer.step()
    expected = (curvature * goal + strength * importance * start) / (curvature + strength * importance)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-5)


def test_fisher_of_a_logistic_model() -> None:
    """Of ``sigmoid(w x)``: ``p (1 - p) x^2`` for each weight, here up to the draws of y and the scale; and of mean 1."""
    torch.manual_seed(0)
    layer = linear([[0.5, -0.25]])
    x = torch.randn(4000, 2) * torch.tensor([1.0, 3.0])
    fisher = fisher_information(layer, lambda row: layer(x[row : row + 1]), len(x), "classes", seed=0)["weight"]
    p = (x @ layer.weight.detach().T).sigmoid()
    exact = (p * (1 - p) * x.square()).mean(dim=0)
    torch.testing.assert_close(fisher[0], exact / exact.mean(), rtol=0.1, atol=0.0)
    assert float(fisher.mean()) == pytest.approx(1.0, rel=1e-5)


def test_fisher_draws_classes_from_the_answers_and_is_seeded() -> None:
    layer = linear([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))

    def logits(row: int) -> Tensor:
        return layer(x[row : row + 1])

    one, same, other = (fisher_information(layer, logits, 50, "class", seed)["weight"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="classes"):
        fisher_information(layer, logits, 50, "number", 0)


def test_a_model_that_is_sure_of_everything_has_no_gradients_and_all_weights_alike() -> None:
    layer = linear([[1000.0], [-1000.0]])
    fisher = fisher_information(layer, lambda row: layer(torch.ones(1, 1)), 3, "class", 0)
    assert torch.equal(fisher["weight"], torch.ones(2, 1))


def test_the_ends_of_an_interpolation_are_the_two_models() -> None:
    config = ResNetConfig(widths=(8, 16))
    first, second = (build_encoder(config, 1, seed=seed) for seed in (0, 1))
    second(torch.randn(4, 1, 8, 8))  # other statistics of batch normalisation too
    for alpha, end in ((0.0, first), (1.0, second)):
        mixed = interpolate(first, second, alpha).state_dict()
        assert all(torch.equal(tensor, mixed[name]) for name, tensor in end.state_dict().items())
    half, a, b = interpolate(first, second, 0.5).state_dict(), first.state_dict(), second.state_dict()
    for name in ("stem.0.weight", "stem.1.running_var"):
        torch.testing.assert_close(half[name], (a[name] + b[name]) / 2)
    assert not math.isnan(float(half["stem.1.running_mean"].sum()))


def test_two_architectures_cannot_be_interpolated() -> None:
    first, second = (build_encoder(ResNetConfig(widths=widths), 1, seed=0) for widths in ((8,), (16,)))
    with pytest.raises(ValueError, match="two architectures"):
        interpolate(first, second, 0.5)
