"""How a job's container is made: what it sees, what it may do, and as whom it runs."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ssl_core.config.runner import Containers
from ssl_core.config.settings import Settings
from ssl_dags.runners.base import CannotStart, Job

if TYPE_CHECKING:
    from docker import APIClient

SCRATCH = "/scratch"
RESULT_PATH = f"{SCRATCH}/result.json"
STOP_SECONDS = 3
PLATFORM = "ssl.platform"
GPUS = "ssl.gpus"
_JOB = ("ssl.dag_id", "ssl.run_id", "ssl.task_id", "ssl.map_index")
_CACHE = "/cache"
_CACHE_VOLUME = "ssl-core-cache"
_JOB_UID = "10001:10001"
_MOST_PROCESSES = 4096
_LARGEST_SPEC = 120_000  # the kernel takes no variable of 128 KiB
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# Paths of this machine, which mean nothing in the image: it has its own certificates, and no files of AWS profiles.
_NOT_INSIDE = (
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_JOB_PYTHON", "SSL_AIRFLOW_VENV", "SSL_PROJECTS_DIR", "SSL_PLATFORM_ID",
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to make containers from. ``gpus``: how many this step gets."""

    options: Containers
    settings: Settings
    gpus: int = 0


def labels_of(job: Job, settings: Settings) -> dict[str, str]:
    """All labels of a job's container."""
    return {**job.labels, PLATFORM: str(settings.root)}


def identity(job: Job, settings: Settings) -> list[str]:
    """``label=value`` of what a try and its successors have in common."""
    labels = labels_of(job, settings)
    return [f"{name}={labels[name]}" for name in (PLATFORM, *_JOB) if name in labels]


def name_of(job: Job, settings: Settings) -> str:
    """The container's name: the same for each try of a task instance, so that the engine itself refuses a second one."""
    digest = hashlib.sha256("\n".join(identity(job, settings)).encode()).hexdigest()[:12]
    readable = re.sub(r"[^a-zA-Z0-9_.-]+", "-", f"{job.labels.get('ssl.dag_id', 'ssl')}-{job.step}")
    return f"ssl-{readable[:80]}-{digest}"


def create(client: APIClient, job: Job, plan: Plan, gpu_ids: list[str]) -> str:
    """Makes the container, not started, and returns its id. Raises docker's own errors, and ``CannotStart``."""
    from docker.types import Mount

    options, settings = plan.options, plan.settings
    if len(job.spec) > _LARGEST_SPEC:
        raise CannotStart(f"the step's spec has {len(job.spec)} bytes; a container takes {_LARGEST_SPEC}")
    places = local_places(settings)
    _check_addresses(job, options.network)
    mounts = [Mount(SCRATCH, None, type="volume")]
    mounts += [Mount(str(place), str(place), type="bind") for place in places]
    mounts += [Mount(path, path, type="bind", read_only=True) for path in job.reads]
    if not places:
        mounts.append(Mount(_CACHE, _CACHE_VOLUME, type="volume"))
    container: dict[str, Any] = client.create_container(
        options.image,
        command=["python", "-m", "ssl_core.cli", "step", job.step],
        name=name_of(job, settings),
        labels=labels_of(job, settings) | ({GPUS: ",".join(gpu_ids)} if gpu_ids else {}),
        environment=_environment(job, options, settings, bool(places)),
        user=_user(bool(places)),
        working_dir=SCRATCH,
        stop_signal="SIGTERM",
        host_config=_host_config(client, options, mounts, gpu_ids),
    )
    return str(container["Id"])


def local_places(settings: Settings) -> list[Path]:
    """The folders of this machine that jobs write: none where store, data repository and DVC remote are all elsewhere."""
    candidates = [_local(settings.store_url), _local(settings.data_repo_url), _local(settings.dvc_remote_url)]
    places = [path for path in candidates if path is not None]
    if not places:
        return []
    places = [settings.root, settings.cache, *places]
    return sorted({p for p in places if not any(p != other and p.is_relative_to(other) for other in places)})


def _local(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    # git's host:path is a URL as well
    return None if "://" in url or ":" in url.partition("/")[0] else Path(url).absolute()


def _user(mounted: bool) -> str:
    """The image's user; with this machine's folders, whose they are: the caller's."""
    return f"{os.getuid()}:{os.getgid()}" if mounted else _JOB_UID


def _environment(job: Job, options: Containers, settings: Settings, mounted: bool) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    given = {name: value for name, value in job.environment.items() if name not in _NOT_INSIDE}
    where = {} if mounted else {"SSL_HOME": f"{SCRATCH}/home", "SSL_CACHE_DIR": _CACHE}
    return {
        **inherited,
        **given,
        **where,
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "PYTHONUNBUFFERED": "1",
        **options.environment,
        **job.secrets,
        "SSL_STEP_SPEC": job.spec,
        "SSL_RESULT_PATH": RESULT_PATH,
    }


def _host_config(client: APIClient, options: Containers, mounts: list[Any], gpu_ids: list[str]) -> dict[str, Any]:
    from docker.types import DeviceRequest, LogConfig

    memory = options.memory or int(client.info()["MemTotal"] * 0.9)
    return client.create_host_config(
        mounts=mounts,
        network_mode=options.network,
        init=True,  # forwards signals to the step and reaps what it leaves
        read_only=True,
        # For what does not ask for TMPDIR.
        tmpfs={"/tmp": "rw,nosuid,nodev,mode=1777,size=256m"},  # noqa: S108
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        pids_limit=_MOST_PROCESSES,
        mem_limit=memory,
        memswap_limit=memory,  # no swap: a step that needs more says so rather than crawl
        nano_cpus=int(options.cpus * 1e9) if options.cpus else None,
        shm_size=options.shm,
        device_requests=[DeviceRequest(device_ids=gpu_ids, capabilities=[["gpu"]])] if gpu_ids else None,
        log_config=LogConfig(type="json-file", config={"max-size": "50m", "max-file": "2"}),
    )


def _check_addresses(job: Job, network: str) -> None:
    """A server on this machine's loopback is out of reach from a network of containers: said now, not after a minute of tries."""
    if network == "host":
        return
    for name, value in job.environment.items():
        if "://" in value and urlsplit(value).hostname in _LOOPBACK and name != "SSL_AIRFLOW_URL":
            raise CannotStart(
                f"{name} is {value}, which containers on the network {network} cannot reach\n"
                "  next: set it to an address on that network, or set runner.network (SSL_DOCKER_NETWORK) to host"
            )
