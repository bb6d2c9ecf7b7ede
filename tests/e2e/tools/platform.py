"""A whole platform of a test's own: real Airflow, MLflow, Git and DVC below a temporary folder, on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from ssl_core.config.settings import Settings
from ssl_core.services.api import AirflowApi
from ssl_core.services.environment import USER
from tests.e2e.test_run import free_port, write_images

ENDED = ("success", "failed")
# Small enough for a minute, long enough to be interrupted: about 90 images.
QUICK = "pretrain: {epochs: 4, batch_size: 32, checkpoint_seconds: 0, threads: 1}\ntask: {epochs: 4, seeds: 1}\nevaluate: {draws: 3, bootstrap: 100}\nlimits: {retry_seconds: 2}\n"
LONG = QUICK.replace("epochs: 4, batch_size: 32", "epochs: 150, batch_size: 32")


class Platform:
    """Commands, REST calls and project files against one platform home."""

    def __init__(self, folder: Path, **variables: str) -> None:
        """``variables``: further settings, as environment variables."""
        self.folder = folder
        self.projects = folder / "projects"
        self.projects.mkdir()
        self.home = folder / "home"
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("SSL_", "AIRFLOW")) or k.startswith("SSL_CERT")
        }
        clean.pop("MLFLOW_TRACKING_URI", None)
        self.variables = clean | {
            "SSL_HOME": str(self.home),
            "SSL_PROJECTS_DIR": str(self.projects),
            "SSL_AIRFLOW_PORT": str(free_port()),
            "SSL_MLFLOW_PORT": str(free_port()),
            "COLUMNS": "200",
        }
        self.variables |= variables
        self.settings = Settings(
            home=self.home,
            projects_dir=self.projects,
            airflow_port=int(self.variables["SSL_AIRFLOW_PORT"]),
            mlflow_port=int(self.variables["SSL_MLFLOW_PORT"]),
        )
        self.images = folder / "images"
        write_images(self.images, ("disc", "square", "stripe"), 40)

    # ---- the command line

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """``ssl-core ARGUMENTS``, not waited for; stdout and stderr in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "ssl_core.cli", *arguments],
            env=self.variables | more,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=default_interrupt,
        )

    def cli(self, *arguments: str, code: int = 0, timeout: float = 600, **more: str) -> str:
        """What ``ssl-core ARGUMENTS`` prints; it must end with ``code`` and without a traceback."""
        process = self.start(*arguments, **more)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == code, f"exit code {process.returncode}\n{output}"
        assert "Traceback" not in output, output
        return output

    # ---- projects

    def write(self, name: str, more: str = QUICK, source: str = "") -> Path:
        """Writes a project file; of the small images unless another source is named."""
        path = self.projects / f"{name}.yaml"
        path.write_text(f"name: {name}\ndata: {{source: '{source or self.images}'}}\n{more}")
        return path

    def show(self, name: str, more: str = QUICK, timeout: float = 60) -> Path:
        """Writes a project file and waits until its DAGs are in the UI."""
        path = self.write(name, more)
        wait_until(lambda: self.dag(f"{name}.finetune") is not None, timeout, f"{name} in the UI")
        return path

    # ---- Airflow's REST API

    @property
    def api(self) -> AirflowApi:
        secret = json.loads((self.home / "airflow" / "passwords.json").read_text())[USER]
        return AirflowApi(self.settings.local_airflow_url, USER, secret)

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        found = self.api.get("dags", dag_id_pattern=dag_id, exclude_stale=True)["dags"]
        return next((dag for dag in found if dag["dag_id"] == dag_id), None)

    def trigger(self, dag_id: str, **conf: Any) -> str:
        return str(self.api.post(f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(self.api.get(f"dags/{dag_id}/dagRuns", order_by="run_after", limit=100)["dag_runs"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        path = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        return {task["task_id"]: task for task in self.api.get(path)["task_instances"]}

    def wait(
        self, dag_id: str, run_id: str, timeout: float = 240, state: str = "success", asked: str = "Promote"
    ) -> dict[str, dict[str, Any]]:
        """Waits until the run ends, asserts how, and returns its tasks. Where a person is asked, the answer is ``asked``; empty: none."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"

        def ended() -> bool:
            if asked and dag_id.endswith(".finetune"):
                self.answer(dag_id, asked)
            return self.api.get(path)["state"] in ENDED

        wait_until(ended, timeout, f"the end of {dag_id}")
        tasks = self.tasks(dag_id, run_id)
        found = self.api.get(path)["state"]
        assert found == state, f"{dag_id} is {found}: " + "\n".join(
            line for name, task in tasks.items() if task["state"] == "failed" for line in self.log(dag_id, run_id, name)
        )
        return tasks

    def answer(self, dag_id: str, chosen: str, comment: str | None = None) -> list[str]:
        """A person's answer to every run of ``dag_id`` that waits for one; what each of them was asked."""
        found = self.api.get(f"dags/{dag_id}/dagRuns/~/hitlDetails", task_id="approve", response_received="false")
        asked = []
        for detail in found["hitl_details"]:
            run = quote(detail["task_instance"]["dag_run_id"], safe="")
            path = f"dags/{dag_id}/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
            self.api.patch(path, {"chosen_options": [chosen], "params_input": {"comment": comment}})
            asked.append(detail["body"])
        return asked

    def wait_for_task(self, dag_id: str, run_id: str, task: str, *states: str, timeout: float = 120) -> None:
        wait_until(lambda: self.tasks(dag_id, run_id).get(task, {}).get("state") in states, timeout, f"{task} {states}")

    def log(self, dag_id: str, run_id: str, task: str, number: int = 0) -> list[str]:
        """The lines of a task's last try, or of try ``number``."""
        number = number or max(1, self.tasks(dag_id, run_id)[task]["try_number"])
        return self.api.task_log(dag_id, run_id, task, number)

    def wait_for_line(self, dag_id: str, run_id: str, task: str, words: str, timeout: float = 120) -> None:
        """Waits until a running task has said ``words``."""

        def said() -> bool:
            try:
                return any(words in line for line in self.log(dag_id, run_id, task))
            except Exception:  # no log yet
                return False

        wait_until(said, timeout, f"{task} to say {words!r}")

    def chain(self, name: str, timeout: float = 300) -> None:
        """ingest, and the runs that it and its followers wake, to their ends."""
        self.wait(f"{name}.ingest", self.trigger(f"{name}.ingest"), timeout)
        for template in ("pretrain", "finetune"):
            dag_id = f"{name}.{template}"
            wait_until(lambda dag_id=dag_id: bool(self.runs(dag_id)), 60, f"{dag_id} to be woken")
            self.wait(dag_id, self.runs(dag_id)[-1]["dag_run_id"], timeout)

    def champion(self, name: str) -> None:
        """Sees to it that there is one: with so few images the gate may leave the first one to a person."""
        run = self.runs(f"{name}.finetune")[-1]["dag_run_id"]
        said = "\n".join(self.log(f"{name}.finetune", run, "promote"))
        if "is the champion" not in said:
            digest = said.partition("--approve ")[2].split()[0]
            assert "is the champion" in self.cli("promote", name, "--approve", digest)

    # ---- processes

    def jobs(self) -> list[psutil.Process]:
        """The step processes that run for this platform."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                if process.environ().get("SSL_HOME") == str(self.home) and "step" in (process.info["cmdline"] or []):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def pid(self, component: str) -> int:
        return int(json.loads((self.home / "airflow" / "logs" / "services" / f"{component}.json").read_text())["pid"])


def default_interrupt() -> None:
    """In a child: Ctrl-C works, even where these tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(is_so: Callable[[], bool], timeout: float, what: str) -> None:
    """Asks twice a second; fails naming ``what`` when the time is over."""
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(0.5)
