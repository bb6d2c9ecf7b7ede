"""Features of many images, in batches, in eval mode."""

from __future__ import annotations

import numpy as np
import torch

from ssl_core.models.encoder import Preprocessing
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
