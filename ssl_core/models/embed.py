"""Features of many images, in batches, in eval mode; and the untrained encoder that they are compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ssl_core.models.encoder import EncoderInfo, Preprocessing, build_encoder
from ssl_core.models.resnet import ResNet


def embed(
    encoder: ResNet,
    preprocessing: Preprocessing,
    pixels: np.ndarray,
    positions: np.ndarray | None = None,
    *,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> np.ndarray:
    """Features float32 ``(n, D)`` of the images at ``positions`` (default: all) of uint8 ``pixels`` ``(N, C, H, W)``.

    ``pixels`` may be a memory map: one batch at a time is read. The encoder is left in the mode it came in; nothing is
    random, so equal calls on one machine give equal bits. ``precision`` "bfloat16" computes under autocast.
    """
    if positions is None:
        positions = np.arange(len(pixels))
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, not {precision}")
    device = torch.device(device)
    was_training = encoder.training
    encoder.eval()
    parts: list[torch.Tensor] = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            for start in range(0, len(positions), batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(pixels[positions[start : start + batch_size]])).to(device)
                parts.append(encoder(preprocessing.apply(batch)).float().cpu())
    finally:
        encoder.train(was_training)
    if not parts:
        return np.empty((0, encoder.features), dtype=np.float32)
    return torch.cat(parts).numpy()


def random_encoder(
    info: EncoderInfo, seed: int, pixels: np.ndarray, positions: np.ndarray, *, batch_size: int = 512
) -> ResNet:
    """An untrained encoder as a fair rival: random weights, BatchNorm statistics of the images at ``positions``.

    A trained encoder's statistics are those of its training images; mean 0 and variance 1 would handicap a random one for
    a reason that has nothing to do with learning. Labels are not involved. Eval mode, on the CPU.
    """
    encoder = build_encoder(info.config, info.preprocessing.channels, seed)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    encoder.train()
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for start in range(0, len(positions) if norms else 0, batch_size):
            batch = np.ascontiguousarray(pixels[positions[start : start + batch_size]])
            encoder(info.preprocessing.apply(torch.from_numpy(batch)))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return encoder.eval()
