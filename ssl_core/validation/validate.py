"""The ``validate`` step: judges a candidate dataset, so that only what passed is published."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import DatasetRef
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.validation.report import CheckResult, ValidationReport, plural, printable

if TYPE_CHECKING:
    import pandas as pd

    from ssl_core.data.dataset import DatasetInfo

_NAMED = 5
_FOLDER = "validation"


def fingerprint(project: ProjectConfig) -> str:
    """The date where freshness is judged: that outcome depends on the day. Otherwise nothing."""
    return "" if project.validation.max_age_days is None else f"{datetime.now(UTC):%Y-%m-%d}"


def run(ctx: StepContext) -> StepOutput:
    """Judges the manifest of input ``candidate``; makes ``validation``: ``report.html`` and ``validation.json``.

    Raises:
        CheckFailed: a critical check failed or nothing could be judged; its output names the report.
        UserError: the suite names an expectation or argument that does not exist.
    """
    from ssl_core.data import reader
    from ssl_core.data.dataset import INFO_FILE, DatasetInfo
    from ssl_core.validation.floors import Counts
    from ssl_core.validation.suite import validate

    candidate: DatasetRef = ctx.input("candidate")
    manifest = reader.read_manifest(candidate, ctx.settings)
    info = DatasetInfo.model_validate_json(reader.fetch_file(candidate, ctx.settings, INFO_FILE).read_bytes())
    ctx.progress.note(
        f"judging {plural(len(manifest), 'sample')} by {plural(len(ctx.project.validation.expectations), 'expectation')} and the floors"
    )
    report = validate(
        manifest,
        ctx.project.validation,
        counts=Counts(info.rows, info.labelled, tuple(info.classes), info.modality, info.label_type),
    )
    if ctx.stop.is_set():  # the signal may have been swallowed inside of an expectation
        raise TryAgain("stopped while validating", next_step="run the same command again")

    folder = ctx.out / _FOLDER
    _write(folder, report, candidate, info, manifest)
    output = StepOutput(
        outputs={"validation": Output("validation", _FOLDER)},
        metrics={"evaluated": report.evaluated, "failed": len(report.failed), "warnings": len(report.warnings)},
        summary=summary(report, candidate),
    )
    ctx.tracker.metrics(output.metrics)
    ctx.tracker.artifact(folder / "validation.json", _FOLDER)
    if link := ctx.tracker.artifact(folder / "report.html", _FOLDER):
        output.links["Validation report"] = link
    if not report.passed:
        there = ctx.store.path(f"{ctx.store.folder(ctx.project.name, 'validate', ctx.key)}/out/{_FOLDER}/report.html")
        raise CheckFailed(
            f"the data did not pass: {report.verdict}{''.join(f'{chr(10)}  - {_line(check)}' for check in report.failed[:_NAMED])}",
            place=f"dataset {candidate.name}",
            next_step=f"read the report: {link or there}; mend the data or the keys under validation; nothing was published",
            output=output,
        )  # fmt: skip
    require_budgets_that_fit(ctx.project, candidate.classes)
    return output


def require_budgets_that_fit(project: ProjectConfig, classes: int) -> None:
    """Hours of pretraining must not end in a label budget that cannot hold one label of each class.

    Raises ``UserError`` naming the key. Data without labels, or of one class, are never budgeted.
    """
    smallest = {"evaluate.label_budgets": min(project.evaluate.budgets(classes), default=classes)}
    if project.task.labels != "all":
        smallest["task.labels"] = project.task.labels
    for place, labels in smallest.items():
        if labels < classes:
            raise UserError(
                f"{labels} labels cannot hold one of each of {classes} classes", place=place,
                next_step=f"set it to {classes} or more" + (", or auto" if place.startswith("evaluate") else ", or all"),
            )  # fmt: skip


def summary(report: ValidationReport, candidate: DatasetRef) -> str:
    """A few lines of Markdown: the verdict, and what did not hold."""
    lines = [
        f"**{report.verdict[0].upper()}{report.verdict[1:]}** for {plural(candidate.rows, 'sample')} ({candidate.labelled:,} labelled)."
    ]
    shown = [*report.failed, *report.warnings]
    lines += [f"- {check.severity}: {_code(_line(check))}" for check in shown[:_NAMED]]
    if len(shown) > _NAMED:
        lines.append(f"- and {len(shown) - _NAMED} more, see the report")
    return "\n".join(lines)


def _line(check: CheckResult) -> str:
    found = check.reason or check.observed or "did not hold"
    wanted = f" (wanted: {printable(check.expected, 100)})" if check.expected else ""
    place = f"{check.place}: " if check.place else ""
    return f"{place}{printable(check.title, 100)}: {printable(found, 200)}{wanted}"


def _code(text: str) -> str:
    """Text from data as Markdown code, in which nothing is markup but the backtick itself."""
    return "`" + text.replace("`", "'") + "`"


def _write(
    folder: Path, report: ValidationReport, candidate: DatasetRef, info: DatasetInfo, manifest: pd.DataFrame
) -> None:
    from ssl_core.validation import html, profile

    facts = {"Samples": f"{info.rows:,}", "Labelled": f"{info.labelled:,}", "Classes": f"{len(info.classes):,}"}
    facts |= {split: f"{counts.rows:,}" for split, counts in info.counts.items()}
    facts |= {
        "Quarantined files": f"{info.quarantined:,}",
        "Exact copies dropped": f"{info.duplicates:,}",
        "Content": candidate.md5[:12],
    }
    page = html.render(
        report, name=candidate.name, facts=facts, columns=profile.columns(manifest), classes=profile.by_class(manifest)
    )
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(page, encoding="utf-8")
    about = {"dataset": {"name": candidate.name, "md5": candidate.md5, "rows": info.rows, "labelled": info.labelled}}
    (folder / "validation.json").write_text(report.to_json(**about), encoding="utf-8")
