"""The dataset folder: Parquet shards of encoded images, a manifest with one row a sample, and ``dataset.json``.

The same rows and bytes always give the same files, byte for byte. Rows keep the order (first_version, sample_id) and shards
are filled one after the other, so that a version which only adds samples shares all full shards with the one before.
Labels are in the manifest alone: when labels arrive, no image is stored again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ssl_core.contracts import Record
from ssl_core.data.splits import SIDES
from ssl_core.store import file_sha256

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
SHARD_BYTES = 64 * 2**20
ROW_GROUP_BYTES = 4 * 2**20
INFO_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("arrived_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("first_version", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("bytes", pa.int32(), nullable=False),
        pa.field("brightness", pa.float32(), nullable=False),
        pa.field("contrast", pa.float32(), nullable=False),
    ]
)
_SHARD_SCHEMA = pa.schema(
    [pa.field("sample_id", pa.string(), nullable=False), pa.field("image", pa.binary(), nullable=False)]
)


class ImageSummary(Record):
    """What ``image_size: auto`` and ``channels: auto`` are resolved from."""

    median_width: int
    median_height: int
    has_colour: bool


class SplitCounts(Record):
    """How many samples a split holds."""

    rows: int
    labelled: int
    classes: dict[str, int] = Field(description="Labelled samples by class; every class is listed")


class DatasetInfo(Record):
    """``dataset.json``: what a dataset version holds, and the digests of its files."""

    schema_version: int = SCHEMA_VERSION
    name: str
    modality: str = "image"
    rows: int
    labelled: int
    classes: list[str] = Field(description="As configured, or else the labels found, sorted")
    counts: dict[str, SplitCounts] = Field(description="By split")
    image: ImageSummary
    quarantined: int = Field(description="Files that could not be used")
    duplicates: int = Field(description="Files that were dropped as exact copies of another")
    near_duplicate_groups: int = Field(description="Groups of more than one sample")
    files: dict[str, str] = Field(description="SHA-256 of every other file of the folder")


def write_dataset(
    folder: Path,
    manifest: pd.DataFrame,
    image: Callable[[int], bytes],
    *,
    name: str,
    classes: list[str],
    quarantined: int = 0,
    duplicates: int = 0,
    on_row: Callable[[], None] = lambda: None,
) -> DatasetInfo:
    """Writes a dataset into the empty ``folder``; ``image(i)`` gives the encoded bytes of row ``i`` of ``manifest``.

    ``manifest`` has the columns of ``MANIFEST_SCHEMA`` and is in the order (first_version, sample_id). One row group of
    images is in memory at a time. ``on_row`` is called after each image.
    """
    order = manifest[["first_version", "sample_id"]]
    if (
        not order.equals(order.sort_values(["first_version", "sample_id"], ignore_index=True))
        or manifest["sample_id"].duplicated().any()
    ):
        raise ValueError("the manifest must be unique and in the order (first_version, sample_id)")
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, manifest["sample_id"].tolist(), image, on_row)
    table = pa.Table.from_pandas(manifest[MANIFEST_SCHEMA.names], schema=MANIFEST_SCHEMA, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), folder / MANIFEST_FILE, compression="zstd")
    info = _describe(
        manifest,
        name=name,
        classes=classes,
        quarantined=quarantined,
        duplicates=duplicates,
        files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    )
    (folder / INFO_FILE).write_text(
        json.dumps(info.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return info


def read_info(folder: Path) -> DatasetInfo:
    """``dataset.json`` of a dataset folder."""
    return DatasetInfo.model_validate_json((folder / INFO_FILE).read_bytes())


def read_manifest_file(path: Path) -> pd.DataFrame:
    """The manifest as a frame, in row order; ``label`` is None where there is none."""
    frame: Any = pq.read_table(path, schema=MANIFEST_SCHEMA).to_pandas()
    frame["label"] = frame["label"].astype(object).where(frame["label"].notna(), None)
    return frame


def read_images(folder: Path, *, batch: int = 256) -> Iterator[tuple[list[str], list[bytes]]]:
    """``(sample_ids, encoded images)`` in manifest order, ``batch`` rows at a time, from all shards of ``folder``."""
    for shard in sorted(folder.glob("data-*.parquet")):
        with pq.ParquetFile(shard) as file:
            for rows in file.iter_batches(batch_size=batch):
                yield rows.column("sample_id").to_pylist(), rows.column("image").to_pylist()


def _write_shards(
    folder: Path, sample_ids: list[str], image: Callable[[int], bytes], on_row: Callable[[], None]
) -> None:
    writer: pq.ParquetWriter | None = None
    shards = 0
    ids: list[str] = []
    images: list[bytes] = []
    group_bytes = shard_bytes = 0

    def flush() -> None:
        nonlocal group_bytes
        if ids and writer is not None:
            table = pa.table({"sample_id": ids, "image": pa.array(images, pa.binary())}, schema=_SHARD_SCHEMA)
            writer.write_table(table, row_group_size=len(ids))
        ids.clear()
        images.clear()
        group_bytes = 0

    try:
        for row, sample_id in enumerate(sample_ids):
            data = image(row)
            if writer is None or (shard_bytes and shard_bytes + len(data) > SHARD_BYTES):
                if writer is not None:
                    flush()
                    writer.close()
                # Images are compressed already: another codec would cost time, and dictionaries memory.
                writer = pq.ParquetWriter(
                    folder / f"data-{shards:05d}.parquet",
                    _SHARD_SCHEMA,
                    compression="none",
                    use_dictionary=False,
                    write_statistics=["sample_id"],
                )
                shards += 1
                shard_bytes = 0
            ids.append(sample_id)
            images.append(data)
            group_bytes += len(data)
            shard_bytes += len(data)
            if group_bytes >= ROW_GROUP_BYTES:
                flush()
            on_row()
        flush()
    finally:
        if writer is not None:
            writer.close()


def _describe(manifest: pd.DataFrame, *, classes: list[str], **known: Any) -> DatasetInfo:
    labelled = manifest[manifest["label"].notna()]
    found = labelled.groupby(["split", "label"]).size().to_dict()
    counts = {
        split: SplitCounts(
            rows=int((manifest["split"] == split).sum()),
            labelled=int((labelled["split"] == split).sum()),
            classes={name: int(found.get((split, name), 0)) for name in classes},
        )
        for split in SIDES
    }
    return DatasetInfo(
        rows=len(manifest),
        labelled=len(labelled),
        classes=classes,
        counts=counts,
        image=ImageSummary(
            median_width=round(float(manifest["width"].median())),
            median_height=round(float(manifest["height"].median())),
            has_colour=bool((manifest["channels"] == 3).any()),
        ),
        near_duplicate_groups=int((manifest["group"].value_counts() > 1).sum()),
        **known,
    )
