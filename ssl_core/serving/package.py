"""What travels with a registered model so that it loads where ``ssl-core`` is not installed: code, requirements, form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pandas as pd

import ssl_core
from ssl_core.modalities import MODALITIES, part

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec

Kind = Literal["classifier", "encoder"]

# What the served models of every modality import. A test loads each with nothing else on the path.
_CARRIED = (
    "__init__.py", "errors.py", "config/__init__.py", "config/base.py", "models/__init__.py", "serving/__init__.py", "serving/prediction_log.py",
    "serving/requests.py",
)  # fmt: skip
_REQUIRED = ("mlflow", "torch", "safetensors", "numpy", "pandas", "pydantic")


class Package(Protocol):
    """How the models of a modality are served."""

    @property
    def name(self) -> str:
        """The modality; its models-from-code files are ``serving/<name>_encoder.py`` and ``serving/<name>_classifier.py``."""
        ...

    @property
    def carried(self) -> tuple[str, ...]:
        """The modules below ``ssl_core/`` that the served models import, directly or not, beside those of every modality."""
        ...

    @property
    def required(self) -> tuple[str, ...]:
        """The distributions that they need, beside those of every modality."""
        ...

    @property
    def golden_input(self) -> str:
        """The array of a golden batch that holds what goes in."""
        ...

    def inputs(self) -> list[ColSpec]:
        """The columns of a request."""
        ...

    def request(self, golden: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """A golden batch as a request."""
        ...

    def answers(self, kind: Kind, label_type: str) -> list[ColSpec]:
        """The columns of an answer."""
        ...


def package_of(golden: Mapping[str, np.ndarray]) -> Package:
    """The package whose input a golden batch holds. Raises ``KeyError`` where no modality knows it."""
    for modality in MODALITIES:
        package: Package = part(modality, "package")
        if package.golden_input in golden:
            return package
    raise KeyError(f"no modality has one of {', '.join(golden)} as its input")


def source_file(package: Package, kind: Kind) -> Path:
    """The models-from-code file."""
    return Path(__file__).with_name(f"{package.name}_{kind}.py")


def carry_code(package: Package, folder: Path) -> str:
    """Copies the modules that a served model imports to ``folder/ssl_core``, MLflow's ``code_paths``; returns its path."""
    root = Path(ssl_core.__file__).parent
    for name in (*_CARRIED, *package.carried):
        target = folder / "ssl_core" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    return str(folder / "ssl_core")


def requirements(package: Package) -> list[str]:
    """Pinned to what is installed; a local build tag (+cpu) is dropped, because no registry has it."""
    # Of MLflow a job may have the client alone, which is a package of its own with the same version.
    return [
        f"{name}=={version('mlflow-skinny' if name == 'mlflow' else name).split('+')[0]}"
        for name in (*_REQUIRED, *package.required)
    ]


def signature(package: Package, kind: Kind, label_type: str = "class") -> ModelSignature:
    """What goes in and comes out."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    return ModelSignature(inputs=Schema([*package.inputs()]), outputs=Schema([*package.answers(kind, label_type)]))


def encoder_answers() -> list[ColSpec]:
    """An encoder's: column ``embedding``."""
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import Array

    return [ColSpec(Array(DataType.double), "embedding")]


def class_answers() -> list[ColSpec]:
    """A classifier's: ``label``, ``confidence`` and ``probabilities``."""
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import Map

    return [
        ColSpec(DataType.string, "label"), ColSpec(DataType.double, "confidence"), ColSpec(Map(DataType.double), "probabilities"),
    ]  # fmt: skip


def answer_array(kind: Kind, answer: pd.DataFrame, classes: list[str] | None = None) -> np.ndarray:
    """A served model's answer as float32 ``(N, D)``; a classifier's columns in the order of ``classes``, a number's ``(N, 1)``."""
    if kind == "encoder":
        return np.asarray(answer["embedding"].tolist(), dtype=np.float32)
    if "value" in answer:
        return np.asarray(answer["value"], dtype=np.float32)[:, None]
    names = classes or list(answer["probabilities"].iloc[0])
    return np.asarray([[row[name] for name in names] for row in answer["probabilities"]], dtype=np.float32)
