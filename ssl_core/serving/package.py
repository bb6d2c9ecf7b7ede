"""What travels with a registered model so that it loads where ``ssl-core`` is not installed: code, requirements, form."""

from __future__ import annotations

import io
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from PIL import Image

import ssl_core
from ssl_core.serving.images import COLUMN

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

Kind = Literal["classifier", "encoder"]

# Every module that the two served models import, directly or not; a test loads them with nothing else on the path.
CARRIED = (
    "__init__.py", "errors.py",
    "config/__init__.py", "config/base.py", "config/encoders.py",
    "data/__init__.py", "data/images.py",
    "models/__init__.py", "models/classifier.py", "models/embed.py", "models/encoder.py", "models/heads.py", "models/resnet.py",
    "serving/__init__.py", "serving/images.py",
)  # fmt: skip
_REQUIRED = ("mlflow", "torch", "safetensors", "numpy", "pillow", "pandas", "pydantic")


def source_file(kind: Kind) -> Path:
    """The models-from-code file."""
    return Path(__file__).with_name(f"image_{kind}.py")


def carry_code(folder: Path) -> str:
    """Copies the modules that a served model imports to ``folder/ssl_core``, MLflow's ``code_paths``; returns its path."""
    root = Path(ssl_core.__file__).parent
    for name in CARRIED:
        target = folder / "ssl_core" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    return str(folder / "ssl_core")


def requirements() -> list[str]:
    """Pinned to what is installed; a local build tag (+cpu) is dropped, because no registry has it."""
    # Of MLflow a job may have the client alone, which is a package of its own with the same version.
    return [f"{name}=={version('mlflow-skinny' if name == 'mlflow' else name).split('+')[0]}" for name in _REQUIRED]


def signature(kind: Kind) -> ModelSignature:
    """What goes in and comes out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, Map

    outputs: dict[Kind, list[ColSpec | TensorSpec]] = {
        "encoder": [ColSpec(Array(DataType.double), "embedding")],
        "classifier": [
            ColSpec(DataType.string, "label"), ColSpec(DataType.double, "confidence"),
            ColSpec(Map(DataType.double), "probabilities"),
        ],
    }  # fmt: skip
    return ModelSignature(inputs=Schema([ColSpec(DataType.binary, COLUMN)]), outputs=Schema(outputs[kind]))


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 ``(C, H, W)`` as PNG, which loses nothing."""
    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def request(pixels: np.ndarray) -> pd.DataFrame:
    """uint8 ``(N, C, H, W)`` as a request of a served model."""
    return pd.DataFrame({COLUMN: [to_png(one) for one in pixels]})


def answer_array(kind: Kind, answer: pd.DataFrame, classes: list[str] | None = None) -> np.ndarray:
    """A served model's answer as float32 ``(N, D)``; a classifier's columns in the order of ``classes``."""
    if kind == "encoder":
        return np.asarray(answer["embedding"].tolist(), dtype=np.float32)
    names = classes or list(answer["probabilities"].iloc[0])
    return np.asarray([[row[name] for name in names] for row in answer["probabilities"]], dtype=np.float32)
