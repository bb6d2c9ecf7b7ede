"""Samples that are arrays of pixels: kept as plain ``.npy`` in the cache, PNG files when read."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ssl_core.data.layout import Item
from ssl_core.store import storage_errors

Load = Callable[[Path], tuple[np.ndarray, np.ndarray]]
"""Pixels ``(N, H, W)`` uint8 and class numbers ``(N,)``, given the cache."""


def picture_items(cache: Path, stem: str, load: Load, classes: Sequence[str], prefix: str, digits: int) -> list[Item]:
    """``prefix-0001.png`` and so on, in a fixed order; ``stem`` names the file in the cache, and changes with the content."""
    pixels, labels = _cached(cache / "samples" / f"{stem}.npy", lambda: load(cache))
    return [
        Item(f"{prefix}-{index:0{digits}d}.png", classes[label], partial(_png, pixels, index))
        for index, label in enumerate(labels.tolist())
    ]


def _png(pixels: np.ndarray, index: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[index]).save(buffer, "PNG")
    return buffer.getvalue()


def _cached(path: Path, load: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The sample's arrays, converted once to a form that loads without importing or unpickling anything."""
    try:
        packed = np.load(path, allow_pickle=False)
        return packed["pixels"], packed["label"]
    except (OSError, ValueError, KeyError, IndexError, EOFError):
        pass  # not there yet, or damaged: made again below
    pixels, labels = load()
    packed = np.empty(len(pixels), dtype=[("pixels", np.uint8, pixels.shape[1:]), ("label", np.uint8)])
    packed["pixels"], packed["label"] = pixels, labels
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.npy")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.save(temporary, packed, allow_pickle=False)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return packed["pixels"], packed["label"]
