"""The engine, the image and what a container finds, against a Unix socket that behaves as each fault does."""

from __future__ import annotations

import json
import socket
import struct
import time

import pytest

from ssl_core import __version__
from ssl_core.config.runner import DEFAULT_IMAGE
from ssl_core.config.settings import Settings
from ssl_core.doctor import docker as doctor
from ssl_core.doctor.projects import Projects

LABEL = "ssl-core.version"
FINE = {
    "version": __version__, "python": "3.11.2", "user": 10001, "shm": 64 * 2**20, "memory": 900,
    "findings": {"artifacts": {"status": "ok", "found": "fine"}, "store": {"status": "ok", "found": "fine"}},
}  # fmt: skip


class Engine:
    """Answers as an engine does. ``prints``: what a container prints; ``refuses``: what a start is refused with."""

    def __init__(self, image: str | None = __version__, prints: str = "", code: int = 0, refuses: str = "") -> None:
        self.image, self.prints, self.code, self.refuses = image, prints, code, refuses
        self.made: list[dict] = []
        self.removed = 0
        self.left: list[dict] = []
        self.errors = ""

    def __call__(self, method, path, body):
        where = path.partition("?")[0]
        where = where[where.index("/", 1) :] if where.startswith("/v1") else where
        answers = {
            "/_ping": (200, "OK"),
            "/version": (200, {"Version": "28.0.1", "ApiVersion": "1.48", "MinAPIVersion": "1.24"}),
            "/info": (200, {"MemTotal": 8 * 2**30, "NCPU": 4}),
            "/networks": (200, []),
            "/containers/json": (200, self.left),
        }
        if where in answers:
            return answers[where]
        if where.startswith("/images/"):
            if self.image is None:
                return 404, {"message": "No such image"}
            labels = {LABEL: self.image} if self.image else {}
            return 200, {"Config": {"Labels": labels}, "Size": 10**9, "Created": "2026-01-05T00:00:00Z"}
        if where == "/containers/create":
            self.made.append(json.loads(body))
            return (409, {"message": self.refuses}) if self.refuses else (201, {"Id": "c0ffee"})
        if where.endswith("/wait"):
            return 200, {"StatusCode": self.code}
        if where.endswith("/logs"):
            text, stream = (self.prints, 1) if "stdout=1" in path else (self.errors, 2)
            data = text.encode()
            return 200, struct.pack(">BxxxL", stream, len(data)) + data
        if method == "DELETE":
            self.removed += 1
            return 204, ""
        if where.endswith("/start"):
            return 204, ""
        return 200, {"State": {"OOMKilled": False}, "Config": {"Tty": False}}


@pytest.fixture
def in_containers(tmp_path, monkeypatch):
    """Platform settings where every step is a container, and no MLflow answers."""
    monkeypatch.setenv("SSL_HOME", str(tmp_path / "home"))
    return Settings(runner="docker", projects_dir=tmp_path / "none")


def subject(settings: Settings) -> doctor.Docker:
    return doctor.Docker(settings, Projects(settings, None))


@pytest.fixture
def engine(serve_unix, monkeypatch):
    def start(**given) -> Engine:
        fake = Engine(**given)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{serve_unix(fake)}")
        return fake

    return start


# ---- the engine


def test_where_every_step_is_a_process_docker_is_not_asked(settings, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    docker = subject(settings)
    for check in (doctor.engine, doctor.image, doctor.inside, doctor.gpu):
        assert check(settings, docker).status == "skipped"
    assert doctor.shared_memory(settings, docker).status in ("ok", "warning")
    assert doctor.memory(settings, docker).status in ("ok", "warning")


def test_an_engine_says_its_versions(in_containers, engine):
    engine()
    found = doctor.engine(in_containers, subject(in_containers))
    assert found.status == "ok"
    assert "engine 28.0.1, API 1.48" in found.found


def test_no_socket(in_containers, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    found = doctor.engine(in_containers, subject(in_containers))
    assert "there is no socket" in found.cause
    assert "systemctl start docker" in found.mend
    assert "DOCKER_HOST" in found.mend


def test_an_engine_that_is_down(in_containers, monkeypatch, tmp_path):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # the file stays, and nobody listens
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    docker = subject(in_containers)
    found = doctor.engine(in_containers, docker)
    assert "nobody listens" in found.cause
    assert "systemctl start docker" in found.mend
    for check in (doctor.image, doctor.inside, doctor.shared_memory, doctor.memory):  # one cause, said once
        assert check(in_containers, docker).status == "skipped"


def test_no_right_to_the_socket(in_containers, engine, monkeypatch):
    engine()

    def refuse(self, address):  # these tests may run as root, who may everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = doctor.engine(in_containers, subject(in_containers))
    assert "no right" in found.cause
    assert "usermod -aG docker" in found.mend


def test_an_engine_that_hangs(in_containers, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_ANSWER_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "hangs.sock"))
        server.listen(5)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/hangs.sock")
        began = time.monotonic()
        found = doctor.engine(in_containers, subject(in_containers))
    assert "does not answer" in found.cause
    assert "restart docker" in found.mend
    assert time.monotonic() - began < 3


def test_an_engine_elsewhere_that_is_not_there(in_containers, refusing, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", refusing.replace("http", "tcp"))
    assert "DOCKER_HOST" in doctor.engine(in_containers, subject(in_containers)).mend


def test_a_network_that_is_not_there_and_more_memory_than_there_is(tmp_path, engine):
    engine()
    settings = Settings(home=tmp_path, runner="docker", docker_network="ml", projects_dir=tmp_path)
    assert "docker network create ml" in doctor.engine(settings, subject(settings)).mend
    settings = Settings(home=tmp_path, runner="docker", docker_memory="64g", projects_dir=tmp_path)
    assert doctor.engine(settings, subject(settings)).status == "warning"


# ---- the image


@pytest.mark.parametrize(
    ("image", "status", "words"),
    [
        (__version__, "ok", f"ssl-core {__version__}"),
        ("0.0.7", "failed", f"ssl-core 0.0.7, and this is ssl-core {__version__}"),
        ("", "failed", "no ssl-core"),
        (None, "failed", "not on this Docker engine"),
    ],
)
def test_the_image(image, status, words, in_containers, engine):
    engine(image=image)
    found = doctor.image(in_containers, subject(in_containers))
    assert found.status == status
    assert DEFAULT_IMAGE in found.found + found.cause
    assert words in found.found + found.cause
    assert status == "ok" or "make images" in found.mend


def test_an_image_of_a_registry_is_pulled_by_the_first_step(tmp_path, engine):
    engine(image=None)
    settings = Settings(home=tmp_path, runner="docker", docker_image="registry.example/team/x:1", projects_dir=tmp_path)
    found = doctor.image(settings, subject(settings))
    assert (found.status, found.mend) == ("warning", "docker pull registry.example/team/x:1")


# ---- inside


def test_inside_the_image(in_containers, engine):
    fake = engine(prints="noise\n" + json.dumps(FINE))
    docker = subject(in_containers)
    found = doctor.inside(in_containers, docker)
    assert found.status == "ok", found
    assert "user 10001" in found.found
    assert doctor.shared_memory(in_containers, docker).status == "ok"
    assert doctor.memory(in_containers, docker).status == "ok"
    assert (len(fake.made), fake.removed) == (1, 1)  # one container answers three questions, and is gone


def test_what_fails_inside_is_told_with_its_mend(in_containers, engine):
    bad = {"status": "failed", "cause": "an artifact cannot be written", "mend": "see the server's log"}
    engine(prints=json.dumps(FINE | {"findings": {"artifacts": bad}, "shm": 2**20, "memory": None}))
    docker = subject(in_containers)
    found = doctor.inside(in_containers, docker)
    assert found.status == "failed"
    assert "MLflow artifacts: an artifact cannot be written" in found.cause
    assert found.mend == "see the server's log"
    assert doctor.shared_memory(in_containers, docker).status == "failed"
    assert doctor.memory(in_containers, docker).status == "warning"


@pytest.mark.parametrize(
    ("given", "words", "mend"),
    [
        ({"prints": "", "code": 137}, "out of memory", "SSL_DOCKER_MEMORY"),
        ({"prints": "", "code": 1}, "ended with 1", "make images"),
        ({"refuses": 'exec: "python": executable file not found in $PATH'}, "no Python", "make images"),
        ({"refuses": "invalid mount config: bind source path does not exist: /x"}, "folders", "engine on this machine"),
        ({"refuses": "something new"}, "something new", "docker info"),
        ({"image": None}, "", ""),
    ],
)
def test_a_container_that_cannot_answer(given, words, mend, in_containers, engine):
    fake = engine(**given)
    found = doctor.inside(in_containers, subject(in_containers))
    assert found.status == ("skipped" if given.get("image", 1) is None else "failed")
    assert words in found.cause
    assert mend in found.mend
    assert fake.removed == ("prints" in given)


def test_an_image_of_an_older_ssl_core(in_containers, engine):
    engine().errors = "python: No module named ssl_core.doctor"
    found = doctor.inside(in_containers, subject(in_containers))
    assert "does not hold this ssl-core" in found.cause


def test_what_an_interrupted_doctor_left_is_removed(in_containers, engine):
    fake = engine(prints=json.dumps(FINE))
    fake.left = [{"Id": "old", "Created": time.time() - 3600}, {"Id": "of-another-doctor", "Created": time.time() - 5}]
    doctor.inside(in_containers, subject(in_containers))
    assert fake.removed == 2  # the old one and its own


def test_credentials_of_a_file_do_not_reach_into_a_container(in_containers, engine):
    bad = {"status": "failed", "cause": "s3://b/store: no AWS credentials were found", "mend": "set AWS_PROFILE"}
    engine(prints=json.dumps(FINE | {"findings": {"store": bad}}))
    found = doctor.inside(in_containers, subject(in_containers))
    assert "ssl_s3" in found.mend
    assert "AWS_PROFILE" not in found.mend


def test_secrets_are_in_the_environment_of_the_container_and_nowhere_else(in_containers, engine, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "xyzzy-secret")
    fake = engine(prints=json.dumps(FINE))
    doctor.inside(in_containers, subject(in_containers))
    made = fake.made[0]
    assert "AWS_SECRET_ACCESS_KEY=xyzzy-secret" in made.pop("Env")
    assert "xyzzy" not in json.dumps(made)


def test_loopback_from_a_network_of_containers(tmp_path, engine):
    fake = engine(prints=json.dumps(FINE))
    settings = Settings(home=tmp_path, runner="docker", docker_network="bridge", projects_dir=tmp_path)
    found = doctor.inside(settings, subject(settings))
    assert "MLFLOW_TRACKING_URI is http://127.0.0.1:5000" in found.cause
    assert "SSL_DOCKER_NETWORK" in found.mend
    assert fake.made == []


# ---- GPUs


@pytest.mark.parametrize(
    ("said", "refuses", "status", "words"),
    [
        ({"devices": 2, "cuda": "13.0", "torch": "2.13.0"}, "", "ok", "2 visible"),
        ({"devices": 1, "cuda": "13.0"}, "", "failed", "the engine has 1"),
        ({"devices": 0, "cuda": "13.0"}, "", "failed", "sees no GPU"),
        ({"devices": 2, "cuda": None}, "", "failed", "torch for the CPU"),
        ({}, 'could not select device driver "" with capabilities: [[gpu]]', "failed", "can give no GPU"),
    ],
)
def test_gpus(said, refuses, status, words, tmp_path, engine):
    fake = engine(prints=json.dumps(said), refuses=refuses)
    settings = Settings(home=tmp_path, runner="docker", docker_gpus=2, projects_dir=tmp_path)
    found = doctor.gpu(settings, subject(settings))
    assert found.status == status
    assert words in found.found + found.cause
    assert status == "ok" or "SSL_DOCKER_GPUS" in found.mend
    assert fake.made[0]["HostConfig"]["DeviceRequests"]


def test_no_gpu_is_asked_for(in_containers, engine):
    engine()
    assert doctor.gpu(in_containers, subject(in_containers)).status == "skipped"
