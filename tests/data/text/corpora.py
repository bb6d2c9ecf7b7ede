"""Dataset versions of texts, laid into a remote by hand: row groups where a test wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_core.contracts import DatasetRef
from ssl_core.data.dataset import DatasetInfo
from tests.data.remotes import stored_version

PROSE = [
    "The acting was good, but the plot of the film was not.",
    "A film of good acting; the plot does not matter!",
    "Not good: the actors act, the plotters plot, and nothing matters.",
    "I don't know what the plot was about, but the actor was acting.",
]


def write_folder(
    folder: Path, texts: Sequence[str], *, splits: Sequence[str] | None = None, group: int = 4, shard: int = 12
) -> None:
    """A dataset folder with ``group`` texts a row group and ``shard`` texts a shard."""
    folder.mkdir(parents=True)
    ids = [f"{row:064x}" for row in range(len(texts))]
    for number, first in enumerate(range(0, len(texts), shard)):
        table = pa.table({"sample_id": ids[first : first + shard], "text": list(texts[first : first + shard])})
        pq.write_table(table, folder / f"data-{number:05d}.parquet", row_group_size=group)
    manifest = {
        "sample_id": pa.array(ids, pa.string()),
        "split": pa.array(splits or ["train"] * len(texts), pa.string()),
        "label": pa.nulls(len(texts), pa.string()),
    }
    pq.write_table(pa.table(manifest), folder / "manifest.parquet")
    info = DatasetInfo(
        name="tiny", modality="text", rows=len(texts), labelled=0, classes=[], counts={}, summary={}, quarantined=0,
        duplicates=0, near_duplicate_groups=0, files={},
    )  # fmt: skip
    (folder / "dataset.json").write_text(info.model_dump_json())


def make_version(root: Path, texts: Sequence[str], **more: object) -> DatasetRef:
    write_folder(root / "work", texts, **more)  # type: ignore[arg-type]
    return stored_version(root / "work", root / "remote")
