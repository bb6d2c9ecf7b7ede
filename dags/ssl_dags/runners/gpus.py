"""Which GPUs a container gets. Airflow's pool says how many jobs may have one at a time; a lease says which.

A lease is a label: the ids that no running container carries are free. Two workers that look at the same moment would see the
same ones, so they look and create under a lock that lies on the engine's host, where both meet: a container's name, which the
engine gives only once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ssl_core.config.container import NO_GPU_DRIVER
from ssl_dags.runners.base import CannotStart, Unavailable
from ssl_dags.runners.containers import GPUS

if TYPE_CHECKING:
    from docker import APIClient

LOCK_NAME = "ssl-core-gpu-lock"
HELPER = {"ssl.helper": "gpu"}
"""Labels of the containers that live for a few seconds: what a killed worker left of them is removed by the next job."""
_LOCK_STALE_SECONDS = 60.0  # it is held for the two requests of looking and creating
_LOCK_WAIT_SECONDS = 180.0
_CREATED_COUNTS_SECONDS = 60.0  # created but not started yet; older: its worker died in between
_PREFLIGHT_SECONDS = 10
_MEND = "to train on the CPU, set runner.gpus (SSL_DOCKER_GPUS) to 0"


def preflight(client: APIClient, image: str) -> list[str]:
    """The ids of the GPUs that a container of ``image`` sees. Raises ``CannotStart``, with the mend, within ten seconds."""
    from docker.errors import APIError
    from docker.types import DeviceRequest

    container: dict[str, Any] = client.create_container(
        image,
        command=["python", "-m", "ssl_core.gpu_probe"],
        labels=HELPER,
        host_config=client.create_host_config(
            network_mode="none",
            cap_drop=["ALL"],
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])],
        ),
    )
    try:
        client.start(container)
        try:
            client.wait(container, timeout=_PREFLIGHT_SECONDS)
        except Exception as error:
            if "timed out" not in str(error).lower():  # requests' read time-out, in whichever wrapping
                raise
            raise CannotStart(
                f"{image} did not say within {_PREFLIGHT_SECONDS} s whether it sees a GPU\n"
                f"  next: docker run --rm --gpus all {image} nvidia-smi; or, {_MEND}"
            ) from error
        said = client.logs(container, stdout=True, stderr=False).decode(errors="replace").strip()
    except APIError as error:
        if any(sign in str(error.explanation) for sign in NO_GPU_DRIVER):
            raise CannotStart(
                "this Docker engine can give no GPU to a container: "
                f"{error.explanation}\n  next: install NVIDIA's driver and container toolkit on the engine's host; or, {_MEND}"
            ) from None
        raise
    finally:
        with suppress(APIError):
            client.remove_container(container, force=True, v=True)
    try:
        found = json.loads(said.splitlines()[-1])
        devices, cuda = int(found["devices"]), found["cuda"]
    except (IndexError, KeyError, TypeError, ValueError):
        raise CannotStart(f"{image} could not look for GPUs: {said[-300:]}\n  next: make images") from None
    if devices < 1:
        raise CannotStart(f"{image} sees no GPU\n  next: docker run --rm --gpus all {image} nvidia-smi; or, {_MEND}")
    if not cuda:
        raise CannotStart(
            f"{image} holds a torch for the CPU, so its GPUs would stand idle\n"
            f"  next: build it for CUDA (docs/containers.md); or, {_MEND}"
        )
    return [str(number) for number in range(devices)]


def taken(client: APIClient) -> dict[str, str]:
    """GPU id to the name of the container that has it, over all platforms of this engine."""
    now = engine_time(client)
    found: dict[str, str] = {}
    for each in client.containers(all=True, filters={"label": GPUS}):
        fresh = each["State"] == "created" and now - float(each["Created"]) < _CREATED_COUNTS_SECONDS
        if each["State"] in ("running", "paused", "restarting") or fresh:
            name = each["Names"][0].lstrip("/")
            found |= dict.fromkeys(each["Labels"][GPUS].split(","), name)
    return found


def lease(
    client: APIClient,
    image: str,
    count: int,
    create: Callable[[list[str]], str],
    note: Callable[[str], None],
    stopped: Callable[[], bool],
    wait: float = 5.0,
) -> str:
    """Chooses ``count`` free GPUs, calls ``create`` with their ids, and returns the container's id; waits while too few are free.

    Raises ``CannotStart`` where there are not so many at all, ``Unavailable`` where the job was stopped while it waited.
    """
    there = preflight(client, image)
    if stopped():
        raise Unavailable("stopped while looking for a GPU")
    if count > len(there):
        raise CannotStart(
            f"{count} GPUs are asked for, and the engine has {len(there)}\n  next: set runner.gpus (SSL_DOCKER_GPUS) to at most that"
        )
    said = ""
    while True:
        with engine_lock(client, image):
            busy = taken(client)
            free = [gpu for gpu in there if gpu not in busy]
            if len(free) >= count:
                return create(free[:count])
        words = "waiting for a GPU: " + ", ".join(f"{gpu} has {busy[gpu]}" for gpu in there if gpu in busy)
        if words != said:
            note(words)
            said = words
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if stopped():
                raise Unavailable("stopped while waiting for a GPU")
            time.sleep(0.1)


@contextmanager
def engine_lock(client: APIClient, image: str, wait: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
    """One holder at a time over all workers of this engine. A holder that died is not waited for longer than a minute."""
    from docker.errors import APIError, NotFound

    deadline = time.monotonic() + wait
    while True:
        try:
            held = client.create_container(image, command=["true"], name=LOCK_NAME, labels=HELPER)
            break
        except APIError as error:
            if error.status_code != 409:
                raise
        with suppress(NotFound):
            there = client.inspect_container(LOCK_NAME)
            if engine_time(client) - _seconds(there["Created"]) > _LOCK_STALE_SECONDS:
                client.remove_container(there["Id"], force=True)  # by id: the name may have a new holder by now
        if time.monotonic() > deadline:
            raise Unavailable(f"the lock {LOCK_NAME} on the Docker engine was not free within {wait:.0f} s")
        time.sleep(0.1)
    try:
        yield
    finally:
        with suppress(NotFound):
            client.remove_container(held["Id"], force=True)


def engine_time(client: APIClient) -> float:
    """The engine's clock: what it stamps on containers is compared with that, not with the worker's."""
    return _seconds(client.info()["SystemTime"])


def _seconds(stamp: str) -> float:
    # Nanoseconds are more than Python reads.
    head, _, tail = stamp.partition(".")
    zone = tail.lstrip("0123456789") or ("Z" if tail else "")
    return datetime.fromisoformat(f"{head}{zone}".replace("Z", "+00:00")).timestamp()
