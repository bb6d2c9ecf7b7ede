"""This machine: settings, Python and packages, git, ports, disks, memory, what our processes listen on, files of secrets."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import ssl_core
from ssl_core import __version__
from ssl_core.config.settings import Settings, expand
from ssl_core.daemon import free_port, port_taken
from ssl_core.doctor.finding import Finding, failed, ok, skipped, warning, worst
from ssl_core.errors import UserError
from ssl_core.registry.server import server_status
from ssl_core.services import airflow, orphans
from ssl_core.services.environment import AIRFLOW_VERSION, airflow_home, check_environment, password_file

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PYTHONS = ((3, 11), (3, 12))
_GIT = (2, 28)  # `git init --initial-branch`
_GIB = 2**30
# Below the first a step fails soon, below the second one large dataset fills it.
_DISK = {"home": (1.0, 5.0), "cache": (1.0, 5.0), "tmp": (0.5, 2.0)}
_FEWEST_INODES = 0.02
_LITTLE_MEMORY = 2 * _GIB
_LITTLE_SHM = 64 * 2**20
_LOCK = Path(ssl_core.__file__).resolve().parent.parent / "requirements" / "training.txt"
_ASK_VERSIONS = """
import importlib.metadata as m
for name in ("ssl-core", "apache-airflow-providers-docker"):
    try:
        print(m.version(name))
    except m.PackageNotFoundError:
        print("none")
"""
# SSL_* variables that are no settings: other programs', and those a runner gives to a step.
_NOT_SETTINGS = {
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_STEP_SPEC", "SSL_RESULT_PATH", "SSL_PARENT_PID", "SSL_PLATFORM_ID",
}  # fmt: skip


# ---- settings


def settings_read(settings: Settings) -> Finding:
    """A misspelt variable is ignored by everything else; here it is named."""
    known = {f"SSL_{name.upper()}" for name, field in Settings.model_fields.items() if not field.validation_alias}
    problems = []
    for name in sorted(os.environ):
        if name.startswith("SSL_") and name not in known | _NOT_SETTINGS:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            if close:
                problems.append(warning(f"{name} is no setting and is ignored", f"export {close[0]}=... instead"))
    return worst(problems, f"home {settings.root}, projects {expand(settings.projects_dir)}, runner {settings.runner}")


# ---- Python, packages, git


def python(settings: Settings) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    found = f"{version}, {sys.executable}"
    wanted = " or ".join(".".join(str(p) for p in pair) for pair in _PYTHONS)
    if sys.version_info[:2] not in _PYTHONS:
        return failed(
            f"Python {version}; {wanted} is needed", "make clean, then make setup with python3.11 on the PATH", found
        )
    if not os.access(settings.job_interpreter, os.X_OK):
        return failed(
            f"the jobs' Python {settings.job_interpreter} cannot be run",
            "unset SSL_JOB_PYTHON, or set it to the python of the training environment",
            found,
        )
    return ok(found)


def packages(settings: Settings) -> Finding:
    """What is installed against the lock file, and where there is none (a wheel) against the package's own pins."""
    problems: dict[str, str] = {}
    needed = _needed("train")
    for requirement in needed:
        installed = _installed(requirement.name)
        if installed is None:
            problems[requirement.name] = f"{requirement.name} is missing"
        elif not requirement.specifier.contains(_public(installed), prereleases=True):
            problems[requirement.name] = f"{requirement.name} is {installed}, not {requirement.specifier}"
    if problems:
        return failed(_first(problems), "make clean, then make setup")
    locked = _locked(_LOCK)
    for name, version in locked.items():
        installed = _installed(name)
        if installed is None:
            problems[name] = f"{name} is missing"
        elif _public(installed) != version:
            problems[name] = f"{name} is {installed}, the lock says {version}"
    if problems:
        return warning(
            f"{len(problems)} of {len(locked)} packages differ from the lock: {_first(problems)}",
            "make clean, then make setup",
        )
    what = f"{len(locked)} packages as locked" if locked else f"{len(needed)} packages as pinned (no lock file here)"
    return ok(f"{what}; ssl-core {__version__}, torch {_installed('torch')}, mlflow {_installed('mlflow')}")


def _needed(extra: str) -> list[Requirement]:
    """What the package itself asks for with an extra, and with those that the extra names."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, metadata.requires("ssl-core") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "ssl-core":
            found += [r for name in requirement.extras for r in _needed(name)]
        else:
            found.append(requirement)
    return found


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """Without the local tag that names a build: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]


def _locked(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    found = (
        re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*$", line) for line in lines
    )  # with a marker: not for every machine
    return {match[1]: _public(match[2]) for match in found if match}


def _first(problems: dict[str, str], shown: int = 4) -> str:
    texts = list(problems.values())
    more = f", and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more


def airflow_environment(settings: Settings) -> Finding:
    venv = settings.airflow_environment
    if not venv.exists():
        return warning(
            f"{venv} is not there: steps run (ssl-core run), schedules and the UI do not",
            "make setup, or set SSL_AIRFLOW_VENV",
        )
    try:
        programs = check_environment(settings)
    except UserError as error:
        return failed(f"{error.place}: {error.cause}", error.next_step)
    answer = subprocess.run(
        [str(programs / "python"), "-I", "-c", _ASK_VERSIONS], capture_output=True, text=True, timeout=10, check=False
    )
    ours, provider = [*answer.stdout.split(), "none", "none"][:2]
    if ours != __version__:
        what = f"holds ssl-core {ours}" if ours != "none" else "does not hold ssl-core"
        return failed(f"{venv} {what}, and this is ssl-core {__version__}", f"rm -r {venv}, then make setup")
    if provider == "none":
        return failed(f"{venv} lacks Airflow's docker provider", f"rm {venv}/.installed, then make setup")
    return ok(f"Airflow {AIRFLOW_VERSION}, its docker provider {provider} and ssl-core {ours} in {venv}")


def git(settings: Settings) -> Finding:
    program = shutil.which("git")
    if program is None:
        return failed("git is not on the PATH, and the data repository needs it", "install git (apt install git)")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)(?:\.\d+)?", said)
    if version is None:
        return failed(f"{program} does not say its version", "install git (apt install git)")
    if (int(version[1]), int(version[2])) < _GIT:
        return failed(f"git is {version[0]}; {_GIT[0]}.{_GIT[1]} or newer is needed", "install a newer git")
    return ok(f"{version[0]}, {program}")


# ---- ports and listening addresses


def ports(settings: Settings) -> Finding:
    """Free, ours, or taken by whom."""
    if settings.airflow_port == settings.mlflow_port and not settings.mlflow_tracking_uri:
        return failed(
            f"Airflow and MLflow cannot both have port {settings.airflow_port}",
            f"export SSL_AIRFLOW_PORT={free_port(settings.airflow_port)}",
        )
    ours = _our_pids(settings)
    wanted = {"Airflow": (settings.airflow_port, "SSL_AIRFLOW_PORT")}
    if not settings.mlflow_tracking_uri:
        wanted["MLflow"] = (settings.mlflow_port, "SSL_MLFLOW_PORT")
    problems, found = [], []
    for name, (port, variable) in wanted.items():
        holders = _listeners(port)
        if not holders and not port_taken(port):
            found.append(f"{name} {port} free")
        elif holders and set(holders) <= ours:
            found.append(f"{name} {port} ours")
        else:
            who = ", ".join(_name(pid) for pid in holders) or "a process of another user"
            problems.append(
                failed(
                    f"port {port} for {name} is taken by {who}",
                    f"export {variable}={free_port(port)}, or end that program",
                )
            )
    return worst(problems, ", ".join(found))


def _our_pids(settings: Settings) -> set[int]:
    """Airflow's processes and MLflow's, as this home started them, with their children."""
    found = {process.pid for process in orphans.marked(settings.root)}
    roots = [r.pid for r in (airflow.daemon(settings, name).record() for name in airflow.COMPONENTS) if r]
    server = server_status(settings).pid
    for pid in [*roots, *([server] if server else [])]:
        found.add(pid)
        try:
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        except psutil.Error:
            continue
    return found


def _listeners(port: int) -> list[int]:
    """Processes that listen on this port of any address; those of other users only root sees."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return []
    return sorted(
        {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid}
    )


def _name(pid: int) -> str:
    """Name and number only: a command line may hold a secret."""
    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return f"process {pid}"


def listening(settings: Settings) -> Finding:
    """What our processes listen on: loopback, or somebody chose otherwise and should know."""
    pids = _our_pids(settings)
    if not pids:
        return skipped("nothing of this home runs")
    local, others = set(), {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                address = f"{connection.laddr.ip}:{connection.laddr.port}"
                if connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                    local.add(address)
                else:
                    others[address] = _name(pid)
    if others:
        said = ", ".join(f"{address} by {who}" for address, who in sorted(others.items()))
        return warning(
            f"other machines may connect to {said}",
            "unset AIRFLOW__API__HOST and what else chose that address, then ssl-core down, ssl-core up; or a firewall",
        )
    return ok(f"loopback only: {', '.join(sorted(local))}" if local else "our processes listen nowhere")


# ---- disks and memory


def disk(settings: Settings) -> Finding:
    folders = {"home": settings.root, "cache": settings.cache, "tmp": Path(tempfile.gettempdir())}
    problems, found = [], []
    for name, folder in folders.items():
        place = existing(folder)
        if not os.access(place, os.W_OK | os.X_OK):
            variable = {"home": "SSL_HOME", "cache": "SSL_CACHE_DIR", "tmp": "TMPDIR"}[name]
            problems.append(
                failed(f"{name} {place} cannot be written", f"set {variable} to a folder that you may write")
            )
            continue
        state = os.statvfs(place)
        free = state.f_bavail * state.f_frsize / _GIB
        little, low = _DISK[name]
        found.append(f"{name} {free:.1f} GiB free")
        mend = "ssl-core gc lists what may go, ssl-core gc --apply removes it"
        if name == "tmp":
            mend = f"empty {place}, or set TMPDIR to a larger disk"
        if free < low:
            make = failed if free < little else warning
            problems.append(make(f"{free:.1f} GiB are free for {name} at {place}", mend))
        elif state.f_files and state.f_favail / state.f_files < _FEWEST_INODES:
            problems.append(warning(f"{state.f_favail} more files fit on the disk of {name} at {place}", mend))
    return worst(problems, ", ".join(found))


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def missing_folders(folder: Path) -> list[Path]:
    """What would be made with ``folder``, the deepest first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108
    size = shm_size(folder)
    if size is None:
        return warning(f"there is no {folder}; PyTorch needs it between processes", "mount a tmpfs there")
    found = f"{folder} has {in_units(size)}"
    if size < _LITTLE_SHM:
        return warning(
            f"{found}, less than {in_units(_LITTLE_SHM)}",
            "mount -o remount,size=1g /dev/shm, or in a container --shm-size",
            found,
        )
    return ok(f"{found} here, where local steps run")


def memory() -> Finding:
    free, limit = psutil.virtual_memory().available, memory_limit()
    if limit is not None:
        free = min(free, limit)
    found = f"{in_units(free)} available here" + (f", this container's limit is {in_units(limit)}" if limit else "")
    if free < _LITTLE_MEMORY:
        return warning(
            f"{in_units(free)} of memory are available; a step takes 1 to 2 GiB",
            "end other programs, or add memory",
            found,
        )
    return ok(found)


def shm_size(folder: Path = Path("/dev/shm")) -> int | None:  # noqa: S108
    """Bytes; None where there is none."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return state.f_blocks * state.f_frsize


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory limit of the container that this runs in, in bytes; None where there is none."""
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        try:
            limit = int(file.read_text())
        except (OSError, ValueError):  # not this version of cgroups, or "max"
            continue
        if limit < psutil.virtual_memory().total:  # version 1 says "none" with a very large number
            return limit
    return None


def in_units(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / 2**20:.0f} MiB"


# ---- files of secrets


def secret_files(settings: Settings) -> Finding:
    """Passwords and keys are for their owner's eyes."""
    home = airflow_home(settings)
    files = [f for f in dict.fromkeys((password_file(settings), home / "secrets.json")) if f.exists()]
    if not files:
        return skipped("there are none yet; ssl-core up makes them")
    problems = []
    for file in files:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            problems.append(failed(f"{file} has mode {mode:04o}: others may read or change it", f"chmod 600 {file}"))
            continue
        try:
            json.loads(file.read_text())
        except PermissionError:
            problems.append(
                failed(f"{file} belongs to another user", "chown it, or set SSL_HOME to a home of your own")
            )
        except ValueError:
            problems.append(failed(f"{file} is damaged", f"ssl-core down, rm {file}, ssl-core up makes a new one"))
    return worst(problems, f"{', '.join(file.name for file in files)} with mode 0600")
