"""A real browser on a drift report: its picture for the docs.

    python -m tests.e2e.tools.drift_report FOLDER docs/images/drift-report.png

FOLDER holds the ``drift.json`` of a run of the monitor, for instance of `make demo-drift`. Chromium as in ``browser``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

from ssl_core.monitoring.report import read, render
from tests.e2e.tools.browser import chromium, shrink


def take(html: str, target: Path, *, width: int = 1120, height: int = 1560, scheme: Literal["light", "dark"] = "light") -> list[str]:  # fmt: skip
    """Saves what a person sees first of a page at ``target``; returns what the page asked for or complained about."""
    program = chromium()
    assert program, "no Chromium: apt-get install chromium, or set SSL_CHROMIUM"
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: said.append(request.url))
        page.set_content(html)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
        page.screenshot(path=target)
        browser.close()
    return said


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    take(render(read(folder)), target)
    shrink(target)
    print(f"{target}: {target.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
