"""The doctor on a real platform, a real S3 server and a real Docker engine: healthy, and with each fault planted."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import docker
import pytest

from ssl_core import __version__
from tests.e2e.test_run import free_port
from tests.e2e.tools.base_image import NoEngine, base_image
from tests.e2e.tools.platform import Platform
from tests.e2e.tools.s3_server import S3Server, s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.s3]

SECONDS, SECONDS_WITH_DOCKER = 20, 45
HOLD = """
import sys
from ssl_core.config.settings import Settings
from ssl_core.data.repository import DataRepository
with DataRepository(Settings()).lock():
    print("held", flush=True)
    sys.stdin.read()
"""

Examine = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: S3Server) -> Any:
    client = boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id=server.key, aws_secret_access_key=server.secret,
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="platform")
    return client


@pytest.fixture(scope="module")
def projects(airflow: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with one good project: other tests of the session leave broken ones in the platform's own."""
    folder = tmp_path_factory.mktemp("projects")
    (folder / "good.yaml").write_text(f"name: good\ndata: {{source: '{airflow.images}'}}\n")
    return str(folder)


@pytest.fixture
def examine(airflow: Platform, projects: str) -> Examine:
    """``examine(code, limit, **variables)``: the doctor's findings by name; ends in time, with ``code``, saying no secret."""

    def call(code: int = 0, limit: float = SECONDS, arguments: tuple[str, ...] = (), **more: str) -> dict[str, Any]:
        began = time.monotonic()
        output = airflow.cli("doctor", "--json", *arguments, code=code, **{"SSL_PROJECTS_DIR": projects} | more)
        seconds = time.monotonic() - began
        assert seconds < limit, f"{seconds:.1f} s"
        for name, value in more.items():
            assert "SECRET" not in name or value not in output
        return {each["name"]: each for each in json.loads(output)}

    return call


def failed(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, each in found.items() if each["status"] == "failed"}


def in_s3(server: S3Server, **identity: Any) -> dict[str, str]:
    return server.environment(**identity) | {
        "SSL_STORE": "s3://platform/store",
        "SSL_DVC_REMOTE": "s3://platform/dvc",
    }


# ---- without Docker


def test_a_healthy_platform(airflow: Platform, examine: Examine):
    found = examine()
    for name in ("airflow", "mlflow", "mlflow artifacts", "ports", "listening addresses", "secret files", "store"):
        assert found[name]["status"] == "ok", found[name]


def test_people_read_it_without_a_terminal(airflow: Platform, projects: str):
    began = time.monotonic()
    process = airflow.start("doctor", SSL_PROJECTS_DIR=projects)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert time.monotonic() - began < 2  # a second where nothing else runs
    output = first + process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    lines = output.splitlines()
    assert lines[0].startswith("ok       settings")
    assert "\x1b" not in output
    assert " ok, " in lines[-1]


def test_everything_in_s3_and_nothing_is_left_there(server, client, examine: Examine):
    found = examine(**in_s3(server))
    for name in ("store", "dvc remote", "s3 rights", "clock"):
        assert found[name]["status"] == "ok", found[name]
    assert "second create is refused" in found["store"]["found"]
    assert "Contents" not in client.list_objects_v2(Bucket="platform")


@pytest.mark.parametrize(
    ("identity", "more", "cause", "mend"),
    [
        ({"secret": "not-the-secret-of-anybody"}, {}, "secret access key is wrong", "AWS_SECRET_ACCESS_KEY"),
        ({"read_only": True}, {}, "no right to put and delete", "give these credentials"),
        ({}, {"AWS_ACCESS_KEY_ID": "nobody"}, "access key id is not known", "AWS_ACCESS_KEY_ID"),
        ({}, {"SSL_STORE": "s3://not-there/store"}, "no such bucket", "make the bucket"),
    ],
    ids=["wrong secret", "read-only identity", "unknown key", "missing bucket"],
)
def test_s3_refuses(identity, more, cause, mend, server, client, examine: Examine):
    found = examine(2, **(in_s3(server, **identity) | more))
    for name in ("store", "s3 rights"):
        assert cause in found[name]["cause"], found[name]
        assert mend in found[name]["mend"]
    assert "dvc remote" not in failed(found) or not more.get("SSL_STORE")


def test_s3_is_not_there(server, examine: Examine):
    found = examine(2, **(in_s3(server) | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}))
    assert failed(found) == {"store", "dvc remote", "s3 rights"}
    assert "cannot be reached" in found["s3 rights"]["cause"]


def test_mlflow_on_another_port(airflow: Platform, examine: Examine):
    found = examine(2, SSL_MLFLOW_PORT=str(free_port()))
    assert failed(found) == {"mlflow"}
    assert f"export SSL_MLFLOW_PORT={airflow.settings.mlflow_port}" in found["mlflow"]["mend"]
    found = examine(2, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert failed(found) == {"mlflow"}
    assert "connection refused" in found["mlflow"]["cause"]
    assert found["mlflow artifacts"]["status"] == "skipped"


def test_a_port_is_taken_by_another_program(airflow: Platform, examine: Examine, tmp_path: Path):
    # Seen from another home, this platform is another program.
    found = examine(2, SSL_HOME=str(tmp_path / "other"))
    assert failed(found) == {"ports"}
    cause, mend = found["ports"]["cause"], found["ports"]["mend"]
    assert f"port {airflow.settings.airflow_port} for Airflow is taken by" in cause
    assert f"(process {airflow.pid('api-server')})" in cause
    assert "export SSL_AIRFLOW_PORT=" in mend
    assert "export SSL_MLFLOW_PORT=" in mend


def test_a_passwords_file_that_others_may_read(airflow: Platform, examine: Examine):
    file = airflow.home / "airflow" / "passwords.json"
    file.chmod(0o644)
    try:
        found = examine(2)
        assert failed(found) == {"secret files"}
        assert found["secret files"]["mend"] == f"chmod 600 {file}"
    finally:
        file.chmod(0o600)
    assert examine()["secret files"]["status"] == "ok"


def test_somebody_holds_the_data_repository(airflow: Platform, examine: Examine):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=airflow.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found = examine()["repository lock"]
        assert found["status"] == "warning"
        assert f"process {holder.pid} on {os.uname().nodename}" in found["cause"]
    finally:
        holder.communicate()


def test_a_broken_project_and_a_source_that_is_gone(airflow: Platform, examine: Examine, tmp_path: Path):
    (tmp_path / "pets.yaml").write_text("name: pets\ndata: {source: gone}\n")
    (tmp_path / "odd.yaml").write_text("name: odd\ndata: {sauce: x}\n")
    found = examine(2, SSL_PROJECTS_DIR=str(tmp_path))
    assert failed(found) == {"projects", "data sources"}
    found = examine(2, arguments=("pets",), SSL_PROJECTS_DIR=str(tmp_path))
    assert failed(found) == {"data sources"}


def test_an_engine_that_is_down(examine: Examine, tmp_path: Path):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    found = examine(2, SECONDS_WITH_DOCKER, SSL_RUNNER="docker", DOCKER_HOST=f"unix://{path}")
    assert failed(found) == {"docker engine"}
    assert "systemctl start docker" in found["docker engine"]["mend"]
    assert found["inside the image"]["status"] == "skipped"


# ---- with Docker


@pytest.fixture(scope="module")
def base() -> str:
    """A base image, and with it an engine that runs; where there can be none these tests are left out, but not in CI."""
    try:
        return base_image()
    except NoEngine as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.docker
def test_an_image_that_is_missing(base: str, examine: Examine):
    found = examine(2, SECONDS_WITH_DOCKER, SSL_RUNNER="docker", SSL_DOCKER_IMAGE="ssl-core-not-there:1")
    assert failed(found) == {"docker image"}
    assert "make images" in found["docker image"]["mend"]
    assert "API" in found["docker engine"]["found"]


@pytest.fixture(scope="module")
def image(base: str) -> str:
    images = pytest.importorskip("tests.e2e.tools.images")
    return str(images.training_image())


@pytest.mark.docker
def test_inside_the_training_image(image, airflow: Platform, examine: Examine):
    found = examine(0, SECONDS_WITH_DOCKER, SSL_RUNNER="docker", SSL_DOCKER_IMAGE=image, SSL_DOCKER_SHM="256m")
    for name in ("docker engine", "docker image", "inside the image", "memory"):
        assert found[name]["status"] == "ok", found[name]
    assert f"ssl-core {__version__}" in found["docker image"]["found"]
    for words in ("MLflow artifacts", "store", "DVC remote", f"user {os.getuid()}"):
        assert words in found["inside the image"]["found"]
    assert "256 MiB" in found["shared memory"]["found"]
    assert found["gpu"]["status"] == "skipped"


@pytest.mark.docker
def test_inside_the_training_image_with_everything_in_s3(image, server, client, airflow: Platform, examine: Examine):
    more = in_s3(server) | {"SSL_DATA_REPO": "git@host.invalid:data.git"}  # so that nothing of this machine is mounted
    found = examine(2, SECONDS_WITH_DOCKER, SSL_RUNNER="docker", SSL_DOCKER_IMAGE=image, **more)
    assert failed(found) == {"data repository"}
    assert "as user 10001" in found["inside the image"]["found"]
    more["AWS_SECRET_ACCESS_KEY"] = "not-the-secret-of-anybody"
    found = examine(2, SECONDS_WITH_DOCKER, SSL_RUNNER="docker", SSL_DOCKER_IMAGE=image, **more)
    assert "secret access key is wrong" in found["inside the image"]["cause"]


_HANGS = """
FROM {base}
RUN mkdir -p /opt/job/ssl_core/doctor /scratch && touch /opt/job/ssl_core/__init__.py /opt/job/ssl_core/doctor/__init__.py \\
    && echo "import time; time.sleep(600)" > /opt/job/ssl_core/doctor/inside.py
ENV PYTHONPATH=/opt/job
LABEL ssl-core.version={version}
"""


@pytest.mark.docker
def test_a_container_that_hangs(base: str, examine: Examine):
    engine, tag = docker.APIClient(), "ssl-core-test-hangs:1"
    text = _HANGS.format(base=base, version=__version__)
    said = [str(event) for event in engine.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True, decode=True)]
    assert engine.images(tag), said[-3:]
    found = examine(2, SECONDS_WITH_DOCKER, SSL_RUNNER="docker", SSL_DOCKER_IMAGE=tag)
    assert failed(found) == {"inside the image"}
    assert "did not end within" in found["inside the image"]["cause"]
    assert not engine.containers(all=True, filters={"label": "ssl.doctor", "ancestor": tag})
