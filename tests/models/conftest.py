"""A small encoder and pixels that every test of this folder may use."""

import numpy as np
import pytest
import torch

from ssl_core.config.encoders import ResNetConfig
from ssl_core.models.encoder import EncoderInfo, Preprocessing, build_encoder


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (20, 1, 12, 12), dtype=np.uint8)


@pytest.fixture
def info():
    preprocessing = Preprocessing("image", size=12, channels=1, mean=(0.5,), std=(0.25,))
    return EncoderInfo(ResNetConfig(widths=(8, 16)), preprocessing, features=16)


@pytest.fixture
def encoder(info, pixels):
    """With batch statistics of real batches, so that a load which forgets the buffers is seen."""
    module = build_encoder(info.config, 1, seed=1).train()
    with torch.no_grad():
        for _ in range(3):
            module(info.preprocessing.apply(torch.from_numpy(pixels)))
    return module.eval()
