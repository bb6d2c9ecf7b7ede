"""The whole platform with the real Airflow: up, watched, mended, and down without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ssl_core.config.settings import Settings
from ssl_core.daemon import free_port, port_taken, wait_ended
from ssl_core.services import airflow, orphans

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.skipif(not Settings().airflow_environment.is_dir(), reason="needs .venv-airflow: make setup"),
]

# One task that talks while it runs, one whose job takes a signal and says so, one that minds no signal.
DAGS = '''
"""airflow dag"""
import os, signal, subprocess, sys, time
from airflow.sdk import DAG, BaseOperator, task

JOB = "import signal, sys, time, pathlib; signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text('saved'), sys.exit(75))); print('up', flush=True); time.sleep(600)"

class Job(BaseOperator):
    def execute(self, context):
        where = os.path.join(os.environ["SSL_HOME"], "checkpoint")
        self.job = subprocess.Popen([os.environ["SSL_JOB_PYTHON"], "-c", JOB, where], start_new_session=True)
        self.log.info("job has process %s", self.job.pid)
        raise RuntimeError(f"job ended with {self.job.wait()}")
    def on_kill(self):
        os.killpg(self.job.pid, signal.SIGTERM)

with DAG("talks", schedule=None):
    @task
    def talk():
        for number in range(120):
            print("line", number, flush=True)
            if os.path.exists(os.path.join(os.environ["SSL_HOME"], "enough")):
                return
            time.sleep(0.5)
    talk()

with DAG("job", schedule=None, default_args={"retries": 1}):
    Job(task_id="job")

with DAG("deaf", schedule=None):
    @task
    def deaf():
        for _ in range(600):
            time.sleep(1)
    deaf()
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One platform home for all tests of this file, in order: a start takes long."""
    home = tmp_path_factory.mktemp("platform") / "a home"
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "three.py").write_text(DAGS)
    yield home
    subprocess.run([*CLI, "down"], env=environment(home), check=False)
    assert orphans.marked(home) == []


CLI = [sys.executable, "-m", "ssl_core.cli"]
AIRFLOW_PORT = free_port(25_000 + os.getpid() % 10_000)
MLFLOW_PORT = free_port(AIRFLOW_PORT)


def environment(home: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SSL_", "AIRFLOW", "MLFLOW_TRACKING"))}
    bundle = {
        "name": "projects",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(home / "dags")},
    }
    return clean | {
        "SSL_HOME": str(home),
        "SSL_AIRFLOW_PORT": str(AIRFLOW_PORT),
        "SSL_MLFLOW_PORT": str(MLFLOW_PORT),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
    }


def call(home: Path, *arguments: str, code: int = 0, **more: str) -> str:
    done = subprocess.run(
        [*CLI, *arguments], env=environment(home) | more, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def settings(home: Path) -> Settings:
    return Settings(home=home, airflow_port=AIRFLOW_PORT, mlflow_port=MLFLOW_PORT)


def pids(home: Path) -> dict[str, int]:
    document = json.loads(call(home, "status", "--json"))
    assert document["healthy"]
    return {name: part["pid"] for name, part in document["airflow"]["components"].items()} | {
        "mlflow": document["mlflow"]["pid"]
    }


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def platform(home: Path) -> list[psutil.Process]:
    mlflow = psutil.Process(pids(home)["mlflow"])
    return [*orphans.marked(home), mlflow, *mlflow.children(recursive=True)]


def test_up_from_nothing(home: Path) -> None:
    began = time.monotonic()
    said = call(home, "up")
    seconds = time.monotonic() - began
    print(f"first up: {seconds:.1f} s")
    assert seconds < 120
    password = json.loads((home / "airflow" / "passwords.json").read_text())["admin"]
    assert f"http://127.0.0.1:{AIRFLOW_PORT}" in said
    assert f"http://127.0.0.1:{MLFLOW_PORT}" in said
    assert f"user admin, password {password}" in said
    assert "dag-processor  healthy" in call(home, "status")
    pools = airflow.api(settings(home)).get("pools")["pools"]
    assert {pool["name"]: pool["slots"] for pool in pools if pool["name"] != "default_pool"} == {
        "gpu": 1,
        "data-repo": 1,
    }


def test_it_listens_on_loopback_only_and_is_light(home: Path) -> None:
    processes = platform(home)
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert {AIRFLOW_PORT, MLFLOW_PORT} <= {port for _, port in listening}
    pss = sum(process.memory_full_info().pss for process in processes)
    print(f"PSS of {len(processes)} processes: {pss / 1e9:.2f} GB")
    assert pss < 1.8e9


def test_secrets_are_not_for_others(home: Path) -> None:
    for path in (home / "airflow").rglob("*"):
        if path.name in ("passwords.json", "secrets.json", "airflow.cfg"):
            assert path.stat().st_mode & 0o077 == 0, path
    assert (home / "airflow").stat().st_mode & 0o077 == 0
    password = json.loads((home / "airflow" / "passwords.json").read_text())["admin"]
    for log in (home / "airflow" / "logs").rglob("*.log"):
        assert password not in log.read_text(errors="replace")


def test_a_second_up_keeps_every_process_and_two_at_once_do_too(home: Path) -> None:
    before = pids(home)
    began = time.monotonic()
    assert "everything ran already" in call(home, "up")
    print(f"up of what runs: {time.monotonic() - began:.1f} s")
    both = [subprocess.Popen([*CLI, "up"], env=environment(home), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    assert pids(home) == before


def test_the_log_of_a_running_task_can_be_read(home: Path) -> None:
    api = airflow.api(settings(home))
    until(lambda: len(api.get("dags")["dags"]) == 3)
    run = api.post("dags/talks/dagRuns", {"logical_date": None})["dag_run_id"]
    until(lambda: "line 3" in api.task_log("talks", run, "talk"))
    assert api.get(f"dags/talks/dagRuns/{run}")["state"] == "running"
    (home / "enough").touch()
    until(lambda: api.get(f"dags/talks/dagRuns/{run}")["state"] == "success")
    server = airflow.daemon(settings(home), "api-server").log.read_text(errors="replace")
    assert "Traceback" not in server, "a look at a running task's log costs no traceback"


def test_a_killed_scheduler_is_started_again_alone(home: Path) -> None:
    before = pids(home)
    workers = psutil.Process(before["scheduler"]).children(recursive=True)
    assert workers
    os.kill(before["scheduler"], signal.SIGKILL)
    until(lambda: airflow.daemon(settings(home), "scheduler").process() is None)
    assert "scheduler      not running" in call(home, "status", code=1)
    call(home, "up")
    assert wait_ended(workers, 0) == []
    after = pids(home)
    assert after.pop("scheduler") != before.pop("scheduler")
    assert after == before


def test_another_port_is_refused_while_it_runs_and_a_taken_one_named(home: Path, tmp_path: Path) -> None:
    other = str(free_port(MLFLOW_PORT))
    assert f"runs on port {AIRFLOW_PORT}" in call(home, "up", code=2, SSL_AIRFLOW_PORT=other)
    said = call(home, "up", code=2, SSL_HOME=str(tmp_path / "other"))
    assert f"port {AIRFLOW_PORT} is taken by an Airflow" in said
    assert "export SSL_AIRFLOW_PORT=" in said
    assert not (tmp_path / "other" / "mlflow").exists(), "nothing was started"


def test_down_lets_a_job_save_and_leaves_nothing(home: Path) -> None:
    api = airflow.api(settings(home))
    job = api.post("dags/job/dagRuns", {"logical_date": None})["dag_run_id"]
    deaf = api.post("dags/deaf/dagRuns", {"logical_date": None})["dag_run_id"]
    until(lambda: any("job has process" in line for line in api.task_log("job", job, "job")))
    until(lambda: api.get(f"dags/deaf/dagRuns/{deaf}/taskInstances/deaf")["state"] == "running")
    time.sleep(2)  # the job installs its signal handler
    processes = platform(home)
    began = time.monotonic()
    call(home, "down")
    seconds = time.monotonic() - began
    print(f"down with two tasks running: {seconds:.1f} s")
    assert seconds < 20
    assert wait_ended(processes, 0) == []
    assert orphans.marked(home) == []
    assert (home / "checkpoint").read_text() == "saved"
    assert not port_taken(AIRFLOW_PORT)
    assert not port_taken(MLFLOW_PORT)
    assert "nothing was running" in call(home, "down")


def test_up_after_down_goes_on_with_what_was_there(home: Path) -> None:
    secrets = (home / "airflow" / "secrets.json").read_text()
    began = time.monotonic()
    call(home, "up")
    print(f"later up: {time.monotonic() - began:.1f} s")
    assert (home / "airflow" / "secrets.json").read_text() == secrets
    api = airflow.api(settings(home))
    assert len(api.get("dags")["dags"]) == 3
    # The task that was cut off runs again although it has no retry: it did not fail.
    [deaf] = api.get("dags/deaf/dagRuns")["dag_runs"]
    until(lambda: api.get(f"dags/deaf/dagRuns/{deaf['dag_run_id']}/taskInstances/deaf")["try_number"] == 2)
    until(lambda: api.get(f"dags/deaf/dagRuns/{deaf['dag_run_id']}/taskInstances/deaf")["state"] == "running")


def test_down_finds_what_lost_its_pid_files(home: Path) -> None:
    """kill -9 of two processes and no pid file left: the marker in the environment still finds all of it."""
    running = pids(home)
    processes = platform(home)
    os.kill(running["scheduler"], signal.SIGKILL)
    os.kill(running["triggerer"], signal.SIGKILL)
    for file in airflow.daemon(settings(home), "scheduler").folder.glob("*.json"):
        file.unlink()
    said = call(home, "down")
    assert "left behind" in said
    assert wait_ended(processes, 0) == []
    assert orphans.marked(home) == []
