"""Decoded images as one memory map: the right pixels in the right rows, once, and whole."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ssl_core.config.data import ImageDataConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data import images, memory
from ssl_core.data.dataset import DatasetInfo, write_dataset
from ssl_core.errors import TryAgain
from tests.data.remotes import stored_version

N = 150


def _encoded(row: int, mode: str = "L", side: int = 12) -> bytes:
    """A picture whose pixels say its row."""
    channels = {"L": (), "RGB": (3,)}[mode]
    values = np.random.default_rng(row).integers(0, 256, (side, side, *channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def _manifest(rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": [f"{row:064d}" for row in range(rows)],
            "split": [("train", "train", "val", "test", "vault")[row % 5] for row in range(rows)],
            "group": [f"{row:064d}" for row in range(rows)],
            "label": pd.Series([("cat", "dog", None)[row % 3] for row in range(rows)], dtype=object),
            "source": [f"{row}.png" for row in range(rows)],
            "arrived_at": pd.Timestamp("2026-01-01", tz="UTC").as_unit("us"),
            "first_version": np.int32(1),
            **{name: np.int32(12) for name in ("width", "height")},
            "channels": np.int32(1),
            "bytes": np.int32(200),
            "brightness": np.float32(0.5),
            "contrast": np.float32(0.3),
        }
    )


def _stored(tmp_path: Path, encoded: list[bytes], **changed: Any) -> DatasetRef:
    manifest = _manifest(len(encoded)).assign(**changed)
    folder = tmp_path / "work"
    write_dataset(folder, manifest, encoded.__getitem__, name="tiny", modality="image", classes=["cat", "dog"])
    return stored_version(folder, tmp_path / "remote")


@pytest.fixture
def ref(tmp_path: Path) -> DatasetRef:
    return _stored(tmp_path, [_encoded(row) for row in range(N)])


def test_pixels_are_the_images_in_manifest_order(ref: DatasetRef, settings: Settings) -> None:
    opened = memory.open_images(ref, settings, size=12, channels=1)
    assert opened.pixels.shape == (N, 1, 12, 12)
    assert opened.pixels.dtype == np.uint8
    for row in range(N):
        expected = np.random.default_rng(row).integers(0, 256, (12, 12), dtype=np.uint8)
        np.testing.assert_array_equal(opened.pixels[row, 0], expected)
    with pytest.raises(ValueError, match="read-only"):
        opened.pixels[0] = 0


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (20, 3), (12, 3)])
def test_any_size_equals_the_plain_decoder(ref: DatasetRef, settings: Settings, size: int, channels: int) -> None:
    opened = memory.open_images(ref, settings, size=size, channels=channels)
    for row in (0, 1, N - 1):
        info = images.decode(_encoded(row), max_pixels=10_000, min_side=1)
        np.testing.assert_array_equal(opened.pixels[row], images.to_array(info.image, size, channels))


def test_labels_and_positions(ref: DatasetRef, settings: Settings) -> None:
    opened = memory.open_images(ref, settings, size=12, channels=1)
    assert opened.classes == ["cat", "dog"]
    assert opened.labels.dtype == np.int64
    assert opened.labels[:6].tolist() == [0, 1, -1, 0, 1, -1]
    assert opened.positions("train")[:4].tolist() == [0, 1, 5, 6]
    assert opened.positions("train", labelled=False)[:2].tolist() == [5, 11]
    both = np.concatenate([opened.positions("test", labelled=True), opened.positions("test", labelled=False)])
    assert sorted(both) == opened.positions("test").tolist()
    assert sum(len(opened.positions(split)) for split in ("train", "val", "test", "vault")) == N
    with pytest.raises(ValueError, match="not a split"):
        opened.positions("trian")


def test_a_label_outside_the_classes_is_not_taken_for_none(settings: Settings) -> None:
    frame = _manifest(3).assign(label=["cat", "cow", None])
    with pytest.raises(ValueError, match="cow"):
        _ = memory.Images(pixels=np.zeros((3, 1, 8, 8), np.uint8), manifest=frame, classes=["cat", "dog"]).labels
    missing = frame.assign(label=pd.Series(["cat", None, None], dtype="str"))  # NaN, as pandas' own readers give it
    assert memory.Images(
        pixels=np.zeros((3, 1, 8, 8), np.uint8), manifest=missing, classes=["cat", "dog"]
    ).labels.tolist() == [0, -1, -1]


def test_the_second_opening_decodes_nothing(
    ref: DatasetRef, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = memory.open_images(ref, settings, size=12, channels=1)
    monkeypatch.setattr(memory, "_decode_batch", None)
    np.testing.assert_array_equal(memory.open_images(ref, settings, size=12, channels=1).pixels, first.pixels)
    monkeypatch.setattr(memory, "DECODER_VERSION", memory.DECODER_VERSION + 1)
    with pytest.raises(TypeError):  # another decoder is another address
        memory.open_images(ref, settings, size=12, channels=1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "record", "no record", "removed"])
def test_a_damaged_cache_is_decoded_again(ref: DatasetRef, settings: Settings, damage: str) -> None:
    before = np.array(memory.open_images(ref, settings, size=12, channels=1).pixels)
    (path,) = (settings.cache / "decoded").glob("*/pixels.u8")
    record = path.with_name("record.json")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        os.truncate(path, 1000)
    elif damage == "grow":
        path.write_bytes(data + b"x")
    elif damage == "record":
        record.write_text("{")
    elif damage == "no record":
        record.unlink()
    else:
        path.unlink()
    np.testing.assert_array_equal(memory.open_images(ref, settings, size=12, channels=1).pixels, before)


def test_batches_follow_one_another_across_shards_and_row_groups(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_core.data.dataset.SHARD_BYTES", 6000)
    monkeypatch.setattr("ssl_core.data.dataset.ROW_GROUP_BYTES", 1500)
    monkeypatch.setattr(memory, "_BATCH_BYTES", 7 * 200)
    encoded = [_encoded(row) for row in range(N)]
    ref = _stored(tmp_path, encoded)
    assert len(list((tmp_path / "work").glob("data-*"))) > 3
    opened = memory.open_images(ref, settings, size=12, channels=1)
    for row in range(N):
        np.testing.assert_array_equal(opened.pixels[row], images.to_array(Image.open(io.BytesIO(encoded[row])), 12, 1))


def test_shards_and_manifest_must_agree(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "work"
    write_dataset(
        folder, _manifest(10), lambda row: _encoded(row), name="tiny", modality="image", classes=["cat", "dog"]
    )
    shorter = tmp_path / "shorter"
    write_dataset(
        shorter, _manifest(9), lambda row: _encoded(row), name="tiny", modality="image", classes=["cat", "dog"]
    )
    (shorter / "data-00000.parquet").rename(folder / "data-00000.parquet")
    with pytest.raises(TryAgain, match="more samples than the shards"):
        memory.open_images(stored_version(folder, tmp_path / "remote"), settings, size=12, channels=1)
    assert not any((settings.cache / "decoded").glob("*/pixels.u8"))


def test_a_full_disk_leaves_no_half_map(ref: DatasetRef, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = memory._decode_batch
    done = []

    def full(*arguments: Any) -> np.ndarray:
        done.append(1)
        if len(done) > 5:  # half-way
            raise OSError(errno.ENOSPC, "No space left on device")
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "_BATCH_BYTES", 10 * 200)
        patch.setattr(memory, "_decode_batch", full)
        with pytest.raises(TryAgain, match="no space left"):
            memory.open_images(ref, settings, size=12, channels=1)
    assert list((settings.cache / "decoded").iterdir()) == []
    assert len(memory.open_images(ref, settings, size=12, channels=1).pixels) == N


@pytest.mark.parametrize(
    ("width", "height", "colour", "config", "expected"),
    [
        (8, 8, False, {}, (8, 1)),
        (28, 28, True, {}, (28, 3)),
        (5, 4, False, {}, (8, 1)),
        (640, 480, True, {}, (96, 3)),
        (20, 40, False, {}, (40, 1)),
        (640, 480, True, {"image_size": 224, "channels": 1}, (224, 1)),
        (28, 28, False, {"channels": 3}, (28, 3)),
    ],
)
def test_choose_size(width: int, height: int, colour: bool, config: dict[str, Any], expected: tuple[int, int]) -> None:
    info = DatasetInfo(
        name="tiny", modality="image", rows=0, labelled=0, classes=[], counts={}, summary={"median_width": width, "median_height": height, "has_colour": colour},
        quarantined=0, duplicates=0, near_duplicate_groups=0, files={},
    )  # fmt: skip
    assert memory.choose_size(info, ImageDataConfig(source="x", **config)) == expected


def test_batches_decoded_side_by_side_keep_their_rows(tmp_path: Path, settings: Settings) -> None:
    ref = _stored(tmp_path, [_encoded(row % 50, "RGB", 32) for row in range(2000)], channels=np.int32(3))
    pixels = memory.open_images(ref, settings, size=32, channels=3).pixels
    assert len(np.unique(pixels[:50], axis=0)) == 50
    np.testing.assert_array_equal(pixels, np.tile(pixels[:50], (40, 1, 1, 1)))
