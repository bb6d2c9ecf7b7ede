import pytest
import torch

from ssl_core.config.encoders import ResNetConfig
from ssl_core.models.resnet import BasicBlock, ResNet


def _net(**config: object) -> ResNet:
    torch.manual_seed(0)
    return ResNet(ResNetConfig.model_validate({"widths": (8, 16)} | config), in_channels=3)


def test_features_are_the_last_width_at_any_image_size():
    net = _net(widths=(8, 16, 24)).eval()
    assert net.features == 24
    for size in (8, 13, 28):
        assert net(torch.randn(2, 3, size, size)).shape == (2, 24)


def test_block_is_the_residual_sum_of_its_branch_and_its_input():
    torch.manual_seed(0)
    block = BasicBlock(8, 8, stride=1, norm="batch").eval()
    x = torch.randn(2, 8, 5, 5)
    branch = block.norm2(block.conv2(torch.relu(block.norm1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(branch + x))
    torch.nn.init.zeros_(block.norm2.weight)
    assert torch.equal(block(x), torch.relu(x))


def test_stages_after_the_first_halve_the_image():
    sizes = []
    net = _net(widths=(8, 8, 16), blocks=2)
    for block in net.blocks:
        block.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    net(torch.randn(2, 3, 16, 16))
    assert sizes == [(8, 16, 16), (8, 16, 16), (8, 8, 8), (8, 8, 8), (16, 4, 4), (16, 4, 4)]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_eval_features_do_not_depend_on_the_rest_of_the_batch(norm):
    net = _net(norm=norm).eval()
    x = torch.randn(6, 3, 12, 12)
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


def test_only_batch_norm_lets_samples_see_each_other_in_training():
    x = torch.randn(6, 3, 12, 12)
    changed = torch.cat((x[:1], x[1:] * 3))
    group, batch = _net(norm="group").train(), _net(norm="batch").train()
    torch.testing.assert_close(group(x)[0], group(changed)[0])
    assert (batch(x)[0] - batch(changed)[0]).abs().max() > 1e-2


def test_group_norm_takes_widths_that_eight_does_not_divide():
    net = _net(widths=(6, 10), norm="group")
    assert torch.isfinite(net(torch.randn(2, 3, 8, 8))).all()
    assert not [name for name, _ in net.named_buffers()]


def test_every_parameter_gets_a_gradient():
    net = _net(blocks=2).train()
    net(torch.randn(4, 3, 12, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_signal_keeps_its_scale_through_many_blocks_at_the_start():
    net = _net(widths=(16, 16, 16), blocks=4).train()
    spread = net(torch.randn(32, 3, 16, 16)).std(dim=0).mean()
    assert 0.05 < spread < 20
