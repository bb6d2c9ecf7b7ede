"""A manifest as ``ingest`` writes it, for planting faults into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ssl_core.contracts import DatasetRef


def manifest_frame(n: int = 200, labelled: int = 60) -> pd.DataFrame:
    """A valid manifest of ``n`` samples, the first ``labelled`` ones labelled cat or dog."""
    rng = np.random.default_rng(0)
    ids = [f"{i:064x}" for i in range(n)]
    return pd.DataFrame(
        {
            "sample_id": pd.Series(ids, dtype="str"),
            "split": pd.Series(
                [("train", "train", "train", "val", "test", "vault")[i % 6] for i in range(n)], dtype="str"
            ),
            "group": pd.Series(ids, dtype="str"),
            "label": pd.Series([("cat", "dog")[i % 2] if i < labelled else None for i in range(n)], dtype="object"),
            "source": pd.Series([f"pets/{i}.png" for i in range(n)], dtype="str"),
            "arrived_at": pd.to_datetime("2026-01-10", utc=True)
            + pd.to_timedelta(np.arange(n), unit="min").as_unit("us"),
            "first_version": np.full(n, 1, dtype="int32"),
            "width": rng.integers(20, 40, n, dtype="int32"),
            "height": rng.integers(20, 40, n, dtype="int32"),
            "channels": np.full(n, 3, dtype="int32"),
            "bytes": rng.integers(300, 900, n, dtype="int32"),
            "brightness": rng.uniform(0.2, 0.8, n).astype("float32"),
            "contrast": rng.uniform(0.1, 0.3, n).astype("float32"),
        }
    )


@pytest.fixture
def manifest() -> pd.DataFrame:
    return manifest_frame()


@pytest.fixture
def make_manifest() -> Callable[..., pd.DataFrame]:
    return manifest_frame


@pytest.fixture
def make_candidate() -> Callable[..., DatasetRef]:
    def make(**changes: Any) -> DatasetRef:
        fields: dict[str, Any] = {
            "kind": "candidate", "name": "pets", "revision": "c0ffee", "path": "pets/data", "md5": "0" * 32 + ".dir",
            "remote": "/nowhere", "sha256": "1" * 64, "producer": "ingest/k", "rows": 200, "labelled": 60, "classes": 2,
        }  # fmt: skip
        return DatasetRef(**(fields | changes))

    return make
