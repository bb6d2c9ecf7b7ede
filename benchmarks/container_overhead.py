"""What a container costs: the same step as a local process and in a container, in turns.

    python benchmarks/container_overhead.py         # writes benchmarks/results/container_overhead.json

Needs a Docker engine and the training image of this checkout (`make images`). In a platform home of its own it starts MLflow, ingests the
digits, and runs `validate` (pandas, Great Expectations, MLflow: a step like most) by the two runners that Airflow uses, alternately, after one
unmeasured run of each. Each run has another `validation.min_rows`, so that no record is reused. A run is timed from handing the job over to
having its result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "dags")]

from ssl_core.cli.execute import execute  # noqa: E402
from ssl_core.config.project import ProjectConfig  # noqa: E402
from ssl_core.config.runner import RunnerConfig, containers  # noqa: E402
from ssl_core.config.settings import Settings  # noqa: E402
from ssl_core.contracts import Ref, RunContext, StepResult, StepSpec  # noqa: E402
from ssl_core.daemon import free_port  # noqa: E402
from ssl_core.registry.server import ensure_server, stop_server  # noqa: E402
from ssl_dags.runners.base import Job, Runner  # noqa: E402
from ssl_dags.runners.containers import Plan  # noqa: E402
from ssl_dags.runners.docker import DockerRunner  # noqa: E402
from ssl_dags.runners.local import LocalRunner  # noqa: E402

GOAL_SECONDS = 3.0


def spec(step: str, min_rows: int, inputs: dict[str, Ref]) -> StepSpec:
    project = ProjectConfig.model_validate(
        {"name": "digits", "data": {"source": "sample://digits"}, "validation": {"min_rows": min_rows}}
    )
    run = RunContext(run_id="benchmark", orchestrator="local")
    return StepSpec(step=step, project=project.model_dump(mode="json"), inputs=inputs, run=run)


def measure(runner: Runner, settings: Settings, min_rows: int, inputs: dict[str, Ref]) -> tuple[float, float]:
    """Seconds from the job to its result, and what the step itself took of them."""
    public, secret = settings.job_environment()
    labels = {"ssl.dag_id": "benchmark", "ssl.run_id": str(min_rows), "ssl.task_id": "validate"}
    job = Job("validate", spec("validate", min_rows, inputs).model_dump_json(), public, secret, labels)
    lines: list[str] = []
    began = time.perf_counter()
    finished = runner.run(job, lines.append)
    seconds = time.perf_counter() - began
    if finished.exit_code != 0 or finished.result is None:
        sys.exit(f"validate ended with {finished.exit_code}: {finished.cause}\n" + "\n".join(lines))
    result = StepResult.model_validate_json(finished.result)
    assert not result.cached
    return round(seconds, 2), result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "container_overhead.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ssl-benchmark-") as folder:
        settings = Settings(home=Path(folder), mlflow_port=free_port(5100))
        ensure_server(settings)
        try:
            candidate = execute(spec("ingest", 50, {}), settings).outputs
            makers: dict[str, Any] = {
                "local": lambda: LocalRunner(sys.executable),
                "docker": lambda: DockerRunner(Plan(containers(RunnerConfig(), settings), settings)),
            }
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
            for number in range(arguments.runs + 1):
                for offset, (name, make) in enumerate(makers.items()):
                    took = measure(make(), settings, 60 + 2 * number + offset, candidate)
                    if number:  # the first one warms the caches of the disk
                        times[name].append(took)
                        print(f"{name}: {took[0]:.2f} s, of which the step {took[1]:.2f} s", flush=True)
        finally:
            stop_server(settings)
    medians = {name: statistics.median(total for total, _ in runs) for name, runs in times.items()}
    document = {
        "what": "seconds of one step (validate, digits) as a local process and in a container, in turns",
        "command": "python benchmarks/container_overhead.py",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {platform.platform()}",
        "runs": {name: [{"seconds": total, "step": step} for total, step in runs] for name, runs in times.items()},
        "median_s": medians,
        "container_costs_s": round(medians["docker"] - medians["local"], 2),
        "goal_s": GOAL_SECONDS,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"a container costs {document['container_costs_s']:.2f} s more (goal: at most {GOAL_SECONDS:g} s)")


if __name__ == "__main__":
    main()
