"""`dvc repro` as a user runs it: in what a fresh clone has, with real DVC, Git, MLflow and Great Expectations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssl_core.contracts import StepResult, StepStatus
from tests.e2e.test_run import environment, free_port, write_images
from tests.graphs import dvc_stages

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DvcRun = Callable[..., "subprocess.CompletedProcess[str]"]
PROJECT = """\
name: shapes
data: {source: ../shapes}
pretrain: {epochs: 2, batch_size: 32}
task: {epochs: 2, seeds: 1}
evaluate: {draws: 3, bootstrap: 200}
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """What Git would bring, a small project, and an environment; its MLflow server is stopped at the end."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    # The package as it is now: an edit during the test would change the keys of its steps.
    shutil.copytree(ROOT / "ssl_core", folder / "ssl_core", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(text.replace("project: digits", "project: shapes"))
    write_images(folder / "shapes", ("disc", "square"), 40)
    (folder / "projects").mkdir()
    (folder / "projects" / "shapes.yaml").write_text(PROJECT)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    variables = environment(folder / "no home", free_port()) | {
        "DVC_SITE_CACHE_DIR": str(folder / ".ssl" / "dvc-site"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    del variables["SSL_HOME"]  # a newcomer sets none
    yield folder, variables
    stop = [sys.executable, "-m", "ssl_core.cli", "mlflow", "stop"]
    subprocess.run(stop, env=variables, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def dvc(clone: tuple[Path, dict[str, str]]) -> DvcRun:
    folder, variables = clone

    def call(*arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], env=variables | more, cwd=folder,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return call


def done(run: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that ran."""
    return [line.split("'")[1] for line in run.stdout.splitlines() if line.startswith("Running stage")]


def result(clone: tuple[Path, dict[str, str]], step: str) -> StepResult:
    return StepResult.model_validate_json((clone[0] / ".ssl" / "dvc" / "shapes" / f"{step}.json").read_bytes())


def test_repro_then_nothing_new_then_new_data_then_bad_data(clone: tuple[Path, dict[str, str]], dvc: DvcRun) -> None:
    folder, _ = clone
    every = dvc_stages(folder / "dvc.yaml")
    assert done(dvc("repro")) == every
    gate = result(clone, "gate")
    assert (gate.status, gate.verdict is not None) == (StepStatus.DONE, True)
    assert {result(clone, step).run_id for step in every} == {gate.run_id}
    assert not (folder / ".ssl" / "store" / "ledger").exists(), "nothing was promoted"

    kept = {step: result(clone, step) for step in every}
    assert done(dvc("repro")) == ["ingest"]
    assert {step: result(clone, step) for step in every} == kept

    # More images: a version, and (pretrain.when: first) the encoder that is there.
    write_images(folder / "shapes", ("disc", "square"), 8, seed=1)
    assert done(dvc("repro")) == every[1:]
    assert result(clone, "publish").summary.startswith("shapes@v2")
    for step in ("pretrain", "register-encoder"):
        assert result(clone, step).status is StepStatus.SKIPPED
        assert result(clone, step).outputs == {
            "registered_encoder": kept["register-encoder"].outputs["registered_encoder"]
        }
    assert result(clone, "gate").verdict is not None

    # A check that fails stops there, with its report; what was mended goes on.
    project = folder / "projects" / "shapes.yaml"
    project.write_text(PROJECT + "validation: {min_rows: 1000}\n")
    failed = dvc("repro", code=255)
    assert done(failed)[-1] == "validate"
    assert "exited with 3" in failed.stderr
    assert result(clone, "validate").status is StepStatus.CHECK_FAILED
    project.write_text("name: shapes\ndata: [\n")
    failed = dvc("repro", code=255)
    assert "shapes.yaml:3: not valid YAML" in failed.stderr
    assert "exited with 2" in failed.stderr
    project.write_text(PROJECT)
    assert done(dvc("repro"))[:3] == ["resolve", "ingest", "validate"]
    assert result(clone, "validate").status is StepStatus.DONE


def test_results_of_another_home_are_not_taken_for_its_own(clone: tuple[Path, dict[str, str]], dvc: DvcRun) -> None:
    failed = dvc("repro", code=255, SSL_HOME=str(clone[0] / "other"))
    assert "of another store than file://" in failed.stderr
    assert "dvc repro --force" in failed.stderr


def test_dag_shows_the_stages(clone: tuple[Path, dict[str, str]], dvc: DvcRun) -> None:
    shown = dvc("dag").stdout
    assert all(f"| {step} |" in shown for step in dvc_stages(clone[0] / "dvc.yaml")), shown
