"""Containers that a platform's killed workers left on the Docker engine."""

from __future__ import annotations

from ssl_core.config.container import PLATFORM_LABEL, has_platform_id, platform_id
from ssl_core.config.settings import Settings

_ANSWER_SECONDS = 10
_STOP_SECONDS = 3


def stop_left(settings: Settings) -> list[str]:
    """Stops and removes this home's containers, and returns their names; none where no engine answers.

    A worker that is asked to end stops its own container, so only what a killed one left is found here. A job that is stopped
    may save a checkpoint.
    """
    if not has_platform_id(settings):  # the engine need not be asked
        return []
    import docker
    from docker.errors import APIError, DockerException

    stopped: list[str] = []
    try:
        client = docker.APIClient(version="auto", timeout=_ANSWER_SECONDS, **docker.utils.kwargs_from_env())
        for each in client.containers(all=True, filters={"label": f"{PLATFORM_LABEL}={platform_id(settings)}"}):
            try:
                client.stop(each["Id"], timeout=_STOP_SECONDS)
                client.remove_container(each["Id"], v=True, force=True)
            except APIError:  # its worker was quicker
                continue
            stopped.append(each["Names"][0].lstrip("/"))
    except (DockerException, OSError):
        return stopped
    return stopped
