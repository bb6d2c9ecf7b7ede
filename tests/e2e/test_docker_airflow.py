"""The whole platform with jobs in containers and everything in S3: real Airflow, Docker engine, S3 and Git server, MLflow."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import docker
import psutil
import pytest

from ssl_core.data.samples import sample_items
from tests.e2e.tools.git_server import git_server
from tests.e2e.tools.images import training_image
from tests.e2e.tools.platform import LONG, Platform, wait_until
from tests.e2e.tools.s3_server import s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.airflow, pytest.mark.docker, pytest.mark.s3]

DIGITS = Path(__file__).parents[2] / "projects" / "digits.yaml"
ALWAYS = LONG.replace("pretrain: {", "pretrain: {when: manual, ")


class Remote(Platform):
    """A platform that keeps nothing but Airflow's and MLflow's databases on this machine."""

    def __init__(self, folder: Path, s3: Any, bucket: Any, **variables: str) -> None:
        super().__init__(folder, **variables)
        self.secret = s3.secret
        self.bucket = bucket
        self.engine = docker.APIClient()

    def keys(self, prefix: str) -> list[str]:
        pages = self.bucket.get_paginator("list_objects_v2").paginate(Bucket="platform", Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def containers(self, **labels: str) -> list[dict[str, Any]]:
        wanted = [f"ssl.home={self.home}", *(f"ssl.{name}={value}" for name, value in labels.items())]
        return list(self.engine.containers(all=True, filters={"label": wanted}))

    def weights(self, name: str) -> set[str]:
        """SHA-256 of the encoders that the project's pretraining left in the store."""
        keys = [k for k in self.keys(f"store/{name}/pretrain/") if k.endswith(".safetensors") and "/out/encoder/" in k]
        bodies = [self.bucket.get_object(Bucket="platform", Key=k)["Body"].read() for k in keys if "golden" not in k]
        return {hashlib.sha256(body).hexdigest() for body in bodies}


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("remote")
    (folder / "s3").mkdir()
    (folder / "git").mkdir()
    image = training_image()
    with s3_server(folder / "s3") as s3, git_server(folder / "git") as repository:
        bucket = boto3.client(
            "s3",
            endpoint_url=s3.url,
            aws_access_key_id=s3.key,
            aws_secret_access_key=s3.secret,
            region_name="us-east-1",
        )
        for name in ("data", "platform"):
            bucket.create_bucket(Bucket=name)
        for item in sample_items("digits", folder / "cache"):
            bucket.put_object(Bucket="data", Key=f"digits/{item.label}/{item.name}.png", Body=item.read())
        platform = Remote(
            folder,
            s3,
            bucket,
            SSL_RUNNER="docker",
            SSL_DOCKER_IMAGE=image,
            SSL_STORE="s3://platform/store",
            SSL_DVC_REMOTE="s3://platform/dvc",
            SSL_MLFLOW_ARTIFACTS="s3://platform/mlflow",
            SSL_DATA_REPO=repository,
            AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT="30",
            **s3.environment(),
        )
        try:
            platform.cli("up")
            yield platform
        finally:
            platform.cli("down")
            assert platform.containers() == []


# ---- the same project file


def test_digits_goes_from_s3_to_a_champion_in_containers(remote):
    """The project file that comes with the platform; only where its images lie is another place."""
    began = time.monotonic()
    text = DIGITS.read_text().replace("sample://digits", "s3://data/digits")
    (remote.projects / "digits.yaml").write_text(text.replace("pretrain:\n", "pretrain:\n  threads: 1\n"))
    wait_until(lambda: remote.dag("digits.finetune") is not None, 60, "digits in the UI")
    remote.chain("digits", timeout=900)
    remote.champion("digits")
    print(f"digits in containers to a champion: {time.monotonic() - began:.0f} s")

    report = json.loads(remote.cli("report", "digits", "--json"))
    assert report["version"] == "1"
    for prefix in ("store/digits/pretrain/", "store/ledger/digits/", "dvc/files/md5/", "mlflow/"):
        assert remote.keys(prefix), prefix
    for folder in ("store", "dvc-remote", "data.git", "mlflow/artifacts"):
        path = remote.home / folder
        assert not path.exists() or not [p for p in path.rglob("*") if p.is_file()], path
    assert remote.containers() == []


def test_every_step_ran_in_a_container_of_its_own(remote):
    names = set()
    for template in ("ingest", "pretrain", "finetune"):
        dag_id = f"digits.{template}"
        run = remote.runs(dag_id)[0]["dag_run_id"]
        for task, instance in remote.tasks(dag_id, run).items():
            if instance["state"] == "success":
                lines = [line for line in remote.log(dag_id, run, task) if line.startswith("container ssl-digits")]
                assert len(lines) == 1, task
                names.add(lines[0])
            else:
                assert instance["state"] == "skipped", task
    assert len(names) >= 10


def test_no_secret_is_in_a_log_an_xcom_or_the_database(remote):
    files = [path for path in (remote.home / "airflow").rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    found = [path for path in files if remote.secret.encode() in path.read_bytes()]
    assert found == []


# ---- what dies


@pytest.fixture(scope="module")
def ingested(remote: Remote) -> Remote:
    names = ("calm", "orphaned", "shot")
    for name in names:
        remote.write(name, ALWAYS)
    for name in names:
        wait_until(lambda name=name: remote.dag(f"{name}.pretrain") is not None, 60, f"{name} in the UI")
        # A new encoder would wake it, and it would take its turn in the pool before a retry.
        remote.api.patch(f"dags/{name}.finetune", {"is_paused": True})
    runs = {name: remote.trigger(f"{name}.ingest") for name in names}
    for name, run in runs.items():
        remote.wait(f"{name}.ingest", run)
    return remote


@pytest.fixture(scope="module")
def undisturbed(ingested: Remote) -> set[str]:
    run = ingested.trigger("calm.pretrain")
    ingested.wait("calm.pretrain", run)
    found = ingested.weights("calm")
    assert len(found) == 1
    return found


def begin(remote: Remote, name: str) -> tuple[str, dict[str, Any]]:
    """A pretraining in progress: its run, and its container."""
    run = remote.trigger(f"{name}.pretrain")
    remote.wait_for_line(f"{name}.pretrain", run, "pretrain", "epoch")
    [container] = remote.containers(dag_id=f"{name}.pretrain", task_id="pretrain")
    return run, container


def workers_of(remote: Remote) -> list[psutil.Process]:
    """Airflow's processes of running tasks: below the scheduler and its executor's workers, so not these themselves."""
    scheduler = psutil.Process(remote.pid("scheduler"))
    direct = scheduler.children()
    return [task for worker in direct for task in worker.children(recursive=True)]


def test_a_killed_worker_leaves_a_container_that_the_retry_follows(ingested, undisturbed):
    run, container = begin(ingested, "orphaned")
    tasks = workers_of(ingested)
    assert tasks
    for process in tasks:
        os.kill(process.pid, signal.SIGKILL)
    ingested.wait_for_line("orphaned.pretrain", run, "pretrain", "still runs: following it", timeout=120)
    assert [c["Id"] for c in ingested.containers(dag_id="orphaned.pretrain")] == [container["Id"]]
    tasks_of_run = ingested.wait("orphaned.pretrain", run)
    assert tasks_of_run["pretrain"]["try_number"] == 2
    log = ingested.log("orphaned.pretrain", run, "pretrain", 2)
    assert not any("going on from the checkpoint" in line for line in log), "nothing was done twice"
    assert not any(line.startswith("container ssl-") for line in log), "no second container"
    assert ingested.weights("orphaned") == undisturbed


def test_a_killed_container_is_replaced_by_one_that_resumes_from_the_store(ingested, undisturbed):
    run, container = begin(ingested, "shot")
    ingested.engine.kill(container["Id"])
    ingested.wait_for_line("shot.pretrain", run, "pretrain", "going on from the checkpoint at step")
    ingested.wait("shot.pretrain", run)
    assert any("exit code 137" in line for line in _errors(ingested, "shot.pretrain", run))
    assert ingested.weights("shot") == undisturbed


def _errors(remote: Remote, dag_id: str, run: str) -> list[str]:
    """What the first try of pretrain failed with."""
    path = f"dags/{dag_id}/dagRuns/{run}/taskInstances/pretrain/logs/1"
    return [json.dumps(remote.api.get(path, full_content="true"))]
