"""``ssl-core run PROJECT``: the step table in one process, the first rung of the ladder."""

from __future__ import annotations

import time
from importlib import import_module

import click
from rich.console import Console

from ssl_core.cli.common import load_settings, new_run, stderr_console
from ssl_core.cli.execute import execute, frozen_project
from ssl_core.cli.progress import make_progress
from ssl_core.config.load import find_project, load_project, parse_overrides
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, ModelRef, Ref, RunContext, StepResult, StepSpec
from ssl_core.errors import CheckFailed
from ssl_core.pipeline import Step, skip_reason, walk_for
from ssl_core.store import Store


@click.command()
@click.argument("project")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key for this run, for example pretrain.epochs=5.",
)
@click.option(
    "--pretrain", is_flag=True, help="Pretrain again, even where a registered encoder of this recipe could be reused."
)
def run(project: str, overrides: tuple[str, ...], pretrain: bool) -> None:
    """Take PROJECT (a file, or a name in the projects folder) from raw files to a registered champion.

    Finished steps are not done again; an interrupted one goes on where it stopped.
    """
    settings = load_settings()
    changes = parse_overrides(overrides) | ({"pretrain.when": "always"} if pretrain else {})
    config = load_project(find_project(project, settings.projects_dir), changes)
    walk(config, settings, stderr_console(), Console(highlight=False))


def walk(config: ProjectConfig, settings: Settings, notes: Console, out: Console) -> dict[str, StepResult]:
    """Does every step in order and prints the outcome. Returns the results by step name."""
    from ssl_core.registry.client import prepare_environment
    from ssl_core.registry.server import start_server, wait_for_server

    clock = time.monotonic()
    progress = make_progress(notes)
    context = new_run()
    notes.print(f"[bold]{config.name}[/bold]  run {context.run_id}")
    if not settings.mlflow_tracking_uri:
        start_server(settings, progress.note)
        prepare_environment(settings)
        import_module("mlflow")  # takes seconds that the server needs as well
        wait_for_server(settings)
    artifacts: dict[str, Ref] = {}
    results: dict[str, StepResult] = {}
    steps = walk_for(config.modality)
    for number, step in enumerate(steps, start=1):
        label = f"{number:2}/{len(steps)} {step.name}"
        if reason := skip_reason(step, artifacts):
            if step.template == "pretrain":
                reason += " (--pretrain trains again)"
            notes.print(f"[dim]{label:24}[/dim] skipped: {reason}")
            continue
        notes.print(f"[cyan]{label:24}[/cyan]", end="\n" if not notes.is_terminal else "\r")
        if step.name == "finetune" and (champion := _champion(config, artifacts, settings, notes)):
            artifacts["champion"] = champion
        result = _do(step, config, artifacts, context, settings, notes)
        took = "unchanged" if result.cached else f"{result.seconds:.1f} s"
        summary = result.summary.strip().splitlines()
        notes.print(
            f"[green]{label:24}[/green] {took:>9}  {summary[0].lstrip('# ') if summary else ''}", soft_wrap=True
        )
        artifacts |= result.outputs
        results[step.name] = result
        if step.name == "resolve":
            config = frozen_project(Store(settings.store_url, settings.cache), result.outputs["config"])
    _conclude(config, results, artifacts, settings, out)
    notes.print(f"[dim]{time.monotonic() - clock:.0f} s in all[/dim]")
    return results


def _champion(config: ProjectConfig, artifacts: dict[str, Ref], settings: Settings, notes: Console) -> ModelRef | None:
    """What fine-tuning goes on from; only now are dataset and encoder known."""
    from ssl_core.registry.going_on import champion_to_go_on_from

    dataset, encoder = artifacts["dataset"], artifacts["registered_encoder"]
    assert isinstance(dataset, DatasetRef)
    assert isinstance(encoder, ModelRef)
    store = Store(settings.store_url, settings.cache)
    champion, why = champion_to_go_on_from(settings, store, config, dataset, encoder)
    if why:
        notes.print(f"[dim]{'':24} {why}[/dim]", soft_wrap=True)
    return champion


def _do(
    step: Step,
    config: ProjectConfig,
    artifacts: dict[str, Ref],
    context: RunContext,
    settings: Settings,
    notes: Console,
) -> StepResult:
    spec = StepSpec(
        step=step.name,
        project=config.model_dump(mode="json"),
        inputs={name: artifacts[name] for name in (*step.inputs, *step.optional) if name in artifacts},
        run=context,
    )
    try:
        return execute(spec, settings, make_progress(notes))
    except CheckFailed as error:
        if error.result is not None and error.result.summary:
            notes.print(error.result.summary, markup=False)
            for title, url in error.result.links.items():
                notes.print(f"  {title}: {url}", markup=False, soft_wrap=True)
        raise


def _conclude(
    config: ProjectConfig, results: dict[str, StepResult], artifacts: dict[str, Ref], settings: Settings, out: Console
) -> None:
    if "evaluation" in artifacts:
        from ssl_core.evaluation.report import read_evaluation, render

        folder = Store(settings.store_url, settings.cache).fetch(artifacts["evaluation"])
        out.print()
        out.print(render(read_evaluation(folder)))
    elif "pretrain" in results:
        out.print(results["pretrain"].summary, markup=False)
    for name in ("promote", "register-encoder"):
        if name in results:
            out.print(results[name].summary, markup=False, soft_wrap=True)
            break
    out.print()
    shown: set[str] = set()
    for name, title in (
        ("validate", "Validation report"),
        ("pretrain", "Pretraining run"),
        ("evaluate", "Evaluation run"),
        ("register", "Model"),
        ("register-encoder", "Encoder"),
    ):
        links = results[name].links if name in results else {}
        url = links.get(title) or links.get("Model") or links.get("MLflow run")
        if url and url not in shown:
            shown.add(url)
            out.print(f"{title + ':':18} {url}", markup=False, soft_wrap=True)
