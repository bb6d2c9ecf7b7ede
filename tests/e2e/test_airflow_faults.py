"""What dies in the middle of a run is started again, and the run ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest

from tests.e2e.tools.platform import LONG, QUICK, Platform, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.airflow]


def begin_pretraining(airflow: Platform, name: str) -> str:
    """A run of NAME.pretrain whose task has saved checkpoints already."""
    airflow.show(name, LONG)
    airflow.wait(f"{name}.ingest", airflow.trigger(f"{name}.ingest"))
    wait_until(lambda: bool(airflow.runs(f"{name}.pretrain")), 60, "pretrain to be woken")
    run = airflow.runs(f"{name}.pretrain")[0]["dag_run_id"]
    airflow.wait_for_line(f"{name}.pretrain", run, "pretrain", "epoch")
    return str(run)


def weights(airflow: Platform, name: str) -> set[str]:
    """SHA-256 of the encoders that the project's pretraining left in the store."""
    files = (airflow.home / "store" / name / "pretrain").glob("*/out/encoder/*.safetensors")
    return {hashlib.sha256(f.read_bytes()).hexdigest() for f in files if "golden" not in f.name}


@pytest.fixture(scope="module")
def undisturbed(airflow: Platform) -> set[str]:
    """The weights of a pretraining that nothing happened to."""
    run = begin_pretraining(airflow, "undisturbed")
    airflow.wait("undisturbed.pretrain", run)
    found = weights(airflow, "undisturbed")
    assert len(found) == 1
    return found


@pytest.mark.parametrize("victim", ["job", "task"])
def test_a_task_killed_in_the_middle_of_pretraining_is_tried_again_and_resumes(airflow, undisturbed, victim):
    name = f"killed-{victim}"
    run = begin_pretraining(airflow, name)
    (job,) = [process for process in airflow.jobs() if "pretrain" in process.cmdline()]
    process = job if victim == "job" else job.parent()
    os.kill(process.pid, signal.SIGKILL)
    if victim == "task":
        wait_until(lambda: not job.is_running() or job.status() == "zombie", 10, "the orphaned job to end by itself")
    tasks = airflow.wait(f"{name}.pretrain", run)
    assert tasks["pretrain"]["try_number"] == 2
    log = airflow.log(f"{name}.pretrain", run, "pretrain", 2)
    assert any("going on from the checkpoint at step" in line for line in log), log
    assert weights(airflow, name) == undisturbed


def test_the_scheduler_killed_in_the_middle_of_pretraining(airflow, undisturbed):
    run = begin_pretraining(airflow, "headless")
    os.kill(airflow.pid("scheduler"), signal.SIGKILL)
    assert "scheduler started" in airflow.cli("up")
    airflow.wait("headless.pretrain", run, timeout=400)
    assert weights(airflow, "headless") == undisturbed
    assert not [process for process in airflow.jobs() if "pretrain" in process.cmdline()]


def test_down_and_up_in_the_middle_of_pretraining(airflow, undisturbed):
    run = begin_pretraining(airflow, "night")
    airflow.cli("down")
    assert not airflow.jobs()
    airflow.cli("up")
    airflow.wait("night.pretrain", run, timeout=400)
    assert weights(airflow, "night") == undisturbed


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
    assert tasks["resolve"]["try_number"] == 2


def test_a_task_marked_failed_by_a_person_ends_its_job(airflow):
    run = begin_pretraining(airflow, "unwanted")
    (job,) = [process for process in airflow.jobs() if "pretrain" in process.cmdline()]
    airflow.api.patch(f"dags/unwanted.pretrain/dagRuns/{run}", {"state": "failed"})
    wait_until(lambda: not job.is_running() or job.status() == "zombie", 30, "the job to end")
    assert airflow.tasks("unwanted.pretrain", run)["pretrain"]["state"] == "failed"
