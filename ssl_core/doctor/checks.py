"""The table: every check in the order in which it is told, with the time that it may take."""

from __future__ import annotations

from functools import partial

from ssl_core.config.settings import Settings
from ssl_core.doctor import docker, machine, projects, s3, services, storage
from ssl_core.doctor.finding import Check

_STATUS = "ssl-core status; the machine may be overloaded (uptime)"
_DISK = "a network file system hangs? df -h"
_NETWORK = "check the address and the network; a firewall may drop packets"
_ENGINE = "sudo systemctl restart docker; journalctl -u docker says why"


def checks(settings: Settings, project: str | None = None) -> list[Check]:
    """All of them; ``project`` narrows what is asked about projects to one."""
    known = projects.Projects(settings, project)
    engine = docker.Docker(settings, known)

    def clock_addresses() -> list[str]:
        in_s3 = bool(s3.platform_places(settings)) or any(u.startswith("s3://") for u in known.sources().values())
        return services.clocks(settings, in_s3)

    return [
        Check("settings", machine.settings_read, 3, _STATUS),
        Check("python", machine.python, 3, _STATUS),
        Check("git", machine.git, 8, "git --version hangs; is it on a network file system?"),
        Check("packages", machine.packages, 12, _DISK),
        Check("airflow environment", machine.airflow_environment, 15, _DISK),
        Check("disk space", machine.disk, 8, _DISK),
        Check("ports", machine.ports, 12, _STATUS),
        Check("listening addresses", machine.listening, 12, _STATUS),
        Check("secret files", machine.secret_files, 8, _DISK),
        Check("projects", partial(projects.files_load, projects=known), 15, _DISK),
        Check("data sources", partial(projects.sources_there, projects=known), 18, _DISK),
        Check("airflow", services.airflow, 15, "ssl-core logs api-server; ssl-core down, then ssl-core up"),
        Check("mlflow", services.mlflow, 12, _NETWORK),
        Check("clock", partial(services.clock, addresses=clock_addresses), 15, _NETWORK),
        Check("data repository", storage.data_repository, 15, f"SSL_DATA_REPO: {_NETWORK}"),
        Check("repository lock", storage.repository_lock, 8, _DISK),
        Check("store", storage.store, 18, f"SSL_STORE: {_NETWORK}"),
        Check("dvc remote", storage.dvc_remote, 18, f"SSL_DVC_REMOTE: {_NETWORK}"),
        Check("s3 rights", partial(storage.s3_rights, sources=known.sources), 18, f"AWS_ENDPOINT_URL: {_NETWORK}"),
        Check(
            "mlflow artifacts", services.artifacts_from_here, 18, "ssl-core logs mlflow; is its artifact storage up?"
        ),
        Check("docker engine", partial(docker.engine, docker=engine), 15, _ENGINE),
        Check("docker image", partial(docker.image, docker=engine), 15, _ENGINE),
        Check("inside the image", partial(docker.inside, docker=engine), 42, _ENGINE),
        Check("shared memory", partial(docker.shared_memory, docker=engine), 42, _ENGINE),
        Check("memory", partial(docker.memory, docker=engine), 42, _ENGINE),
        Check("gpu", partial(docker.gpu, docker=engine), 42, _ENGINE),
    ]
