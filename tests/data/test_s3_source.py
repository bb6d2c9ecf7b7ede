"""Sources in S3: the layouts of folders, and every way in which a bucket, its objects or the way to them can be wrong."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.data import ingest, s3_bucket, s3_copies, s3_sync
from ssl_core.data.layout import Refused
from ssl_core.data.sources import Source, open_source
from ssl_core.errors import StepError, TryAgain, UserError
from ssl_core.step import NoProgress
from tests.data.conftest import encode, picture
from tests.data.fake_s3 import FakeS3, error, fake_s3

KEY = "FAKE-KEY-ID"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    with fake_s3() as fake:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_RETRY_MODE", "AWS_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        variables = {
            "AWS_ENDPOINT_URL": fake.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "hush", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        }  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def open_s3(make_project: Callable[..., ProjectConfig], tmp_path: Path) -> Callable[..., Source]:
    def make(prefix: str = "data", cache: str = "cache", **data: object) -> Source:
        return open_source(make_project(data={"source": f"s3://bucket/{prefix}", **data}), tmp_path / cache)

    return make


def sync(source: Source) -> int:
    return source.sync(NoProgress(), threading.Event())


def contents(source: Source) -> dict[str, bytes | str]:
    """What each item holds, or why it cannot be read."""
    found: dict[str, bytes | str] = {}
    for item in source.items():
        try:
            found[item.name] = item.read()
        except Refused as refused:
            found[item.name] = str(refused)
    assert len(found) == len(source)
    return found


def fails(open_s3: Callable[..., Source], kind: type[StepError], *texts: str, **data: object) -> StepError:
    with pytest.raises(kind) as caught:
        sync(open_s3(**data))
    for text in (*texts, "s3://bucket" if not texts else ""):
        assert text in str(caught.value)
    assert caught.value.place
    assert caught.value.next_step
    assert "hush" not in str(caught.value)
    return caught.value


# ---- layouts

LAYOUTS: dict[str, dict[str, str]] = {
    "class folders": {"cat/1.png": "1", "cat/deep/2.png": "2", "dog/1.png": "3", "4.png": "4", "unlabeled/5.png": "5", "Unlabelled/6.png": "6"},
    "no labels": {"b.png": "1", "a.png": "2", "noext": "3"},
    "labels.csv": {"a.png": "1", "sub/b.png": "2", "c.png": "3", "labels.csv": "\ufefffile,label\r\na.png,cat\r\nsub/b.png,dog\r\n./c.png,\r\n"},
    "labels.csv wins": {"cat/1.png": "1", "dog/1.png": "2", "labels.csv": "file,label\ncat/1.png,lynx\ndog/1.png,fox\n"},
    "sidecars and hidden": {"a.png": "1", ".b.png": "2", ".git/c.png": "3", "x/.d/e.png": "9", "notes.txt": "x", "other.CSV": "", "d.png": "4"},
    "names": {"d/a b.png": "1", "d/it's.png": "2", "naïve/日本.png": "3", "naïve/comma,here+%2F.png": "4", "d/$(x);&?#.png": "5", "d/x\ny.png": "6", f"d/{'n' * 200}.png": "7"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_is_read_as_the_same_folder_would_be(
    layout: str, s3: FakeS3, open_s3: Callable[..., Source], make_folder: Callable[..., Path], make_project: Callable[..., ProjectConfig]
) -> None:  # fmt: skip
    files = LAYOUTS[layout]
    folder = make_folder(dict(files))
    s3.put(
        {f"data/{name}": content.encode() for name, content in files.items()}
        | {"database/no.png": b"", "data.png": b""}
    )
    local = open_source(make_project(data={"source": str(folder)}))
    for prefix in ("data", "data/"):
        source = open_s3(prefix)
        assert sync(source) == (len(local) if prefix == "data" else 0)
        assert [(i.name, i.label, i.read()) for i in source.items()] == [
            (i.name, i.label, i.read()) for i in local.items()
        ]


def test_the_whole_bucket_is_a_folder_too(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"cat/1.png": b"1", "dog/1.png": b"2"})
    assert {item.name: item.label for item in open_s3("").items()} == {"cat/1.png": "cat", "dog/1.png": "dog"}


@pytest.mark.parametrize("where", ["key", "address", "other prefix", "file", "default is no use"])
def test_labels_elsewhere(where: str, s3: FakeS3, open_s3: Callable[..., Source], tmp_path: Path) -> None:
    labels = b"file,label\na.png,x\nb.png,y\n"
    s3.put({"data/a.png": b"1", "data/b.png": b"2", "data/lists/mine.csv": labels, "lists/mine.csv": labels})
    if where == "default is no use":
        s3.put({"data/labels.csv": b"no use"})
    (tmp_path / "mine.csv").write_bytes(labels)
    given = {"key": "lists/mine.csv", "address": "s3://bucket/data/lists/mine.csv", "file": str(tmp_path / "mine.csv")}
    source = open_s3(labels=given.get(where, "s3://bucket/lists/mine.csv"))
    assert {item.name: item.label for item in source.items() if not item.name.endswith("csv")} == {
        "a.png": "x",
        "b.png": "y",
    }


def test_labels_of_a_local_folder_may_lie_in_s3(
    s3: FakeS3, make_folder: Callable[..., Path], make_project: Callable[..., ProjectConfig]
) -> None:
    folder = make_folder({"a.png": 1, "b.png": 2})
    s3.put({"lists/mine.csv": b"file,label\na.png,x\nb.png,y\n"})
    project = make_project(data={"source": str(folder), "labels": "s3://bucket/lists/mine.csv"})
    before = open_source(project).fingerprint()
    assert [item.label for item in open_source(project).items()] == ["x", "y"]
    s3.put({"lists/mine.csv": b"file,label\na.png,x\nb.png,z\n"})
    assert open_source(project).fingerprint() != before


def test_mistakes_in_labels_name_the_object_and_the_line(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put(
        {
            "data/a.png": b"1",
            "data/notes.txt": b"",
            "data/labels.csv": b"file,label\na.png,x\nnone.png,y\nnotes.txt,y\n",
        }
    )
    fails(open_s3, UserError, "s3://bucket/data/labels.csv line 3", "2 listed files are not in s3://bucket/data", "'notes.txt' is no image file")  # fmt: skip
    fails(open_s3, UserError, "no such object: s3://bucket/data/none.csv", labels="none.csv")
    fails(open_s3, UserError, "no such object: s3://bucket/none.csv", labels="s3://bucket/none.csv")
    fails(open_s3, UserError, "no such file: /none.csv", labels="/none.csv")
    s3.put({"data/labels.csv": b"file,label\n../a.png,x\n"})
    fails(open_s3, UserError, "labels.csv line 2", "leads out of the source folder")
    s3.put({"data/labels.csv": b"file,label\na.png,caf\xe9\n"})
    fails(open_s3, UserError, "not UTF-8")
    s3.put({"data/labels.csv": b"file,label\na.png,cat\n"})
    fails(open_s3, UserError, "only one class, 'cat'", "s3://bucket/data/labels.csv line 2")


# ---- hostile keys

HOSTILE = {
    "data/../../etc/passwd.png": "its key holds . or .. as a folder",
    "data/a/./b.png": "its key holds . or .. as a folder",
    "data/..": "its key holds . or .. as a folder",
    "data/full/": "its key ends as a folder's",
    "data//etc/passwd.png": b"x",
    "data/a//b.png": b"x",
    "data/C:\\up\\..\\x.png": b"x",
    "data/-rf.png": b"x",
    "data/%2e%2e%2fx.png": b"x",
    "data/empty.png": b"",
    "data/" + "d/" * 400 + "x.png": b"x",
}


def test_no_key_becomes_a_path(s3: FakeS3, open_s3: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(s3_sync, "SMALL", 0)  # as files, each of them
    monkeypatch.setattr(s3_copies, "SMALL", 0)
    s3.put({key: content if isinstance(content, bytes) else b"x" for key, content in HOSTILE.items()})
    s3.put({"data/": b"", "data/marker/": b"", "data/old_$folder$": b"", "data/a.png": b"a"})
    source = open_s3()
    sync(source)
    assert contents(source) == {key.removeprefix("data/"): content for key, content in HOSTILE.items()} | {
        "a.png": b"a"
    }
    assert not {item.label for item in source.items()} & {"..", ".", ""}
    made = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == sum(content == b"x" for content in HOSTILE.values()) + 1
    assert all(len(parts) == 5 and parts[:2] == ("cache", "s3") and len(parts[4]) == 62 for parts in made)


def test_an_object_that_is_too_large_is_refused_and_not_fetched(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"data/a.png": b"1", "data/b.png": b"2"})
    s3.sizes["data/b.png"] = 2**40
    source = open_s3()
    sync(source)
    assert contents(source) == {"a.png": b"1", "b.png": "larger than 256 MiB"}
    assert s3.fetched == ["data/a.png"]


# ---- only what is new


def test_only_new_and_changed_objects_are_fetched(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({f"data/{i}.png": bytes([i]) * (100_000 if i % 2 else 100) for i in range(40)})
    assert sync(open_s3()) == 40
    assert sync(open_s3()) == 0
    s3.put({"data/3.png": b"n" * 100_000, "data/4.png": b"new", "data/99.png": b"more"})
    del s3.objects["data/5.png"]
    s3.requests.clear()
    source = open_s3()
    assert sync(source) == 3
    assert sorted(s3.fetched) == ["data/3.png", "data/4.png", "data/99.png"]
    assert contents(source) == {key.removeprefix("data/"): content for key, content in s3.objects.items()}


def test_the_fingerprint_comes_from_the_listing_alone(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"data/a.png": b"1", "data/sub/b.png": b"2", "data/c/c.png": b"3"})
    prints = [open_s3().fingerprint()]
    assert open_s3(cache="other").fingerprint() == prints[0]
    for change in ({"data/a.png": b"9"}, {"data/d.png": b"4"}, {"data/labels.csv": b"file,label\n"}, {"data/labels.csv": b"file,label\na.png,x\nd.png,y\n"}):  # fmt: skip
        s3.put(change)
        prints.append(open_s3().fingerprint())
    assert len(set(prints)) == len(prints)
    del s3.objects["data/d.png"], s3.objects["data/labels.csv"]
    assert open_s3().fingerprint() == prints[1]
    assert set(s3.fetched) <= {"data/labels.csv"}


@pytest.mark.parametrize("folders", [0, 3, 100])
def test_a_listing_of_several_pages(folders: int, s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({f"data/{f'f{i % folders:03d}/' if folders else ''}{i:04d}.png": b"x" for i in range(2500)})
    s3.put({"data/zz.png": b"x", "data/\U0001f600.png": b"x", "data/\uffff.png": b"x", "data/unlabeled/1.png": b"x"})
    names = [item.name for item in open_s3().items()]
    assert names == sorted((key.removeprefix("data/") for key in s3.objects), key=str.encode)


def test_a_large_object_goes_on_where_it_was(s3: FakeS3, open_s3: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(s3_copies, "PART", 40_000)
    whole = bytes(range(256)) * 1000
    s3.put({"data/big.png": whole, "data/small.png": b"s"})
    s3.before = lambda method, key, headers: "AccessDenied" if len(s3.ranges) >= 4 and "range" in headers else None
    fails(open_s3, UserError, "no right to do this", "s3://bucket/data/big.png", "s3:GetObject")
    arrived = set(s3.ranges)
    s3.before = lambda method, key, headers: None
    s3.ranges.clear()
    source = open_s3()
    sync(source)
    assert not arrived & set(s3.ranges), "what has arrived is not fetched again"
    assert len(arrived | set(s3.ranges)) == len(s3_copies.parts(s3_bucket.S3Object("", "", len(whole)))) == 7
    assert contents(source) == {"big.png": whole, "small.png": b"s"}


def test_damaged_copies_are_fetched_again(s3: FakeS3, open_s3: Callable[..., Source], tmp_path: Path) -> None:
    s3.put({"data/a.png": b"1" * 100_000, "data/b.png": b"2"})
    sync(open_s3())
    file = next(path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == 100_000)
    database = next((tmp_path / "cache").rglob("small.sqlite"))
    file.write_bytes(b"torn")
    assert sync(open_s3()) == 1
    source = open_s3()
    database.write_bytes(b"not a database" * 1000)
    file.unlink()
    assert contents(source) == {"a.png": b"1" * 100_000, "b.png": b"2"}, "read from S3 where the copy cannot be"
    source = open_s3()
    assert sync(source) == 2
    s3.requests.clear()
    assert contents(source)["b.png"] == b"2"
    assert not s3.fetched
    sqlite3.connect(database).execute("PRAGMA integrity_check")


# ---- what changes underneath


def test_an_object_that_vanishes_after_the_listing_is_refused(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"data/a.png": b"1", "data/b.png": b"2", "data/c.png": b"3" * 100_000})
    source = open_s3()
    del s3.objects["data/b.png"], s3.objects["data/c.png"]
    assert sync(source) == 1
    assert contents(source) == {"a.png": b"1", "b.png": s3_sync.GONE, "c.png": s3_sync.GONE}


def test_an_object_that_changes_after_the_listing_is_read_as_it_is_now(
    s3: FakeS3, open_s3: Callable[..., Source]
) -> None:
    s3.put({"data/a.png": b"1", "data/b.png": b"2" * 100_000})
    source = open_s3()
    s3.put({"data/a.png": b"new", "data/b.png": b"now"})
    assert sync(source) == 2
    assert contents(source) == {"a.png": b"new", "b.png": b"now"}


def test_an_object_that_never_rests_is_refused(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"data/a.png": b"0", "data/b.png": b"2"})
    source = open_s3()
    numbers = iter(range(1, 1000))

    def change(method: str, key: str, headers: dict[str, str]) -> None:
        if method == "GET" and key == "data/a.png":
            s3.put({"data/a.png": str(next(numbers)).encode()})

    s3.before = change
    sync(source)
    assert contents(source) == {"a.png": s3_sync.RESTLESS, "b.png": b"2"}


def test_an_archived_object_is_refused(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"data/a.png": b"0", "data/b.png": b"2"})
    s3.before = lambda method, key, headers: "InvalidObjectState" if key == "data/a.png" else None
    source = open_s3()
    sync(source)
    assert "archived: restore the object" in str(contents(source)["a.png"])


# ---- what S3 and the way to it say


@pytest.mark.parametrize(
    ("code", "kind", "cause", "mend"),
    [
        ("NoSuchBucket", UserError, "there is no such bucket", "AWS_ENDPOINT_URL"),
        ("AccessDenied", UserError, "no right to do this", "s3:ListBucket"),
        ("SignatureDoesNotMatch", UserError, "the secret access key is wrong", "AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", UserError, "the access key id is not known", "AWS_ACCESS_KEY_ID"),
        ("RequestTimeTooSkewed", UserError, "the clock of this machine is wrong", "timedatectl"),
        ("ExpiredToken", TryAgain, "the credentials have expired", "aws sso login"),
        ("AuthorizationHeaderMalformed", UserError, "the bucket is in another region", "AWS_DEFAULT_REGION"),
        ("SlowDown", TryAgain, "fewer requests", "run the same command again"),
        ("WhoKnows", TryAgain, "S3 answers WhoKnows", "AWS_ENDPOINT_URL"),
    ],
)
def test_what_s3_answers_is_told(code: str, kind: type[StepError], cause: str, mend: str, s3: FakeS3, open_s3: Callable[..., Source]) -> None:  # fmt: skip
    s3.put({"data/a.png": b"0"})
    for asked, place in (("?list", "s3://bucket/data/"), ("data/a.png", "s3://bucket/data/a.png")):
        s3.before = lambda method, key, headers, asked=asked: code if key == asked else None
        told = fails(open_s3, kind, cause)
        assert mend in told.next_step
        assert told.place == place


def test_a_server_that_is_not_there(
    s3: FakeS3, open_s3: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fails(open_s3, TryAgain, "the storage cannot be reached", "127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "me:hush@nowhere")
    fails(open_s3, UserError, "AWS_ENDPOINT_URL: not an address of a server")


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no AWS credentials"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "the AWS credentials are incomplete"),
        ({"AWS_PROFILE": "nobody"}, "there is no such AWS profile"),
    ],
)  # fmt: skip
def test_credentials_that_are_missing(variables: dict[str, str], cause: str, s3: FakeS3, open_s3: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    fails(open_s3, UserError, cause, "AWS_PROFILE")


def test_an_empty_prefix(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({"elsewhere/a.png": b"1"})
    fails(open_s3, UserError, "data.source: no images in s3://bucket/data")
    s3.put({"data/": b"", "data/notes.txt": b"", "data/.hidden.png": b"1"})
    fails(open_s3, UserError, "1 objects that are no images")


def test_an_answer_that_breaks_off_is_asked_for_again(s3: FakeS3, open_s3: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(s3_bucket.time, "sleep", lambda seconds: None)
    s3.put({"data/a.png": b"whole"})

    def torn(times: int) -> Callable[..., object]:
        left = iter(range(times))
        return lambda method, key, headers: (
            (200, b"who", {"ETag": s3.etag(key), "Content-Length": "5"}) if key != "?list" and next(left, None) is not None else None
        )  # fmt: skip

    s3.before = torn(3)
    source = open_s3()
    assert sync(source) == 1
    assert contents(source) == {"a.png": b"whole"}
    s3.before = torn(1000)
    with pytest.raises(TryAgain, match="broke off"):
        sync(open_s3(cache="other"))


def test_what_arrived_stays_when_told_to_stop(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({f"data/{i:03d}.png": b"x" for i in range(300)})
    stop = threading.Event()
    many = threading.Event()

    def slow(method: str, key: str, headers: dict[str, str]) -> None:
        if len(s3.fetched) > 100:
            stop.set()
            many.wait(0.2)

    s3.before = slow
    with pytest.raises(TryAgain, match="told to stop"):
        open_s3().sync(NoProgress(), stop)
    s3.before = lambda method, key, headers: None
    assert 0 < sync(open_s3()) < 250


# ---- the quick way


@pytest.mark.parametrize("key", ["a.png", "sp ace+%2F&=?#~.png", "日本/é.png", "a/b//c.png", "*'()!.png"])
@pytest.mark.parametrize("token", ["", "session-token"])
def test_a_request_is_signed_as_botocore_signs_it(
    key: str, token: str, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    s3.put({key: b"content"})
    seen: dict[str, str] = {}
    s3.before = lambda method, key, headers: seen.clear() or seen.update(headers)
    bucket = s3_bucket.Bucket("bucket")
    listed = bucket.objects("")[0]
    assert bucket.get(listed) == b"content"
    direct = bucket._direct
    assert direct is not None
    assert "boto" not in seen.get("user-agent", "").lower(), "the quick way was taken"
    path = f"/bucket/{s3_bucket.quote(key, safe='/~')}"
    request = AWSRequest("GET", f"{s3.url}{path}")
    request.context["timestamp"] = seen["x-amz-date"]
    request.headers["X-Amz-Date"] = seen["x-amz-date"]
    request.headers["X-Amz-Content-SHA256"] = seen["x-amz-content-sha256"]
    if token:
        request.headers["X-Amz-Security-Token"] = token
    signer = S3SigV4Auth(direct._credentials, "s3", "us-east-1")
    canonical = signer.canonical_request(request)
    expected = signer.signature(signer.string_to_sign(request, canonical), request)
    assert seen["authorization"].endswith(f"Signature={expected}")


def test_where_the_quick_way_is_refused_boto3_fetches(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({f"data/{i:03d}.png": str(i).encode() for i in range(200)})
    refused = []

    def only_boto3(method: str, key: str, headers: dict[str, str]) -> str | None:
        if "Boto3" in headers.get("user-agent", ""):
            return None
        refused.append(key)
        return "AccessDenied"

    s3.before = only_boto3
    source = open_s3()
    assert sync(source) == 200
    assert len(refused) < 50, "given up after a few"
    assert contents(source)["007.png"] == b"7"


def test_through_a_proxy_boto3_fetches(
    s3: FakeS3, open_s3: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_bucket.urllib.request, "getproxies", lambda: {"http": "http://proxy"})
    monkeypatch.setattr(s3_bucket.urllib.request, "proxy_bypass", lambda host: False)
    agents = []
    s3.before = lambda method, key, headers: agents.append(headers.get("user-agent", ""))
    s3.put({"data/a.png": b"1"})
    assert sync(open_s3()) == 1
    assert all("Boto3" in agent for agent in agents)


# ---- ingest


def test_ingest_from_s3(
    s3: FakeS3, make_project: Callable[..., ProjectConfig], make_context: Callable[..., object]
) -> None:
    s3.put({f"data/{('cat', 'dog')[i % 2]}/{i:03d}.png": encode(picture(i)) for i in range(60)})
    s3.put({"data/cat/torn.png": b"no image", "data/cat/empty.png": b"", "data/cat/..": b"x", "data/cat/": b""})
    project = make_project(data={"source": "s3://bucket/data", "max_quarantined": 0.1})
    before = ingest.fingerprint(project)
    output = ingest.run(make_context(project))
    assert output.metrics["rows"] == 60
    assert output.metrics["labelled"] == 60
    assert output.metrics["quarantined"] == 3
    assert "its key holds . or .. as a folder" in output.summary
    assert "the file is empty" in output.summary
    assert ingest.fingerprint(project) == before
    assert len(s3.fetched) == 61, "each object once: the second reading is of the copies"
    assert error("x")[0] == 403


def test_told_to_stop_it_waits_for_no_server(s3: FakeS3, open_s3: Callable[..., Source]) -> None:
    s3.put({f"data/{i}.png": b"x" for i in range(40)})
    hang, stop = threading.Event(), threading.Event()

    def never(method: str, key: str, headers: dict[str, str]) -> None:
        stop.set()
        hang.wait(20)

    source = open_s3()
    s3.before = never
    started = time.monotonic()
    try:
        with pytest.raises(TryAgain, match="told to stop"):
            source.sync(NoProgress(), stop)
        assert time.monotonic() - started < 3.5
    finally:
        hang.set()
