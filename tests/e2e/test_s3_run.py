"""Digits from raw files to a champion with everything in S3: the images, the store, the DVC remote, MLflow's artifacts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from ssl_core.config.load import load_project
from ssl_core.data.samples import sample_items
from ssl_core.data.sources import open_source
from ssl_core.step import NoProgress
from tests.e2e.test_run import environment, free_port
from tests.e2e.tools.s3_server import s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.s3]

SSL_CORE = [sys.executable, "-m", "ssl_core.cli"]
PROJECT = (
    "name: digits\ndata: {source: 's3://raw/digits'}\n"
    "pretrain: {epochs: 4, batch_size: 128, threads: 1}\ntask: {epochs: 4, seeds: 1}\nevaluate: {draws: 5}\n"
)
Command = Callable[..., str]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], Any]]:
    """A folder, the environment of a platform that keeps everything in S3, and a client of that S3."""
    folder = tmp_path_factory.mktemp("everything")
    with s3_server(folder / "s3") as server:
        client = boto3.client(
            "s3", endpoint_url=server.url, aws_access_key_id=server.key, aws_secret_access_key=server.secret, region_name="us-east-1"
        )  # fmt: skip
        for bucket in ("raw", "platform"):
            client.create_bucket(Bucket=bucket)
        items = sample_items("digits", folder / "cache")
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda i: client.put_object(Bucket="raw", Key=f"digits/{i.label}/{i.name}", Body=i.read()), items
                )
            )
        variables = environment(folder / "home", free_port()) | server.environment() | {
            "SSL_STORE": "s3://platform/store", "SSL_DVC_REMOTE": "s3://platform/dvc", "SSL_MLFLOW_ARTIFACTS": "s3://platform/mlflow",
        }  # fmt: skip
        yield folder, variables, client
        subprocess.run([*SSL_CORE, "mlflow", "stop"], env=variables, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def ssl_core(everything: tuple[Path, dict[str, str], Any]) -> Command:
    folder, variables, _ = everything

    def call(*arguments: str, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            [*SSL_CORE, *arguments], env=variables | more, cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        assert variables["AWS_SECRET_ACCESS_KEY"] not in said
        return said

    return call


def keys(client: Any, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="platform", Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def test_digits_to_a_champion_and_an_unchanged_second_run(everything, ssl_core: Command) -> None:
    folder, _, client = everything
    (folder / "digits.yaml").write_text(PROJECT)
    first = ssl_core("run", "digits.yaml")
    assert "1,797 of 1,797 objects fetched from S3" in first
    assert "digits version 1 is the champion" in first

    assert any(key.endswith("/result.json") for key in keys(client, "store/digits/ingest/"))
    assert len(keys(client, "store/ledger/digits/")) == 1
    assert keys(client, "dvc/files/md5/")
    assert any(key.endswith("/MLmodel") for key in keys(client, "mlflow/"))
    for local in ("store", "dvc-remote", "mlflow/artifacts"):
        assert not (folder / "home" / local).exists(), f"{local} was written here as well"

    again = ssl_core("run", "digits.yaml")
    for step in ("ingest", "validate", "finetune", "evaluate", "register"):
        assert re.search(rf"{step} +unchanged", again), again
    assert "fetched from S3" not in again
    assert len(keys(client, "store/ledger/digits/")) == 1


def test_one_new_object_is_fetched_alone(everything, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes on from the run above, with its cache."""
    folder, variables, client = everything
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    project, cache = load_project(folder / "digits.yaml"), folder / "home" / "cache"
    before = open_source(project, cache).fingerprint()
    seven = client.get_object(Bucket="raw", Key="digits/7/digit-0007.png")["Body"].read()
    client.put_object(Bucket="raw", Key="digits/7/copy of one.png", Body=seven)
    source = open_source(project, cache)
    assert source.fingerprint() != before
    assert source.sync(NoProgress(), threading.Event()) == 1
    client.delete_object(Bucket="raw", Key="digits/7/copy of one.png")
    assert open_source(project, cache).fingerprint() == before


def test_large_artifacts_go_through_the_server(everything, ssl_core: Command, tmp_path: Path) -> None:
    """100 MB up and down over MLflow's proxy: the client needs no rights in S3 and never speaks to it."""
    _, variables, client = everything
    url = ssl_core("mlflow", "start").split()[-1]
    content = os.urandom(2**20) * 100
    (tmp_path / "weights.bin").write_bytes(content)
    script = (
        "import sys, mlflow; from mlflow import MlflowClient\n"
        "c = MlflowClient(sys.argv[1]); mlflow.set_tracking_uri(sys.argv[1]); run = c.create_run(c.create_experiment('large')).info.run_id\n"
        "c.log_artifact(run, sys.argv[2], 'model'); print(c.download_artifacts(run, 'model/weights.bin', sys.argv[3]))"
    )
    (tmp_path / "down").mkdir()
    without = {k: v for k, v in variables.items() if not k.startswith("AWS_")}
    paths = [str(tmp_path / "weights.bin"), str(tmp_path / "down")]
    done = subprocess.run(
        [sys.executable, "-c", script, url, *paths], env=without, check=True, capture_output=True, text=True
    )
    assert Path(done.stdout.split()[-1]).read_bytes() == content
    assert any(key.endswith("model/weights.bin") for key in keys(client, "mlflow/"))


def test_what_is_wrong_with_s3_ends_a_run_with_a_reason(everything, ssl_core: Command) -> None:
    _, variables, _ = everything
    said = ssl_core("run", "digits.yaml", code=2, AWS_SECRET_ACCESS_KEY="wrong")
    assert "platform/store" in said
    assert "a wrong access key id or secret" in said
    said = ssl_core("run", "digits.yaml", "--set", "data.source=s3://no-such-bucket/x", code=2)
    assert "there is no such bucket" in said
    said = ssl_core("run", "digits.yaml", code=2, AWS_ACCESS_KEY_ID=f"{variables['AWS_ACCESS_KEY_ID']}-ro", SSL_STORE="s3://platform/other")  # fmt: skip
    assert "platform/other" in said
    assert "no right to do this" in said
