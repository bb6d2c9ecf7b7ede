"""The store on a real S3 server: publication, exclusive creation, checkpoints, refused rights."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import fsspec
import pytest

from ssl_core.contracts import ArtifactRef, StepResult, StepStatus
from ssl_core.errors import TryAgain, UserError
from ssl_core.store import Store, path_sha256
from tests.e2e.tools.s3_server import S3Server, s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.s3]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        client = boto3.client(
            "s3",
            endpoint_url=running.url,
            aws_access_key_id=running.key,
            aws_secret_access_key=running.secret,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="platform")
        yield running


@pytest.fixture
def open_store(server: S3Server, tmp_path: Path, monkeypatch):
    def make(**identity) -> Store:
        for name, value in server.environment(**identity).items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return Store("s3://platform/store", tmp_path / "cache")

    return make


def commit(store: Store, text: str) -> StepResult:
    with store.scratch() as scratch:
        out = scratch / "out"
        (out / "model").mkdir(parents=True)
        (out / "model" / "w.bin").write_text(text)
        ref = ArtifactRef(kind="model", uri="p/s/k/out/model", sha256=path_sha256(out / "model"), producer="s/k")
        result = StepResult(step="s", key="k", status=StepStatus.DONE, outputs={"model": ref})
        store.publish("p", result, out)
        return result


def test_a_folder_is_published_and_fetched_elsewhere(open_store, tmp_path):
    result = commit(open_store(), "weights")
    elsewhere = Store("s3://platform/store", tmp_path / "other-cache")
    assert elsewhere.result("p", "s", "k") == result
    assert (elsewhere.fetch(result.outputs["model"]) / "w.bin").read_text() == "weights"


def test_one_of_many_creators_wins(open_store):
    store = open_store()
    with ThreadPoolExecutor(6) as pool:
        created = list(pool.map(lambda i: store.create("ledger/p/1.json", str(i).encode()), range(6)))
    assert sum(created) == 1
    assert store.read("ledger/p/1.json") == str(created.index(True)).encode()
    assert not store.create("ledger/p/1.json", b"late")


def test_checkpoints_travel(open_store, tmp_path):
    store = open_store()
    for position in (5, 10, 15):
        with store.scratch() as scratch:
            (scratch / "state").mkdir()
            (scratch / "state" / "w.bin").write_text(f"at {position}")
            store.checkpoints("p", "s", "k2").save(position, scratch / "state")
    elsewhere = Store("s3://platform/store", tmp_path / "other-cache").checkpoints("p", "s", "k2")
    position, folder = elsewhere.newest()
    assert (position, (folder / "w.bin").read_text()) == (15, "at 15")
    store.fs.pipe_file(store.path("p/s/k2/checkpoints/000000000015/w.bin"), b"torn")
    assert Store("s3://platform/store", tmp_path / "third-cache").checkpoints("p", "s", "k2").newest()[0] == 10
    elsewhere.clear()
    assert elsewhere.newest() is None


def test_missing_rights_and_a_wrong_secret_are_told(open_store):
    with pytest.raises(UserError, match="no right to do this") as caught:
        open_store(read_only=True).write("a", b"x")
    assert caught.value.place == "platform/store/a"
    assert "s3:PutObject" in caught.value.next_step
    with pytest.raises(UserError, match="a wrong access key id or secret"):
        open_store(secret="wrong").read("a")
    with pytest.raises(UserError, match="the secret access key is wrong"):
        open_store(secret="wrong").write("a", b"x")


@pytest.mark.parametrize("fault", ["no server", "no credentials"])
def test_storage_that_does_not_answer_is_told(fault, tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{taken.getsockname()[1]}"
        environment = {
            "AWS_ENDPOINT_URL": place,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        environment |= {
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
        }
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
            if fault == "no server":
                environment[name] = "x"
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        store = Store("s3://platform/store", tmp_path / "cache")
        ref = ArtifactRef(kind="model", uri="p/s/k/out/model", sha256="0" * 64, producer="s/k")
        for call in (
            lambda: store.read("a"),
            lambda: store.exists("a"),
            lambda: store.create("a", b"x"),
            lambda: store.fetch(ref),
        ):
            if fault == "no server":
                with pytest.raises(TryAgain, match=place) as caught:
                    call()
                assert "AWS_ENDPOINT_URL" in caught.value.next_step
            else:
                with pytest.raises(UserError, match="no AWS credentials") as caught:
                    call()
                assert "AWS_PROFILE" in caught.value.next_step
    fsspec.get_filesystem_class("s3").clear_instance_cache()
