"""Chromium on the pages of a real project: what a user sees is there, and the links lead somewhere."""

from __future__ import annotations

import json
import os

import pytest

from tests.e2e.tools import browser
from tests.e2e.tools.platform import wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.browser,
    # CI installs a browser, so there it may not be missing.
    pytest.mark.skipif(browser.chromium() is None and not os.environ.get("CI"), reason="no Chromium is installed"),
]


def test_a_person_finds_grid_log_form_lineage_links_and_the_champion(airflow, shapes, tmp_path):
    with browser.signed_in(airflow.settings) as page:
        walk = browser.Walk(page, airflow.settings, shapes, tmp_path)
        for look in (walk.dags, walk.grid, walk.log, walk.form, walk.assets, walk.model):
            assert look().stat().st_size > 5_000, f"{look.__name__} is an empty page"
        assert f":{airflow.settings.mlflow_port}/#/experiments/" in walk.links()


def test_the_form_starts_a_run_with_what_was_typed(airflow, shapes):
    before = {run["dag_run_id"] for run in airflow.runs("shapes.ingest")}
    with browser.signed_in(airflow.settings) as page:
        page.goto(f"{airflow.settings.local_airflow_url}/dags/shapes.ingest")
        page.get_by_role("button", name="Trigger").first.click()
        page.get_by_label("Min rows").or_(page.locator("[name='element_validation.min_rows']")).first.fill("61")
        page.get_by_role("dialog").get_by_role("button", name="Trigger").last.click()
        wait_until(lambda: len(airflow.runs("shapes.ingest")) > len(before), 30, "the run that the form started")
    (run,) = [run for run in airflow.runs("shapes.ingest") if run["dag_run_id"] not in before]
    airflow.wait("shapes.ingest", run["dag_run_id"])
    log = airflow.log("shapes.ingest", run["dag_run_id"], "resolve")
    assert "validation.min_rows = 61, for this run only" in log, json.dumps(run["conf"])
