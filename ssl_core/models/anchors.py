"""What keeps a model near the one that it goes on from: penalties while it learns, and interpolation afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_core.data.table import LabelType

Penalty = Callable[[nn.Module], Callable[[], Tensor]]
"""Called with what is about to be trained, at its starting weights; returns what is to be added to the loss of each step."""

Module = TypeVar("Module", bound=nn.Module)


def anchored(strength: float, ewc: float = 0.0, fisher: Mapping[str, Tensor] | None = None) -> Penalty:
    """Pulls each trained weight back to where it started, w0, with a gradient of ``(strength + ewc F) (w - w0)``:

        1/2 sum_i (strength + ewc F_i) (w_i - w0_i)^2

    ``strength`` is L2-SP (Li et al. 2018, https://arxiv.org/abs/1802.01483, equation 2): weight decay towards the
    starting point. Departure: the head starts from the champion's too, so it is anchored as the rest is, where the
    paper's new head decays to zero.

    ``ewc`` is elastic weight consolidation (Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796, equation 3) with the
    importance ``fisher`` by parameter name. Its mean over all weights is 1 (see ``fisher_information``), so both
    strengths are of one scale: L2-SP is EWC where every weight matters alike.
    """
    importance = fisher or {}

    def start(trained: nn.Module) -> Callable[[], Tensor]:
        kept = [
            (p, p.detach().clone(), strength + ewc * importance[name].to(p.device) if name in importance else strength)
            for name, p in trained.named_parameters()
            if p.requires_grad
        ]
        device = next(trained.parameters()).device

        def penalty() -> Tensor:
            total = torch.zeros((), device=device)
            for now, before, pull in kept:
                total = total + 0.5 * (pull * (now - before).square()).sum()
            return total

        return penalty

    return start


def fisher_information(
    model: nn.Module, logits_of: Callable[[int], Tensor], count: int, label_type: LabelType, seed: int
) -> dict[str, Tensor]:
    """How much each weight matters to what the model says: the diagonal of the Fisher information, of mean 1 over all weights.

        F_i = E_x E_{y ~ p(y | x)} (d log p(y | x) / d w_i)^2

    y is drawn from the model's own answers, so no label is read (Martens 2020, https://arxiv.org/abs/1412.1193, section 5:
    with the labels it would be the "empirical Fisher", another matrix). Departure from Kirkpatrick et al.: divided by
    its mean, since its own scale falls with the model's uncertainty and rises with nothing that a user could know.

    Args:
        logits_of: row ``0 .. count - 1`` to that sample's logits ``(1, K)`` with gradients, one sample at a time.
        label_type: class or classes; numbers have no distribution here.
    """
    if label_type == "number":
        raise ValueError("the Fisher information is that of classes")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in named.items()}
    draws = torch.Generator().manual_seed(seed)
    for row in range(count):
        logits = logits_of(row).float()
        likelihood = _log_likelihood(logits, label_type, draws)
        gradients = torch.autograd.grad(likelihood, list(named.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)
    weights = sum(total.numel() for total in sums.values())
    mean = sum(float(total.double().sum()) for total in sums.values()) / weights
    return {name: total / mean if mean > 0 else torch.ones_like(total) for name, total in sums.items()}


def _log_likelihood(logits: Tensor, label_type: LabelType, draws: torch.Generator) -> Tensor:
    """``log p(y)`` of one y drawn from the model's answer; a scalar."""
    if label_type == "class":
        says = logits.log_softmax(dim=1)
        drawn = torch.multinomial(says.detach().exp().cpu(), 1, generator=draws)
        return says[0, int(drawn)]
    chance = logits.detach().sigmoid().cpu()
    yes = (torch.rand(chance.shape, generator=draws) < chance).float().to(logits.device)
    return -nn.functional.binary_cross_entropy_with_logits(logits, yes, reduction="sum")


def interpolate(first: Module, second: Module, alpha: float) -> Module:
    """A copy of ``second`` with the weights ``(1 - alpha) first + alpha second``: 0 is the first to the bit, 1 the second.

    WiSE-FT (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, equation 1). Statistics of batch normalisation are
    interpolated as weights are. To estimate them anew would take training samples, of old windows too, for each alpha, and
    neither end would be the model that it stands for; it is needed where the two are far apart (Jordan et al. 2022,
    https://arxiv.org/abs/2211.08403), and these lie one short training from each other. Counters are those of ``second``.
    """
    mixed = copy.deepcopy(second)
    wanted, other = first.state_dict(), second.state_dict()
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in other.items()}:
        raise ValueError("models of two architectures cannot be interpolated")
    state = {
        name: torch.lerp(tensor, other[name].to(tensor), alpha) if tensor.is_floating_point()
        else (tensor if alpha == 0 else other[name])
        for name, tensor in wanted.items()
    }  # fmt: skip
    mixed.load_state_dict(state)
    return mixed
