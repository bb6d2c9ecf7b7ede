"""A project on texts, from raw files through a real Airflow to a champion that answers strings over HTTP."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_serve import free_port
from tests.e2e.tools.platform import Platform, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.airflow]

SUBJECTS = ("the valve", "a bearing", "this pump", "the old motor", "our conveyor", "the second line")
FAULTS = ("leaks oil", "overheats at noon", "makes a grinding noise", "stopped twice", "shows cracks", "trips the fuse")
PRAISE = ("runs smoothly", "is quiet again", "holds pressure", "was serviced well", "keeps its speed", "stays cool")
SECTIONS = """
tokenizer: {size: 400}
encoder: {layers: 1, hidden: 32, heads: 2, max_length: 32}
pretrain: {epochs: 3, batch_tokens: 512, checkpoint_seconds: 0, threads: 1, precision: float32}
task: {epochs: 6, seeds: 1, batch_size: 16, learning_rate: 5.0e-3, encoder_learning_rate: 2.0e-3}
evaluate: {draws: 3, bootstrap: 100}
limits: {retry_seconds: 2}
"""


def write_notes(folder: Path, count: int = 320) -> Path:
    """Notes of a maintenance team: every second one has a label, and the words after the subject decide it."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    lines = []
    for number in range(count):
        faulty = number % 2 == 0
        words = chance.choice(FAULTS if faulty else PRAISE)
        note = {
            "text": f"Shift {number}: {chance.choice(SUBJECTS)} {words}, {chance.choice(SUBJECTS)} {chance.choice(('too', 'as well', 'not'))}."
        }
        if number % 4 < 2:
            note["label"] = "fault" if faulty else "fine"
        lines.append(json.dumps(note))
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def notes(airflow: Platform) -> str:
    """The project's name; it went by asset events alone to a champion."""
    source = write_notes(airflow.folder / "notes")
    (airflow.projects / "notes.yaml").write_text(
        f"name: notes\nmodality: text\ndata: {{source: '{source}'}}\n{SECTIONS}"
    )
    wait_until(lambda: airflow.dag("notes.finetune") is not None, 60, "notes in the UI")
    airflow.chain("notes")
    airflow.champion("notes")
    return "notes"


def test_raw_text_becomes_a_champion_through_airflow(airflow: Platform, notes: str) -> None:
    run = airflow.runs("notes.pretrain")[-1]["dag_run_id"]
    tasks = airflow.tasks("notes.pretrain", run)
    assert {name: task["state"] for name, task in tasks.items()} == dict.fromkeys(
        ("resolve", "tokenize", "pretrain", "register-encoder"), "success"
    )
    said = "\n".join(airflow.log("notes.pretrain", run, "tokenize"))
    assert "tokens a word" in said or "wordpiece tokenizer" in said
    report = json.loads(airflow.cli("report", "notes", "--json"))
    assert report["model"]["headline"] == "accuracy"
    assert report["model"]["accuracy"] > 0.8, "the words decide, and they are few"
    assert {row["classical"]["name"] for row in report["label_budgets"]} <= {
        "TF-IDF of words + logistic regression", "TF-IDF of words and characters + logistic regression", "label spreading on TF-IDF of words",
    }  # fmt: skip


def test_the_form_has_the_keys_of_texts(airflow: Platform, notes: str) -> None:
    params = airflow.api.get("dags/notes.pretrain/details")["params"]
    assert {"pretrain.batch_tokens", "objective.masking.rate", "tokenizer.size", "encoder.max_length"} <= set(params)
    assert "objective.temperature" not in params


def test_the_encoder_s_folder_loads_in_transformers(airflow: Platform, notes: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = next((airflow.home / "store" / "notes" / "pretrain").glob("*/out/encoder"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    out = model(**tokenizer(["the pump leaks oil"], return_tensors="pt"))
    assert out.last_hidden_state.shape[-1] == 32


def test_an_unchanged_second_run_does_nothing(airflow: Platform, notes: str) -> None:
    before = len(list((airflow.home / "store" / "notes" / "pretrain").glob("*/result.json")))
    run = airflow.trigger("notes.pretrain")
    tasks = airflow.wait("notes.pretrain", run)
    assert tasks["pretrain"]["state"] == tasks["tokenize"]["state"] == "skipped"
    assert len(list((airflow.home / "store" / "notes" / "pretrain").glob("*/result.json"))) == before


@pytest.fixture(scope="module")
def served(airflow: Platform, notes: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``mlflow models serve`` for the champion."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "serve.log"
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/notes@champion", "--env-manager", "local",
        "--host", "127.0.0.1", "-p", str(port), "-w", "1",
    ]  # fmt: skip
    # Not this process's environment: mlflow leaves the addresses of other tests' servers there.
    environment = airflow.variables | {
        "MLFLOW_TRACKING_URI": airflow.settings.local_mlflow_url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_strings_are_answered_with_labels_and_probabilities(served: str) -> None:
    texts = ["the pump overheats at noon", "the pump runs smoothly", "这台泵漏油 😀"]
    status, answer = post(served, {"dataframe_records": [{"text": text} for text in texts]})
    assert status == 200, answer
    rows = answer["predictions"]
    assert [row["label"] for row in rows[:2]] == ["fault", "fine"]
    for row in rows:
        assert set(row["probabilities"]) == {"fault", "fine"}
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == pytest.approx(max(row["probabilities"].values()))


def test_bad_requests_name_the_row_and_repeat_nothing(served: str) -> None:
    status, answer = post(served, {"dataframe_records": [{"text": "fine"}, {"text": ""}]})
    assert status == 400
    assert "row 1" in answer["message"]
    assert "Traceback" not in json.dumps(answer)


def test_embed_writes_parquet(airflow: Platform, notes: str) -> None:
    import pyarrow.parquet as pq

    source = airflow.folder / "new.txt"
    source.write_text("the valve leaks oil\nthe motor stays cool\n", encoding="utf-8")
    target = airflow.folder / "new.parquet"
    airflow.cli("embed", "notes", str(source), "--out", str(target))
    rows = pq.read_table(target).to_pylist()
    assert len(rows) == 2
    assert all(len(row["embedding"]) == 32 for row in rows)
