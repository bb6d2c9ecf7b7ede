"""``dvc.yaml`` says what the step table says, and DVC reads it as we do."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from click.testing import CliRunner

from ssl_core.cli import main
from ssl_core.cli.dvc_file import chosen_project, dvc_yaml, needs, stages
from ssl_core.errors import UserError
from ssl_core.pipeline import get_step, producer, steps_for
from tests.graphs import dvc_edges, dvc_stages

STEPS = steps_for("image")

ROOT = Path(__file__).parents[1]
FILE = ROOT / "dvc.yaml"
TRACKED = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a fresh clone has for DVC, and a project."""
    for name in TRACKED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "projects").mkdir()
    (tmp_path / "projects" / "digits.yaml").write_text("name: digits\ndata: {source: sample://digits}\n")
    (tmp_path / "ssl_core" / "config").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def dvc(clone: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DVC_SITE_CACHE_DIR": str(clone / ".site"), "NO_COLOR": "1"}
    environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_graph_is_the_step_tables() -> None:
    names = [step.name for step in STEPS]
    assert dvc_stages(FILE) == names[: names.index("gate") + 1]
    wanted = {
        (producer(artifact).name, step.name)
        for step in STEPS[: names.index("gate") + 1]
        for artifact in step.inputs
    }  # fmt: skip
    assert dvc_edges(FILE) == wanted | {("resolve", name) for name in names[1 : names.index("gate") + 1]}


def test_dvc_reads_the_same_graph(clone: Path) -> None:
    done = dvc(clone, "dag", "--dot")
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r'"([\w-]+)" -> "([\w-]+)"', done.stdout)) == dvc_edges(FILE)


def test_nothing_is_promoted() -> None:
    assert "promote" not in dvc_stages(FILE)
    assert not any("promote" in line for line in FILE.read_text().splitlines() if "cmd:" in line)


def test_ingest_is_always_asked_and_the_store_is_the_only_cache() -> None:
    document = yaml.safe_load(FILE.read_text())
    assert [n for n, stage in document["stages"].items() if stage.get("always_changed")] == ["ingest"]
    for name, stage in document["stages"].items():
        assert stage["outs"] == [{f".ssl/dvc/${{project}}/{name}.json": {"cache": False, "persist": True}}]


def test_every_command_is_one_that_the_command_line_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by click and by the step itself, up to the project file, which is not there."""
    monkeypatch.chdir(tmp_path)
    for name, stage in yaml.safe_load(FILE.read_text())["stages"].items():
        program, *arguments = stage["cmd"].replace("${project}", "digits").split()[1:]
        assert (program, arguments[:2]) == ("ssl-core", ["step", name])
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert "projects/digits.yaml: no such project file" in done.output


def test_the_file_is_up_to_date_and_remembers_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILE.read_text() == dvc_yaml(chosen_project(FILE))
    module = generator()
    pipeline = tmp_path / "dvc.yaml"
    monkeypatch.setattr(module, "PIPELINE", pipeline)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    pipeline.write_text(dvc_yaml().replace("project: digits", "project: plants"))
    assert module.main() == 0, "another project is no difference"
    pipeline.write_text(dvc_yaml("plants").replace("always_changed: true", "always_changed: false"))
    assert module.main() == 1
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert module.main() == 0
    assert pipeline.read_text() == dvc_yaml("plants")


@pytest.mark.parametrize("text", ["stages: {}\n", "vars: []\n", "vars: [\n", "- a\n"])
def test_a_file_without_a_project_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(UserError, match=r"dvc\.yaml: vars\[0\]\.project"):
        chosen_project(tmp_path / "dvc.yaml")
    assert chosen_project(tmp_path / "none.yaml") == "digits"


def test_a_stage_is_what_the_gate_needs() -> None:
    assert [step.name for step in stages("image")] == dvc_stages(FILE)
    assert needs(get_step("resolve")) == []
    assert needs(get_step("finetune")) == ["resolve", "publish", "register-encoder"]


@pytest.fixture
def repro(clone: Path) -> Callable[[], list[str]]:
    """``repro()``: the steps that `dvc repro` does, with a stand-in for ssl-core that writes what ``says/STEP`` holds."""
    command = clone / "bin" / "ssl-core"
    command.parent.mkdir()
    command.write_text(
        """#!/bin/sh
echo "$2" >> done.txt
mkdir -p "$6" && cat "says/$2" > "$6/$2.json"
"""
    )
    command.chmod(0o755)
    (clone / "says").mkdir()
    for step in stages("image"):
        (clone / "says" / step.name).write_text(step.name)

    def run() -> list[str]:
        (clone / "done.txt").write_text("")
        done = dvc(clone, "repro", path=str(command.parent))
        assert done.returncode == 0, done.stderr
        return (clone / "done.txt").read_text().split()

    return run


def test_only_what_changed_is_done_again(clone: Path, repro: Callable[[], list[str]]) -> None:
    every = dvc_stages(FILE)
    assert sorted(repro()) == sorted(every)
    assert repro() == ["ingest"]
    (clone / "says" / "ingest").write_text("new data")
    assert repro() == ["ingest", "validate", "publish"], "publish says the same as before"
    (clone / "projects" / "digits.yaml").write_text("name: digits\n")
    (clone / "says" / "resolve").write_text("another configuration")
    assert sorted(repro()) == sorted(every)
    (clone / "ssl_core" / "config" / "project.py").write_text("another default")
    assert repro()[0] == "resolve"
    shutil.rmtree(clone / ".ssl")
    assert sorted(repro()) == sorted(every), "no cache of DVC's brings back what the store has lost"


def test_a_fresh_clone_is_accepted_and_stays_clean(clone: Path, repro: Callable[[], list[str]]) -> None:
    """DVC refuses outputs that .dvcignore hides and a lock file that Git ignores, and reads any dvc.yaml that it can see."""
    (clone / ".ssl" / "cache").mkdir(parents=True)
    (clone / ".ssl" / "cache" / "dvc.yaml").write_text("no pipeline of ours\n")
    assert len(repro()) == len(stages("image"))
    assert (clone / "dvc.lock").exists()
    status = subprocess.run(
        ["git", "-C", str(clone), "status", "--porcelain", "-uall"], capture_output=True, text=True, check=True
    )
    seen = {line[3:] for line in status.stdout.splitlines() if not line[3:].startswith(("says/", "bin/", ".site/"))}
    assert seen == {*TRACKED, "projects/digits.yaml", "done.txt"}
