"""``kill -9`` of a whole run, as a user starts it, at five moments; the same command again must end as if nothing was.

Every kill takes the run's process group: the local MLflow server has a session of its own and must live through it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ssl_core.contracts import ArtifactRef, StepResult
from ssl_core.store import path_sha256
from tests.e2e.test_run import environment, free_port, write_images, write_project

pytestmark = pytest.mark.e2e

SLOW_TO_TRAIN = (
    "encoder: {widths: [16, 32]}\n"
    "pretrain: {epochs: 150, batch_size: 32, threads: 1, checkpoint_seconds: 0}\n"
    "task: {method: linear, seeds: 1}\nevaluate: {draws: 5}\n"
)
SSL_CORE = [sys.executable, "-m", "ssl_core.cli"]
RUN = ("run", "killed.yaml")


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Callable[[str], dict[str, str]]]:
    """``platform(name)``: the environment of a platform home of its own; the MLflow servers are stopped at the end."""
    made: dict[str, dict[str, str]] = {}

    def make(name: str) -> dict[str, str]:
        made[name] = environment(tmp_path / name, free_port())
        return made[name]

    yield make
    for variables in made.values():
        stop = [*SSL_CORE, "mlflow", "stop"]
        subprocess.run(stop, env=variables, cwd=tmp_path, check=True, capture_output=True)


def finish(folder: Path, variables: dict[str, str], arguments: Sequence[str] = RUN) -> str:
    """A command that is left alone and must end well; returns what it said."""
    done = subprocess.run(
        [*SSL_CORE, *arguments], env=variables, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def kill_once(folder: Path, variables: dict[str, str], reached: Callable[[], bool], delay: float) -> None:
    """Starts the run and kills its process group ``delay`` seconds after ``reached()``."""
    with (folder / "killed.log").open("ab") as log:
        process = subprocess.Popen(
            [*SSL_CORE, *RUN], env=variables, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, f"ended before it could be killed\n{(folder / 'killed.log').read_text()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    assert process.poll() is None, f"ended before it could be killed\n{(folder / 'killed.log').read_text()}"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def newest_checkpoint(home: Path) -> int:
    """The training step of the newest whole checkpoint of pretraining; 0 where there is none."""
    seals = home.glob("store/killed/pretrain/*/checkpoints/*/seal.json")
    return max((int(seal.parent.name) for seal in seals), default=0)


def encoder(home: Path) -> str:
    """The digest of the encoder in the one record of pretraining, which its files must have."""
    (record,) = home.glob("store/killed/pretrain/*/result.json")
    reference = StepResult.model_validate_json(record.read_text()).outputs["encoder"]
    assert isinstance(reference, ArtifactRef)
    assert path_sha256(home / "store" / reference.uri) == reference.sha256
    return reference.sha256


def server_pid(home: Path) -> int:
    return int(json.loads((home / "mlflow" / "server.json").read_text())["pid"])


def test_kills_of_a_run_leave_the_weights_one_entry_and_one_version(tmp_path, platform):
    write_images(tmp_path / "killed", ("disc", "square", "stripes"), 60)
    write_project(tmp_path, "killed", str(tmp_path / "killed"), SLOW_TO_TRAIN)
    finish(tmp_path, platform("whole"))
    undisturbed = encoder(tmp_path / "whole")

    variables, home = platform("broken"), tmp_path / "broken"
    rng = random.Random(20261123)

    def reached(pattern: str) -> Callable[[], bool]:
        return lambda: any(home.glob(pattern))

    # Each moment is a random time after an event, so that every part of a run has one on any machine.
    kill_once(tmp_path, variables, reached("mlflow/server.json"), rng.uniform(0, 3))
    server = server_pid(home)
    kill_once(tmp_path, variables, reached("store/killed/ingest/*"), rng.uniform(0, 3))
    for _ in range(2):
        before = newest_checkpoint(home)
        kill_once(tmp_path, variables, lambda before=before: newest_checkpoint(home) > before, rng.uniform(0, 1))
        assert not reached("store/killed/pretrain/*/result.json")(), "killed inside pretraining"
    kill_once(tmp_path, variables, reached("store/killed/finetune/*/result.json"), rng.uniform(0, 1))
    said = finish(tmp_path, variables)
    # Where the two models tie on the few test images, the gate asks a person.
    if asks := re.search(r"ssl-core promote killed --approve \w+", said):
        finish(tmp_path, variables, asks[0].split()[1:])
    finish(tmp_path, variables)

    assert encoder(home) == undisturbed
    assert server_pid(home) == server, "one MLflow server lived through all kills"
    (entry,) = (home / "store" / "ledger" / "killed").glob("*.json")
    assert json.loads(entry.read_text())["action"] == "PROMOTED"
    tags = ["git", "-C", str(home / "data.git"), "tag", "-l"]
    assert subprocess.run(tags, capture_output=True, text=True, check=True).stdout.split() == ["killed@v1"]
    assert not any(home.glob("store/killed/*/*/checkpoints/*"))
