"""What happens to pictures when their source changes: turned, drawn with a thicker pen, taken by a noisier camera.

For demonstrations and benchmarks of drift on real data: the labels stay true, and how far the world has moved is known.
"""

from __future__ import annotations

import numpy as np

ROTATION = 35.0
"""Degrees at severity 1."""
NOISE = 25.0
"""Standard deviation at severity 1, of 255."""


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """uint8 pictures ``(N, H, W)``, each turned anticlockwise around its centre; what comes in from outside is black."""
    from scipy.ndimage import rotate as turn

    turned = turn(pixels.astype(np.float32), degrees, axes=(2, 1), reshape=False, order=1)
    return _as_bytes(turned)


def thicken(pixels: np.ndarray, share: float) -> np.ndarray:
    """Bright strokes spread to their neighbours: ``(1 - share) * x + share * max of the 3 x 3 pixels around x``."""
    from scipy.ndimage import maximum_filter

    widest = maximum_filter(pixels, size=(1, 3, 3)).astype(np.float32)
    return _as_bytes(pixels + share * (widest - pixels))


def add_noise(pixels: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Gaussian noise of standard deviation ``sigma`` (of 255); equal seeds give equal noise."""
    drawn = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    return _as_bytes(pixels + sigma * drawn)


def shift(pixels: np.ndarray, severity: float = 1.0, seed: int = 0) -> np.ndarray:
    """All three at once, uint8 ``(N, H, W)``; 0 changes nothing, 1 is a world that a model has to learn anew in part."""
    if severity == 0:
        return pixels.copy()
    moved = thicken(rotate(pixels, ROTATION * severity), min(1.0, severity / 2))
    return add_noise(moved, NOISE * severity, seed)


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
