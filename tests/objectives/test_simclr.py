"""NT-Xent against a slow reference and closed forms; SimCLR as a module."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_core.config.encoders import ResNetConfig
from ssl_core.config.objectives import SimCLRConfig
from ssl_core.models.encoder import Preprocessing, build_encoder
from ssl_core.objectives.simclr import SimCLR, nt_xent


def slow_nt_xent(z0, z1, temperature):
    """Equation 1 of the paper as written: two loops, no matrix product, no stable softmax."""
    z = [v / v.norm() for v in torch.cat((z0, z1)).double()]
    n, losses = len(z0), []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        total = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        losses.append(-torch.log(torch.exp(z[i] @ z[j] / temperature) / total))
    return torch.stack(losses).mean().item()


def embeddings(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator)


@pytest.mark.parametrize(("n", "dim", "temperature"), [(1, 4, 0.5), (2, 3, 0.1), (5, 8, 0.2), (9, 2, 1.0)])
def test_agrees_with_the_slow_reference(n, dim, temperature):
    z0, z1 = embeddings(n, dim)
    assert nt_xent(z0, z1, temperature).item() == pytest.approx(slow_nt_xent(z0, z1, temperature), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_identical_embeddings_give_the_log_of_the_number_of_others(temperature):
    z = torch.ones(6, 4)
    assert nt_xent(z, z, temperature).item() == pytest.approx(math.log(2 * 6 - 1), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthogonal_pairs_have_a_closed_form(temperature):
    """Each partner at similarity 1, the 2N - 2 others at 0: log(1 + (2N - 2) exp(-1 / t))."""
    z = torch.eye(5)
    expected = math.log(1 + 8 * math.exp(-1 / temperature))
    assert nt_xent(z, z, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_the_worst_case_has_a_closed_form():
    """Partners opposite, on one line: each view sees its partner at -1, N - 1 others at 1 and N - 1 at -1."""
    z = torch.ones(4, 1)
    expected = 1 / 0.5 + math.log(3 * math.exp(1 / 0.5) + 4 * math.exp(-1 / 0.5))
    assert nt_xent(z, -z, 0.5).item() == pytest.approx(expected, abs=1e-5)


def test_swapping_views_permuting_images_and_scaling_change_nothing():
    z0, z1 = embeddings(7, 5)
    loss = nt_xent(z0, z1, 0.3)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(z1, z0, 0.3), loss)
    torch.testing.assert_close(nt_xent(z0[order], z1[order], 0.3), loss)
    torch.testing.assert_close(nt_xent(z0 * 10, z1 * 0.01, 0.3), loss)
    assert (nt_xent(z0, z1[order], 0.3) - loss).abs() > 1e-3


def test_tiny_temperatures_and_half_precision_stay_finite():
    z0, z1 = embeddings(16, 8)
    for temperature in (1e-3, 1e-2):
        assert torch.isfinite(nt_xent(z0, z1, temperature))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z0, z1, 0.05)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z0, z1, 0.05))


def test_gradient_agrees_with_finite_differences():
    z0, z1 = (z.double().requires_grad_() for z in embeddings(3, 4))
    loss = lambda a, b: nt_xent(a, b, 0.5)  # noqa: E731
    # The loss itself computes in float32: compare at a step that float32 resolves.
    grad = torch.autograd.grad(loss(z0, z1), z0)[0]
    step = 1e-2
    for index in ((0, 0), (2, 3)):
        shift = torch.zeros_like(z0)
        shift[index] = step
        numeric = (
            slow_nt_xent(z0.detach() + shift, z1.detach(), 0.5) - slow_nt_xent(z0.detach() - shift, z1.detach(), 0.5)
        ) / (2 * step)
        assert grad[index].item() == pytest.approx(numeric, abs=1e-3)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3,), (3,))])
def test_views_of_different_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="equal shape"):
        nt_xent(torch.ones(shapes[0]), torch.ones(shapes[1]), 0.5)


# ---- the module


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def simclr(norm="batch", **config):
    preprocessing = Preprocessing("image", 8, 1, (0.5,), (0.25,))
    encoder = build_encoder(ResNetConfig(widths=(8, 16), norm=norm), 1, seed=0)
    settings = SimCLRConfig.model_validate({"projection_hidden": 16, "projection_dim": 8} | config)
    return SimCLR(encoder, settings, preprocessing, norm=norm, seed=0)


def test_forward_is_nt_xent_of_the_two_views(pixels):
    model = simclr(temperature=0.3).eval()
    loss, metrics = model(pixels, seed=1, step=4)
    z0, z1 = (
        F.normalize(
            model.projection(model.encoder(model.preprocessing.normalise(model.augment(pixels, 1, 4, v)))), dim=1
        )
        for v in (0, 1)
    )
    torch.testing.assert_close(loss, nt_xent(z0, z1, 0.3), atol=1e-5, rtol=1e-5)
    z = torch.cat((z0, z1))
    similarity = z @ z.T
    same = torch.arange(12).repeat(2)
    others = ~(same[:, None] == same[None, :])
    torch.testing.assert_close(metrics["positive_similarity"], (z0 * z1).sum(1).mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(metrics["negative_similarity"], similarity[others].mean(), atol=1e-5, rtol=0)
    nearest = similarity.fill_diagonal_(-2).argmax(1)
    assert metrics["contrastive_top1"].item() == pytest.approx(
        (nearest == torch.arange(24).roll(12)).double().mean().item()
    )
    assert not any(value.requires_grad for value in metrics.values())


def test_seed_and_step_decide_the_loss_and_the_head_follows_its_seed(pixels):
    first, second = simclr(), simclr()
    losses = [model(pixels, seed=1, step=2)[0].item() for model in (first, second)]
    assert losses[0] == losses[1]
    assert simclr()(pixels, seed=1, step=3)[0].item() != losses[0]
    assert simclr()(pixels, seed=2, step=2)[0].item() != losses[0]


def test_the_order_of_the_batch_is_nothing_but_order(pixels):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    loss, metrics = simclr().eval()(pixels, seed=1, step=2)
    permuted, permuted_metrics = simclr().eval()(pixels[order], seed=1, step=2, positions=order)
    torch.testing.assert_close(permuted, loss)
    for name, value in metrics.items():
        torch.testing.assert_close(permuted_metrics[name], value)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_gradient_reaches_every_parameter(pixels, norm):
    model = simclr(norm)
    model(pixels, seed=0, step=0)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_batch_can_be_overfitted(pixels):
    torch.manual_seed(0)
    model = simclr()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss, metrics = model(pixels, seed=0, step=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.0
    assert losses[-1] < 0.3  # the best possible at this temperature is 0.12
    assert metrics["contrastive_top1"] == 1
    assert metrics["positive_similarity"] > metrics["negative_similarity"] + 0.5


def test_a_constant_encoder_shows_in_loss_and_metrics(pixels):
    """Collapse: all views at one point. Loss log(2N - 1), both similarities 1."""
    model = simclr().eval()
    model.encoder.forward = lambda x: torch.ones(len(x), 16)
    loss, metrics = model(pixels, seed=0, step=0)
    assert loss.item() == pytest.approx(math.log(23), abs=1e-5)
    assert metrics["positive_similarity"].item() == pytest.approx(1, abs=1e-5)
    assert metrics["negative_similarity"].item() == pytest.approx(1, abs=1e-5)
