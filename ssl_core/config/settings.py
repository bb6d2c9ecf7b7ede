"""Platform settings: where things lie. Environment variables only, the same for every project."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

RunnerKind = Literal["local", "docker"]
SIZE_PATTERN = r"^([0-9]+(?:\.[0-9]+)?)([kmgtKMGT])$"

# What a job may see of its parent's environment. Everything else (and every secret not named here) stays outside.
_PUBLIC = (
    "SSL_",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_S3_ENDPOINT_URL",
    # The usual AWS chain: where and who, never what lets one in.
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
)
_NOT_FOR_JOBS = ("SSL_STEP_SPEC", "SSL_RESULT_PATH", "SSL_PARENT_PID", "SSL_WEBHOOK_URL", "SSL_SMTP_URL")
_SECRET = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",  # who knows this path of the container's host gets the role's credentials
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)


def expanduser(path: str | Path) -> Path:
    """``path`` with `~` resolved. ``Path.expanduser`` raises for `~nobody/`; here that stays a folder that does not exist."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def expand(path: str | Path) -> Path:
    """``path`` with `~` resolved, absolute."""
    return expanduser(path).absolute()


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: its affinity, a container's quota, and ``OMP_NUM_THREADS`` where it is set."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        try:
            quota, period = (cgroup / "cpu.max").read_text().split()[:2]
        except FileNotFoundError:  # cgroup v1
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup, or the quota "max"
        pass
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cpus, int(asked)) if asked.isdigit() and int(asked) else cpus)


class Settings(BaseSettings):
    """``SSL_*`` environment variables (and ``MLFLOW_TRACKING_URI``)."""

    model_config = SettingsConfigDict(env_prefix="SSL_", frozen=True, extra="ignore")

    home: Path = Field(
        default=Path(".ssl"), description="Platform home: store, data repository, cache and MLflow live here unless set"
    )
    projects_dir: Path = Field(default=Path("projects"), description="Folder of project files")
    store: str = Field(default="", description="file:// or s3:// root of step outputs; default <home>/store")
    cache_dir: Path | None = Field(default=None, description="Content-addressed cache; default <home>/cache")
    cache_limit_gb: float = Field(default=20.0, gt=0, description="Cache size that `ssl-core gc` trims to")
    data_repo: str = Field(
        default="", description="Git URL of the data repository; default a bare one in <home>/data.git"
    )
    dvc_remote: str = Field(default="", description="DVC remote of the data repository; default <home>/dvc-remote")
    mlflow_tracking_uri: str = Field(
        default="", validation_alias="MLFLOW_TRACKING_URI", description="MLflow server; default: a local one is started"
    )
    airflow_port: int = Field(default=8080, ge=1, le=65_535, description="Port of the local Airflow, on loopback")
    airflow_venv: Path | None = Field(
        default=None, description="Airflow's environment; default `.venv-airflow` beside the training environment"
    )
    mlflow_artifacts: str = Field(
        default="",
        description="Where the local MLflow server keeps artifacts: s3://bucket/prefix or a folder; default <home>/mlflow/artifacts",
    )
    mlflow_port: int = Field(default=5000, ge=1, le=65_535, description="Port of the local MLflow server")
    public_mlflow_url: str = Field(default="", description="MLflow's address for browser links, where it differs")
    airflow_url: str = Field(default="", description="Airflow's address for browser links; default: the local one")
    job_python: str = Field(
        default="",
        description="Python of the training environment, for jobs that are local processes; default: the one that runs now",
    )
    runner: RunnerKind = Field(
        default="local",
        description="Where Airflow runs the steps of projects that do not say: local processes, or docker containers",
    )
    docker_image: str = Field(default="", description="Training image; default `ssl-core-training:<version>`")
    docker_gpus: int = Field(default=0, ge=0, le=64, description="GPUs for each step that trains in a container")
    docker_memory: str = Field(
        default="",
        pattern=rf"^$|{SIZE_PATTERN}",
        description="Memory limit of a container, such as 8g; default: nine tenths of the engine's",
    )
    docker_cpus: float | None = Field(default=None, gt=0, description="CPU limit of a container; default: none")
    docker_shm: str = Field(
        default="",
        pattern=rf"^$|{SIZE_PATTERN}",
        description="Size of /dev/shm in a container; default: 64 MiB, and with several GPUs 1 GiB more for each",
    )
    docker_network: str = Field(
        default="host", min_length=1, description="Docker network of the containers; host reaches servers on loopback"
    )
    webhook_url: SecretStr = Field(
        default=SecretStr(""), description="Gets a JSON message where a step, a run or a gate fails; may hold a token"
    )
    smtp_url: SecretStr = Field(
        default=SecretStr(""),
        description="Mails the same: smtp://user:password@host:587?to=a@example.org,b@example.org&from=c@example.org",
    )

    @field_validator("home", "projects_dir", "cache_dir", "airflow_venv")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return expand(value) if value else value

    @field_validator(
        "store",
        "data_repo",
        "dvc_remote",
        "mlflow_tracking_uri",
        "mlflow_artifacts",
        "public_mlflow_url",
        "airflow_url",
    )
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        """Addresses are printed, linked and handed to jobs in the open; what lets one in must not be part of them."""
        parts = urlsplit(value)
        if parts.password or (parts.username and parts.scheme in ("http", "https")):
            raise ValueError(
                "holds a user or password; use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS credentials, "
                "or Git's credential helper"
            )
        return value

    # Defaults are validated too, so that a relative home is fixed where the process started.
    @property
    def root(self) -> Path:
        return expand(self.home)

    @property
    def store_url(self) -> str:
        return self.store or (self.root / "store").as_uri()

    @property
    def cache(self) -> Path:
        return self.cache_dir or self.root / "cache"

    @property
    def data_repo_url(self) -> str:
        return self.data_repo or str(self.root / "data.git")

    @property
    def dvc_remote_url(self) -> str:
        return self.dvc_remote or str(self.root / "dvc-remote")

    @property
    def airflow_environment(self) -> Path:
        return self.airflow_venv or Path(sys.prefix).parent / ".venv-airflow"

    @property
    def job_interpreter(self) -> str:
        return self.job_python or sys.executable

    @property
    def local_airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def browser_airflow_url(self) -> str:
        return (self.airflow_url or self.local_airflow_url).rstrip("/")

    @property
    def local_mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def tracking_url(self) -> str:
        return self.mlflow_tracking_uri or self.local_mlflow_url

    @property
    def browser_mlflow_url(self) -> str:
        return (self.public_mlflow_url or self.tracking_url).rstrip("/")

    def job_environment(self) -> tuple[dict[str, str], dict[str, str]]:
        """What a job's process gets: ``(public, secret)``. Secrets never enter labels, XCom, logs or images."""
        public = {k: v for k, v in os.environ.items() if k.startswith(_PUBLIC) and k not in _NOT_FOR_JOBS}
        public |= {"SSL_HOME": str(self.root), "SSL_STORE": self.store_url, "MLFLOW_TRACKING_URI": self.tracking_url}
        secret = {k: os.environ[k] for k in _SECRET if k in os.environ}
        return public, secret
