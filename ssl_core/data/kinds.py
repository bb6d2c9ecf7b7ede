"""What ingest and the dataset folder have to know of a modality; each has one ``Kind``, named in ``ssl_core.modalities``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ssl_core.config.project import ProjectConfig
from ssl_core.data.bad_sample import BadSample

__all__ = ["BadSample", "Decoded", "Kind"]

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ssl_core.data.sources import Source


@dataclass(frozen=True)
class Decoded:
    """One decoded sample and what the manifest keeps of it."""

    sample_id: str
    """SHA-256 of the decoded content, hexadecimal."""
    measures: Mapping[str, Any]
    """A value for each of the kind's ``measures``."""
    trace: np.ndarray
    """What near-duplicates are told by: a small array, ``kind.trace_shape`` of ``kind.trace_type``."""


class Kind(Protocol):
    """A modality as ingest sees it."""

    @property
    def name(self) -> str:
        """The modality, and the key of its summary in ``dataset.json``."""
        ...

    @property
    def column(self) -> pa.Field:
        """The content in the shards: binary or string."""
        ...

    @property
    def measures(self) -> tuple[pa.Field, ...]:
        """Columns of the manifest beside those that every modality has."""
        ...

    @property
    def trace_shape(self) -> tuple[int, ...]: ...
    @property
    def trace_type(self) -> type[np.generic]: ...
    @property
    def compression(self) -> str:
        """Codec of the shards: "none" for what is compressed already, or "zstd"."""
        ...

    def open(self, project: ProjectConfig, cache: Path | None) -> Source:
        """The source of a project. Raises ``UserError`` where it is missing, empty or wrongly labelled."""
        ...

    def decode(self, data: bytes, project: ProjectConfig) -> Decoded:
        """Decodes and measures one sample; called from several threads. Raises ``BadSample`` with the reason."""
        ...

    def stored(self, data: bytes) -> bytes | str:
        """What the shard keeps of an item's bytes that ``decode`` has taken."""
        ...

    def near_duplicates(self, traces: np.ndarray, project: ProjectConfig) -> np.ndarray:
        """Pairs ``(P, 2)`` of positions among ``traces`` ``(N, *trace_shape)`` that are near-duplicates."""
        ...

    def summary(self, manifest: pd.DataFrame) -> dict[str, Any]:
        """What encoders are configured from, as JSON values."""
        ...
