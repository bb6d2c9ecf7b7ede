"""The dataset folder: Parquet shards of the samples' content, a manifest with one row a sample, and ``dataset.json``.

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
from ssl_core.data.kinds import Kind
from ssl_core.data.splits import SIDES
from ssl_core.data.table import LabelType
from ssl_core.modalities import part
from ssl_core.store import file_sha256

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
SHARD_BYTES = 64 * 2**20
ROW_GROUP_BYTES = 4 * 2**20
INFO_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"

_COMMON = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("arrived_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("first_version", pa.int32(), nullable=False),
    ]
)


def manifest_schema(modality: str) -> pa.Schema:
    """The manifest's columns: those that every modality has, then its measures."""
    kind: Kind = part(modality, "kind")
    return pa.schema([*_COMMON, *kind.measures])


def _shard_schema(kind: Kind) -> pa.Schema:
    return pa.schema([pa.field("sample_id", pa.string(), nullable=False), kind.column])


class SplitCounts(Record):
    """How many samples a split holds."""

    rows: int
    labelled: int
    classes: dict[str, int] = Field(description="Labelled samples by class; every class is listed")


class DatasetInfo(Record):
    """``dataset.json``: what a dataset version holds, and the digests of its files."""

    schema_version: int = SCHEMA_VERSION
    name: str
    modality: str
    rows: int
    labelled: int
    classes: list[str] = Field(description="As configured, or else the labels found, sorted")
    counts: dict[str, SplitCounts] = Field(description="By split")
    label_type: LabelType = "class"
    summary: dict[str, Any] = Field(description="What encoders of this modality are configured from")
    quarantined: int = Field(description="Files that could not be used")
    duplicates: int = Field(description="Files that were dropped as exact copies of another")
    near_duplicate_groups: int = Field(description="Groups of more than one sample")
    files: dict[str, str] = Field(description="SHA-256 of every other file of the folder")


def write_dataset(
    folder: Path,
    manifest: pd.DataFrame,
    content: Callable[[int], bytes | str],
    *,
    name: str,
    modality: str,
    classes: list[str],
    label_type: LabelType = "class",
    quarantined: int = 0,
    duplicates: int = 0,
    on_row: Callable[[], None] = lambda: None,
) -> DatasetInfo:
    """Writes a dataset into the empty ``folder``; ``content(i)`` gives what the shard keeps of row ``i`` of ``manifest``.

    ``manifest`` has the columns of ``manifest_schema`` and is in the order (first_version, sample_id). One row group of
    samples is in memory at a time. ``on_row`` is called after each sample.
    """
    order = manifest[["first_version", "sample_id"]]
    if (
        not order.equals(order.sort_values(["first_version", "sample_id"], ignore_index=True))
        or manifest["sample_id"].duplicated().any()
    ):
        raise ValueError("the manifest must be unique and in the order (first_version, sample_id)")
    folder.mkdir(parents=True, exist_ok=True)
    kind: Kind = part(modality, "kind")
    _write_shards(folder, manifest["sample_id"].tolist(), content, on_row, kind)
    schema = manifest_schema(modality)
    table = pa.Table.from_pandas(manifest[schema.names], schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), folder / MANIFEST_FILE, compression="zstd")
    info = _describe(
        manifest,
        kind,
        name=name,
        classes=classes,
        label_type=label_type,
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
    frame: Any = pq.read_table(path).to_pandas()
    frame["label"] = frame["label"].astype(object).where(frame["label"].notna(), None)
    return frame


def read_content(folder: Path, column: str, *, batch: int = 256) -> Iterator[tuple[list[str], list[Any]]]:
    """``(sample_ids, contents)`` in manifest order, ``batch`` rows at a time, from all shards of ``folder``.

    ``column``: the kind's, ``image`` (encoded bytes) or ``text``.
    """
    for shard in sorted(folder.glob("data-*.parquet")):
        with pq.ParquetFile(shard) as file:
            for rows in file.iter_batches(batch_size=batch):
                yield rows.column("sample_id").to_pylist(), rows.column(column).to_pylist()


def _write_shards(
    folder: Path, sample_ids: list[str], content: Callable[[int], bytes | str], on_row: Callable[[], None], kind: Kind
) -> None:
    schema = _shard_schema(kind)
    writer: pq.ParquetWriter | None = None
    shards = 0
    ids: list[str] = []
    contents: list[bytes | str] = []
    group_bytes = shard_bytes = 0

    def flush() -> None:
        nonlocal group_bytes
        if ids and writer is not None:
            table = pa.table({"sample_id": ids, kind.column.name: pa.array(contents, kind.column.type)}, schema=schema)
            writer.write_table(table, row_group_size=len(ids))
        ids.clear()
        contents.clear()
        group_bytes = 0

    try:
        for row, sample_id in enumerate(sample_ids):
            data = content(row)
            size = len(data) if isinstance(data, bytes) else len(data.encode())
            if writer is None or (shard_bytes and shard_bytes + size > SHARD_BYTES):
                if writer is not None:
                    flush()
                    writer.close()
                # Hardly a content comes twice: dictionaries would only cost memory.
                writer = pq.ParquetWriter(
                    folder / f"data-{shards:05d}.parquet",
                    schema,
                    compression=kind.compression,
                    use_dictionary=False,
                    write_statistics=["sample_id"],
                )
                shards += 1
                shard_bytes = 0
            ids.append(sample_id)
            contents.append(data)
            group_bytes += size
            shard_bytes += size
            if group_bytes >= ROW_GROUP_BYTES:
                flush()
            on_row()
        flush()
    finally:
        if writer is not None:
            writer.close()


def _describe(manifest: pd.DataFrame, kind: Kind, *, classes: list[str], **known: Any) -> DatasetInfo:
    labelled = manifest[manifest["label"].notna()]
    found = _class_counts(labelled, known["label_type"])
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
        modality=kind.name,
        summary=kind.summary(manifest),
        near_duplicate_groups=int((manifest["group"].value_counts() > 1).sum()),
        **known,
    )


def _class_counts(labelled: pd.DataFrame, label_type: LabelType) -> dict[tuple[str, str], int]:
    """How many samples of a split have a class."""
    frame = labelled[["split", "label"]]
    if label_type == "classes":
        frame = frame.assign(label=frame["label"].map(json.loads)).explode("label")
    return {key: int(n) for key, n in frame.groupby(["split", "label"]).size().items()}  # type: ignore[misc]
