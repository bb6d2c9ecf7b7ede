"""``ssl-core demo``: the platform up, one project through Airflow, the table and the links."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from ssl_core.cli.common import load_settings, stderr_console
from ssl_core.config.load import find_project, load_project
from ssl_core.config.settings import Settings
from ssl_core.contracts import ModelRef
from ssl_core.errors import CheckFailed
from ssl_core.services.follow import Follower, Run, Task


@click.command()
@click.argument("project", default="digits")
def demo(project: str) -> None:
    """Start Airflow and MLflow, and take PROJECT (default: digits) through its DAGs to a champion.

    What runs already is used, what an earlier demo began is followed. The services keep running; Ctrl-C stops the watching only.
    """
    settings = load_settings()
    config = load_project(find_project(project, settings.projects_dir))
    notes = stderr_console()
    from ssl_core.services import airflow
    from ssl_core.services.platform import bring_up, links, mend

    bring_up(settings, lambda text: notes.print(f"  {text}", style="dim", markup=False, soft_wrap=True))
    view = TerminalView(notes)
    follower = Follower(
        airflow.api(settings),
        config.name,
        view,
        lambda: mend(settings, view.note),
        address=settings.browser_airflow_url,
    )
    try:
        runs = follower.chain()
    except KeyboardInterrupt:
        view.close()
        notes.print(
            "[yellow]no longer watching; Airflow goes on.[/yellow] Watch again: make demo. Stop everything: make down"
        )
        raise
    finally:
        view.close()
    _conclude(settings, config.name, runs, links(settings) | follower.links(runs), Console(highlight=False))


def _conclude(settings: Settings, name: str, runs: list[Run], links: dict[str, str], out: Console) -> None:
    """The table, what became of the model, and the links. Raises ``CheckFailed`` where there is no champion in the end."""
    tasks = runs[-1].tasks
    model = tasks["register"].result.outputs.get("registered_model") if tasks["register"].result else None
    said = tasks["promote"].result.summary if tasks["promote"].result else ""
    champion = True
    if tasks["finetune"].state == "skipped":
        said = "there are no labels yet, so there is an encoder and no model"
    elif isinstance(model, ModelRef):
        from ssl_core.evaluation.report import read_evaluation, render
        from ssl_core.registry.evaluations import find_evaluation

        out.print()
        out.print(render(read_evaluation(find_evaluation(settings, name, model.version).folder)))
        champion = has_champion(settings, name)
    out.print(said, markup=False, soft_wrap=True)
    out.print()
    for title, text in links.items():
        out.print(f"{title + ':':13} {text}", markup=False, soft_wrap=True)
    out.print("\nStop the services: make down. Look again: make demo.", style="dim")
    if not champion:
        raise CheckFailed(
            f"{name} has no champion: {said.splitlines()[0] if said else 'see the gate'}", place=runs[-1].url
        )


def has_champion(settings: Settings, name: str) -> bool:
    """Whether the registry has a model in use for the project."""
    from ssl_core.registry import versions
    from ssl_core.registry.client import connect, mlflow_errors

    with mlflow_errors(settings):
        return versions.by_alias(connect(settings), name, versions.CHAMPION) is not None


class TerminalView:
    """A line for each task that ended, and below them what the running one says; in a pipe, every line it says."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._said = ""

    def run_started(self, run: Run) -> None:
        how = {"triggered": "", "woken": ", woken by the one before", "found": ", goes on from before"}[run.how]
        self._console.print(f"[bold]{run.dag_id}[/bold]{how}  [dim]{run.url}[/dim]", soft_wrap=True)

    def line(self, run: Run, task: str, text: str) -> None:
        # Progress is indented; what is not is the end of the task, which gets a line of its own.
        if not text.startswith((" ", "error:", "check failed:", "try again:")):
            return
        if self._console.is_terminal:
            self._said = text.strip()
        else:
            self._console.print(f"    {task:18} {text.strip()}", markup=False, soft_wrap=True)

    def task_ended(self, run: Run, task: Task) -> None:
        self._said = ""
        summary = task.result.summary.strip().splitlines() if task.result else []
        text = summary[0].lstrip("# ").replace("**", "") if summary else ""
        took = f"{task.seconds:.1f} s" if task.seconds is not None else ""
        if task.state == "skipped":
            colour, took, text = "dim", "skipped", text or "nothing to do"
        elif task.state == "success":
            colour = "green"
            took = "unchanged" if task.result is not None and task.result.cached else took
        else:
            colour, text = "red", text or task.state
        self._print(f"  [{colour}]{task.name:18}[/{colour}] {took:>9}  {escape(text)}")

    def run_ended(self, run: Run) -> None:
        self.close()

    def note(self, text: str) -> None:
        self._print(f"  [yellow]{escape(text)}[/yellow]")

    def tick(self, run: Run) -> None:
        if not self._console.is_terminal:
            return
        waiting = [t.name for t in run.tasks.values() if t.state in ("running", "queued", "up_for_retry", "scheduled")]
        task = waiting[0] if waiting else "waits for its turn"
        text = escape(f"{run.dag_id} {task}  {self._said}"[: max(20, self._console.width - 4)])
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        self._status.update(text)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
