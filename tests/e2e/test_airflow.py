"""Projects in a real Airflow: they appear, run when triggered, woken or due, and end with a champion."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

import pytest

from ssl_core.errors import UserError
from tests.e2e.tools.platform import LONG, QUICK, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.airflow]


def test_a_triggered_ingest_leads_to_a_champion_through_assets_alone(airflow, shapes):
    tasks = airflow.tasks("shapes.finetune", airflow.runs("shapes.finetune")[0]["dag_run_id"])
    assert set(tasks) == {"resolve", "finetune", "evaluate", "register", "gate", "approve", "promote"}
    report = json.loads(airflow.cli("report", "shapes", "--json"))
    assert report["version"] == "1"
    # One run each: nothing woke anything twice.
    assert [len(airflow.runs(f"shapes.{t}")) for t in ("ingest", "pretrain", "finetune")] == [1, 1, 1]
    links = airflow.api.get(
        f"dags/shapes.ingest/dagRuns/{airflow.runs('shapes.ingest')[0]['dag_run_id']}/taskInstances/validate/links"
    )["extra_links"]
    assert f"{airflow.settings.mlflow_port}/#/experiments/" in links["MLflow run"]
    assert "validation" in links["Report"]


def test_a_new_project_shows_within_30_seconds_and_a_broken_one_hides_nothing(airflow):
    began = time.monotonic()
    airflow.show("newcomer", timeout=30)
    assert time.monotonic() - began < 30
    (airflow.projects / "broken.yaml").write_text(
        "name: broken\ndata: {source: sample://digits}\npretrain: {epoch: 3}\n"
    )

    def complaint() -> str:
        errors = airflow.api.get("importErrors")["import_errors"]
        return next((e["stack_trace"] for e in errors if e["filename"] == "broken.yaml.py"), "")

    wait_until(lambda: bool(complaint()), 60, "the import error")
    assert "broken.yaml:3: pretrain.epoch: unknown key, did you mean `epochs`?" in complaint()
    assert "Traceback" not in complaint()
    assert airflow.dag("newcomer.ingest")
    (airflow.projects / "broken.yaml").unlink()
    wait_until(lambda: not complaint(), 90, "the import error to go")


def test_the_form_refuses_or_the_first_task_names_the_key(airflow):
    airflow.show("form")
    with pytest.raises(UserError, match="epochs"):
        airflow.trigger("form.pretrain", **{"pretrain.epochs": -1})
    for conf, words in (
        ({"overrides": {"pretrain.epoch": 3}}, "trigger form: pretrain.epoch: unknown key, did you mean `epochs`?"),
        ({"pretrain.epoks": 3}, "trigger form: pretrain.epoks: unknown field, did you mean `pretrain.epochs`?"),
        ({"dataset": "v9"}, "dataset form has no version v9"),
    ):
        run = airflow.trigger("form.pretrain", **conf)
        tasks = airflow.wait("form.pretrain", run, state="failed")
        assert tasks["resolve"]["try_number"] == 1, "a user's mistake is not tried again"
        log = "\n".join(airflow.log("form.pretrain", run, "resolve"))
        failed = [line for line in log.splitlines() if "Task failed with exception" in line]
        assert words in log or words in json.dumps(_errors(airflow, "form.pretrain", run)), log + str(failed)


def _errors(airflow, dag_id: str, run: str) -> list[str]:
    """The messages of the exceptions in a task's log."""
    path = f"dags/{dag_id}/dagRuns/{run}/taskInstances/resolve/logs/1"
    answer = airflow.api.get(path, full_content="true")
    return re.findall(r'"exc_value": ?"((?:[^"\\]|\\.)*)"', json.dumps(answer))


def test_a_cron_really_fires(airflow):
    airflow.show("clock", QUICK + "schedule: {ingest: '* * * * *', timezone: Europe/Berlin}\n")
    wait_until(lambda: bool(airflow.runs("clock.ingest")), 90, "a scheduled run")
    run = airflow.runs("clock.ingest")[0]
    assert run["run_type"] == "scheduled"
    airflow.wait("clock.ingest", run["dag_run_id"])
    airflow.write("clock")  # without its cron again
    wait_until(lambda: bool(airflow.runs("clock.pretrain")), 60, "the pretraining that the new version wakes")
    airflow.wait("clock.pretrain", airflow.runs("clock.pretrain")[0]["dag_run_id"])


def test_five_events_at_once_lose_nothing_and_do_nothing_twice(airflow):
    airflow.show("events", QUICK.replace("epochs: 4", "epochs: 60", 1))
    asset = next(a for a in airflow.api.get("assets", name_pattern="events/dataset")["assets"])
    airflow.wait("events.ingest", airflow.trigger("events.ingest"))
    wait_until(lambda: bool(airflow.runs("events.pretrain")), 60, "the first run")
    for number in range(5):  # while the first run is busy, and only one may be active
        airflow.api.post("assets/events", {"asset_id": asset["id"], "extra": {"number": number}})
    last = time.time()

    def done() -> bool:
        airflow.answer("events.finetune", "Promote")  # with so few images the gate may ask
        runs = [run for t in ("pretrain", "finetune") for run in airflow.runs(f"events.{t}")]
        return all(run["state"] == "success" for run in runs) and bool(airflow.runs("events.finetune"))

    wait_until(done, 300, "all woken runs")
    time.sleep(5)
    wait_until(done, 300, "what they woke")
    states: Counter[str] = Counter()
    for run in airflow.runs("events.pretrain"):
        states[airflow.tasks("events.pretrain", run["dag_run_id"])["pretrain"]["state"]] += 1
    assert states["success"] == 1, f"trained once, left out elsewhere: {states}"
    newest = max(_epoch(run["start_date"]) for run in airflow.runs("events.pretrain"))
    assert newest >= last - 1, "a run began after the last event, so none was lost"
    ledger = sorted((airflow.home / "store" / "ledger" / "events").glob("*.json"))
    assert len(ledger) <= 1, "one decision for one dataset version and recipe"


def _epoch(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp).timestamp()


def test_a_run_survives_that_its_project_file_is_broken_and_deleted_meanwhile(airflow):
    path = airflow.show("fleeting", LONG)
    text = path.read_text()
    airflow.wait("fleeting.ingest", airflow.trigger("fleeting.ingest"))
    wait_until(lambda: bool(airflow.runs("fleeting.pretrain")), 60, "the run")
    run = airflow.runs("fleeting.pretrain")[0]["dag_run_id"]
    airflow.wait_for_line("fleeting.pretrain", run, "pretrain", "epoch")
    path.write_text("name: fleeting\nnonsense: [")
    airflow.wait_for_task("fleeting.pretrain", run, "pretrain", "success")
    path.unlink()
    wait_until(lambda: airflow.dag("fleeting.pretrain") is None, 120, "the project to leave the UI")
    path.write_text(text)
    airflow.wait("fleeting.pretrain", run)
    assert {task["try_number"] for task in airflow.tasks("fleeting.pretrain", run).values()} == {1}
