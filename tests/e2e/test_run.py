"""The whole way, as a user goes it: `ssl-core` in a process of its own, real MLflow, DVC, Git and Great Expectations."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e

Command = Callable[..., subprocess.CompletedProcess[str]]
QUICK = (
    "pretrain: {epochs: 4, batch_size: 128, checkpoint_seconds: 0}\ntask: {epochs: 4, seeds: 1}\nevaluate: {draws: 5}\n"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(home: Path, port: int) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SSL_") or k.startswith("SSL_CERT")}
    return clean | {"SSL_HOME": str(home), "SSL_MLFLOW_PORT": str(port), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A working folder and an environment with a platform home of its own; its MLflow server is stopped at the end."""
    folder = tmp_path_factory.mktemp("platform")
    variables = environment(folder / "home", free_port())
    yield folder, variables
    subprocess.run(
        [sys.executable, "-m", "ssl_core.cli", "mlflow", "stop"],
        env=variables,
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def ssl_core(platform: tuple[Path, dict[str, str]]) -> Command:
    folder, variables = platform

    def call(*arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ssl_core.cli", *arguments],
            env=variables | more,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return call


def write_project(folder: Path, name: str, source: str, more: str = QUICK, data: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\ndata: {{source: '{source}'{data}}}\n{more}")
    return path


def write_images(folder: Path, classes: tuple[str, ...], each: int, seed: int = 0) -> list[Path]:
    """Discs, squares and stripes with noise: real PNG files, distinct and easy to tell apart."""
    generator = np.random.default_rng(seed)
    paths = []
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            grid = np.mgrid[:20, :20] - generator.integers(7, 13, (2, 1, 1))
            shape = [np.hypot(*grid) < 6, np.abs(grid).max(0) < 5, (grid[0] + i) % 4 < 2][number % 3]
            image = np.clip(shape * 180 + generator.normal(30, 20, (20, 20)), 0, 255).astype(np.uint8)
            path = folder / name / f"{name or 'image'} {seed}-{i} é.png"
            Image.fromarray(image).save(path)
            paths.append(path)
    return paths


def test_digits_from_raw_files_to_a_champion_and_an_unchanged_second_run(platform, ssl_core):
    folder, _ = platform
    write_project(folder, "digits", "sample://digits")
    first = ssl_core("run", "digits.yaml")
    assert "probe: label-spreading" in first.stdout
    assert "champion" in first.stdout.lower()
    report = json.loads(ssl_core("report", "digits.yaml", "--json").stdout)
    assert [row["labels"] for row in report["label_budgets"]] == [10, 20, 50, 100, "all"]
    for row in report["label_budgets"]:
        for method in ("classical", "random_init", "pretrained"):
            assert 0 <= row[method]["low"] <= row[method]["mean"] <= row[method]["high"] <= 1
    assert report["label_budgets"][-1]["pretrained"]["mean"] > 0.9

    second = ssl_core("run", "digits.yaml")
    for step in ("ingest", "validate", "finetune", "evaluate", "register"):
        assert re.search(rf"{step} +unchanged", second.stderr), second.stderr
    entries = sorted((folder / "home" / "store" / "ledger" / "digits").glob("*.json"))
    assert len(entries) == 1, "an unchanged run promotes nothing"


def test_a_users_class_folders_then_more_images_make_the_next_version(platform, ssl_core):
    folder, _ = platform
    write_images(folder / "shapes", ("disc", "square", "stripes"), 60)
    ssl_core("init", "shapes", "--data", str(folder / "shapes"), "--projects-dir", str(folder / "projects"))
    text = (folder / "projects" / "shapes.yaml").read_text()
    assert "shapes" in text
    quick = ("--set", "pretrain.epochs=4", "--set", "task.epochs=4", "--set", "evaluate.draws=5")
    ssl_core("run", str(folder / "projects" / "shapes.yaml"), *quick)
    write_images(folder / "shapes", ("disc", "square", "stripes"), 10, seed=1)
    again = ssl_core("run", str(folder / "projects" / "shapes.yaml"), *quick)
    assert "shapes@v2" in again.stderr
    assert "reused" in again.stderr, "pretrain.when: first keeps the encoder"


def test_labels_csv_and_a_folder_without_labels(platform, ssl_core):
    folder, _ = platform
    paths = write_images(folder / "flat", ("",), 90) + write_images(folder / "flat", ("",), 0)
    write_project(folder, "flat", str(folder / "flat"))
    done = ssl_core("run", "flat.yaml")
    assert "no labels yet" in done.stderr
    assert "effective rank" in done.stdout.lower()
    rows = [f"{path.name},{'even' if i % 2 else 'odd'}" for i, path in enumerate(paths)]
    (folder / "flat" / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8-sig")
    assert "flat@v2" in ssl_core("run", "flat.yaml", "--set", "evaluate.label_budgets=[4,10]").stderr


@pytest.mark.parametrize(
    ("prepare", "more", "code", "message"),
    [
        (lambda f: None, "", 2, "missing"),
        (lambda f: f.mkdir(), "", 2, "empty"),
        (lambda f: write_images(f, ("only",), 60), "", 2, "one class"),
        (lambda f: write_images(f, ("a", "b"), 5), "", 3, "min_rows|row"),
        (
            lambda f: [p.write_bytes(p.read_bytes()[:60]) for p in write_images(f, ("a", "b"), 30)[:20]],
            "",
            3,
            "quarantine",
        ),
    ],
    ids=["missing", "empty", "one class", "too few", "truncated"],
)
def test_bad_data_ends_with_a_reason_and_publishes_nothing(platform, ssl_core, prepare, more, code, message, request):
    folder, _ = platform
    name = "bad-" + request.node.callspec.id.replace(" ", "-")
    prepare(folder / name)
    write_project(folder, name, str(folder / name), more)
    done = ssl_core("run", f"{name}.yaml", code=code)
    assert re.search(message, done.stderr + done.stdout, re.IGNORECASE), done.stderr
    tags = subprocess.run(
        ["git", "-C", str(folder / "home" / "data.git"), "tag", "-l", f"{name}@*"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tags.stdout == ""


def test_two_runs_at_once_both_end_well(platform):
    folder, variables = platform
    write_images(folder / "twice", ("disc", "square"), 40, seed=5)
    write_project(folder, "twice", str(folder / "twice"))
    command = [sys.executable, "-m", "ssl_core.cli", "run", "twice.yaml"]
    runs = [
        subprocess.Popen(command, env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in runs:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err + out
    tags = subprocess.run(
        ["git", "-C", str(folder / "home" / "data.git"), "tag", "-l", "twice@*"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tags.stdout.split() == ["twice@v1"]
    for step in ("ingest", "pretrain", "finetune", "register"):
        assert len(list((folder / "home" / "store" / "twice" / step).glob("*/result.json"))) == 1, (
            f"{step} was done twice"
        )


def test_ctrl_c_at_any_point_then_the_same_command_ends_well(platform, ssl_core):
    folder, variables = platform
    write_images(folder / "stop", ("disc", "square"), 40, seed=9)
    write_project(folder, "stop", str(folder / "stop"))
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-m", "ssl_core.cli", "run", "stop.yaml"],
            env=variables,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(moments.uniform(1, 20))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, 75, 130), err
        assert "Traceback" not in err
    ssl_core("run", "stop.yaml")
    for step in ("pretrain", "finetune", "register"):
        assert len(list((folder / "home" / "store" / "stop" / step).glob("*/result.json"))) == 1, (
            f"{step} was done twice"
        )


def test_a_taken_port_is_explained(platform, ssl_core):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        write_project(platform[0], "port", "sample://digits")
        done = ssl_core("run", "port.yaml", code=2, SSL_MLFLOW_PORT=str(port), SSL_HOME=str(platform[0] / "other-home"))
    assert "SSL_MLFLOW_PORT" in done.stderr
