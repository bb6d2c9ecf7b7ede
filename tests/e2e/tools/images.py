"""The platform's images, built once for all tests that need them: ``training_image()`` returns the name to run.

They get the names that `make images` gives, and are only built where what they are made from has changed since.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from ssl_core import __version__
from tests.e2e.tools import base_image as base
from tests.e2e.tools.base_image import REPOSITORY, run

INPUTS = "ssl-core.inputs"
"""Label: digest of all files, and of the base image, that an image was built from."""
_SHARED = ("docker", ".dockerignore", "requirements", "pyproject.toml", "README.md", "LICENSE", "Makefile")
_OF = {"training": ("ssl_core",), "airflow": ("ssl_core", "dags"), "mlflow": ()}
_BUILD_SECONDS = 1200
# As the Docker runner starts a job: a uid that no file knows, nothing writable but the volume and a small /tmp, no rights.
RESTRICTED = (
    "--read-only", "--user=12345:12345", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp",
    "--volume=/scratch", "--init",
)  # fmt: skip


@cache
def engine() -> str:
    """The client of a running Docker engine. Without one the test is skipped; in CI it fails."""
    try:
        return base.engine()
    except base.NoEngine as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@cache
def training_image() -> str:
    """What steps run in."""
    return _built("training")


@cache
def airflow_image() -> str:
    """Airflow with the DAGs."""
    return _built("airflow")


@cache
def mlflow_image() -> str:
    """The MLflow server."""
    return _built("mlflow")


def build(name: str, *flags: str, source: Path = REPOSITORY, version: str = __version__, tag: str = __version__) -> str:
    """`make image-NAME` in ``source``; returns what it said. Fails as it does."""
    client = engine()
    given = [
        f"DOCKER={client}",
        f"VERSION={version}",
        f"TAG={tag}",
        f"BASE_IMAGE={base.base_image()}",
        f"BUILD_IMAGE={base.build_image()}",
    ]
    return run(
        "make", "-C", str(source), f"image-{name}", *given, f"BUILD_FLAGS={' '.join(flags)}", timeout=_BUILD_SECONDS
    )


def docker(*arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
    """What a docker command prints; fails when it does."""
    return run(engine(), *arguments, stdin=stdin, timeout=timeout)


def in_image(image: str, command: str, *options: str, stdin: str | None = None, timeout: float = 300) -> str:
    """What a shell command prints in a restricted container of the image."""
    interactive: Sequence[str] = ("-i",) if stdin is not None else ()
    start = ("run", "--rm", *interactive, *RESTRICTED, *options, "--entrypoint=sh", image)
    return docker(*start, "-euc", command, stdin=stdin, timeout=timeout)


def _built(name: str) -> str:
    client = engine()
    image = f"ssl-core-{name}:{__version__}"
    with base.one_at_a_time("build"):
        inputs = _inputs(name)
        there = run(client, "image", "inspect", "-f", f'{{{{index .Config.Labels "{INPUTS}"}}}}', image, check=False)
        if there.strip() != inputs:
            build(name, f"--label={INPUTS}={inputs}")
    return image


def _inputs(name: str) -> str:
    said = hashlib.sha256(f"{base.base_image()} {base.build_image()}".encode())
    for part in (*_SHARED, *_OF[name]):
        root = REPOSITORY / part
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc")
        for file in files:
            said.update(f"{file.relative_to(REPOSITORY)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return said.hexdigest()


if __name__ == "__main__":
    print(training_image(), airflow_image(), mlflow_image())
