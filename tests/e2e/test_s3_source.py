"""Sources and large objects on a real S3 server: pages, odd keys, wrong credentials, crashes of either side."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import fsspec
import pytest

from ssl_core.contracts import ArtifactRef
from ssl_core.data.layout import Refused
from ssl_core.data.s3_bucket import Bucket
from ssl_core.data.s3_sync import GONE
from ssl_core.data.sources import Source, open_source
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import NoProgress
from ssl_core.store import Store, path_sha256
from tests.e2e.tools.s3_server import S3Server, s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.s3]

MB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server) -> tuple[Any, str]:
    """A client and the name of a bucket of the test's own."""
    client = boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id=server.key, aws_secret_access_key=server.secret, region_name="us-east-1"
    )  # fmt: skip
    name = f"test-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return client, name


@pytest.fixture
def open_s3(server: S3Server, bucket: tuple[Any, str], make_project, tmp_path: Path, monkeypatch) -> Callable[..., Source]:  # type: ignore[no-untyped-def]  # fmt: skip
    def make(source: str = "", **identity: Any) -> Source:
        for name, value in (server.environment(**identity) | {"AWS_MAX_ATTEMPTS": "2"}).items():
            monkeypatch.setenv(name, value)
        return open_source(make_project(data={"source": source or f"s3://{bucket[1]}/data"}), tmp_path / "cache")

    return make


def put(bucket: tuple[Any, str], objects: dict[str, bytes]) -> None:
    client, name = bucket
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=name, Key=key, Body=objects[key]), objects))


def sync(source: Source) -> int:
    return source.sync(NoProgress(), threading.Event())


@pytest.mark.parametrize("folders", [0, 5])
def test_2500_objects_are_several_pages(folders: int, bucket, open_s3) -> None:
    objects = {f"data/{f'c{i % folders}/' if folders else ''}{i:04d}.png": str(i).encode() for i in range(2500)}
    put(bucket, objects)
    source = open_s3(read_only=True)
    assert len(source) == 2500
    assert sync(source) == 2500
    assert {f"data/{item.name}": item.read() for item in source.items()} == objects
    put(bucket, dict.fromkeys(list(objects)[:10], b"changed"))
    source = open_s3(read_only=True)
    assert sync(source) == 10
    assert sum(item.read() == b"changed" for item in source.items()) == 10


def test_odd_keys(bucket, open_s3, tmp_path: Path) -> None:
    """The server itself refuses `../` and makes one slash of two and of a backslash; what a listing says is what counts."""
    names = ["a b.png", "日本/é.png", "x+%2F&=?#~.png", "it's (1) [2].png", "line\nbreak.png", "n" * 250 + ".png", "C:\\x.png", "a//b.png"]  # fmt: skip
    put(bucket, {f"data/{name}": name.encode() for name in names} | {"data/marker/": b"", "data/empty.png": b""})
    source = open_s3()
    sync(source)
    found = {item.name: item.read() for item in source.items()}
    assert found == {name.replace("\\", "/").replace("//", "/"): name.encode() for name in names} | {"empty.png": b""}
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()} == {"cache"}


def test_wrong_credentials_no_bucket_and_a_wrong_clock_are_told(bucket, open_s3, server: S3Server, monkeypatch) -> None:
    put(bucket, {"data/a.png": b"a"})
    with pytest.raises(UserError, match="the secret access key is wrong"):
        open_s3(secret="wrong")
    with pytest.raises(UserError, match="there is no such bucket"):
        open_s3("s3://no-such-bucket/x")
    with pytest.raises(UserError, match="no images in s3://"):
        open_s3(f"s3://{bucket[1]}/empty")
    now = botocore.auth.get_current_datetime
    with monkeypatch.context() as skewed:
        skewed.setattr(botocore.auth, "get_current_datetime", lambda *given: now(*given) - dt.timedelta(hours=2))
        with pytest.raises(UserError, match="the clock of this machine is wrong"):
            open_s3()
    monkeypatch.setattr(server, "key", "nobody")
    with pytest.raises(UserError, match="the access key id is not known"):
        open_s3()


def test_objects_that_vanish_or_change_after_the_listing(bucket, open_s3) -> None:
    client, name = bucket
    put(bucket, {"data/a.png": b"a" * 50_000, "data/b.png": b"b", "data/c.png": b"c"})
    source = open_s3()
    client.delete_object(Bucket=name, Key="data/b.png")
    put(bucket, {"data/a.png": b"new", "data/c.png": b"longer than before"})
    assert sync(source) == 2
    items = {item.name: item for item in source.items()}
    assert (items["a.png"].read(), items["c.png"].read()) == (b"new", b"longer than before")
    with pytest.raises(Refused, match=GONE):
        items["b.png"].read()


def test_100_mb_through_source_and_store(bucket, open_s3, tmp_path: Path) -> None:
    client, name = bucket
    content = os.urandom(MB) * 100
    (tmp_path / "w.bin").write_bytes(content)
    client.upload_file(str(tmp_path / "w.bin"), name, "data/large.png")
    source = open_s3()
    assert client.head_object(Bucket=name, Key="data/large.png")["ETag"].endswith('-13"'), "uploaded in parts"
    assert sync(source) == 1
    assert next(iter(source.items())).read() == content
    assert sync(open_s3()) == 0

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    (tmp_path / "out").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "out" / "w.bin")
    store = Store(f"s3://{name}/store", tmp_path / "cache")
    store.fs.put(f"{tmp_path / 'out'}/", store.path("p/s/k/out/"), recursive=True)
    ref = ArtifactRef(kind="model", uri="p/s/k/out", sha256=path_sha256(tmp_path / "out"), producer="s/k")
    assert (Store(f"s3://{name}/store", tmp_path / "elsewhere").fetch(ref) / "w.bin").read_bytes() == content


def test_a_sync_that_is_killed_goes_on(bucket, open_s3, tmp_path: Path) -> None:
    put(bucket, {f"data/{i:04d}.png": os.urandom(40_000 if i % 2 else 4000) for i in range(600)})
    open_s3()
    script = (
        "import sys, threading, time; from pathlib import Path; from ssl_core.config.project import ProjectConfig\n"
        "from ssl_core.data import s3_bucket; from ssl_core.data.sources import open_source; from ssl_core.step import NoProgress\n"
        "get = s3_bucket.Bucket.get\n"
        "s3_bucket.Bucket.get = lambda *a: (time.sleep(0.1), get(*a))[1]\n"
        "project = ProjectConfig.model_validate({'name': 'x', 'data': {'source': sys.argv[1]}})\n"
        "open_source(project, Path(sys.argv[2])).sync(NoProgress(), threading.Event())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, f"s3://{bucket[1]}/data", str(tmp_path / "cache")]) as child:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list((tmp_path / "cache" / "s3").glob("*/??/*"))) < 100:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    source = open_s3()
    assert 0 < sync(source) <= 500, "what had arrived was not fetched again"
    assert all(len(item.read()) in (4000, 40_000) for item in source.items())
    assert sync(open_s3()) == 0


def test_a_server_that_crashes_in_the_middle(bucket, open_s3, server: S3Server, monkeypatch) -> None:
    """The last test: it takes a while until the server is back."""
    objects = {f"data/{i:03d}.png": os.urandom(MB) for i in range(80)}
    put(bucket, objects)
    time.sleep(4)  # a crash may cost what was written in the last seconds
    source = open_s3()
    numbers, get = itertools.count(1), Bucket.get

    def crash(*given: Any) -> bytes:
        if next(numbers) == 40:
            server.stop()
        return get(*given)

    monkeypatch.setattr(Bucket, "get", crash)
    try:
        with pytest.raises(TryAgain, match=r"cannot be reached|broke off") as caught:
            sync(source)
    finally:
        server.start()
    assert "it goes on from what has arrived" in caught.value.next_step
    monkeypatch.setattr(Bucket, "get", get)
    deadline, fetched = time.monotonic() + 60, 0
    while True:  # as Airflow would: the server answers before it has found all its data
        source = open_s3()
        try:
            fetched += sync(source)
            break
        except TryAgain:
            assert time.monotonic() < deadline
            time.sleep(1)
    assert fetched <= 60, "what had arrived was not fetched again"
    assert {f"data/{item.name}": item.read() for item in source.items()} == objects
