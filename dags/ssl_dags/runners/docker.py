"""The Docker runner: a job is a container, and the container outlives the worker that started it.

A worker may be killed at any moment; what it left is found by its labels. The next try of the task follows the container that
still runs, or takes the result of one that has ended meanwhile: nothing is trained twice.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import socket
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ssl_core import __version__
from ssl_core.config.container import PLATFORM_LABEL, held_instead, platform_id
from ssl_dags.runners.base import CannotStart, Finished, Job, Unavailable
from ssl_dags.runners.containers import (
    RESULT_PATH,
    SPEC,
    STOP_SECONDS,
    Plan,
    create,
    identity,
    name_of,
)
from ssl_dags.runners.gpus import HELPER, engine_time, lease

if TYPE_CHECKING:
    from docker import APIClient

_ANSWER_SECONDS = 60
_LINES_OF_BEFORE = 50
_LARGEST_RESULT = 64 * 1024
_WITH_RESULT = (0, 3)
_NO_SUCH_PROGRAM = 127  # what Docker's init process says; a step never does
_YOUNG_SECONDS = 60.0
_LONGEST_LINE = 10_000
REGISTRY = "ssl_docker"
"""Airflow connection with the account for an image registry, as Airflow's docker provider has it; only for pulling."""


def connect() -> APIClient:
    """The engine that ``DOCKER_HOST`` names, else this machine's. Raises ``CannotStart`` or ``Unavailable`` with the mend."""
    import docker

    url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        return _watched(docker.APIClient(version="auto", timeout=_ANSWER_SECONDS, **docker.utils.kwargs_from_env()))
    except docker.errors.TLSParameterError as error:
        raise CannotStart(f"DOCKER_CERT_PATH holds no usable certificates: {error}\n  next: correct it") from None
    except docker.errors.DockerException as error:
        if "Permission denied" in str(error):
            raise CannotStart(
                f"no right to talk to the Docker engine at {url}\n"
                "  next: sudo usermod -aG docker $USER, log in again, then ssl-core down and ssl-core up"
            ) from None
        raise Unavailable(
            f"no Docker engine answers at {url}\n  next: start it (sudo systemctl start docker), or set DOCKER_HOST"
        ) from None


def _watched(client: APIClient) -> APIClient:
    """Over a network, the connection that a log comes through is probed: one that died silently ends within a minute."""
    pools = getattr(client.get_adapter(client.base_url), "poolmanager", None)
    if pools is not None and hasattr(socket, "TCP_KEEPIDLE"):
        pools.connection_pool_kw["socket_options"] = [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        ]
    return client


class DockerRunner:
    """Runs one job in a container as ``plan`` says, or follows the one that an earlier try of its task left.

    ``lives`` says whether the task instance of some labels may still want its container; what nobody wants is removed.
    """

    def __init__(
        self,
        plan: Plan,
        lives: Callable[[Mapping[str, str]], bool] = lambda labels: True,
        connect: Callable[[], APIClient] = connect,
    ) -> None:
        self._plan = plan
        self._lives = lives
        self._connect = connect
        self._container = ""
        self._killed = False

    def run(self, job: Job, on_line: Callable[[str], None]) -> Finished:
        """Raises ``CannotStart`` where image, rights or GPUs are missing, ``Unavailable`` where the engine does not answer."""
        with _engine_errors(self._plan.options.image):
            client = self._connect()
            self._reap(client, job, on_line)
            self._container = self._left_by_a_try_before(client, job, on_line)
            tail: int | str = _LINES_OF_BEFORE
            if not self._container:
                tail = "all"
                self._start(client, job, on_line)
            try:
                if self._killed:  # asked for while the container was being started
                    self.kill()
                state = self._follow(client, on_line, tail)
                result = _result(client, self._container)
            except (CannotStart, Unavailable):
                raise
            except Exception as error:
                if _is_of_docker(error):  # the engine went away; the container is left to the next try
                    raise
                self.kill()
                raise
            except BaseException:  # Airflow's time-out: the job may still save a checkpoint
                self.kill()
                raise
            _remove(client, self._container)
        code = int(state["ExitCode"])
        if code == _NO_SUCH_PROGRAM:
            raise CannotStart(
                f"the image {self._plan.options.image} has no Python on its PATH, so no ssl-core either\n  next: make images"
            )
        return Finished(code, result, "" if code in _WITH_RESULT else self._cause(code, state))

    def kill(self) -> None:
        """SIGTERM to the job, and SIGKILL three seconds later; the container is removed by ``run``, or by the next try."""
        self._killed = True
        if not self._container:
            return
        # This runs in a signal handler, which may have interrupted a request of the other client.
        with suppress(Exception):
            self._connect().stop(self._container, timeout=STOP_SECONDS)

    # ---- start

    def _left_by_a_try_before(self, client: APIClient, job: Job, on_line: Callable[[str], None]) -> str:
        """The container of an earlier try that runs, or has ended with a result; others of this task are removed."""
        found = ""
        for each in client.containers(all=True, filters={"label": identity(job, self._plan.settings)}):
            container = client.inspect_container(each["Id"])
            state, name = container["State"], container["Name"].lstrip("/")
            labels = container["Config"]["Labels"]
            began = labels.get("ssl.try", "?")
            if labels.get(SPEC, "") != job.labels.get(SPEC, ""):  # the task was cleared, and does something else now
                on_line(f"the container {name} of try {began} does what was asked before; removing it")
                with suppress(Exception):
                    client.stop(each["Id"], timeout=STOP_SECONDS)
                _remove(client, each["Id"])
            elif not found and state["Running"]:
                found = each["Id"]
                on_line(
                    f"the container {name} of try {began} still runs: following it, from {state['StartedAt'][:19]} UTC on"
                )
            elif (
                not found
                and state["Status"] == "exited"
                and state["ExitCode"] in _WITH_RESULT
                and _result(client, each["Id"])
            ):
                found = each["Id"]
                on_line(f"the container {name} of try {began} has done it meanwhile: taking its result")
            else:
                _remove(client, each["Id"])
        return found

    def _start(self, client: APIClient, job: Job, on_line: Callable[[str], None]) -> None:
        image = self._plan.options.image
        _check_image(self._image(client, image, on_line), image)
        if self._plan.trains and not self._plan.gpus and "nvidia" in (client.info().get("Runtimes") or {}):
            on_line("trains on the CPU, although this engine has GPUs: runner.gpus (SSL_DOCKER_GPUS) is 0")

        def made(gpu_ids: list[str]) -> str:
            self._stop_here()
            return create(client, job, self._plan, gpu_ids)

        if self._plan.gpus:
            self._container = lease(client, image, self._plan.gpus, made, on_line, lambda: self._killed)
        else:
            self._container = made([])
        try:
            self._stop_here()
            client.start(self._container)
        except BaseException:
            _remove(client, self._container)
            raise
        on_line(f"container {name_of(job, self._plan.settings)} from {image}")

    def _stop_here(self) -> None:
        """Airflow kills a worker five seconds after asking it to stop: what is not started by then must not be."""
        if self._killed:
            raise Unavailable("stopped before the container was started")

    def _image(self, client: APIClient, image: str, on_line: Callable[[str], None]) -> dict[str, Any]:
        from docker.errors import APIError, ImageNotFound, NotFound

        with suppress(ImageNotFound, NotFound):
            return dict(client.inspect_image(image))
        registry = image.partition("/")[0]
        if "/" not in image or not ("." in registry or ":" in registry or registry == "localhost"):
            raise CannotStart(
                f"the image {image} is not on this Docker engine\n  next: make images, or set runner.image (SSL_DOCKER_IMAGE)"
            )
        on_line(f"pulling {image}")
        name, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
        try:
            for event in client.pull(name, tag=tag, stream=True, decode=True, auth_config=_registry_account()):
                self._stop_here()
                if "error" in event:
                    raise _cannot_pull(image, str(event["error"]))
        except APIError as error:
            raise _cannot_pull(image, str(error.explanation)) from None
        return dict(client.inspect_image(image))

    # ---- follow

    def _follow(self, client: APIClient, on_line: Callable[[str], None], tail: int | str) -> dict[str, Any]:
        """Hands over the container's lines until it has ended; returns the engine's record of its state."""
        since: float | None = None
        ahead = engine_time(client) - time.time()  # the engine's clock, by which it takes `since`
        while True:
            heard = time.time() + ahead
            for line in lines_of(client.logs(self._container, stream=True, follow=True, tail=tail, since=since)):
                heard = time.time() + ahead
                on_line(line)
            state: dict[str, Any] = client.inspect_container(self._container)["State"]
            if not state["Running"]:
                return state
            # The stream ended before the container did: on from there.
            since, tail = heard, "all"
            time.sleep(0.2)

    def _cause(self, code: int, state: Mapping[str, Any]) -> str:
        memory = self._plan.options.memory
        if state.get("OOMKilled") or (code == 137 and not self._killed):
            limit = f"its limit of {memory / 2**30:.1f} GiB" if memory else "the memory of the engine's host"
            sure = "" if state.get("OOMKilled") else " or it was killed from outside"
            return (
                f"exit code 137: out of memory, the container needed more than {limit}{sure}\n"
                "  next: raise runner.memory (SSL_DOCKER_MEMORY), or lower pretrain.batch_size"
            )
        return str(state.get("Error") or "")

    # ---- leftovers

    def _reap(self, client: APIClient, job: Job, on_line: Callable[[str], None]) -> None:
        """Removes this platform's containers whose task nobody runs any more: their worker was killed, and its task given up."""
        mine = set(identity(job, self._plan.settings))
        now = engine_time(client)
        platform = f"{PLATFORM_LABEL}={platform_id(self._plan.settings)}"
        helpers = [f"{name}={value}" for name, value in HELPER.items()]
        for label in ([platform], helpers):
            for each in client.containers(all=True, filters={"label": label}):
                labels, name = each["Labels"], each["Names"][0].lstrip("/")
                young = now - float(each["Created"]) < _YOUNG_SECONDS
                if mine <= {f"{k}={v}" for k, v in labels.items()} or young:
                    continue
                try:
                    if label == [platform] and self._lives(labels):
                        continue
                    on_line(f"removing the container {name}, which nobody waits for")
                    client.stop(each["Id"], timeout=STOP_SECONDS)
                    _remove(client, each["Id"])
                except Exception as error:  # housekeeping must not fail a job
                    on_line(f"the container {name} could not be removed: {error}")


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a log that comes in pieces, as the engine sends it; a piece may end in the middle of a letter."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line.rstrip() for line in whole)
        while len(rest) > _LONGEST_LINE:
            yield rest[:_LONGEST_LINE]
            rest = rest[_LONGEST_LINE:]
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest.rstrip()


def _result(client: APIClient, container: str) -> bytes | None:
    """The document that the job wrote, fetched as bytes; nothing that came out of a container is ever unpickled."""
    from docker.errors import NotFound

    try:
        stream, _ = client.get_archive(container, RESULT_PATH)
    except NotFound:
        return None
    packed = bytearray()
    for chunk in stream:
        packed += chunk
        if len(packed) > 2 * _LARGEST_RESULT:
            return b"\0" * _LARGEST_RESULT  # refused for its size by the operator
    with tarfile.open(fileobj=io.BytesIO(bytes(packed))) as archive:
        member = archive.next()
        file = archive.extractfile(member) if member is not None and member.isreg() else None
        return file.read(_LARGEST_RESULT) if file is not None else None


def _remove(client: APIClient, container: str) -> None:
    """With its scratch volume; one that is gone already, or going, is fine."""
    from docker.errors import APIError

    try:
        client.remove_container(container, v=True, force=True)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise


def _check_image(found: Mapping[str, Any], image: str) -> None:
    if holds := held_instead(found):
        raise CannotStart(
            f"the image {image} holds {holds}, and the platform is ssl-core {__version__}\n  next: make images"
        )


def _cannot_pull(image: str, said: str) -> Exception:
    if re.search(
        r"denied|unauthorized|not found|manifest unknown|does not exist|no such manifest", said, re.IGNORECASE
    ):
        return CannotStart(
            f"the image {image} cannot be pulled: {said}\n"
            f"  next: correct runner.image (SSL_DOCKER_IMAGE), or give the Airflow connection {REGISTRY} an account that may read it"
        )
    return Unavailable(
        f"the image {image} cannot be pulled: {said}\n  next: can the engine's host reach that registry?"
    )


def _registry_account() -> dict[str, str] | None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        found = Connection.get(REGISTRY)
    except AirflowNotFoundException:
        return None
    return {"username": found.login or "", "password": found.password or "", "serveraddress": found.host or ""}


# What the engine answers to a request that cannot be met by asking again, and the mend.
_REFUSALS = (
    ("bind source path does not exist", "the engine does not have this folder", "use an engine on this machine, or keep store, data repository and DVC remote in S3 and Git"),
    (r"network \S+ not found", "there is no such network", "set runner.network (SSL_DOCKER_NETWORK)"),
    ("could not select device driver", "the engine can give no GPU to a container", "install NVIDIA's container toolkit, or set runner.gpus (SSL_DOCKER_GPUS) to 0"),
    ("Range of CPUs", "the engine has fewer CPUs", "lower runner.cpus (SSL_DOCKER_CPUS)"),
    ("Minimum memory limit", "so little memory is not possible", "raise runner.memory (SSL_DOCKER_MEMORY)"),
    ("invalid reference format", "this is no name of an image", "correct runner.image (SSL_DOCKER_IMAGE)"),
)  # fmt: skip


@contextmanager
def _engine_errors(image: str) -> Iterator[None]:
    """Turns what docker raises into ``CannotStart`` or ``Unavailable``."""
    try:
        yield
    except Exception as error:
        if not _is_of_docker(error):
            raise
        said = str(getattr(error, "explanation", None) or error).strip()
        status = getattr(error, "status_code", None)
        for sign, cause, mend in _REFUSALS:
            if status not in (None, 409) and re.search(sign, said):
                raise CannotStart(
                    f"a container of {image} cannot be started: {cause} ({said})\n  next: {mend}"
                ) from None
        if status is not None and status < 500:
            raise Unavailable(f"the Docker engine refused: {said}") from error
        raise Unavailable(
            f"the Docker engine does not answer any more: {said}\n"
            "  next: nothing where it comes back: a container that still runs is followed by the next try"
        ) from error


def _is_of_docker(error: BaseException) -> bool:
    """Docker's own errors, and those of the connection to it (which no DAG code imports)."""
    return any(kind.__module__.partition(".")[0] in ("docker", "requests", "urllib3") for kind in type(error).__mro__)
