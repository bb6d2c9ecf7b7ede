"""The step ``publish``: a validated candidate becomes the next dataset version."""

from __future__ import annotations

import json

from ssl_core.contracts import DatasetRef
from ssl_core.data.reader import missing_objects
from ssl_core.data.repository import DataRepository
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import StepContext, StepOutput


def run(ctx: StepContext) -> StepOutput:
    """Tags the candidate; content equal to the newest version gives that version back.

    Raises ``UserError`` where the validation report does not say that this candidate passed, ``TryAgain`` where the candidate is out of
    date or incomplete, or storage fails. Then the last published version stays in use.
    """
    candidate = ctx.input("candidate")
    assert isinstance(candidate, DatasetRef)
    _check_passed(ctx, candidate)
    repository = DataRepository(ctx.settings, ctx.progress)
    with repository.lock():
        # Between ingest and now someone may have cleaned the remote: a tag must never name content that is not there.
        if missing := missing_objects(candidate, ctx.settings):
            raise TryAgain(
                f"{len(missing)} of the candidate's objects are missing from the DVC remote",
                place=missing[0],
                next_step="run ingest again",
            )
        before = repository.latest(candidate.name)
        version = repository.publish(candidate)
    assert version.tag is not None
    ctx.tracker.tags({"dataset.version": version.tag, "dataset.md5": version.md5, "dataset.revision": version.revision})
    ctx.tracker.dataset(version, "published")
    if before is not None and before.tag == version.tag:
        change = ", unchanged"
    else:
        change = f", {version.rows - before.rows:+,} since {before.tag}" if before else ", the first version"
    return StepOutput(
        # A second try may find what the first one published before it was cut off, and told nobody: one wake-up too many is none.
        news=before is None or before.tag != version.tag or ctx.run.try_number > 1,
        outputs={"dataset": version},
        metrics={"rows": version.rows, "labelled": version.labelled, "classes": version.classes},
        summary=f"{version.tag}: {version.rows:,} samples{change}; {version.labelled:,} labelled, {version.classes} classes",
    )


def _check_passed(ctx: StepContext, candidate: DatasetRef) -> None:
    """The executor stops at a failed check; this keeps a step that is run by hand from going round it."""
    path = ctx.fetch("validation") / "validation.json"
    try:
        report = json.loads(path.read_bytes())
        passed, judged = report["passed"] is True, report["dataset"]["md5"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("is not a validation report", place=str(path), next_step="run validate again") from error
    if judged != candidate.md5:
        raise UserError(
            f"is about other content ({judged}) than the candidate ({candidate.md5})",
            place=str(path),
            next_step="run validate again",
        )
    if not passed:
        raise UserError(
            "the candidate did not pass validation", place=str(path), next_step="mend the data and run ingest again"
        )
