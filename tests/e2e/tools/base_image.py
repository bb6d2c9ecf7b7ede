"""A Docker engine and a base image with Python 3.11, made from Debian's packages where no image registry can be reached.

    python -m tests.e2e.tools.base_image              # what `make images` takes: BASE_IMAGE=... BUILD_IMAGE=...
    make images $(python -m tests.e2e.tools.base_image)

As root on Debian 12 it installs what is missing and starts the engine; elsewhere an engine has to run, and for the base image
``SSL_TEST_BASE_IMAGE=python:3.11-slim-bookworm`` names one that can be pulled.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
# Their tags are digests of what they are made from: they are made again when that changes.
_BASE = "ssl-core-base"
_BUILD = "ssl-core-build"
_WHEELS = "/usr/local/share/wheels"
_TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGES = "python3,python3-venv,ca-certificates"
# What Docker's own Debian images leave out as well.
_LEFT_OUT = (
    "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale",
    "var/cache/apt/archives", "var/lib/apt/lists", "var/cache/debconf", "var/log",
)  # fmt: skip


class NoEngine(RuntimeError):
    """No Docker engine runs, and none can be started here."""


def run(*command: str, timeout: float = 600, check: bool = True, stdin: str | None = None) -> str:
    """What the command wrote to both of its streams; fails with the end of it."""
    done = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)[:300]} ended with {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def _answering_client() -> str | None:
    # Debian's client goes with Debian's engine; another one earlier on the PATH may be too new for it.
    for client in (shutil.which("docker"), "/usr/bin/docker"):
        if client and Path(client).exists():
            try:
                done = subprocess.run(
                    [client, "version", "--format", "{{.Server.Version}}"], capture_output=True, timeout=20, check=False
                )
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0:
                return client
    return None


def engine() -> str:
    """Sees to it that a Docker engine runs; returns the client that can talk to it. Raises ``NoEngine``.

    The engine is left running: it may serve others.
    """
    if client := _answering_client():
        return client
    if os.environ.get("DOCKER_HOST"):
        raise NoEngine("the engine that DOCKER_HOST names does not answer")
    with one_at_a_time("engine"):
        if client := _answering_client():
            return client
        if os.geteuid() != 0:
            raise NoEngine("no Docker engine answers, and only root can start one")
        _install("dockerd", "docker.io", "iptables")
        log = Path(tempfile.gettempdir()) / "ssl-core-dockerd.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if client := _answering_client():
                return client
            time.sleep(0.5)
    raise NoEngine(f"dockerd does not come up; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")


def base_image() -> str:
    """The name of an image with Python 3.11 on Debian 12 that trusts what this machine trusts. The first time: a minute."""
    if given := os.environ.get("SSL_TEST_BASE_IMAGE"):
        return given
    client = engine()
    trusted = _TRUSTED.read_text() if _TRUSTED.exists() else ""
    recipe = f"{inspect.getsource(_make_base)} {_PACKAGES} {_LEFT_OUT} {trusted}"
    name = f"{_BASE}:3.11-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with one_at_a_time("base-image"):
        if not _exists(client, name):
            _make_base(client, name)
    return name


def build_image() -> str:
    """The base image, and the wheels of locked packages that pip's ``find-links`` names on this machine, where there are any."""
    base, client, wheels = base_image(), engine(), _local_wheels()
    if not wheels:
        return base
    listing = "\n".join([base, *(f"{wheel.name} {wheel.stat().st_size}" for wheel in wheels)])
    name = f"{_BUILD}:3.11-{hashlib.sha256(listing.encode()).hexdigest()[:12]}"
    with one_at_a_time("build-image"):
        if not _exists(client, name):
            with tempfile.TemporaryDirectory() as folder:
                for wheel in wheels:
                    shutil.copyfile(wheel, Path(folder) / wheel.name)
                where = f"ENV UV_FIND_LINKS={_WHEELS} PIP_FIND_LINKS={_WHEELS}"
                Path(folder, "Dockerfile").write_text(f"FROM {base}\n{where}\nCOPY *.whl {_WHEELS}/\n")
                run(client, "build", "-q", "-t", name, folder)
    return name


def _make_base(client: str, name: str) -> None:
    if os.geteuid() != 0:
        raise NoEngine("only root can make a base image; SSL_TEST_BASE_IMAGE names one that is there, or can be pulled")
    _install("debootstrap", "debootstrap")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root))
        (root / "usr/bin/python").symlink_to("python3")
        if _TRUSTED.exists():
            shutil.copyfile(_TRUSTED, root / _TRUSTED.relative_to("/"))
        for left_out in _LEFT_OUT:
            for path in (root / left_out).glob("*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (root / "var/cache/apt/archives/partial").mkdir(parents=True, exist_ok=True)
        trust = " ".join(f"{variable}={_TRUSTED}" for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"))
        archive = Path(folder, "root.tar")
        run("tar", "-C", str(root), "-cf", str(archive), ".")
        changes = ("--change", f"ENV {trust} UV_SYSTEM_CERTS=1", "--change", 'CMD ["python3"]')
        run(client, "import", *changes, str(archive), name)


def _local_wheels() -> list[Path]:
    locks = REPOSITORY.glob("requirements/*.txt")
    locked = {line.partition("==")[0] for lock in locks for line in lock.read_text().splitlines()}
    folders: list[str] = []
    for key in ("global.find-links", ":env:.find-links"):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", key], capture_output=True, text=True, check=False
        )
        folders += done.stdout.split()
    wheels = {w.name: w for folder in folders if Path(folder).is_dir() for w in Path(folder).glob("*.whl")}
    return [w for _, w in sorted(wheels.items()) if re.sub(r"[-_.]+", "-", w.name.split("-")[0]).lower() in locked]


def _exists(client: str, image: str) -> bool:
    return subprocess.run([client, "image", "inspect", image], capture_output=True, check=False).returncode == 0


def _install(program: str, *packages: str) -> None:
    if shutil.which(program):
        return
    if not shutil.which("apt-get"):
        raise NoEngine(f"{program} is not installed, and there is no apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=600)


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Among the processes of this machine, so that two test runs do not make the same thing twice."""
    with Path(tempfile.gettempdir(), f"ssl-core-{what}-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(f"BASE_IMAGE={base_image()} BUILD_IMAGE={build_image()}")
