"""The parts of the Docker runner that need no engine; the rest is in tests/e2e/test_docker_runner.py."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssl_core.config.container import local_places, platform_id
from ssl_core.config.settings import Settings
from ssl_dags.runners.base import CannotStart, Job, Unavailable
from ssl_dags.runners.containers import identity, labels_of, name_of
from ssl_dags.runners.docker import connect, lines_of
from ssl_dags.runners.gpus import _seconds


def job(run: str = "manual__1", number: int = 1, task: str = "pretrain") -> Job:
    labels = {
        "ssl.dag_id": "d.pretrain",
        "ssl.run_id": run,
        "ssl.task_id": task,
        "ssl.map_index": "-1",
        "ssl.try": str(number),
    }
    return Job("pretrain", "{}", labels=labels)


def test_the_tries_of_a_task_share_a_name_and_nothing_else_does(tmp_path):
    settings, other = Settings(home=tmp_path / "a"), Settings(home=tmp_path / "b")
    assert name_of(job(number=1), settings) == name_of(job(number=2), settings)
    names = {
        name_of(job(), settings),
        name_of(job(run="x"), settings),
        name_of(job(task="y"), settings),
        name_of(job(), other),
    }
    assert len(names) == 4
    assert identity(job(), settings)[0] == f"ssl.platform={platform_id(settings)}"
    assert labels_of(job(number=2), settings)["ssl.try"] == "2"
    assert len(name_of(Job("pretrain", "{}", labels={"ssl.dag_id": "ü/ " * 200}), settings)) < 130


def test_a_platform_has_one_identity_and_two_homes_at_the_same_path_have_two(tmp_path):
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: platform_id(Settings(home=home)), range(32)))
    assert len(found) == 1
    home.rename(tmp_path / "moved")
    assert platform_id(Settings(home=tmp_path / "moved")) in found
    assert platform_id(Settings(home=home)) not in found
    assert [path.name for path in home.iterdir()] == ["platform-id"]


def test_lines_come_whole_however_the_engine_cuts_them():
    text = "one\nzwei ä\r\n\n  three  \nno end"
    data = text.encode()
    whole = ["one", "zwei ä", "", "  three", "no end"]
    assert list(lines_of([data])) == whole
    assert list(lines_of(data[i : i + 1] for i in range(len(data)))) == whole
    assert list(lines_of([b"\xff\xfe bad\n"])) == ["\\xff\\xfe bad"]
    assert [len(line) for line in lines_of([b"x" * 25_000])] == [10_000, 10_000, 5_000]


def test_only_what_lies_on_this_machine_is_mounted(tmp_path):
    home = tmp_path / "home"
    everywhere = {"store": "s3://b/store", "dvc_remote": "s3://b/dvc", "data_repo": "ssh://git@host/data.git"}
    assert local_places(Settings(home=home, **everywhere)) == []
    assert local_places(Settings(home=home, **everywhere | {"data_repo": "host:data.git"})) == []
    assert local_places(Settings(home=home)) == [home]
    store = (tmp_path / "a store").as_uri()
    found = local_places(Settings(home=home, **everywhere | {"store": store}, cache_dir=tmp_path / "cache"))
    assert found == sorted([home, tmp_path / "a store", tmp_path / "cache"])


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("1970-01-01T00:00:10.123456789Z", 10),
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01T01:00:10.5+01:00", 10),
        ("1970-01-01T01:00:10+01:00", 10),
    ],
)
def test_the_engines_stamps(stamp, seconds):
    assert _seconds(stamp) == seconds


# ---- no engine


def test_an_engine_that_is_down_may_come_back(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(Unavailable, match=r"no Docker engine answers at unix://.*/none.sock\n  next: start it"):
        connect()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(Unavailable):
            connect()


def test_a_socket_that_one_may_not_use_is_nothing_to_try_again(monkeypatch, tmp_path):
    class Refusing(socket.socket):
        def connect(self, address) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("docker.transport.unixconn.socket.socket", Refusing)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{Path('/var/run/docker.sock')}")
    with pytest.raises(CannotStart, match=r"no right to talk to the Docker engine(.|\n)*usermod"):
        connect()
