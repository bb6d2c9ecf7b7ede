"""Kept arrays: made once, whole or made again, on a disk and in S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.monitoring.kept import ids_digest, kept
from ssl_core.store import Store


class Maker:
    calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.arange(12, dtype=np.float64).reshape(4, 3)


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "object store"])
def test_an_array_is_made_once_and_a_damaged_one_again(tmp_path: Path, remote: bool, request: Any) -> None:
    url = f"memory://kept-{tmp_path.name}" if remote else tmp_path.as_uri()
    make = Maker()

    def ask(cache: str = "cache", rows: int = 4) -> np.ndarray:
        return kept(Store(url, tmp_path / cache), "tiny", "o" * 64, "n" * 64, rows, make)

    first = ask()
    assert first.dtype == np.float32
    assert make.calls == 1
    for cache in ("cache", "another-machine"):
        np.testing.assert_array_equal(ask(cache), first)
    assert make.calls == 1
    store = Store(url, tmp_path / "third")
    uri = "tiny/kept/" + "o" * 32 + "/" + "n" * 32 + ".npy"
    store.write(uri, (store.read(uri) or b"")[:-5])
    np.testing.assert_array_equal(ask("third"), first)
    assert make.calls == 2
    np.testing.assert_array_equal(ask("third"), first)
    assert make.calls == 2


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri(), tmp_path / "cache")
    uri = tmp_path / "tiny" / "kept" / "o" / "n.npy"
    uri.parent.mkdir(parents=True)
    np.save(uri, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    make = Maker()
    assert kept(store, "tiny", "o", "n", 4, make).shape == (4, 3)
    assert make.calls == 1


def test_samples_are_named_in_their_order() -> None:
    assert ids_digest(["a", "b"]) == ids_digest(["a", "b"]) != ids_digest(["b", "a"])
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])
