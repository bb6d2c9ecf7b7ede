"""Reading by content address: verified, cached, clear about what is wrong with the remote."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data import reader
from ssl_core.errors import TryAgain
from tests.data.remotes import dataset_folder, md5, object_path, stored_version

SHARDS = [os.urandom(50_000), os.urandom(70_000)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return dataset_folder(tmp_path / "work", SHARDS)


@pytest.fixture
def ref(work: Path, tmp_path: Path) -> DatasetRef:
    return stored_version(work, tmp_path / "remote")


def _object(ref: DatasetRef, index: int = 0) -> Path:
    return object_path(ref.remote, md5(SHARDS[index]))


def test_fetch_gives_the_folder_once(ref: DatasetRef, work: Path, settings: Settings) -> None:
    folder = reader.fetch(ref, settings)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in work.iterdir()}
    assert all(p.stat().st_mode & 0o222 == 0 for p in folder.iterdir())
    shutil.rmtree(ref.remote)
    assert reader.fetch(ref, settings) == folder


def test_versions_share_the_files_they_have_in_common(ref: DatasetRef, settings: Settings, tmp_path: Path) -> None:
    grown = stored_version(dataset_folder(tmp_path / "grown", [*SHARDS, b"new"]), tmp_path / "remote", tag="tiny@v2")
    old, new = reader.fetch(ref, settings), reader.fetch(grown, settings)
    assert old != new
    assert (old / "data-00000.parquet").stat().st_ino == (new / "data-00000.parquet").stat().st_ino
    assert len(list(old.glob("data-*"))) == 2
    assert len(list(new.glob("data-*"))) == 3


@pytest.mark.parametrize("position", [0, 25_000, 49_999])
def test_a_flipped_byte_in_the_remote_is_found(ref: DatasetRef, settings: Settings, position: int) -> None:
    path = _object(ref)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(TryAgain, match="corrupt") as error:
        reader.fetch(ref, settings)
    assert error.value.place == str(path)
    # Nothing of it stays, and once the remote is mended all is well.
    assert not any((settings.cache / "datasets").rglob("*.parquet"))
    data[position] ^= 1
    path.write_bytes(data)
    assert (reader.fetch(ref, settings) / "data-00000.parquet").read_bytes() == SHARDS[0]


@pytest.mark.parametrize("which", ["shard", "listing"])
def test_a_missing_object_is_named(ref: DatasetRef, settings: Settings, which: str) -> None:
    path = _object(ref, 1) if which == "shard" else object_path(ref.remote, ref.md5)
    path.unlink()
    with pytest.raises(TryAgain, match="missing") as error:
        reader.fetch(ref, settings)
    assert error.value.place == str(path)
    assert reader.missing_objects(ref, settings) == [str(path)]
    assert not reader.is_stored(ref, settings)


def test_is_stored_compares_sizes_and_reads_no_shard(ref: DatasetRef, settings: Settings) -> None:
    assert reader.is_stored(ref, settings)
    assert len([p for p in (settings.cache / "files").rglob("*") if p.is_file()]) == 1  # the listing
    reader.fetch(ref, settings)
    os.truncate(_object(ref), 100)
    assert reader.missing_objects(ref, settings) == [str(_object(ref))]


def test_a_truncated_or_removed_cache_file_is_fetched_again(ref: DatasetRef, settings: Settings) -> None:
    folder = reader.fetch(ref, settings)
    shard = folder / "data-00001.parquet"
    shard.chmod(0o644)
    os.truncate(shard, 1000)  # a hard link: the cache's copy shrinks with it
    assert (reader.fetch(ref, settings) / "data-00001.parquet").read_bytes() == SHARDS[1]
    (folder / "data-00000.parquet").unlink()
    assert (reader.fetch(ref, settings) / "data-00000.parquet").read_bytes() == SHARDS[0]
    folder.with_name(f"{folder.name}.json").write_text("{")
    assert reader.fetch(ref, settings) == folder


def test_one_file_is_fetched_alone(ref: DatasetRef, settings: Settings) -> None:
    assert json.loads(reader.fetch_file(ref, settings, "dataset.json").read_bytes())["rows"] == 2
    assert not (settings.cache / "datasets").exists()
    assert not object_path(settings.cache, md5(SHARDS[0])).exists()
    with pytest.raises(TryAgain, match=r"holds no manifest\.parquet"):
        reader.read_manifest(ref, settings)
    reader.fetch(ref, settings)
    shutil.rmtree(ref.remote)
    assert reader.fetch_file(ref, settings, "dataset.json").is_file()


def test_a_remote_in_object_storage_is_read(work: Path, settings: Settings, tmp_path: Path) -> None:
    ref = stored_version(work, tmp_path / "remote")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/remote/", "/bucket/dvc/", recursive=True)
    there = ref.model_copy(update={"remote": "memory://bucket/dvc"})
    try:
        assert reader.is_stored(there, settings)
        assert (reader.fetch(there, settings) / "data-00001.parquet").read_bytes() == SHARDS[1]
    finally:
        memory.rm("/bucket", recursive=True)
    gone = there.model_copy(update={"md5": "0" * 32 + ".dir"})
    with pytest.raises(TryAgain, match="missing") as error:
        reader.fetch(gone, settings)
    assert error.value.place == f"memory://bucket/dvc/files/md5/00/{'0' * 30}.dir"


def test_an_unreachable_remote_is_a_try_again(
    ref: DatasetRef, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "MAX_ATTEMPTS": "1",
        "ACCESS_KEY_ID": "me",
        "SECRET_ACCESS_KEY": "s",
        "REGION": "x",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    there = ref.model_copy(update={"remote": "s3://bucket/dvc"})
    with pytest.raises(TryAgain, match="cannot be read"):
        reader.fetch(there, settings)
    with pytest.raises(TryAgain, match="cannot be read"):
        reader.is_stored(there, settings)


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/../../outside"])
def test_a_listing_cannot_write_outside(ref: DatasetRef, settings: Settings, name: str) -> None:
    listing = json.dumps([{"md5": md5(SHARDS[0]), "relpath": name}]).encode()
    address = md5(listing) + ".dir"
    path = object_path(ref.remote, address)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(listing)
    with pytest.raises(TryAgain, match="is called"):
        reader.fetch(ref.model_copy(update={"md5": address}), settings)


def test_a_full_disk_leaves_nothing_half_fetched(
    ref: DatasetRef, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TryAgain, match="no space left"):
            reader.fetch(ref, settings)
    assert [p for p in settings.cache.rglob("*") if p.is_file() and p.parent.name != "locks"] == []
    assert (reader.fetch(ref, settings) / "data-00000.parquet").read_bytes() == SHARDS[0]


def test_many_readers_at_once_share_one_folder(ref: DatasetRef, settings: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: reader.fetch(ref, settings), range(16)))
    (folder,) = folders
    assert len(list(folder.iterdir())) == 3
    assert not list(settings.cache.rglob(".*"))


def test_reading_imports_neither_dvc_nor_torch(ref: DatasetRef, settings: Settings) -> None:
    code = (
        "import sys; from pathlib import Path; from ssl_core.config.settings import Settings; from ssl_core.contracts import DatasetRef\n"
        "from ssl_core.data.reader import fetch\n"
        f"fetch(DatasetRef.model_validate_json({ref.model_dump_json()!r}), Settings(home=Path({str(settings.root)!r})))\n"
        "assert not {'dvc', 'dvc_data', 'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
