"""Small image folders for the tests of the data path."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (16, 16), mode: str = "L") -> Image.Image:
    """Noise that no other seed resembles: ``size`` is (width, height)."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(values, mode)


def encode(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_folder({"cat/1.png": 1, "labels.csv": "file,label"})``: seeds become pictures, text and bytes are written as they are."""

    def make(files: dict[str, int | str | bytes], root: Path | None = None) -> Path:
        root = root or tmp_path / "source"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                content = encode(picture(content))
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make
