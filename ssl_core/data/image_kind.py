"""Images as ingest sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ssl_core.config.data import ImageDataConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.data import duplicates, images
from ssl_core.data.kinds import Decoded, Kind
from ssl_core.data.sources import Source, open_source

if TYPE_CHECKING:
    import pandas as pd


class _Images:
    """See ``Kind``."""

    name = "image"
    column = pa.field("image", pa.binary(), nullable=False)
    measures = (
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("bytes", pa.int32(), nullable=False),
        pa.field("brightness", pa.float32(), nullable=False),
        pa.field("contrast", pa.float32(), nullable=False),
    )
    trace_shape = (3, duplicates.THUMBNAIL_SIDE, duplicates.THUMBNAIL_SIDE)
    trace_type = np.uint8
    compression = "none"  # images are compressed already: another codec would only cost time

    def open(self, project: ProjectConfig, cache: Path | None) -> Source:
        return open_source(project, cache)

    def decode(self, data: bytes, project: ProjectConfig) -> Decoded:
        config = project.data
        assert isinstance(config, ImageDataConfig)
        info = images.decode(data, max_pixels=config.max_pixels, min_side=config.min_side)
        measures = {
            "width": info.width, "height": info.height, "channels": info.channels, "bytes": len(data),
            "brightness": info.brightness, "contrast": info.contrast,
        }  # fmt: skip
        return Decoded(info.sample_id, measures, images.thumbnail(info.image, duplicates.THUMBNAIL_SIDE))

    def stored(self, data: bytes) -> bytes:
        return data

    def near_duplicates(self, traces: np.ndarray, project: ProjectConfig) -> np.ndarray:
        return duplicates.near_duplicate_pairs(traces)

    def summary(self, manifest: pd.DataFrame) -> dict[str, Any]:
        """What ``image_size: auto`` and ``channels: auto`` are resolved from."""
        return {
            "median_width": round(float(manifest["width"].median())),
            "median_height": round(float(manifest["height"].median())),
            "has_colour": bool((manifest["channels"] == 3).any()),
        }


KIND: Kind = _Images()
