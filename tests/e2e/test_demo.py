"""`ssl-core demo`: a newcomer's first command, its second run, and what may happen in between."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from tests.e2e.tools.platform import LONG, QUICK, Platform, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.airflow]


def read_until(process, words: str, timeout: float = 240) -> str:
    """Reads a running command's output up to the line that holds ``words``."""
    deadline, text = time.monotonic() + timeout, ""
    for line in process.stdout:
        text += line
        if words in line:
            return text
        assert time.monotonic() < deadline, text
    raise AssertionError(f"it ended without {words!r}:\n{text}")


def test_from_nothing_to_a_champion_and_an_unchanged_second_run(tmp_path):
    platform = Platform(tmp_path)
    platform.write("digits", "pretrain: {epochs: 20}\ntask: {labels: 100}\n", source="sample://digits")
    try:
        output = platform.cli("demo")
        assert "probe: label-spreading" in output
        assert "digits version 1 is the champion (ledger entry 1)" in output
        password = re.search(r"user admin, password (\S+)", output)
        assert password
        assert f"127.0.0.1:{platform.settings.airflow_port}" in output
        assert f"127.0.0.1:{platform.settings.mlflow_port}" in output
        assert "loss" in output, "training shows its loss while it runs"
        assert re.search(r"^Asset graph: +http://127.0.0.1:\d+/assets/\d+$", output, re.M)
        assert re.search(r"^Model: +http://127.0.0.1:\d+/#/models/digits/versions/1", output, re.M)

        began = time.monotonic()
        again = platform.cli("demo")
        seconds = time.monotonic() - began
        print(f"unchanged second demo: {seconds:.0f} s")
        for step in ("ingest", "validate", "finetune", "evaluate", "register"):
            assert re.search(rf"^  {step} +unchanged", again, re.M), again
        assert re.search(r"^  pretrain +skipped", again, re.M), again
        assert "nothing new to promote" in again
    finally:
        platform.cli("down")
    assert platform.cli("down").strip() == "nothing was running"


def test_ctrl_c_stops_the_watching_and_the_next_demo_goes_on_whatever_dies(airflow):
    airflow.write("watched", LONG)
    process = airflow.start("demo", "watched")
    read_until(process, "epoch")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "no longer watching; Airflow goes on" in output
    assert "Traceback" not in output
    assert airflow.cli("status"), "the services still run"

    again = airflow.start("demo", "watched")
    text = read_until(again, "epoch")
    assert "goes on from before" in text
    os.kill(airflow.pid("api-server"), signal.SIGKILL)
    mlflow = int(re.search(r"process (\d+)", airflow.cli("mlflow", "status"))[1])
    os.killpg(mlflow, signal.SIGKILL)
    text += read_until(again, "starting again")
    output, _ = again.communicate(timeout=400)
    assert again.returncode in (0, 3), text + output  # 3: so few images that the gate leaves the champion to a person
    assert "Traceback" not in text + output
    finetune = airflow.runs("watched.finetune")[-1]
    airflow.wait("watched.finetune", finetune["dag_run_id"])
    assert len(airflow.runs("watched.pretrain")) == 1, "the pretraining that was under way was followed, not repeated"


def test_a_broken_project_file_is_named_at_once(airflow):
    airflow.write("wrong", QUICK + "nonsense: 1\n")
    output = airflow.cli("demo", "wrong", code=2)
    assert re.search(r"wrong\.yaml:\d+: nonsense: unknown key", output)


def test_a_failing_step_ends_the_demo_with_its_own_words(airflow):
    airflow.write("scarce", QUICK + "validation: {min_rows: 5000}\n")
    output = airflow.cli("demo", "scarce", code=1)
    assert "scarce.ingest failed in validate" in output
    assert "check failed" in output
    wait_until(lambda: airflow.runs("scarce.ingest")[0]["state"] == "failed", 10, "the run to have failed")
    assert not airflow.runs("scarce.pretrain"), "no dataset version, so nobody was woken"
