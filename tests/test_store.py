import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from ssl_core.contracts import ArtifactRef, StepResult, StepStatus
from ssl_core.errors import TryAgain, UserError
from ssl_core.store import Store, path_sha256


@pytest.fixture
def store(tmp_path):
    return Store((tmp_path / "store").as_uri(), tmp_path / "cache")


def commit(store: Store, text: str, key: str = "k") -> StepResult:
    with store.scratch() as scratch:
        out = scratch / "out"
        out.mkdir()
        (out / "x.txt").write_text(text)
        ref = ArtifactRef(
            kind="x",
            uri=f"{store.folder('p', 's', key)}/out/x.txt",
            sha256=path_sha256(out / "x.txt"),
            producer=f"s/{key}",
        )
        result = StepResult(step="s", key=key, status=StepStatus.DONE, outputs={"x": ref})
        store.publish("p", result, out)
        return result


def test_what_was_published_comes_back(store):
    result = commit(store, "hello")
    assert store.result("p", "s", "k") == result
    assert store.fetch(result.outputs["x"]).read_text() == "hello"
    assert list(Path(store.root, ".scratch").iterdir()) == []


def test_without_the_record_nothing_counts(store):
    commit(store, "hello")
    Path(store.path("p/s/k/result.json")).unlink()
    assert store.result("p", "s", "k") is None
    commit(store, "again")
    assert Path(store.path("p/s/k/out/x.txt")).read_text() == "again"


def test_a_record_whose_outputs_are_gone_is_no_record(store):
    commit(store, "hello")
    shutil.rmtree(store.path("p/s/k/out"))
    assert store.result("p", "s", "k") is None


def test_a_truncated_record_is_no_record(store):
    commit(store, "hello")
    path = Path(store.path("p/s/k/result.json"))
    path.write_text(path.read_text()[:40])
    assert store.result("p", "s", "k") is None


def test_changed_content_is_noticed(store):
    ref = commit(store, "hello").outputs["x"]
    Path(store.path(ref.uri)).write_text("hellO")
    with pytest.raises(TryAgain, match="differs from its digest"):
        store.fetch(ref)


def test_a_full_disk_publishes_nothing(store, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(TryAgain, match="no space left"):
        commit(store, "hello")
    monkeypatch.undo()
    assert store.result("p", "s", "k") is None
    assert list(Path(store.root, ".scratch").iterdir()) == []


def test_create_is_exclusive_and_whole(store):
    assert store.create("ledger/p/1.json", b"first")
    assert not store.create("ledger/p/1.json", b"second")
    assert store.read("ledger/p/1.json") == b"first"
    assert store.names("ledger/p") == ["1.json"]
    assert store.read("ledger/p/2.json") is None


def _race(url, cache, name, barrier, wins):
    barrier.wait()
    if Store(url, cache).create("ledger/p/1.json", name.encode() * 1000):
        wins.append(name)


def test_of_many_creators_one_wins(store):
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        wins, barrier = manager.list(), context.Barrier(6)
        workers = [
            context.Process(target=_race, args=(store.url, store.cache, f"{i}", barrier, wins)) for i in range(6)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert len(wins) == 1
        assert store.read("ledger/p/1.json") == wins[0].encode() * 1000


def save(checkpoints, store, position, text):
    with store.scratch() as scratch:
        (scratch / "state").mkdir()
        (scratch / "state" / "w.bin").write_text(text)
        checkpoints.save(position, scratch / "state")


def test_the_newest_whole_checkpoint_wins_and_two_are_kept(store):
    checkpoints = store.checkpoints("p", "s", "k")
    assert checkpoints.newest() is None
    for position in (5, 10, 15):
        save(checkpoints, store, position, f"at {position}")
    assert len(store.names("p/s/k/checkpoints")) == 2
    position, folder = checkpoints.newest()
    assert (position, (folder / "w.bin").read_text()) == (15, "at 15")


@pytest.mark.parametrize("damage", ["truncate", "no seal", "gone"])
def test_a_damaged_checkpoint_is_passed_over(store, damage):
    checkpoints = store.checkpoints("p", "s", "k")
    save(checkpoints, store, 5, "good")
    save(checkpoints, store, 10, "newer")
    folder = Path(store.path("p/s/k/checkpoints/000000000010"))
    if damage == "truncate":
        (folder / "w.bin").write_text("ne")
    elif damage == "no seal":
        (folder / "seal.json").unlink()
    else:
        (folder / "w.bin").unlink()
    assert checkpoints.newest()[0] == 5


def test_clear_leaves_nothing(store):
    checkpoints = store.checkpoints("p", "s", "k")
    save(checkpoints, store, 5, "x")
    checkpoints.clear()
    assert checkpoints.newest() is None


def _publish_forever(url, cache):
    store = Store(url, cache)
    for i in range(10_000):
        commit(store, "x" * 100_000, key=f"k{i}")


def test_a_kill_in_the_middle_leaves_only_whole_records(store):
    worker = multiprocessing.get_context("fork").Process(target=_publish_forever, args=(store.url, store.cache))
    worker.start()
    deadline = time.monotonic() + 60
    while not list(Path(store.root).glob("p/s/*/result.json")):
        assert worker.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)  # into some later record
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    records = list(Path(store.root).glob("p/s/*/result.json"))
    assert records
    for record in records:
        result = StepResult.model_validate(json.loads(record.read_text()))
        assert store.fetch(result.outputs["x"]).stat().st_size == 100_000


def test_an_unwritable_store_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store((tmp_path / "file" / "store").as_uri(), tmp_path / "cache")
    with pytest.raises(TryAgain):
        store.write("a/b", b"x")


# ---- storage that is not this machine's disk


@pytest.fixture
def remote(tmp_path):
    """A store whose files must be downloaded, in memory."""
    store = Store(f"memory://{tmp_path.name}", tmp_path / "cache")
    yield store
    store.fs.rm(store.root, recursive=True)


def download_then(monkeypatch, store, act, times=1):
    """``act(local path)`` after each of the next ``times`` downloads; returns the list of downloads."""
    real, done = store.fs.get, []

    def get(remote_path, local_path, **options):
        real(remote_path, local_path, **options)
        done.append(remote_path)
        if len(done) <= times:
            act(Path(local_path))

    monkeypatch.setattr(store.fs, "get", get)
    return done


def tear(path):
    for file in [path] if path.is_file() else path.rglob("*.*"):
        file.write_bytes(file.read_bytes()[:2])


def die(path):
    tear(path)
    raise KeyboardInterrupt


def test_a_damaged_copy_is_downloaded_again(remote, monkeypatch):
    ref = commit(remote, "hello").outputs["x"]
    tear(remote.fetch(ref))
    downloads = download_then(monkeypatch, remote, tear, times=0)
    assert remote.fetch(ref).read_text() == "hello"
    assert remote.fetch(ref).read_text() == "hello"
    assert len(downloads) == 1


def test_what_is_damaged_in_the_store_is_said_after_one_download(remote, monkeypatch):
    ref = commit(remote, "hello").outputs["x"]
    remote.write(ref.uri, b"hellO")
    downloads = download_then(monkeypatch, remote, tear, times=0)
    with pytest.raises(TryAgain, match="differs from its digest"):
        remote.fetch(ref)
    assert len(downloads) == 1
    remote.remove(ref.uri)
    with pytest.raises(TryAgain, match="missing from the store"):
        remote.fetch(ref)


def test_a_download_that_is_cut_off_leaves_no_copy(remote, monkeypatch):
    ref = commit(remote, "hello").outputs["x"]
    checkpoints = remote.checkpoints("p", "s", "k")
    save(checkpoints, remote, 5, "good")
    for fetch in (lambda: remote.fetch(ref), checkpoints.newest):
        with monkeypatch.context() as patch:
            download_then(patch, remote, die)
            with pytest.raises(KeyboardInterrupt):
                fetch()
    assert [path for path in remote.cache.rglob("*") if path.is_file()] == []
    assert remote.fetch(ref).read_text() == "hello"
    assert checkpoints.newest()[0] == 5


def test_a_damaged_copy_of_a_checkpoint_is_downloaded_again(remote):
    checkpoints = remote.checkpoints("p", "s", "k")
    save(checkpoints, remote, 5, "older")
    save(checkpoints, remote, 10, "newer")
    tear(checkpoints.newest()[1])
    position, folder = checkpoints.newest()
    assert (position, (folder / "w.bin").read_text()) == (10, "newer")
    remote.write("p/s/k/checkpoints/000000000010/w.bin", b"torn")
    shutil.rmtree(folder)
    assert checkpoints.newest()[0] == 5


@pytest.mark.parametrize("url", ["foo://bucket/x", "gs://bucket/x"])
def test_a_store_of_an_unknown_kind_is_the_users_error(url, tmp_path, monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    if url.startswith("gs"):
        monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    with pytest.raises(UserError, match="no store can be opened at") as caught:
        Store(url, tmp_path)
    assert caught.value.place == "SSL_STORE"
    assert "file://" in caught.value.next_step
    assert "s3://" in caught.value.next_step
