"""What the UI says about a DAG and its tasks, from the project and the step table."""

from __future__ import annotations

from pathlib import Path

from ssl_core.config.project import ProjectConfig
from ssl_core.pipeline import Step, steps_for

_WHAT = {
    "ingest": "Looks at the data source, makes a dataset version of what is there, judges it, and publishes it. Unchanged "
    "content makes no new version, and a version that does not pass leaves the last one in use.",
    "pretrain": "Trains an encoder on the unlabeled {noun} of a dataset version and registers it in MLflow.",
    "finetune": "Puts a head on an encoder, trains it on the labels there are, measures on test data whether pretraining "
    "helped, and lets the gate decide whether the new model becomes the champion; a person is asked where the gate leaves it open.",
    "monitor": "Compares what arrived since the champion's data with what the champion knows, says what it is (a data bug, other "
    "shares of the classes, moved data, new territory), and wakes a retraining only where one helps.",
    "rollback": "Makes an earlier champion the champion again. Nothing moves before that version was loaded and answered as it "
    "did when it was trained. The same on the command line: `ssl-core rollback {name}`.",
    "fire-drill": "Plants bad challengers and drifted windows under throw-away names and fails where a guard misses one.",
}
_AFTERWARDS = {
    "ingest": "a new version emits the asset `{name}/dataset`",
    "pretrain": "a registered encoder emits the asset `{name}/encoder`, which wakes `{name}.finetune`",
    "finetune": "a new champion emits the asset `{name}/model`",
    "monitor": "drift that a retraining helps against emits the asset `{name}/drift`, which wakes `{name}.finetune`; what a "
    "person has to mend is told to people",
    "rollback": "the aliases of model and encoder have moved, and the ledger has the entry",
    "fire-drill": "nothing is left of what it planted",
}
APPROVE_DOC = (
    "Waits for a person where the gate said NEEDS_HUMAN, and is skipped where it did not. Answer under *Required Actions*, or with "
    "`ssl-core promote`. Without an answer within `promotion.approval_hours` the challenger is turned down, which the ledger tells "
    "from a person's Decline.\n"
)


def dag_doc(project: ProjectConfig, template: str, project_file: Path) -> str:
    """The DAG's doc page."""
    rows = [(step.name, step.about) for step in steps_for(project.modality) if step.template == template]
    if template == "finetune":
        rows.insert(-1, ("approve", "Asks a person where the gate leaves it open; else it is skipped."))
    steps = "\n".join(f"| `{name}` | {about} |" for name, about in rows)
    return (
        f"# {project.name}: {template}\n\n{project.description}\n\n{_WHAT[template].format(noun=project.noun, name=project.name)}\n\n"
        f"**Starts**: {starts(project, template)}.  \n"
        f"**Afterwards**: {_AFTERWARDS[template].format(name=project.name)}.  \n"
        f"**Project file**: `{project_file}`  \n"
        f"**Owner**: {project.owner or 'not named (key `owner`)'}\n\n"
        f"| task | what it does |\n|---|---|\n| `resolve` | Freezes the configuration and picks dataset version and encoder for "
        f"the whole run. |\n{steps}\n\n"
        "Every task does nothing that was done before: started again, a run goes on where it stopped. A task's *Details* "
        "link to its MLflow run and its report. **Trigger** opens a form with the project's keys; what you change there "
        "holds for that run only.\n"
    )


def cron_of(project: ProjectConfig, template: str) -> str | None:
    """The cron of a template; None where it has none."""
    cron: str | None = getattr(project.schedule, template.replace("-", "_"), None)
    return cron


def starts(project: ProjectConfig, template: str) -> str:
    """In words, what starts a template."""
    zone = project.schedule.timezone
    cron = cron_of(project, template)
    by_cron = f"by its cron `{cron}` ({zone})" if cron else ""
    woken = {
        "pretrain": f"when `{project.name}/dataset` has a new version"
        if project.pretrain.when in ("first", "always")
        else "",
        "finetune": f"when `{project.name}/encoder` has a new version or `{project.name}/drift` tells of drift",
        "monitor": f"when `{project.name}/dataset` has a new version",
    }.get(template, "")
    return " or ".join(filter(None, (woken, by_cron, "by hand")))


def step_doc(step: Step) -> str:
    """A task's doc page."""
    makes = ", ".join(f"`{name}`" for name in step.outputs)
    takes = ", ".join(f"`{name}`" for name in step.inputs) or "the project file"
    again = "If nothing that it reads has changed, it is not done again." if step.cached else "It is done every time."
    return f"{step.about}\n\nTakes {takes}; makes {makes}. {again}\n"
