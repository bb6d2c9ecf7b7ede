"""The drift report: what a person is told, that nothing in it can be executed or loaded, and that it stays small."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from ssl_core.errors import UserError
from ssl_core.monitoring import document as doc
from ssl_core.monitoring import report as reports
from ssl_core.monitoring.document import DriftReport

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}\u202egnp.\x00\ud800 javascript:alert(3)"
)
_ACTIONS = {
    "quiet": "none", "cannot-tell": "none", "data-bug": "quarantine", "prior-shift": "recalibrate", "covariate-shift": "finetune",
    "new-territory": "pretrain",
}  # fmt: skip


def full(kind: str = "covariate-shift", name: str = "cat", **more: Any) -> DriftReport:
    """A report with all of its parts; ``name`` stands wherever the data says what is called how."""
    points = np.random.default_rng(0).normal(0, 0.3, (80, 2)).tolist()
    history = [
        doc.PastWindow(window=f"v{n}", score=0.2 * n, exceeded=n > 5, alarm=n > 6, kind="quiet" if n < 6 else kind)  # type: ignore[arg-type]
        for n in range(2, 8)
    ]
    values: dict[str, Any] = {
        "project": "digits", "champion_version": "3", "encoder_version": "2", "dataset": "digits@v7", "at": "2026-11-26T07:00:00+00:00",
        "window": doc.Window(name="v7", rows=240, labelled=60, sources=[doc.SourceCount(name=name, rows=200), doc.SourceCount(name="b", rows=40)]),
        "reference": doc.Reference(rows=820, what=f"validation and test samples, {name}"),
        "embedding": doc.EmbeddingTests(auc=0.83, auc_p=0.0005, auc_threshold=0.57, mmd=0.021, mmd_p=0.002, mmd_threshold=0.006, draws=1, exceeded=True),
        "columns": [
            doc.ColumnDrift(name=name, kind="number", psi=4.2, statistic=0.6, p=1e-9, q=1e-8, drifted=True),
            doc.ColumnDrift(name="width", kind="number", psi=0.01, statistic=0.0, p=1.0, q=1.0, drifted=False),
        ],
        "predictions": doc.Predictions(
            psi=0.31, q=0.0004, confidence_reference=0.96, confidence_window=0.71,
            classes=[doc.ClassShare(name=name, reference=0.6, window=0.2), doc.ClassShare(name="dog", reference=0.4, window=0.8)],
        ),
        "performance": doc.Performance(n=60, quality=0.7, reference_quality=0.97, difference=-0.27, low=-0.39, high=-0.16),
        "novelty": doc.Novelty(beyond=0.44, median_ratio=1.4),
        "recalibration": doc.Recalibration(
            classes=[doc.ClassPrior(name=name, before=0.6, after=0.2), doc.ClassPrior(name="new", before=0, after=0.1)],
            changed=0.13, expected_gain=0.08,
        ),
        "map": doc.EmbeddingMap(reference=points[:50], window=[(5.0, -7.0), *points[50:]]), "history": history,
        "rule": doc.Rule(k=2, m=5, false_alarms=2, calibrated_by="resampling", windows_used=2000), "alarm": True, "retrain": True,
        "finding": doc.Finding(kind=kind, reasons=[f"because of {name}"], action=_ACTIONS[kind], who="platform"),
    }  # fmt: skip
    return DriftReport(**(values | more))


def bare(kind: str = "cannot-tell") -> DriftReport:
    """As little as a report may hold."""
    return DriftReport(
        project="digits", champion_version="", encoder_version="", dataset="digits@v1", window=doc.Window(name="v1", rows=0),
        reference=doc.Reference(rows=0), rule=doc.Rule(k=2, m=5, false_alarms=2, calibrated_by="history", windows_used=31),
        finding=doc.Finding(kind=kind, reasons=["there is no champion yet"]),  # type: ignore[arg-type]
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser makes of a page: its elements, their attributes, and the text that is seen."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.mark.parametrize("kind", get_args(doc.Kind))
def test_each_finding_says_what_it_is_why_and_what_follows(kind: str) -> None:
    text = Page(reports.render(full(kind, retrain=False, alarm=kind == "new-territory"))).text
    assert reports.TITLES[kind] in text  # type: ignore[index]
    assert reports.MEANINGS[kind] in text  # type: ignore[index]
    assert "because of cat" in text
    for step in reports.next_steps(full(kind, retrain=False, alarm=kind == "new-territory")):
        assert re.sub(r"\s+", " ", step) in text


def test_all_numbers_that_led_to_the_finding_are_there() -> None:
    text = Page(reports.render(full())).text
    for shown in ("0.830", "0.570", "< 0.001", "0.021", "44.0%", "1.4 ×", "60.0%", "-27.0%", "-39.0% to -16.0%", "PSI 0.31", "13.0%", "+8.0%", "2,000 windows", "240"):  # fmt: skip
        assert shown in text, shown


def test_a_report_without_anything_is_whole() -> None:
    page = Page(reports.render(bare()))
    assert "there is no champion yet" in page.text
    assert "No window has been judged yet" in page.text
    assert "none" in page.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retrain": True}, "It starts by itself"),
        ({"retrain": False, "held_back": "cool-down: 3 days are left"}, "It is held back: cool-down: 3 days are left."),
        ({"retrain": False, "alarm": False}, "2 of the last 5 windows are above the threshold, and 2 are an alarm"),
    ],
)
def test_a_retraining_starts_or_the_reason_why_not_is_told(changes: dict[str, Any], said: str) -> None:
    assert said in " ".join(reports.next_steps(full(**changes)))


# ---- what data may hold


def test_hostile_names_are_shown_as_text() -> None:
    page = Page(reports.render(full(name=HOSTILE)))
    plain = Page(reports.render(full()))
    assert page.tags == plain.tags
    assert [(tag, name) for tag, name, _ in page.attributes] == [(tag, name) for tag, name, _ in plain.attributes]
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert not {"\u202e", "\x00", "\ud800"} & set(page.text)


def test_nothing_is_loaded_and_nothing_runs() -> None:
    html = reports.render(full(name=HOSTILE))
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "a", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "srcset")]
    assert "default-src 'none'" in html
    styles = [value for _, name, value in page.attributes if name == "style"]
    assert styles
    assert all(re.fullmatch(r"[a-z:; .%()\d-]*", value) for value in styles), "only numbers of ours are in styles"
    assert "url(" not in html
    assert "@import" not in html


def test_the_map_stays_inside_of_its_frame() -> None:
    page = Page(reports.render(full()))
    places = [float(value) for tag, name, value in page.attributes if tag == "circle" and name in ("cx", "cy")]
    assert len(places) == 2 * 81
    assert min(places) >= 2
    assert max(places) <= 98


def largest() -> DriftReport:
    """Every list at its limit, every name and number as long as can be."""
    long = "\u0001" * 500
    point = (-0.123456789012345678, -0.987654321098765432)
    values: dict[str, Any] = {
        "window": doc.Window(name=long, rows=10**12, sources=[doc.SourceCount(name=long, rows=10**12)] * doc.MOST_SOURCES),
        "reference": doc.Reference(rows=1, what=long),
        "columns": [doc.ColumnDrift(name=long, kind="category", psi=1 / 3e-9, statistic=1 / 3, p=1 / 3, q=1 / 3, drifted=True)] * doc.MOST_COLUMNS,
        "predictions": doc.Predictions(psi=1 / 3, q=1 / 3, confidence_reference=1 / 3, confidence_window=1 / 3, classes=[doc.ClassShare(name=long, reference=1 / 3, window=1 / 3)] * doc.MOST_CLASSES),
        "recalibration": doc.Recalibration(classes=[doc.ClassPrior(name=long, before=1 / 3, after=1 / 3)] * doc.MOST_CLASSES, changed=1 / 3, expected_gain=1 / 3),
        "map": doc.EmbeddingMap(reference=[point] * doc.MOST_POINTS, window=[point] * doc.MOST_POINTS),
        "history": [doc.PastWindow(window=long, score=1 / 3, exceeded=True, kind="covariate-shift")] * doc.MOST_HISTORY,
        "finding": doc.Finding(kind="data-bug", reasons=[long] * doc.MOST_REASONS, action="quarantine", who="person"),
        "held_back": long,
    }  # fmt: skip
    return full(**values)


def test_the_record_stays_small_and_comes_back_equal() -> None:
    for report in (bare(), full(), full(name=HOSTILE), largest()):
        text = report.to_json()
        assert len(text.encode()) <= doc.BYTES_LIMIT
        assert DriftReport.model_validate_json(text) == report


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("columns", [1] * 41),
        ("history", [1] * 101),
        ("retrain", "perhaps"),
        ("unknown", 1),
        ("finding", {"kind": "bad"}),
    ],
)
def test_what_is_no_report_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        DriftReport.model_validate(full().model_dump() | {field: value})
    with pytest.raises(ValidationError):
        doc.Novelty(beyond=float("nan"), median_ratio=1)


# ---- files


def test_all_three_files_are_written_and_read_back(tmp_path: Path) -> None:
    report = full()
    reports.write(report, tmp_path)
    assert reports.read(tmp_path) == report
    assert (tmp_path / "drift.html").read_text(encoding="utf-8") == reports.render(report)
    assert (tmp_path / "drift.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "report", [bare(), full(name="$x^2$ " + HOSTILE), largest()], ids=["bare", "hostile", "largest"]
)
def test_any_report_can_be_drawn(report: DriftReport, tmp_path: Path) -> None:
    from ssl_core.monitoring.plots import draw

    draw(tmp_path / "a.png", report)
    assert (tmp_path / "a.png").stat().st_size > 5_000


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", full(schema_version=99).to_json().encode()])
def test_a_file_that_is_no_report_is_told(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "drift.json").write_bytes(content)
    with pytest.raises(UserError, match="not a readable drift report"):
        reports.read(tmp_path)


# ---- the chart of scores


def bars() -> Iterator[reports.Bar]:
    scores = (None, 0.0, 0.5, 1.0, 3.0, 50.0, -0.4)
    yield from reports.score_bars([doc.PastWindow(window="v", score=score, exceeded=False) for score in scores])


def test_bars_end_at_the_top_and_what_was_not_judged_has_none() -> None:
    assert [bar.height for bar in bars()] == ["0", "1.5", "16.7", "33.3", "100", "100", "1.5"]
    assert reports.highest([doc.PastWindow(window="v", score=0.3, exceeded=False)]) == 1.4
    assert reports.highest([]) == 1.4
    assert [bar.cut for bar in bars()] == [False] * 5 + [True, False]


# ---- in a browser


@pytest.mark.e2e
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_and_asks_for_nothing(scheme: Any, width: int, tmp_path: Path) -> None:
    browser = pytest.importorskip("tests.e2e.tools.browser")
    if browser.chromium() is None and not os.environ.get("CI"):
        pytest.skip("no Chromium is installed")
    from tests.e2e.tools.drift_report import take

    for number, report in enumerate((full(name=HOSTILE), bare(), largest())):
        assert take(reports.render(report), tmp_path / f"{number}.png", width=width, scheme=scheme) == []
        assert (tmp_path / f"{number}.png").stat().st_size > 5_000
