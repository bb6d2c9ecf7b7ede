"""The command: form, exit code, first line, and its end when something hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from ssl_core.cli.doctor import doctor
from ssl_core.doctor.finding import Check, failed, ok, skipped, warning

KEYS = ["name", "status", "found", "cause", "mend", "seconds"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``run(*findings, json=False)``: what the command prints and its exit code, with one check for each finding."""
    monkeypatch.setenv("SSL_HOME", str(tmp_path / "home"))

    def call(*findings, arguments=()):
        table = [Check(f"check {n}", lambda _, f=f: f, 5, "") for n, f in enumerate(findings)]
        monkeypatch.setattr("ssl_core.doctor.checks.checks", lambda settings, project: table)
        result = CliRunner().invoke(doctor, list(arguments), catch_exceptions=False)
        return result.exit_code, result.output

    return call


def test_what_is_wrong_and_what_mends_it(run):
    code, output = run(ok("fine"), warning("low", "free some"), failed("wrong", "mend it"), skipped("not needed"))
    lines = output.splitlines()
    assert code == 2
    assert lines[0].split() == ["ok", "check", "0", "fine"]
    assert lines[1].split() == ["warning", "check", "1", "low"]
    assert lines[2].strip() == "next: free some"
    assert lines[4].strip() == "next: mend it"
    assert lines[-1].startswith("1 ok, 1 warning, 1 failed, 1 skipped; ")


def test_warnings_do_not_fail(run):
    assert run(ok("fine"), warning("low", "free some"))[0] == 0


def test_json(run):
    code, output = run(ok("fine"), failed("wrong [bold]", "mend it"), arguments=["--json"])
    found = json.loads(output)
    assert code == 2
    assert [list(each) for each in found] == [KEYS, KEYS]
    assert found[1]["cause"] == "wrong [bold]"
    assert isinstance(found[0]["seconds"], float)


def test_long_texts_and_markup_are_printed_as_they_are(run):
    text = "a [red]long[/red] one " + "x" * 300
    assert text in run(ok(text))[1]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_settings_that_are_wrong_are_a_finding(arguments, monkeypatch):
    monkeypatch.setenv("SSL_AIRFLOW_PORT", "many")
    result = CliRunner().invoke(doctor, arguments)
    assert result.exit_code == 2
    assert "SSL_AIRFLOW_PORT" in result.output
    assert not arguments or json.loads(result.output)[0]["status"] == "failed"


def command(*arguments, tmp_path, **more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SSL_", "MLFLOW_"))}
    environment |= {"SSL_HOME": str(tmp_path / "home"), "SSL_PROJECTS_DIR": str(tmp_path), **more}
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_core.cli", "doctor", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_whole_table_without_services(tmp_path):
    began = time.monotonic()
    process = command("--json", tmp_path=tmp_path)
    output, errors = process.communicate(timeout=30)
    found = {each["name"]: each for each in json.loads(output)}
    assert len(found) == 26
    assert errors == ""
    assert process.returncode == (2 if any(each["status"] == "failed" for each in found.values()) else 0)
    for each in found.values():
        assert each["status"] in ("ok", "warning", "failed", "skipped")
        assert each["found"] or each["cause"]
        assert bool(each["mend"]) == (each["status"] in ("warning", "failed"))
    assert time.monotonic() - began < 20
    assert not (tmp_path / "home").exists()  # it has looked, and left nothing


@pytest.mark.parametrize(("runner", "limit"), [("local", 20), ("docker", 45)])
def test_with_everything_hanging_it_ends_in_time(runner, limit, tmp_path, hanging):
    began = time.monotonic()
    process = command(
        tmp_path=tmp_path,
        SSL_RUNNER=runner,
        DOCKER_HOST=hanging.replace("http", "tcp"),
        MLFLOW_TRACKING_URI=hanging,
        SSL_DATA_REPO=f"{hanging}/data.git",
        SSL_STORE="s3://platform/store",
        SSL_DVC_REMOTE="s3://platform/dvc",
        AWS_ENDPOINT_URL=hanging,
        AWS_ACCESS_KEY_ID="key-id",
        AWS_SECRET_ACCESS_KEY="xyzzy-secret",
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("ok       settings")
    # A second, on an idle machine; twice that under load.
    assert time.monotonic() - began < 2
    output, errors = process.communicate(timeout=2 * limit)
    assert time.monotonic() - began < limit
    assert process.returncode == 2
    assert "Traceback" not in output + errors
    assert "xyzzy" not in output + errors
    hangs = ["mlflow", "data repository", "store", "dvc remote", "s3 rights"] + ["docker engine"] * (runner == "docker")
    for name in hangs:
        line = next(line for line in output.splitlines() if line[9:].startswith(name))
        assert line.startswith("failed"), line
