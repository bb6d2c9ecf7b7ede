"""A champion answers over HTTP in a fresh environment that has the model's own requirements and no ssl-core."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from ssl_core.config.settings import Settings
from ssl_core.registry.server import ensure_server, stop_server
from ssl_core.serving.image_package import to_png
from tests.e2e.tools.platform import wait_until
from tests.registry.conftest import CLASSES, World, golden_pixels

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server_settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path / "home", mlflow_port=free_port())
    ensure_server(settings)
    yield settings
    stop_server(settings)


def fresh_environment(folder: Path, requirements: Path) -> dict[str, str]:
    """A virtual environment with ``requirements`` alone; returns the process environment that uses it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # uv does not read pip's configuration: hand it the folder of local wheels, where pip has one.
    local = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    )
    if local.returncode == 0:
        environment.setdefault("UV_FIND_LINKS", local.stdout.strip())
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True, env=environment)
        subprocess.run(
            [uv, "pip", "install", "-q", "-p", str(folder), "-r", str(requirements)], check=True, env=environment
        )
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
    return environment | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=1)
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"not up: {log.read_text()}")


def test_the_champion_is_served_in_a_fresh_environment(
    server_settings: Settings, make_project: Callable[..., Any], tmp_path: Path
) -> None:
    import mlflow

    world = World(server_settings, make_project(encoder={"widths": [8]}, evaluate={"bootstrap": 500}), tmp_path)
    inputs = world.register("a", right=150)
    world.promote(world.gate(inputs)[1])
    requirements = Path(
        mlflow.artifacts.download_artifacts(
            "models:/tiny@champion/requirements.txt", dst_path=str(tmp_path / "requirements")
        )
    )
    environment = fresh_environment(tmp_path / "venv", requirements)
    python = str(tmp_path / "venv/bin/python")
    assert (
        subprocess.run(
            [python, "-c", "import ssl_core"], cwd=tmp_path, env=environment, capture_output=True, check=False
        ).returncode
        == 1
    )

    port, log = free_port(), tmp_path / "serve.log"
    command = [
        python,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/tiny@champion",
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "-p",
        str(port),
        "-w",
        "1",
    ]
    environment["MLFLOW_TRACKING_URI"] = server_settings.local_mlflow_url
    environment["SSL_PREDICTION_LOG"] = str(tmp_path / "log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/ping", process, log)
        url = f"http://127.0.0.1:{port}/invocations"
        images = [base64.b64encode(to_png(one)).decode() for one in golden_pixels(1)]
        status, answer = post(url, {"dataframe_records": [{"image": image} for image in images]})
        assert status == 200, answer
        wanted = load_file(world.store.fetch(inputs["registered_model"]) / "golden.safetensors")["probabilities"]
        for row, expected in zip(answer["predictions"], wanted, strict=True):
            assert [row["probabilities"][name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
            assert row["label"] == CLASSES[int(expected.argmax())]
            assert row["confidence"] == pytest.approx(float(expected.max()), abs=1e-5)

        secret = base64.b64encode(b"my secret notes, no image").decode()
        status, answer = post(url, {"dataframe_records": [{"image": images[0]}, {"image": secret}]})
        assert status == 400
        assert "row 1: not an image" in answer["message"]
        assert "secret" not in json.dumps(answer)
        assert secret not in json.dumps(answer)
        assert "Traceback" not in json.dumps(answer)
        status, answer = post(url, {"dataframe_records": [{"image": ""}]})
        assert (status, "row 0: the file is empty" in answer["message"]) == (400, True)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
    # Told to stop, it wrote what it had answered, and nothing of what it had refused.
    wait_until(lambda: [*(tmp_path / "log").rglob("*.parquet")], 20, "the prediction log")
    (file,) = (tmp_path / "log").rglob("*.parquet")
    logged = pq.read_table(file).to_pylist()
    assert [CLASSES[int(row.argmax())] for row in wanted] == [row["label"] for row in logged]
    assert {(row["model"], row["version"]) for row in logged} == {("tiny", "1")}
