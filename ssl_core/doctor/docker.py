"""Docker: the engine, the training image, and what a step finds inside a container."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ssl_core import __version__
from ssl_core.config.container import (
    NO_GPU_DRIVER,
    held_instead,
    host_limits,
    job_container,
    local_places,
    out_of_reach,
)
from ssl_core.config.runner import DEFAULT_IMAGE, Containers
from ssl_core.config.settings import Settings
from ssl_core.doctor import machine
from ssl_core.doctor.finding import Finding, Once, failed, ok, skipped, warning, worst
from ssl_core.doctor.projects import Projects
from ssl_core.doctor.services import answers

if TYPE_CHECKING:
    from docker import APIClient

INSIDE_SECONDS = 25.0
_PROBE_SECONDS = 20
_LEFT_SECONDS = 300.0
_ANSWER_SECONDS = 5
_SOCKET = "unix:///var/run/docker.sock"
_LABEL = {"ssl.doctor": __version__}
_NAMES = {"artifacts": "MLflow artifacts", "store": "store", "dvc-remote": "DVC remote"}
_NOT_NEEDED = "every step is a local process (SSL_RUNNER, runner: docker)"
_NO_ENGINE = "needs a Docker engine that answers"
_ON_THE_CPU = "to train on the CPU set runner.gpus (SSL_DOCKER_GPUS) to 0"


class Docker:
    """What the checks of containers share. ``said``: what `ssl_core.doctor.inside` said in the first way to make one."""

    def __init__(self, settings: Settings, projects: Projects) -> None:
        self._settings, self._projects = settings, projects
        self.ways = Once(self._ways)
        self.said = Once(self._inside)

    def _ways(self) -> list[Containers]:
        from ssl_core.config.runner import RunnerConfig, containers

        found = self._projects.containers()
        if not found and self._settings.runner == "docker":
            found = [containers(RunnerConfig(), self._settings)]
        return found

    def _inside(self) -> dict[str, Any] | Finding:
        """The document of a container that was made as a job's is, or why there is none."""
        client = connect()
        if isinstance(client, Finding):
            return skipped(_NO_ENGINE)
        way = self.ways()[0]
        if _inspect(client, way.image) is None:
            return skipped(f"needs the image {way.image}")
        names = ["store", "dvc-remote", *(["artifacts"] if answers(self._settings) else [])]
        command = ["python", "-m", "ssl_core.doctor.inside", "--seconds", str(INSIDE_SECONDS), *names]
        return run(client, way, self._settings, command, INSIDE_SECONDS + 8)


# ---- the engine


def engine(settings: Settings, docker: Docker) -> Finding:
    if not docker.ways():
        return skipped(_NOT_NEEDED)
    client = connect()
    if isinstance(client, Finding):
        return client
    version = client.version()
    here = f"{address()}: engine {version.get('Version')}, API {version.get('ApiVersion')}"
    info = client.info()
    missing = [
        way.network
        for way in docker.ways()
        if way.network not in ("host", "bridge", "none") and not client.networks(names=[way.network])
    ]
    if missing:
        return failed(
            f"there is no network {missing[0]}", f"docker network create {missing[0]}, or set SSL_DOCKER_NETWORK", here
        )
    limits = [way.memory for way in docker.ways() if way.memory and way.memory > info.get("MemTotal", way.memory)]
    if limits:
        return warning(
            f"containers may take {machine.in_units(max(limits))}, and the engine has {machine.in_units(info['MemTotal'])}",
            "lower runner.memory (SSL_DOCKER_MEMORY)",
            here,
        )
    return ok(f"{here}, {info.get('NCPU')} CPUs, {machine.in_units(info.get('MemTotal', 0))}")


def address() -> str:
    return os.environ.get("DOCKER_HOST") or _SOCKET


def connect() -> APIClient | Finding:
    """A client of the engine that ``DOCKER_HOST`` names, else of this machine's; or why there is none."""
    url = address()
    parts = urlsplit(url)
    if parts.scheme == "unix":
        problem = _socket_problem(Path(parts.netloc + parts.path))
        if problem is not None:
            return problem
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.APIClient(version="auto", timeout=_ANSWER_SECONDS, **docker.utils.kwargs_from_env())
        client.ping()
    except (DockerException, RequestException, OSError) as error:
        causes = _chain(error)
        if "Permission denied" in causes:
            return _no_right(url)
        if "too new" in causes or "too old" in causes:
            return failed(
                f"the engine at {url} and the docker package do not speak one API: {error}", "update the Docker engine"
            )
        if "timed out" in causes or "Read timed out" in causes:
            return failed(
                f"the Docker engine at {url} does not answer",
                "sudo systemctl restart docker; journalctl -u docker says why",
            )
        return failed(
            f"no Docker engine answers at {url}",
            "start it, or correct DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH",
        )
    return client


def _socket_problem(path: Path) -> Finding | None:
    """Missing, not ours, or nobody behind it: three mends."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except PermissionError:
            return _no_right(str(path))
        except FileNotFoundError:
            return failed(
                f"there is no socket {path}: Docker is not installed or not started",
                "sudo systemctl start docker; for another engine (rootless, Docker Desktop) set DOCKER_HOST: docker context ls",
            )
        except (ConnectionRefusedError, NotADirectoryError):
            return failed(
                f"nobody listens at {path}: the Docker engine is down",
                "sudo systemctl start docker, or correct DOCKER_HOST",
            )
        except TimeoutError:
            return failed(f"the Docker engine at {path} does not answer", "sudo systemctl restart docker")
        except OSError as error:
            return failed(f"{path}: {error.strerror or error}", "correct DOCKER_HOST")
    return None


def _no_right(where: str) -> Finding:
    return failed(
        f"no right to talk to the Docker engine at {where}",
        "sudo usermod -aG docker $USER, log in again, then ssl-core down and ssl-core up",
    )


def _chain(error: BaseException | None) -> str:
    texts: list[str] = []
    while error is not None and len(texts) < 20:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return " ".join(texts)


# ---- the image


def image(settings: Settings, docker: Docker) -> Finding:
    """Present, and of this version of ssl-core."""
    if not docker.ways():
        return skipped(_NOT_NEEDED)
    client = connect()
    if isinstance(client, Finding):
        return skipped(_NO_ENGINE)
    problems, found = [], []
    for name in dict.fromkeys(way.image for way in docker.ways()):
        there = _inspect(client, name)
        if there is None:
            problems.append(_absent(name))
            continue
        if holds := held_instead(there):
            problems.append(failed(f"{name} holds {holds}, and this is ssl-core {__version__}", "make images"))
        found.append(
            f"{name}, ssl-core {__version__}, {machine.in_units(there.get('Size', 0))}, made {str(there.get('Created'))[:10]}"
        )
    return worst(problems, "; ".join(found))


def _inspect(client: APIClient, name: str) -> dict[str, Any] | None:
    from docker.errors import ImageNotFound, NotFound

    try:
        return dict(client.inspect_image(name))
    except (ImageNotFound, NotFound):
        return None


def _absent(name: str) -> Finding:
    first = name.partition("/")[0]
    if "/" in name and ("." in first or ":" in first or first == "localhost"):
        return warning(f"{name} is not on this engine; the first step pulls it", f"docker pull {name}")
    mend = "make images" if name == DEFAULT_IMAGE else "make images, or correct runner.image (SSL_DOCKER_IMAGE)"
    return failed(f"the image {name} is not on this Docker engine", mend)


# ---- inside a container


def inside(settings: Settings, docker: Docker) -> Finding:
    """MLflow's artifacts, the store and the DVC remote, written, read and deleted as a job would."""
    if not docker.ways():
        return skipped(_NOT_NEEDED)
    way = docker.ways()[0]
    if out_of_reach := _loopback_addresses(settings, way):
        return out_of_reach
    said = docker.said()
    if isinstance(said, Finding):
        return said
    problems, fine = [], []
    for name, raw in said["findings"].items():
        found = Finding(**raw)
        if found.status in ("failed", "warning"):
            problems.append(Finding(found.status, "", f"{_NAMES[name]}: {found.cause}", _for_containers(found, way)))
        else:
            fine.append(_NAMES[name])
    if said["version"] != __version__:
        problems.append(failed(f"the image holds ssl-core {said['version']}, and this is {__version__}", "make images"))
    more = len(docker.ways()) - 1
    also = (
        f" ({more} more way{'s' if more > 1 else ''} to make containers: ssl-core doctor PROJECT)" if more > 0 else ""
    )
    if "artifacts" not in said["findings"]:
        also += "; MLflow not tried, it does not answer here"
    return worst(
        problems,
        f"{', '.join(fine)} written, read, deleted as user {said['user']} on network {way.network}, "
        f"Python {said['python']}{also}",
    )


def _loopback_addresses(settings: Settings, way: Containers) -> Finding | None:
    """Addresses of this machine's loopback, which another network than the host's does not reach: jobs are refused for them."""
    found = out_of_reach(settings.job_environment()[0], way.network)
    if found is None:
        return None
    return failed(
        f"{found[0]} is {found[1]}, which containers on the network {way.network} cannot reach",
        "set it to an address on that network, or set runner.network (SSL_DOCKER_NETWORK) to host",
    )


def _for_containers(found: Finding, way: Containers) -> str:
    """A container has a network of its own, and none of this machine's files."""
    if "no AWS credentials" in found.cause:
        return (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where the platform is started, or Airflow's connection ssl_s3: "
            "profiles of this machine are not there in a container"
        )
    if way.network != "host" and ("reached" in found.cause or "answers" in found.cause):
        return f"set an address that the network {way.network} reaches, or SSL_DOCKER_NETWORK=host"
    return found.mend


def shared_memory(settings: Settings, docker: Docker) -> Finding:
    if not docker.ways():
        return machine.shared_memory()
    said = docker.said()
    if isinstance(said, Finding):
        return skipped(said.found or "see `inside the image`")
    wanted, has = docker.ways()[0].shm, said["shm"] or 0
    # The kernel counts in pages.
    if has < wanted * 0.99:
        return failed(
            f"it has {machine.in_units(has)} in a container, and {machine.in_units(wanted)} are configured",
            "set runner.shm (SSL_DOCKER_SHM); the engine overrode it (default-shm-size)",
        )
    return ok(f"{machine.in_units(has)} in a container, as configured")


def memory(settings: Settings, docker: Docker) -> Finding:
    if not docker.ways():
        return machine.memory()
    said = docker.said()
    if isinstance(said, Finding):
        return skipped(said.found or "see `inside the image`")
    wanted, has = docker.ways()[0].memory, said["memory"]
    if has is None:
        return warning(
            "the engine does not limit a container's memory",
            "turn on the kernel's memory cgroup (docker info warns of it)",
        )
    if wanted is not None and has > wanted * 1.01:
        return warning(
            f"a container may take {machine.in_units(has)}, not {machine.in_units(wanted)}", "see docker info"
        )
    return ok(f"a container may take {machine.in_units(has)}" + ("" if wanted else ", nine tenths of the engine's"))


def gpu(settings: Settings, docker: Docker) -> Finding:
    """Whether the image sees the GPUs that steps ask for, and its torch can use them."""
    if not docker.ways():
        return skipped(_NOT_NEEDED)
    ways = [way for way in docker.ways() if way.gpus]
    if not ways:
        return skipped("no step asks for one (runner.gpus, SSL_DOCKER_GPUS)")
    client = connect()
    if isinstance(client, Finding):
        return skipped(_NO_ENGINE)
    way = max(ways, key=lambda each: each.gpus)
    if _inspect(client, way.image) is None:
        return skipped(f"needs the image {way.image}")
    said = _probe(client, way.image)
    return said if isinstance(said, Finding) else _judge(said, way)


def _probe(client: APIClient, image: str) -> dict[str, Any] | Finding:
    from docker.types import DeviceRequest

    config = client.create_host_config(
        network_mode="none", cap_drop=["ALL"], device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])]
    )
    command = ["python", "-m", "ssl_core.gpu_probe"]
    return _run(client, {"image": image, "command": command, "host_config": config}, _PROBE_SECONDS)


def _judge(said: Mapping[str, Any], way: Containers) -> Finding:
    devices, cuda = int(said.get("devices", 0)), said.get("cuda")
    if devices < 1:
        return failed(
            f"{way.image} sees no GPU", f"docker run --rm --gpus all {way.image} nvidia-smi says why; or {_ON_THE_CPU}"
        )
    if not cuda:
        return failed(
            f"{way.image} holds a torch for the CPU", f"build it for CUDA (docs/containers.md); or {_ON_THE_CPU}"
        )
    if devices < way.gpus:
        return failed(
            f"{way.gpus} GPUs are asked for, the engine has {devices}",
            f"set runner.gpus (SSL_DOCKER_GPUS) to at most {devices}",
        )
    return ok(f"{devices} visible in {way.image}, torch {said.get('torch')} for CUDA {cuda}")


# ---- a container as a job's


def run(
    client: APIClient, way: Containers, settings: Settings, command: list[str], seconds: float
) -> dict[str, Any] | Finding:
    """The JSON that ``command`` prints in a container with a job's network, environment, user, mounts and limits."""
    # A folder that is not there cannot be mounted; `ssl-core up` makes it, and before that it shall not stay.
    made = [folder for place in local_places(settings) for folder in machine.missing_folders(place)]
    for folder in made:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return _run(client, {**as_a_job(client, way, settings), "image": way.image, "command": command}, seconds)
    finally:
        for folder in made:
            with suppress(OSError):  # not empty: somebody else has begun to use it
                folder.rmdir()


def as_a_job(client: APIClient, way: Containers, settings: Settings) -> dict[str, Any]:
    """What ``create_container`` gets, but for image and command: the same that a job gets from the Docker runner."""
    engine = client.info()
    return {
        **job_container(way, settings, *settings.job_environment(), engine),
        "host_config": client.create_host_config(**host_limits(way, settings, engine)),
    }


def _run(client: APIClient, container: dict[str, Any], seconds: float) -> dict[str, Any] | Finding:
    """What the container prints on its last line; it is removed in any case. A refusal of the engine is a finding."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    made = ""
    image = container["image"]
    try:
        _sweep(client)
        made = str(client.create_container(labels=_LABEL, **container)["Id"])
        client.start(made)
        code = client.wait(made, timeout=seconds)["StatusCode"]
        said = client.logs(made, stdout=True, stderr=False).decode(errors="replace").strip()
        errors = client.logs(made, stdout=False, stderr=True).decode(errors="replace").strip()
        killed = client.inspect_container(made)["State"].get("OOMKilled")
    except APIError as error:
        return _refused(image, str(error.explanation or error))
    except RequestException:
        return failed(
            f"a container of {image} did not end within {seconds:g} s",
            "docker ps, docker stats: is the engine's host overloaded?",
        )
    finally:
        if made:
            with suppress(APIError, RequestException):
                client.remove_container(made, force=True, v=True)
    try:
        return dict(json.loads(said.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        if killed or code == 137:
            return failed(f"{image}: out of memory (exit code 137)", "raise runner.memory (SSL_DOCKER_MEMORY)")
        last = (errors.splitlines() or said.splitlines() or ["no output"])[-1]
        if "No module named" in last:
            return failed(f"{image} does not hold this ssl-core: {last}", "make images")
        return failed(f"{image} ended with {code}: {last[:300]}", "make images")


def _sweep(client: APIClient) -> None:
    """What doctors left that were interrupted: their containers end by themselves, and stay until somebody removes them."""
    for each in client.containers(all=True, filters={"label": list(_LABEL), "status": "exited"}):
        if time.time() - float(each["Created"]) > _LEFT_SECONDS:
            client.remove_container(each["Id"], force=True, v=True)


_REFUSALS: tuple[tuple[tuple[str, ...], str, Callable[[str], str]], ...] = (
    (NO_GPU_DRIVER, "the engine can give no GPU to a container", lambda image: f"install NVIDIA's driver and container toolkit; or {_ON_THE_CPU}"),
    (("executable file not found",), "there is no Python with ssl-core in it", lambda image: "make images"),
    (("bind source path does not exist",), "the engine does not have this machine's folders", lambda image: "use an engine on this machine, or keep store, data repository and DVC remote in S3 and Git"),
    (("network",), "there is no such network", lambda image: "docker network ls; set runner.network (SSL_DOCKER_NETWORK)"),
    (("Range of CPUs",), "the engine has fewer CPUs", lambda image: "lower runner.cpus (SSL_DOCKER_CPUS)"),
    (("Minimum memory limit",), "so little memory is not possible", lambda image: "raise runner.memory (SSL_DOCKER_MEMORY)"),
    (("invalid reference format",), "this is no name of an image", lambda image: "correct runner.image (SSL_DOCKER_IMAGE)"),
)  # fmt: skip


def _refused(image: str, said: str) -> Finding:
    for signs, cause, mend in _REFUSALS:
        if any(sign in said for sign in signs):
            return failed(f"a container of {image} cannot be started: {cause}", mend(image))
    return failed(f"the Docker engine refused a container of {image}: {said}", "docker info; journalctl -u docker")
