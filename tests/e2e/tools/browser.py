"""A real browser on the real pages: what a person sees of a project in Airflow and MLflow.

    python -m tests.e2e.tools.browser digits docs/images                # after `make demo`: the README's screenshots
    python -m tests.e2e.tools.browser digits-live docs/images approve   # while a run waits for a person: that one

Chromium comes from the system (`apt-get install chromium`), never from a download; ``SSL_CHROMIUM`` names another one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page, expect, sync_playwright

from ssl_core.config.settings import Settings
from ssl_core.services import airflow
from ssl_core.services.api import AirflowApi
from ssl_core.services.environment import USER, password

_SIZE = {"width": 1280, "height": 720}
_PATIENCE_MS = 30_000


def chromium() -> str | None:
    """The installed browser's program."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("SSL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def signed_in(settings: Settings) -> Iterator[Page]:
    """A page that has signed in to Airflow through its login form."""
    program = chromium()
    assert program, "no Chromium: apt-get install chromium, or set SSL_CHROMIUM"
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work as root in a container; it opens nothing but this machine's pages.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=_SIZE)  # type: ignore[arg-type]
        page.set_default_timeout(_PATIENCE_MS)
        page.goto(settings.local_airflow_url)
        page.fill("input[name=username]", USER)
        page.fill("input[name=password]", password(settings))
        page.keyboard.press("Enter")
        expect(page.get_by_text("Dags", exact=True).first).to_be_visible(timeout=_PATIENCE_MS)
        yield page
        browser.close()


class Walk:
    """The pages that a user of a project opens, one method each; every one is looked at and saved as a picture."""

    def __init__(self, page: Page, settings: Settings, project: str, folder: Path) -> None:
        self._page, self._settings, self._project, self._folder = page, settings, project, folder
        self._api: AirflowApi = airflow.api(settings)

    def dags(self) -> Path:
        """The list: three DAGs, by their project."""
        self._open(f"/dags?name_pattern={self._project}")
        for template in ("ingest", "pretrain", "finetune"):
            expect(self._page.get_by_text(f"{self._project}.{template}", exact=True).first).to_be_visible()
        return self._picture("dags")

    def grid(self) -> Path:
        """The newest finetune run, every task of it."""
        run = self._newest("finetune")
        self._open(f"/dags/{self._project}.finetune/runs/{quote(run, safe='')}")
        for task in ("resolve", "finetune", "evaluate", "register", "gate", "promote"):
            expect(self._page.get_by_text(task, exact=True).first).to_be_visible()
        return self._picture("grid")

    def log(self) -> Path:
        """A training task's log: progress that a person can read."""
        run = self._newest("pretrain", task="pretrain")
        self._open(f"/dags/{self._project}.pretrain/runs/{quote(run, safe='')}/tasks/pretrain")
        expect(self._page.get_by_text("loss").first).to_be_visible()
        return self._picture("log")

    def form(self) -> Path:
        """The trigger form, from the project's schema."""
        self._open(f"/dags/{self._project}.pretrain")
        self._page.get_by_role("button", name="Trigger").first.click()
        for title in ("Dataset version", "Epochs", "Learning rate"):  # a required field's has a star behind it
            expect(self._page.get_by_text(title).first).to_be_visible()
        picture = self._picture("form")
        self._page.keyboard.press("Escape")
        return picture

    def assets(self) -> Path:
        """The lineage picture: dataset, encoder and model, and the DAGs between them."""
        name = f"{self._project}/encoder"
        asset = next(a for a in self._api.get("assets", name_pattern=name)["assets"] if a["name"] == name)
        self._open(f"/assets/{asset['id']}")
        for kind in ("dataset", "encoder", "model"):
            expect(self._page.get_by_text(f"{self._project}/{kind}", exact=True).first).to_be_visible()
        self._page.wait_for_timeout(1000)  # the graph moves into place
        return self._picture("assets")

    def approve(self) -> Path:
        """A run that waits for a person: the gate's report, and the answers below it."""
        run = self._newest("finetune")
        self._open(f"/dags/{self._project}.finetune/runs/{quote(run, safe='')}/tasks/approve/required_actions")
        expect(self._page.get_by_text("NEEDS_HUMAN").first).to_be_visible()
        for answer in ("Promote", "Decline"):
            expect(self._page.get_by_role("button", name=answer).first).to_be_attached()
        return self._picture("approve")

    def links(self) -> str:
        """The link from a task to its MLflow run; follows it, and returns the run page's address."""
        run = self._newest("pretrain", task="pretrain")
        self._open(f"/dags/{self._project}.pretrain/runs/{quote(run, safe='')}/tasks/pretrain/details")
        link = self._page.get_by_role("link", name="MLflow run").first
        expect(link).to_be_visible()
        address = str(link.get_attribute("href"))
        self._page.goto(address)
        expect(self._page.get_by_text("ssl.step").or_(self._page.get_by_text("pretrain")).first).to_be_visible()
        return address

    def model(self) -> Path:
        """The registered model in MLflow, with its champion."""
        self._page.goto(f"{self._settings.browser_mlflow_url}/#/models/{self._project}?workflowType=machine_learning")
        expect(self._page.get_by_text("champion").first).to_be_visible()
        return self._picture("model")

    def _newest(self, template: str, task: str = "") -> str:
        """The newest run of a template; with ``task``, the newest in which that task really ran."""
        dag_id = f"{self._project}.{template}"
        runs: list[dict[str, Any]] = self._api.get(f"dags/{dag_id}/dagRuns", order_by="-run_after", limit=50)[
            "dag_runs"
        ]
        for run in runs:
            path = f"dags/{dag_id}/dagRuns/{quote(run['dag_run_id'], safe='')}/taskInstances"
            if not task or self._api.get(f"{path}/{task}")["state"] == "success":
                return str(run["dag_run_id"])
        raise AssertionError(f"no run of {dag_id}")

    def _open(self, path: str) -> None:
        self._page.goto(self._settings.local_airflow_url + path)
        self._page.wait_for_load_state("networkidle")

    def _picture(self, name: str) -> Path:
        self._page.wait_for_timeout(1500)  # fades and spinners; MLflow's pages never come to rest
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.png"
        self._page.screenshot(path=path)
        return path


def shrink(path: Path) -> None:
    """64 colours are enough for a page, and a quarter of the bytes."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    project, folder = sys.argv[1], Path(sys.argv[2])
    settings = Settings()
    with signed_in(settings) as page:
        walk = Walk(page, settings, project, folder)
        for name in sys.argv[3:] or ("dags", "grid", "log", "form", "assets", "model"):
            picture = getattr(walk, name)()
            shrink(picture)
            print(f"{picture}: {picture.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
