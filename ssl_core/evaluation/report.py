"""An evaluation for people and for programs: a table, a few lines of Markdown, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

EVALUATION_FILE = "evaluation.json"
_INTERVAL = ("mean", "low", "high")
_ALSO = {
    "macro_f1": "macro F1", "ece": "calibration error", "subset_accuracy": "all classes right", "mae": "mean absolute error",
    "r2": "R2", "spearman": "rank correlation",
}  # fmt: skip
_SHORT = {"svm": "SVM", "label-spreading": "spread", "tfidf": "TF-IDF", "tfidf-characters": "TF-IDF+"}
"""Of classical baselines, as a narrow table calls them."""
_SUMMARY_LIMIT = 3500  # bytes; a step's whole result has 8 KB


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of ``evaluation.json`` in a step's output folder."""
    path = folder / EVALUATION_FILE
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["schema_version"] != 1:
            raise ValueError(f"schema version {report['schema_version']}, this program reads 1")
        return report
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"not a readable evaluation ({error})",
            place=str(path),
            next_step="run the project again: ssl-core run PROJECT",
        ) from None


def render(report: Mapping[str, Any]) -> Group:
    """The table for a terminal of 80 columns: accuracy at each label budget, and the fine-tuned model below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = f"Accuracy in % on {report['test_set']['n']:,} test {report['noun']}, mean [95% interval]; probe: {report['probe']}"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), header_style="underline"
    )
    for name in ("labels", "best classical", "random init", "pretrained", "gain"):
        table.add_column(name, no_wrap=True, justify="left" if name == "best classical" else "right")
    for row in report["label_budgets"]:
        gain = _gain(row)
        sure = gain["low"] > 0 or gain["high"] < 0
        style = "" if not sure else "bold green" if gain["low"] > 0 else "bold red"
        table.add_row(
            _labels(row), Text(f"{_short(row['classical'])} {_baseline(row)}"), Text(_short(row["random_init"])),
            Text(_short(row["pretrained"]), style="bold"), Text(f"{100 * gain['mean']:+.1f}{'*' if sure else ' '}", style=style),
        )  # fmt: skip
    if not report["label_budgets"]:
        return Group(Text(_model_line(report)), *(Text(note, style="yellow") for note in report.get("notes", ())))
    footnote = Text("gain: over the better of the two others; * its paired interval excludes 0", style="dim")
    lines = [footnote, Text(_model_line(report)), *(Text(note, style="yellow") for note in report.get("notes", ()))]
    return Group(table, *lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The step's summary: the verdict in a sentence, then the table."""
    lines = [
        _model_line(report),
        "",
        "| labels | best classical | random init | pretrained | gain over the better |",
        "|---:|---|---|---|---|",
    ]
    for row in report["label_budgets"]:
        lines.append(
            f"| {_labels(row)} | {_percent(row['classical'])} {_baseline(row)} | {_percent(row['random_init'])} "
            f"| {_percent(row['pretrained'])} | {_signed(_gain(row))} |"
        )
    lines += [
        "",
        f"Mean accuracy [95% interval] on {report['test_set']['n']:,} test {report['noun']}; probe: {report['probe']}.",
    ]
    text = "\n".join([*lines, *(f"- {note}" for note in report.get("notes", ()))])
    while len(text.encode()) > _SUMMARY_LIMIT:  # very many budgets: the whole table is in the report
        text = text[: len(text) * 9 // 10].rsplit("\n", 1)[0]
    return text


def as_json(
    report: Mapping[str, Any], *, version: str | None = None, dataset: str = "", links: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What ``ssl-core report --json`` prints."""
    keep = {
        "classical": ("name", *_INTERVAL),
        "random_init": ("probe", *_INTERVAL),
        "pretrained": ("probe", *_INTERVAL),
    }
    return {
        "project": report["project"],
        "version": version,
        "dataset": dataset or report["dataset"]["version"],
        "encoder": report["encoder"],
        "test_set": report["test_set"],
        "label_budgets": [
            {"labels": row["labels"], "count": row["count"]}
            | {method: {key: row[method][key] for key in keys} for method, keys in keep.items()}
            | {"differences": row["differences"]}
            for row in report["label_budgets"]
        ],
        "model": {key: value for key, value in report["model"].items() if key != "confusion"},
        "random_init_model": {key: value for key, value in report["random_init_model"].items() if key != "confusion"},
        "model_minus_random_init": report["model_minus_random_init"],
        "notes": list(report.get("notes", ())),
        "links": dict(links or {}),
    }


def _short(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _labels(row: Mapping[str, Any]) -> str:
    return "all" if row["labels"] == "all" else f"{row['labels']:,}"


def _percent(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _signed(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _baseline(row: Mapping[str, Any]) -> str:
    short: str = row["classical"]["short"]
    return _SHORT.get(short, short)


def _gain(row: Mapping[str, Any]) -> Mapping[str, float]:
    """The paired difference to whichever of the two others is the stronger."""
    other = max(("classical", "random_init"), key=lambda method: row[method]["mean"])
    difference: Mapping[str, float] = row["differences"][f"pretrained_minus_{other}"]
    return difference


def _model_line(report: Mapping[str, Any]) -> str:
    model, twin, gap = report["model"], report["random_init_model"], report["model_minus_random_init"]
    interval = {"mean": model["quality"], "low": model["low"], "high": model["high"]}
    more = [f"{title} {model[name]:.3f}" for name, title in _ALSO.items() if model.get(name) is not None]
    said = ", ".join([f"{model['headline']} {_percent(interval)}", *more])
    return (
        f"Fine-tuned model: {said}. Same recipe from random weights: {twin['quality']:.3f} (difference {_signed(gap)})."
    )
