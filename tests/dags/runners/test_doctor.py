"""What `ssl-core doctor` finds inside a container holds for jobs only if both containers are made alike."""

from __future__ import annotations

from typing import Any

import docker
import pytest

from ssl_core.config.runner import Containers
from ssl_core.config.settings import Settings
from ssl_core.doctor.docker import as_a_job
from ssl_dags.runners.base import Job
from ssl_dags.runners.containers import Plan, create

# What only a job has: its own spec and result, a name and labels to be found by, a bounded log.
_ONLY_JOBS = ("SSL_STEP_SPEC", "SSL_RESULT_PATH")


class Client(docker.APIClient):
    """Notes what a container would be made from; no engine is asked."""

    def __init__(self) -> None:
        super().__init__(base_url="unix:///nowhere", version="1.44")
        self.asked: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
        return {"MemTotal": 8 * 2**30, "SecurityOptions": []}

    def create_container(self, image: str, **given: Any) -> dict[str, str]:
        self.asked = given
        return {"Id": "x"}


@pytest.mark.parametrize("places", ["here", "elsewhere"])
@pytest.mark.parametrize("memory", [None, 2**30])
def test_the_doctors_container_is_made_as_a_jobs(places, memory, tmp_path, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_PROFILE": "mine",
        "SSL_PROJECTS_DIR": "/projects", "https_proxy": "http://proxy", "SSL_HOME": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    far = {"store": "s3://b/store", "data_repo": "git@host:data.git", "dvc_remote": "s3://b/dvc"}
    settings = Settings(**(far if places == "elsewhere" else {}))
    way = Containers("image", 0, memory, 1.5, 2**27, "host", {"OMP_NUM_THREADS": "2"})
    public, secret = settings.job_environment()
    client = Client()
    create(client, Job("ingest", "{}", environment=public, secrets=secret), Plan(way, settings), [])
    a_jobs = dict(client.asked)
    ours = as_a_job(client, way, settings)
    for name in _ONLY_JOBS:
        a_jobs["environment"].pop(name)
    for config in (a_jobs["host_config"], ours["host_config"]):
        config.pop("LogConfig", None)
    assert ours == {name: a_jobs[name] for name in ours}
    assert set(a_jobs) - set(ours) == {"command", "name", "labels", "stop_signal"}
