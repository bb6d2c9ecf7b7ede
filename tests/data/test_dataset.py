"""The dataset folder: deterministic files, shards that grow at the end, and a description that adds up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ssl_core.data import dataset
from ssl_core.store import file_sha256


def _rows(count: int, *, version: int = 1, start: int = 0) -> list[dict[str, Any]]:
    rows = []
    for i in range(start, start + count):
        sample_id = hashlib.sha256(str(i).encode()).hexdigest()
        rows.append(
            {
                "sample_id": sample_id,
                "split": ["train", "val", "test", "vault"][i % 4],
                "group": sample_id,
                "label": [None, "cat", "dog"][i % 3],
                "source": f"{i}.png",
                "arrived_at": pd.Timestamp("2024-05-01T12:00:00.123456Z"),
                "first_version": version,
                "width": 10 + i,
                "height": 20,
                "channels": 3 if i == 0 else 1,
                "bytes": 1000,
                "brightness": 0.5,
                "contrast": 0.25,
            }
        )
    return rows


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).sort_values(["first_version", "sample_id"], ignore_index=True)


def _image(sample_id: str, size: int = 1000) -> bytes:
    return np.random.default_rng(int(sample_id[:8], 16)).bytes(size)


def _write(folder: Path, frame: pd.DataFrame, **more: Any) -> dataset.DatasetInfo:
    options = {"name": "tiny", "modality": "image", "classes": ["cat", "cow", "dog"], **more}
    return dataset.write_dataset(folder, frame, lambda row: _image(frame["sample_id"][row]), **options)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    frame = _frame(_rows(50))
    info = _write(tmp_path, frame, quarantined=3, duplicates=2)
    assert dataset.read_info(tmp_path) == info
    manifest = pq.read_table(tmp_path / dataset.MANIFEST_FILE)
    assert manifest.schema.equals(dataset.manifest_schema("image"))
    assert manifest.to_pylist() == [
        {**row, "brightness": pytest.approx(0.5), "contrast": pytest.approx(0.25)}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]
    shards = pq.read_table(sorted(tmp_path.glob("data-*.parquet")))
    assert shards.column_names == ["sample_id", "image"]
    assert shards["sample_id"].to_pylist() == frame["sample_id"].tolist()
    assert shards["image"].to_pylist() == [_image(sample_id) for sample_id in frame["sample_id"]]


def test_the_description_adds_up(tmp_path: Path) -> None:
    frame = _frame(_rows(60))
    frame.loc[1, "group"] = frame["group"][0]
    info = _write(tmp_path, frame, quarantined=3, duplicates=2)
    assert (info.rows, info.labelled, info.quarantined, info.duplicates, info.near_duplicate_groups) == (
        60,
        40,
        3,
        2,
        1,
    )
    assert info.classes == ["cat", "cow", "dog"]
    assert {split: counts.rows for split, counts in info.counts.items()} == {
        "train": 15,
        "val": 15,
        "test": 15,
        "vault": 15,
    }
    assert sum(counts.classes["cat"] for counts in info.counts.values()) == 20
    assert all(
        counts.classes["cow"] == 0 and counts.labelled == sum(counts.classes.values())
        for counts in info.counts.values()
    )
    assert info.summary == {"median_width": 40, "median_height": 20, "has_colour": True}
    written = json.loads((tmp_path / "dataset.json").read_text())
    assert written["files"] == {p.name: file_sha256(p) for p in tmp_path.iterdir() if p.name != "dataset.json"}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = _rows(40)
    _write(tmp_path / "a", _frame(rows))
    _write(tmp_path / "b", _frame(rows[::-1]))
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_full_shards_stay_byte_identical_when_data_grows_and_labels_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 10_000)
    monkeypatch.setattr(dataset, "ROW_GROUP_BYTES", 3_000)
    old = _rows(35)
    before = _write(tmp_path / "before", _frame(old))
    grown = [{**row, "label": "cat"} for row in old] + _rows(30, version=2, start=35)
    after = _write(tmp_path / "after", _frame(grown))
    shards = [name for name in before.files if name.startswith("data-")]
    assert shards == [f"data-{i:05d}.parquet" for i in range(4)]
    assert all(before.files[name] == after.files[name] for name in shards[:3])
    assert len([name for name in after.files if name.startswith("data-")]) == 7
    assert all((tmp_path / "after" / name).stat().st_size < 13_000 for name in after.files if name.startswith("data-"))
    assert pq.ParquetFile(tmp_path / "after" / "data-00000.parquet").metadata.num_row_groups == 4


def test_an_image_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 500)
    info = _write(tmp_path, _frame(_rows(3)))
    assert [name for name in info.files if name.startswith("data-")] == [f"data-{i:05d}.parquet" for i in range(3)]


def test_a_wrong_order_or_a_double_row_is_refused(tmp_path: Path) -> None:
    frame = _frame(_rows(5))
    with pytest.raises(ValueError, match="order"):
        _write(tmp_path, frame[::-1].reset_index(drop=True))
    with pytest.raises(ValueError, match="unique"):
        _write(tmp_path, pd.concat([frame[:1], frame], ignore_index=True))
