"""A job's container: how it is called and labelled, and made from what ``ssl_core.config.container`` says it may have."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_core.config.container import (
    PLATFORM_LABEL,
    SCRATCH,
    host_limits,
    job_container,
    local_places,
    mount,
    out_of_reach,
    platform_id,
)
from ssl_core.config.runner import Containers
from ssl_core.config.settings import Settings
from ssl_dags.runners.base import CannotStart, Job

if TYPE_CHECKING:
    from docker import APIClient

RESULT_PATH = f"{SCRATCH}/result.json"
STOP_SECONDS = 3
GPUS = "ssl.gpus"
SPEC = "ssl.spec"
_JOB = ("ssl.dag_id", "ssl.run_id", "ssl.task_id", "ssl.map_index")
_LARGEST_SPEC = 120_000  # the kernel takes no variable of 128 KiB


@dataclass(frozen=True)
class Plan:
    """What to make containers from."""

    options: Containers
    settings: Settings
    trains: bool = False
    """Whether the step may have GPUs at all."""

    @property
    def gpus(self) -> int:
        return self.options.gpus if self.trains else 0


def labels_of(job: Job, settings: Settings) -> dict[str, str]:
    """All labels of a job's container."""
    return {**job.labels, PLATFORM_LABEL: platform_id(settings), "ssl.home": str(settings.root)}


def identity(job: Job, settings: Settings) -> list[str]:
    """``label=value`` of what a try and its successors have in common."""
    labels = labels_of(job, settings)
    return [f"{name}={labels[name]}" for name in (PLATFORM_LABEL, *_JOB) if name in labels]


def name_of(job: Job, settings: Settings) -> str:
    """The container's name: the same for each try of a task instance, so that the engine itself refuses a second one."""
    digest = hashlib.sha256("\n".join(identity(job, settings)).encode()).hexdigest()[:12]
    readable = re.sub(r"[^a-zA-Z0-9_.-]+", "-", f"{job.labels.get('ssl.dag_id', 'ssl')}-{job.step}")
    return f"ssl-{readable[:80]}-{digest}"


def create(client: APIClient, job: Job, plan: Plan, gpu_ids: list[str]) -> str:
    """Makes the container, not started, and returns its id. Raises docker's own errors, and ``CannotStart``."""
    from docker.types import DeviceRequest, LogConfig

    options, settings = plan.options, plan.settings
    if len(job.spec) > _LARGEST_SPEC:
        raise CannotStart(
            f"the step's spec has {len(job.spec)} bytes, and a container takes {_LARGEST_SPEC}\n  next: shorten the project file"
        )
    _check_addresses(
        job, options.network, remote=client.base_url.startswith("http") and "docker" not in client.base_url
    )
    engine = client.info()
    common = job_container(options, settings, job.environment, job.secrets, engine)
    for place in local_places(settings):  # the engine mounts no folder that is not there
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
    host = host_limits(options, settings, engine)
    mounted = {each["Target"] for each in host["mounts"]}
    host["mounts"] += [mount(path, path, read_only=True) for path in dict.fromkeys(job.reads) if path not in mounted]
    container: dict[str, Any] = client.create_container(
        options.image,
        command=["python", "-m", "ssl_core.cli", "step", job.step],
        name=name_of(job, settings),
        labels=labels_of(job, settings) | ({GPUS: ",".join(gpu_ids)} if gpu_ids else {}),
        stop_signal="SIGTERM",
        host_config=client.create_host_config(
            **host,
            device_requests=[DeviceRequest(device_ids=gpu_ids, capabilities=[["gpu"]])] if gpu_ids else None,
            log_config=LogConfig(type="json-file", config={"max-size": "50m", "max-file": "2"}),
        ),
        **common | {"environment": common["environment"] | {"SSL_STEP_SPEC": job.spec, "SSL_RESULT_PATH": RESULT_PATH}},
    )
    return str(container["Id"])


def _check_addresses(job: Job, network: str, *, remote: bool) -> None:
    """A server on this machine's loopback is out of a container's reach, but on this machine's own network: said now, not after a
    minute of tries."""
    if found := out_of_reach(job.environment, network, remote=remote):
        where = "on another machine's engine" if remote else f"on the network {network}"
        mend = "" if remote else ", or set runner.network (SSL_DOCKER_NETWORK) to host"
        raise CannotStart(
            f"{found[0]} is {found[1]}, which containers {where} cannot reach\n  next: set it to an address that they reach{mend}"
        )
