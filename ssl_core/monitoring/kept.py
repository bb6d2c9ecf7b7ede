"""Arrays that follow from samples and a model, kept in the store by content: embedding them again would take most of a check.

An array lies at ``<store>/<project>/kept/<origin>/<digest of the sample ids>.npy``, origin = the digest of all else that it
follows from. Several machines share it; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ssl_core.store import Store


def ids_digest(sample_ids: Iterable[str]) -> str:
    """Names samples in this order."""
    return hashlib.sha256("\n".join(sample_ids).encode()).hexdigest()


def kept(store: Store, project: str, origin: str, name: str, rows: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The float32 array ``(rows, D)`` of this origin and name: read (mapped, not copied), else made and kept."""
    uri = f"{project}/kept/{origin[:32]}/{name[:32]}.npy"
    local = Path(store.path(uri)) if store.is_local else store.cache / "kept" / origin[:32] / f"{name[:32]}.npy"
    if (found := _read(local, rows)) is not None:
        return found
    if not store.is_local and store.copy(uri, local, lambda copy: _read(copy, rows) is not None):
        found = _read(local, rows)
        assert found is not None
        return found
    made = np.ascontiguousarray(make(), dtype=np.float32)
    file = io.BytesIO()
    np.save(file, made)
    store.write(uri, file.getvalue())
    return made


def _read(path: Path, rows: int) -> np.ndarray | None:
    """The array, None where there is none or it is not whole; nothing is unpickled."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == rows and found.dtype == np.float32 else None
