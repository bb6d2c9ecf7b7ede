"""A residual network for small images, CIFAR style.

He et al. 2016, "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385), section 4.2: a 3x3
stem without max-pooling, stages of basic blocks, global average pooling. Departures: the shortcut that changes shape is
a 1x1 convolution with normalisation (option B of the paper), and normalisation may be by groups.

Shapes: N images, C channels, H x W pixels, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.config.encoders import ResNetConfig

_GROUPS = 8


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return nn.BatchNorm2d(channels)


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """``relu(x + f(x))``, f = conv3x3, norm, relu, conv3x3, norm."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(c_in, c_out, 3, stride)
        self.norm1 = _norm(norm, c_out)
        self.conv2 = _conv(c_out, c_out, 3)
        self.norm2 = _norm(norm, c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(_conv(c_in, c_out, 1, stride), _norm(norm, c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """``(N, C, H, W)`` float images, normalised, to ``(N, D)`` features; ``D = config.widths[-1] = self.features``.

    Weights are drawn from torch's global generator; ``build_encoder`` seeds it.
    """

    def __init__(self, config: ResNetConfig, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.features = config.widths[-1]
        self.stem = nn.Sequential(
            _conv(in_channels, config.widths[0], 3), _norm(config.norm, config.widths[0]), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        width = config.widths[0]
        for stage, stage_width in enumerate(config.widths):
            for block in range(config.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(width, stage_width, stride, config.norm))
                width = stage_width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Channels next to each other in memory: what convolution kernels are fastest with, on CPUs and GPUs alike.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return x.mean(dim=(2, 3))
