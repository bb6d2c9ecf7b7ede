"""What travels with a registered image model; see ``serving.package.Package``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from ssl_core.serving.images import COLUMN
from ssl_core.serving.package import Kind, Package

if TYPE_CHECKING:
    from mlflow.types import ColSpec


class _Images:
    """See ``Package``."""

    name = "image"
    carried = (
        "config/encoders.py", "data/__init__.py", "data/bad_sample.py", "data/images.py",
        "models/classifier.py", "models/embed.py", "models/encoder.py", "models/heads.py", "models/resnet.py",
        "serving/images.py",
    )  # fmt: skip
    required = ("pillow",)
    golden_input = "pixels"

    def inputs(self) -> list[ColSpec]:
        from mlflow.types import ColSpec, DataType

        return [ColSpec(DataType.binary, COLUMN)]

    def request(self, golden: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """uint8 ``pixels`` ``(N, C, H, W)`` as PNG files."""
        return pd.DataFrame({COLUMN: [to_png(one) for one in golden["pixels"]]})

    def answers(self, kind: Kind, label_type: str) -> list[ColSpec]:
        from ssl_core.serving.package import class_answers, encoder_answers

        return encoder_answers() if kind == "encoder" else class_answers()


PACKAGE: Package = _Images()


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 ``(C, H, W)`` as PNG, which loses nothing."""
    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
