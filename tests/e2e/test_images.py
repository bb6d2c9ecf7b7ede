"""The images, built for real and run as the Docker runner runs them: no rights, no writable file system, an unknown user."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssl_core import __version__
from ssl_core.pipeline import source_digest
from tests.e2e.tools.images import (
    REPOSITORY,
    airflow_image,
    build,
    docker,
    in_image,
    mlflow_image,
    training_image,
)

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

IMAGES = {"training": training_image, "airflow": airflow_image, "mlflow": mlflow_image}
LARGEST = {"training": 1.8e9, "airflow": 0.6e9, "mlflow": 1.0e9}
REBUILD_SECONDS = 20
SECRET = re.compile(r"secret|password|passwd|token|credential|(access|api|private)_?key", re.IGNORECASE)
TINY = """name: tiny
data: {source: sample://digits}
pretrain: {epochs: 2, batch_size: 128, checkpoint_seconds: 0, threads: 1}
task: {epochs: 2, seeds: 1}
evaluate: {draws: 3, bootstrap: 100}
"""
LOOK = "from urllib.request import urlopen; print(urlopen('http://mlflow:5000/health', timeout=5).read())"


def inspect(image: str) -> dict[str, Any]:
    return dict(json.loads(docker("image", "inspect", image))[0])


@pytest.fixture
def network() -> Iterator[str]:
    """Containers see each other there, and nothing else: what phones home, or fetches something late, fails."""
    name = f"ssl-core-test-{uuid.uuid4().hex[:8]}"
    docker("network", "create", "--internal", name)
    yield name
    docker("network", "rm", name)


@pytest.fixture
def mlflow(network: str) -> Iterator[str]:
    """The MLflow image as a service, with the defaults of the image."""
    name = f"{network}-mlflow"
    docker(
        "run", "-d", "--name", name, "--network", network, "--network-alias", "mlflow", "--read-only", "--tmpfs=/tmp",
        "--cap-drop=ALL", "--security-opt=no-new-privileges", "-e", "MLFLOW_SERVER_ALLOWED_HOSTS=mlflow:5000",
        "--health-interval=1s", mlflow_image(),
    )  # fmt: skip
    try:
        yield name
    finally:
        docker("rm", "-f", "-v", name)


def wait_until_healthy(container: str) -> None:
    deadline = time.monotonic() + 120
    while docker("inspect", "-f", "{{.State.Health.Status}}", container).strip() != "healthy":
        assert time.monotonic() < deadline, docker("logs", container)
        time.sleep(0.5)


@pytest.mark.parametrize("name", IMAGES)
class TestEachImage:
    def test_it_is_what_its_labels_say(self, name: str) -> None:
        labels = inspect(IMAGES[name]())["Config"]["Labels"]
        assert labels["org.opencontainers.image.version"] == __version__
        assert labels.get("ssl-core.version", __version__) == __version__
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])
        assert name in labels["org.opencontainers.image.title"].lower()

    def test_it_is_small(self, name: str) -> None:
        size = inspect(IMAGES[name]())["Size"]
        print(f"\n{IMAGES[name]()}: {size / 1e6:.0f} MB")
        assert size <= LARGEST[name]

    def test_it_runs_as_a_user_without_rights(self, name: str) -> None:
        said = docker("run", "--rm", "--entrypoint=sh", IMAGES[name](), "-c", "id -u; id -g; touch /opt/venv/x || true")
        assert said.split()[:2] == ["10001", "10001"]
        assert "Permission denied" in said

    def test_it_holds_no_secret(self, name: str) -> None:
        history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGES[name]())
        environment = "\n".join(inspect(IMAGES[name]())["Config"]["Env"])
        assert not SECRET.findall(history + environment)
        assert (
            in_image(
                IMAGES[name](),
                "find / -xdev \\( -name .git -o -name .env -o -name .ssl \\) -not -path '/proc/*' 2>/dev/null || true",
            )
            == ""
        )

    def test_nothing_is_compiled_when_it_starts(self, name: str) -> None:
        # What has no bytecode costs every container the time to compile it. A few files are not meant to be compiled.
        look = (
            "import pathlib, importlib.util as u\n"
            "sources = [str(p) for p in pathlib.Path('/opt').rglob('*.py')]\n"
            "print(len(sources), sum(pathlib.Path(u.cache_from_source(p)).exists() for p in sources))\n"
        )
        sources, compiled = map(int, in_image(IMAGES[name](), "python -", stdin=look).split())
        assert compiled >= 0.99 * sources > 0


class TestTrainingImage:
    def test_it_holds_this_code(self) -> None:
        # Another digest, and a step's outputs would be others' in a container and beside it.
        look = "from ssl_core.pipeline import source_digest as d; print(d())"
        assert in_image(training_image(), f"ssl-core --version; python -c '{look}'").split() == [
            "ssl-core,", "version", __version__, source_digest(),
        ]  # fmt: skip

    def test_the_heavy_packages_load_without_a_home(self) -> None:
        look = "import torch, mlflow, great_expectations, dvc, matplotlib.pyplot, scipy.stats, sklearn, boto3, s3fs; print(torch.ones(2).sum().item())"
        assert in_image(training_image(), f"python -W error::UserWarning -c '{look}'").strip() == "2.0"

    def test_every_library_survived_the_slimming(self) -> None:
        look = (
            "import ctypes, pathlib, site, torch, pyarrow.dataset, scipy.linalg, sklearn.svm, pandas\n"
            "for path in pathlib.Path(site.getsitepackages()[0]).rglob('*.so*'):\n"
            "    ctypes.CDLL(str(path))\n"
            "import os; os._exit(0)\n"  # some are plugins that cannot be unloaded in peace
        )
        in_image(training_image(), "python -", stdin=look)

    def test_git_works_for_a_user_that_nobody_knows(self) -> None:
        # Another's repository, as a mounted one is to the job.
        said = in_image(
            training_image(),
            "git init -q --bare /scratch/data.git && git clone -q /scratch/data.git /scratch/clone 2>/dev/null; "
            "ssh -G git.example.invalid | grep ^user; git ls-remote git@git.example.invalid:data.git 2>&1 || true",
            "--network=none",
        )
        assert "user ssl" in said
        assert "No user exists" not in said
        assert "Could not resolve hostname" in said

    def test_a_project_of_anothers_is_no_concern_of_git(self) -> None:
        assert in_image(training_image(), "git config --get safe.directory").strip() == "*"

    def test_the_version_must_be_true(self) -> None:
        with pytest.raises(RuntimeError, match=f"VERSION=9.9.9, but this is ssl-core {re.escape(__version__)}"):
            build("training", version="9.9.9")

    def test_a_changed_source_file_is_in_the_image_within_seconds(self, tmp_path: Path) -> None:
        training_image()  # all else is cached
        for part in ("docker", "requirements", "ssl_core"):
            shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in (".dockerignore", "pyproject.toml", "README.md", "LICENSE", "Makefile"):
            shutil.copy2(REPOSITORY / part, tmp_path / part)
        with (tmp_path / "ssl_core" / "errors.py").open("a") as file:
            file.write(f"\nCHANGED = {uuid.uuid4().hex!r}\n")
        began = time.monotonic()
        build("training", source=tmp_path, tag="changed")
        took = time.monotonic() - began
        try:
            print(f"\nrebuilt in {took:.1f} s after a change of one source file")
            assert (
                in_image(
                    "ssl-core-training:changed", "python -c 'import ssl_core.errors as e; print(len(e.CHANGED))'"
                ).strip()
                == "32"
            )
        finally:
            docker("rmi", "ssl-core-training:changed")
        assert took < REBUILD_SECONDS

    def test_a_project_from_raw_data_to_champion(self, network: str, mlflow: str) -> None:
        wait_until_healthy(mlflow)
        said = in_image(
            training_image(),
            "cat > /scratch/tiny.yaml && ssl-core run /scratch/tiny.yaml",
            f"--network={network}", "-e", "MLFLOW_TRACKING_URI=http://mlflow:5000", "-e", "SSL_HOME=/scratch/home",
            stdin=TINY,
        )  # fmt: skip
        assert "tiny version 1 is the champion" in said or "--approve" in said
        assert "Traceback" not in said


def test_the_mlflow_server_answers_and_needs_nobody_else(network: str, mlflow: str) -> None:
    wait_until_healthy(mlflow)
    assert "OK" in docker("run", "--rm", "--network", network, "--entrypoint=python", mlflow_image(), "-c", LOOK)
    assert "psycopg2" in docker("exec", mlflow, "python", "-c", "import psycopg2; print(psycopg2.__name__)")
    packages = docker(
        "exec",
        mlflow,
        "python",
        "-c",
        "import importlib.util as u; print([n for n in ('torch', 'ssl_core', 'dvc') if u.find_spec(n)])",
    )
    assert packages.strip() == "[]"


class TestAirflowImage:
    HOME = ("--user=10001:10001", "--volume=/home/ssl", "--network=none")

    def test_it_is_airflow(self) -> None:
        assert in_image(airflow_image(), "airflow version", *self.HOME).split()[-1] == "3.3.2"

    def test_it_makes_the_dags_of_a_project(self) -> None:
        look = "import ssl_dags.bundle, ssl_dags.runners.docker; from ssl_dags.templates import render; print(*sorted(render('/tmp/tiny.yaml')))"
        said = in_image(airflow_image(), f'cat > /tmp/tiny.yaml && python -c "{look}"', *self.HOME, stdin=TINY)
        assert {"tiny.ingest", "tiny.pretrain", "tiny.finetune"} <= set(said.split())

    def test_its_plugins_and_its_bundle_are_found(self) -> None:
        said = in_image(
            airflow_image(),
            "airflow plugins; airflow config get-value dag_processor dag_bundle_config_list",
            *self.HOME,
        )
        assert "ssl_mlflow" in said
        assert "ssl_dags.bundle.ProjectsBundle" in said
