"""Where a project's steps run, and what a container may use. What a project leaves open, the platform settings say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from ssl_core import __version__
from ssl_core.config.base import Section
from ssl_core.config.settings import SIZE_PATTERN, RunnerKind, Settings

DEFAULT_IMAGE = f"ssl-core-training:{__version__}"
_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("SSL_", "AWS_", "MLFLOW_", "AIRFLOW")
_SHM_BASE = 64 * 2**20
_SHM_PER_GPU = 2**30


def size_in_bytes(text: str) -> int:
    """``"1.5g"`` as bytes; k, m, g and t are powers of 1024."""
    found = re.fullmatch(SIZE_PATTERN, text)
    if found is None:
        raise ValueError(f"{text!r} is no size such as 512m or 8g")
    return int(float(found[1]) * _UNITS[found[2].lower()])


class RunnerConfig(Section):
    """Where steps run under Airflow. `runner: docker` is short for `runner: {kind: docker}`.

    What is left out comes from the platform settings (`SSL_RUNNER`, `SSL_DOCKER_*`). `ssl-core run` and `dvc repro` always run
    steps in their own process.
    """

    kind: RunnerKind | None = Field(default=None, description="local: a process; docker: a container")
    image: str | None = Field(
        default=None, min_length=1, max_length=500, description="Training image of the containers"
    )
    gpus: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="GPUs for each step that trains; a container that gets none fails at once. 0: train on the CPU",
    )
    memory: str | None = Field(
        default=None, pattern=SIZE_PATTERN, description="Memory limit of a container, for example 8g"
    )
    cpus: float | None = Field(default=None, gt=0, le=4096, description="CPU limit of a container")
    shm: str | None = Field(default=None, pattern=SIZE_PATTERN, description="Size of /dev/shm, for example 1g")
    network: str | None = Field(
        default=None, min_length=1, max_length=200, description="host, or the name of a Docker network"
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Further variables of the containers, for example OMP_NUM_THREADS; no secrets"
    )

    @field_validator("environment")
    @classmethod
    def _plain(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable")
            if name.upper().startswith(_OURS):
                raise ValueError(f"{name} is a platform setting: set it where the platform is started")
        return value


def _short_form(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


RunnerField = Annotated[RunnerConfig, BeforeValidator(_short_form, json_schema_input_type=RunnerKind | RunnerConfig)]


@dataclass(frozen=True)
class Containers:
    """How containers are made: a project's choices, completed by the platform settings."""

    image: str
    gpus: int
    memory: int | None
    """Bytes; None: nine tenths of what the engine's host has."""
    cpus: float | None
    shm: int
    """Bytes."""
    network: str
    environment: dict[str, str]


def runner_kind(runner: RunnerConfig, settings: Settings) -> RunnerKind:
    """The project's choice, else the platform's."""
    return runner.kind or settings.runner


def containers(runner: RunnerConfig, settings: Settings) -> Containers:
    """A project's choices, completed.

    /dev/shm, where nobody chose: the loader reads in threads of the training process and needs none of it, so Docker's own
    64 MiB do; NCCL's rings between several GPUs take up to 1 GiB for each.
    """
    gpus = settings.docker_gpus if runner.gpus is None else runner.gpus
    memory, shm = runner.memory or settings.docker_memory, runner.shm or settings.docker_shm
    return Containers(
        image=runner.image or settings.docker_image or DEFAULT_IMAGE,
        gpus=gpus,
        memory=size_in_bytes(memory) if memory else None,
        cpus=runner.cpus or settings.docker_cpus,
        shm=size_in_bytes(shm) if shm else _SHM_BASE + (_SHM_PER_GPU * gpus if gpus > 1 else 0),
        network=runner.network or settings.docker_network,
        environment=dict(runner.environment),
    )
