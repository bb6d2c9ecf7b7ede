"""The living model in a real Airflow: drift wakes a fine-tuning, a person is asked, the drill is held, and there is a way back."""

from __future__ import annotations

import json
import re

import pytest

from ssl_core.monitoring.document import DriftReport
from tests.e2e.tools import browser
from tests.e2e.tools.platform import QUICK, Platform, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.airflow]


@pytest.fixture(scope="module")
def played(airflow: Platform) -> str:
    """What `ssl-core demo-drift` printed."""
    return airflow.cli("demo-drift", timeout=1200)


def history(airflow: Platform, project: str) -> list[dict]:
    return list(json.loads(airflow.cli("history", project, "--json")))


def test_three_quiet_windows_two_shifted_ones_one_alarm_and_a_champion_that_learned(airflow, played):
    rows = dict(re.findall(r"^digits-live version (\d) +(.*%.*)$", played, re.M))
    accuracy = {version: [float(x) for x in re.findall(r"([\d.]+)%", row)] for version, row in rows.items()}
    assert set(accuracy) == {"1", "2"}, played
    assert accuracy["2"][0] > accuracy["1"][0] - 3, "what was known stays known"
    assert accuracy["2"][1] > accuracy["1"][1] + 10, "what is new is learned"
    windows = sorted((airflow.home / "store" / "monitor" / "digits-live" / "1").glob("*.json"))
    reports = [DriftReport.model_validate(json.loads(path.read_bytes())["report"]) for path in windows]
    assert [report.window.name for report in reports] == ["v2", "v3", "v4", "v5", "v6"]
    assert [report.alarm for report in reports] == [False, False, False, False, True]
    assert [report.retrain for report in reports] == [False, False, False, False, True]
    assert reports[-1].finding.kind == "covariate-shift"
    # Woken by the drift alone, and once.
    runs = airflow.runs("digits-live.finetune")
    assert [run["run_type"] for run in runs] == ["asset_triggered"] * 2
    assert [run["state"] for run in runs] == ["success"] * 2
    said = "\n".join(airflow.log("digits-live.finetune", runs[-1]["dag_run_id"], "resolve"))
    assert "goes on from version 1" in said
    link = airflow.api.get(
        f"dags/digits-live.monitor/dagRuns/{airflow.runs('digits-live.monitor')[-1]['dag_run_id']}/taskInstances/monitor/links"
    )["extra_links"]["Report"]
    assert "drift" in link


def test_played_again_it_only_shows_the_table(airflow, played):
    runs = len(airflow.runs("digits-live.ingest"))
    again = airflow.cli("demo-drift")
    assert re.search(r"digits-live version 2 +\d", again)
    assert len(airflow.runs("digits-live.ingest")) == runs


def test_the_fire_drill_finds_every_planted_fault_and_leaves_nothing(airflow, played):
    run = airflow.trigger("digits-live.fire-drill")
    airflow.wait("digits-live.fire-drill", run)
    said = "\n".join(airflow.log("digits-live.fire-drill", run, "fire-drill"))
    assert "7 faults and controls planted, every guard did its work" in said
    assert not list((airflow.home / "store" / "ledger").glob("*drill*"))
    assert len(history(airflow, "digits-live")) == 2


def test_back_to_the_champion_before_and_forth_again(airflow, played):
    airflow.wait("digits-live.rollback", airflow.trigger("digits-live.rollback"))
    assert json.loads(airflow.cli("report", "digits-live", "--json"))["version"] == "1"
    assert "the alias champion names it" in airflow.cli("delete-version", "digits-live", "1", code=2)
    assert "champion" in airflow.cli("rollback", "digits-live", "--to", "2", "--reason", "it was a drill")
    entries = history(airflow, "digits-live")
    assert [entry["action"] for entry in entries] == ["PROMOTED", "PROMOTED", "ROLLED_BACK", "ROLLED_BACK"]
    assert entries[-1]["reasons"] == ["it was a drill"]
    assert json.loads(airflow.cli("report", "digits-live", "--json"))["version"] == "2"
    assert "is the champion already" in airflow.cli("rollback", "digits-live", "--to", "2", code=2)


def decide(airflow: Platform, dag_id: str, run: str, chosen: str, comment: str) -> None:
    airflow.wait_for_task(dag_id, run, "approve", "awaiting_input", timeout=240)
    (asked,) = airflow.answer(dag_id, chosen, comment)
    assert "NEEDS_HUMAN" in asked


@pytest.mark.browser
def test_a_person_promotes_declines_or_lets_it_expire(airflow, tmp_path):
    airflow.show("asked", QUICK + "promotion: {approval: human}\n")
    airflow.wait("asked.ingest", airflow.trigger("asked.ingest"))
    for template in ("pretrain", "finetune"):
        wait_until(lambda template=template: bool(airflow.runs(f"asked.{template}")), 240, template)
    first = airflow.runs("asked.finetune")[0]["dag_run_id"]
    airflow.wait_for_task("asked.finetune", first, "approve", "awaiting_input", timeout=240)
    with browser.signed_in(airflow.settings) as page:
        assert browser.Walk(page, airflow.settings, "asked", tmp_path).approve().stat().st_size > 5_000
    decide(airflow, "asked.finetune", first, "Promote", "looks fine")
    tasks = airflow.wait("asked.finetune", first)
    assert tasks["promote"]["state"] == "success"

    second = airflow.trigger("asked.finetune", overrides={"task.seed": 7})
    decide(airflow, "asked.finetune", second, "Decline", "not today")
    airflow.wait("asked.finetune", second)

    third = airflow.trigger("asked.finetune", overrides={"task.seed": 8, "promotion.approval_hours": 0.001})
    airflow.wait("asked.finetune", third, asked="")

    entries = history(airflow, "asked")
    assert [entry["action"] for entry in entries] == ["PROMOTED", "DECLINED", "EXPIRED"]
    assert [entry["user"] for entry in entries[:2]] == ["admin", "admin"]
    assert "not today" in json.dumps(entries[1])
    assert json.loads(airflow.cli("report", "asked", "--json"))["version"] == "1"
