"""What dies in the middle of a run is started again, and the run ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import signal

import psutil
import pytest

from tests.e2e.tools.platform import LONG, QUICK, Platform, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.airflow]
PROJECTS = ("undisturbed", "shot", "headless", "unwanted")


@pytest.fixture(scope="module")
def ingested(airflow: Platform) -> Platform:
    """The platform, with a dataset version of each of this module's projects; their pretraining waits to be triggered."""
    for name in PROJECTS:
        project = LONG.replace("pretrain: {", "pretrain: {when: manual, ")
        if name == "headless":  # what Airflow itself suffers must not cost a task a try
            project = project.replace("retry_seconds: 2", "retries: 0")
        airflow.write(name, project)
    runs = {}
    for name in PROJECTS:
        wait_until(lambda name=name: airflow.dag(f"{name}.pretrain") is not None, 60, f"{name} in the UI")
        runs[name] = airflow.trigger(f"{name}.ingest")
    for name, run in runs.items():
        airflow.wait(f"{name}.ingest", run)
    return airflow


def begin_pretraining(airflow: Platform, name: str) -> str:
    """A run of NAME.pretrain whose task has saved checkpoints already."""
    run = airflow.trigger(f"{name}.pretrain")
    airflow.wait_for_line(f"{name}.pretrain", run, "pretrain", "epoch")
    return run


def the_job(airflow: Platform) -> psutil.Process:
    (job,) = [process for process in airflow.jobs() if "pretrain" in process.cmdline()]
    return job


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def weights(airflow: Platform, name: str) -> set[str]:
    """SHA-256 of the encoders that the project's pretraining left in the store."""
    files = (airflow.home / "store" / name / "pretrain").glob("*/out/encoder/*.safetensors")
    return {hashlib.sha256(f.read_bytes()).hexdigest() for f in files if "golden" not in f.name}


@pytest.fixture(scope="module")
def undisturbed(ingested: Platform) -> set[str]:
    """The weights of a pretraining that nothing happened to."""
    ingested.wait("undisturbed.pretrain", begin_pretraining(ingested, "undisturbed"))
    found = weights(ingested, "undisturbed")
    assert len(found) == 1
    return found


def test_a_task_killed_in_the_middle_of_pretraining_is_tried_again_and_resumes(ingested, undisturbed):
    run = begin_pretraining(ingested, "shot")
    os.kill(the_job(ingested).pid, signal.SIGKILL)
    wait_until(lambda: ingested.tasks("shot.pretrain", run)["pretrain"]["try_number"] == 2, 60, "the second try")
    ingested.wait_for_line("shot.pretrain", run, "pretrain", "going on from the checkpoint at step")
    job = the_job(ingested)
    os.kill(job.parent().pid, signal.SIGKILL)  # now Airflow's own process of the task, of which the job knows nothing
    wait_until(lambda: has_ended(job), 10, "the orphaned job to end by itself")
    tasks = ingested.wait("shot.pretrain", run)
    assert tasks["pretrain"]["try_number"] == 3
    log = ingested.log("shot.pretrain", run, "pretrain", 3)
    assert any("going on from the checkpoint at step" in line for line in log), log
    assert weights(ingested, "shot") == undisturbed


def test_the_scheduler_killed_and_the_platform_stopped_in_the_middle_of_pretraining(ingested, undisturbed):
    run = begin_pretraining(ingested, "headless")
    os.kill(ingested.pid("scheduler"), signal.SIGKILL)
    assert "scheduler started" in ingested.cli("up")
    ingested.wait_for_line("headless.pretrain", run, "pretrain", "going on from the checkpoint at step")
    ingested.cli("down")
    assert not ingested.jobs()
    ingested.cli("up")
    ingested.wait("headless.pretrain", run, timeout=400)
    assert weights(ingested, "headless") == undisturbed
    assert not [process for process in ingested.jobs() if "pretrain" in process.cmdline()]


def test_mlflow_down_when_a_task_starts_is_tried_again(airflow):
    airflow.show("patient", QUICK.replace("retry_seconds: 2", "retry_seconds: 5"))
    airflow.cli("mlflow", "stop")
    try:
        run = airflow.trigger("patient.ingest")
        airflow.wait_for_task("patient.ingest", run, "resolve", "up_for_retry")
        log = airflow.log("patient.ingest", run, "resolve", 1)
        assert any("MLflow cannot be reached" in line for line in log), log
    finally:
        airflow.cli("mlflow", "start")
    tasks = airflow.wait("patient.ingest", run)
    assert tasks["resolve"]["try_number"] >= 2


def test_a_run_marked_failed_by_a_person_ends_its_job(ingested):
    run = begin_pretraining(ingested, "unwanted")
    job = the_job(ingested)
    ingested.api.patch(f"dags/unwanted.pretrain/dagRuns/{run}", {"state": "failed"})
    wait_until(lambda: has_ended(job), 30, "the job to end")
    assert ingested.tasks("unwanted.pretrain", run)["pretrain"]["state"] == "failed"
