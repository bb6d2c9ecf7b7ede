"""What Airflow costs: each task's wait, start-up and work, beside the same steps in one process.

    python benchmarks/orchestration.py              # writes benchmarks/results/orchestration.json
    python benchmarks/orchestration.py --project animals --output /tmp/trial.json

In a platform home of its own it measures `ssl-core up`, `ssl-core demo` from nothing and again unchanged, the memory of the idle
platform, `ssl-core down`; then `ssl-core run` (one process, no Airflow) in another home; then what parsing DAG files costs. Of a task:

* wait: from the end of what it waited for (or the start of the run) to its start;
* start-up: from its start to the start of the step, and from the end of the step to its own: worker, Python, imports of the
  command line, reading and checking the result. A step's own imports (torch, MLflow) are work, there as in one process;
* work: what the step took, as its result says.

Orchestration is all that is not work between the trigger and the end of the last run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
CHAIN = ("ingest", "pretrain", "finetune")

_PARSE = """
import json, sys, tempfile, time
from pathlib import Path
clock = time.process_time
a = clock(); import airflow.sdk; b = clock()
import ssl_dags.bundle, ssl_dags.templates; c = clock()
rendered = ssl_dags.templates.render(sys.argv[1]); d = clock()
text = Path(sys.argv[1]).read_text()
with tempfile.TemporaryDirectory() as folder:
    for i in range(50):
        (Path(folder) / f"p{i}.yaml").write_text(text.replace("name: digits", f"name: p{i}", 1))
    w = time.perf_counter()
    count = sum(len(ssl_dags.templates.render(str(f))) for f in sorted(Path(folder).glob("*.yaml")))
    fifty = time.perf_counter() - w
heavy = {"torch", "transformers", "mlflow", "pandas", "great_expectations", "dvc"} & set(sys.modules)
print(json.dumps({"import_airflow_sdk_s": b - a, "import_templates_s": c - b, "first_project_s": d - c,
                  "over_airflow_sdk_s": d - b, "fifty_projects_s": fifty, "dags": count, "heavy_modules": sorted(heavy)}))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds and output of a command that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return round(seconds, 2), done.stdout + done.stderr


def moment(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def table(api: Any, project: str) -> dict[str, Any]:
    """Each task of the first run of each template, and what they sum up to."""
    rows: list[dict[str, Any]] = []
    first = last = 0.0
    for template in CHAIN:
        dag_id = f"{project}.{template}"
        run = api.get(f"dags/{dag_id}/dagRuns", order_by="run_after", limit=1)["dag_runs"][0]
        path = f"dags/{dag_id}/dagRuns/{quote(run['dag_run_id'], safe='')}/taskInstances"
        ready = moment(run["queued_at"])
        first, last = first or ready, moment(run["end_date"])
        tasks = sorted(api.get(path)["task_instances"], key=lambda t: t["start_date"])
        for task in tasks:
            skipped = (
                task["state"] == "skipped"
            )  # `approve`, where nobody has to be asked: it does no work, but takes its time
            result = (
                {"seconds": 0} if skipped else api.get(f"{path}/{task['task_id']}/xcomEntries/return_value")["value"]
            )
            start, end, work = moment(task["start_date"]), moment(task["end_date"]), float(result["seconds"])
            rows.append(
                {
                    "dag": dag_id,
                    "task": task["task_id"],
                    "wait_s": round(start - ready, 2),
                    "start_up_s": round(end - start - work, 2),
                    "work_s": round(work, 2),
                }
            )
            ready = end
    work = sum(row["work_s"] for row in rows)
    return {
        "tasks": rows,
        "trigger_to_champion_s": round(last - first, 1),
        "work_s": round(work, 1),
        "wait_s": round(sum(row["wait_s"] for row in rows), 1),
        "start_up_s": round(sum(row["start_up_s"] for row in rows), 1),
        "orchestration_share_of_work": round((last - first - work) / work, 3),
    }


def memory(home: Path) -> dict[str, Any]:
    """PSS (shared pages counted once) and RSS of every process of the platform home, MiB."""
    import psutil

    parts = {"pss_mib": 0.0, "rss_mib": 0.0, "processes": 0}
    for process in psutil.process_iter():
        try:
            if process.environ().get("SSL_HOME") != str(home) or process.pid == os.getpid():
                continue
            full = process.memory_full_info()
        except psutil.Error:
            continue
        parts["pss_mib"] += full.pss / 2**20
        parts["rss_mib"] += full.rss / 2**20
        parts["processes"] += 1
    return {name: round(value) for name, value in parts.items()}


def best(measure: Callable[[], dict[str, Any]], key: str, times: int = 3) -> dict[str, Any]:
    return min((measure() for _ in range(times)), key=lambda found: float(found[key]))


def parse(environment: dict[str, str]) -> dict[str, Any]:
    """CPU seconds of importing the DAG code and rendering one project; wall seconds for fifty."""
    python = ROOT / ".venv-airflow" / "bin" / "python"
    surroundings = environment | {"PYTHONPATH": str(ROOT / "dags"), "AIRFLOW_HOME": environment["SSL_HOME"] + "/parse"}
    command = [str(python), "-c", _PARSE, str(ROOT / "projects" / "digits.yaml")]

    def once() -> dict[str, Any]:
        output = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True).stdout
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in json.loads(output.splitlines()[-1]).items()}

    return best(once, "over_airflow_sdk_s")


def measure(project: str, folder: Path) -> dict[str, Any]:
    from ssl_core.config.settings import Settings
    from ssl_core.services import airflow

    core = [sys.executable, "-m", "ssl_core.cli"]
    home = folder / "home"
    ports = {"SSL_AIRFLOW_PORT": str(free_port()), "SSL_MLFLOW_PORT": str(free_port())}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SSL_", "AIRFLOW", "MLFLOW"))}
    environment = clean | ports | {"SSL_HOME": str(home)}
    found: dict[str, Any] = {}
    found["up_first_s"], _ = timed([*core, "up"], environment)
    try:
        time.sleep(20)
        found["idle"] = memory(home)
        found["demo_cold_s"], _ = timed([*core, "demo", project], environment)
        settings = Settings(home=home, airflow_port=int(ports["SSL_AIRFLOW_PORT"]))
        found |= table(airflow.api(settings), project)
        found["demo_unchanged_s"] = [timed([*core, "demo", project], environment)[0] for _ in range(3)]
    finally:
        found["down_s"], _ = timed([*core, "down"], environment)
    found["up_again_s"], _ = timed([*core, "up"], environment)
    timed([*core, "down"], environment)

    alone = clean | {"SSL_HOME": str(folder / "alone"), "SSL_MLFLOW_PORT": str(free_port())}
    found["one_process_s"], _ = timed([*core, "run", f"projects/{project}.yaml"], alone)
    results = (folder / "alone" / "store" / project).glob("*/*/result.json")
    found["one_process_work_s"] = round(sum(json.loads(r.read_text())["seconds"] for r in results), 1)
    timed([*core, "mlflow", "stop"], alone)
    found["parse"] = parse(environment)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="digits")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "orchestration.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.project, Path(folder))
    document = {
        "what": "a project through Airflow on one machine, beside the same steps in one process",
        "command": f"python benchmarks/orchestration.py --project {options.project}",
        "seed": "the project's",
        "machine": {
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        **found,
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    for row in found["tasks"]:
        print(f"{row['dag']:18} {row['task']:18} {row['wait_s']:6.2f} {row['start_up_s']:6.2f} {row['work_s']:6.2f}")
    print(json.dumps({k: v for k, v in found.items() if k != "tasks"}, indent=1))


if __name__ == "__main__":
    main()
