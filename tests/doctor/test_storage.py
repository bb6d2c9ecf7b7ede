"""The store, the DVC remote, S3's rights, the data repository and its lock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_core.config.settings import Settings
from ssl_core.data.git import git
from ssl_core.doctor import s3, storage
from ssl_core.store import Store

# ---- write, read, delete


def test_store_and_remote_are_tried_and_nothing_stays(settings):
    for check in (storage.store, storage.dvc_remote):
        found = check(settings)
        assert found.status == "ok", found
        assert "written, read, deleted" in found.found
    assert not settings.root.exists()


def test_what_is_there_stays(settings):
    store = Store(settings.store_url, settings.cache)
    store.write("digits/kept.json", b"1")
    assert storage.store(settings).status == "ok"
    assert [p.name for p in Path(store.root).rglob("*") if p.is_file()] == ["kept.json"]


def test_a_store_that_takes_a_second_create(settings, monkeypatch):
    monkeypatch.setattr(Store, "create", lambda self, uri, data: self.write(uri, data) is None)
    found = storage.store(settings)
    assert found.status == "failed"
    assert "second exclusive create" in found.cause
    assert "If-None-Match" in found.mend


def test_a_file_system_without_hard_links(settings, monkeypatch):
    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "link", no_links)
    found = storage.store(settings)
    assert found.status == "failed"
    assert "hard links" in found.cause
    assert "SSL_STORE" in found.mend


def test_a_remote_that_cannot_be_written(tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    found = storage.dvc_remote(Settings(home=tmp_path / "home", dvc_remote=str(place / "remote")))
    assert found.status == "failed"
    assert "SSL_DVC_REMOTE" in found.mend


def test_a_kind_of_storage_that_is_not_known(tmp_path):
    from ssl_core.doctor.finding import Check
    from ssl_core.doctor.run import look_safely

    found = look_safely(Check("store", storage.store, 1, ""), Settings(home=tmp_path, store="nfs://x/y"))
    assert (found.status, "SSL_STORE" in found.cause) == ("failed", True)


# ---- S3


@pytest.fixture
def bucket(serve, monkeypatch, tmp_path):
    """``bucket(rule)``: an S3 endpoint; ``rule(right)`` is None where it is granted, else the error code."""

    def make(rule, keys=("there",)) -> list[str]:
        stored: dict[str, bytes] = {}
        asked: list[str] = []

        def respond(method, path, body):
            key = path.partition("?")[0].removeprefix("/platform").lstrip("/")
            right = {"PUT": "put", "DELETE": "delete", "GET": "get" if key else "list"}[method]
            asked.append(right)
            if code := rule(right):
                status = {"NoSuchBucket": 404, "SlowDown": 503}.get(code, 403)
                return status, f"<Error><Code>{code}</Code><Message>m</Message></Error>"
            if right == "list":
                found = "".join(f"<Contents><Key>store/{k}</Key><Size>1</Size></Contents>" for k in keys)
                return 200, f"<ListBucketResult><Name>platform</Name>{found}</ListBucketResult>"
            if right == "put":
                stored[key] = body
            if right == "delete":
                stored.pop(key, None)
                return 204, ""
            return 200, "x" if right == "get" else ""

        for name, value in {
            "AWS_ENDPOINT_URL": serve(respond),
            "AWS_ACCESS_KEY_ID": "key-id",
            "AWS_SECRET_ACCESS_KEY": "xyzzy-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        return asked

    return make


PLACE = s3.Place("store", "s3://platform/store", True)
SOURCE = s3.Place("data of pets", "s3://platform/store", False)


def test_all_rights(bucket):
    asked = bucket(lambda right: None)
    assert s3.examine(PLACE) is None
    assert asked == ["list", "put", "get", "delete"]


def test_a_source_is_only_read(bucket):
    asked = bucket(lambda right: None)
    assert s3.examine(SOURCE) is None
    assert asked == ["list", "get"]


def test_a_source_without_anything_is_told(bucket):
    bucket(lambda right: None, keys=())
    assert "nothing lies there" in s3.examine(SOURCE).cause
    assert s3.examine(PLACE) is None  # an empty store is how one begins


@pytest.mark.parametrize(
    ("denied", "words"),
    [
        (("put", "delete"), "no right to put and delete"),
        (("list",), "no right to list"),
        (("get",), "no right to get"),
        (("delete",), "was left there"),
        (("list", "get", "put", "delete"), "no right to list, put, get and delete"),
    ],
)
def test_each_missing_right_is_named(denied, words, bucket):
    bucket(lambda right: "AccessDenied" if right in denied else None)
    found = s3.examine(PLACE)
    if denied == ("list", "get", "put", "delete"):  # nothing is there to be read, so reading is not tried
        words = "no right to list, put and delete"
    assert words in found.cause
    assert "s3://platform/store" in found.cause
    assert "on platform" in found.mend


@pytest.mark.parametrize(
    ("code", "words", "mend"),
    [
        ("SignatureDoesNotMatch", "secret access key is wrong", "AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", "not known", "AWS_ACCESS_KEY_ID"),
        ("RequestTimeTooSkewed", "clock", "timedatectl"),
        ("NoSuchBucket", "no such bucket", "bucket"),
        ("ExpiredToken", "expired", "AWS_SESSION_TOKEN"),
        ("SomethingNew", "SomethingNew", "AWS_ENDPOINT_URL"),
    ],
)
def test_what_s3_answers_is_told_apart(code, words, mend, bucket):
    bucket(lambda right: code)
    found = s3.examine(PLACE)
    assert found.status == "failed"
    assert words in found.cause
    assert mend in found.mend
    assert "xyzzy" not in str(found)


def test_an_endpoint_that_is_not_there(bucket, refusing, monkeypatch):
    bucket(lambda right: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing)
    began = time.monotonic()
    found = s3.examine(PLACE)
    assert "cannot be reached" in found.cause
    assert "AWS_ENDPOINT_URL" in found.mend
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert "AWS_ENDPOINT_URL" in s3.examine(PLACE).cause
    assert time.monotonic() - began < 5


def test_no_credentials(bucket, monkeypatch, tmp_path):
    bucket(lambda right: None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    found = s3.examine(PLACE)
    assert "credentials" in found.cause
    assert "AWS_ACCESS_KEY_ID" in found.mend


def test_one_fault_of_all_buckets_is_said_once(bucket, tmp_path):
    bucket(lambda right: "SignatureDoesNotMatch")
    settings = Settings(home=tmp_path, store="s3://platform/store", dvc_remote="s3://platform/dvc")
    found = storage.s3_rights(settings, lambda: {"pets": "s3://platform/pets", "digits": "sample://digits"})
    assert found.cause.count("secret access key is wrong") == 1
    store = storage.store(settings)  # the store says it as well, and does not wait for a client's patience
    assert "secret access key is wrong" in store.cause


def test_rights_of_all_that_lies_in_s3(bucket, tmp_path):
    bucket(lambda right: None)
    settings = Settings(home=tmp_path, store="s3://platform/store", mlflow_artifacts="s3://platform/mlflow")
    found = storage.s3_rights(settings, lambda: {"pets": "s3://platform/pets"})
    assert found.status == "ok"
    for words in ("store s3://", "MLflow artifacts s3://", "data of pets s3://"):
        assert words in found.found
    assert storage.s3_rights(Settings(home=tmp_path), lambda: {}).status == "skipped"


# ---- the data repository and its lock


def test_a_repository_that_is_not_made_yet_and_one_that_is(settings):
    assert "first use" in storage.data_repository(settings).found
    folder = Path(settings.data_repo_url)
    folder.mkdir(parents=True)
    git("init", "-q", "--bare", str(folder), cwd=folder)
    assert "no version yet" in storage.data_repository(settings).found


def test_a_folder_that_is_no_repository(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    found = storage.data_repository(Settings(home=tmp_path / "home", data_repo=str(tmp_path)))
    assert (found.status, "SSL_DATA_REPO" in found.mend) == ("failed", True)


def test_a_repository_elsewhere(tmp_path, refusing, hanging, monkeypatch):
    found = storage.data_repository(Settings(home=tmp_path, data_repo=f"{refusing}/data.git"))
    assert found.status == "failed"
    assert "SSL_DATA_REPO" in found.mend
    monkeypatch.setattr(storage, "_GIT_SECONDS", 1)
    assert "no answer" in storage.data_repository(Settings(home=tmp_path, data_repo=f"{hanging}/data.git")).cause


HOLD = """
import sys
from pathlib import Path
from ssl_core.data.lock import file_lock
with file_lock(Path(sys.argv[1]), timeout=5, note=print, purpose="x"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_holds_the_lock_and_since_when(settings):
    assert storage.repository_lock(settings).status == "ok"
    path = settings.root / "data-repository.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        found = storage.repository_lock(settings)
        assert found.status == "warning"
        assert f"process {holder.pid} on {os.uname().nodename}" in found.cause
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d", found.cause)
        assert found.mend == "wait for it"
        os.utime(path, (time.time() - 9 * 3600,) * 2)
        old = storage.repository_lock(settings)
        assert "9 hours" in old.cause
        assert f"ps -fp {holder.pid}" in old.mend
    finally:
        holder.communicate()
    assert storage.repository_lock(settings).found == "free"
