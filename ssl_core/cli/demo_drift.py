"""``ssl-core demo-drift``: new data arrives, the world moves, an alarm is raised, and the champion learns on. Real digits, real Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from ssl_core.cli.common import load_settings, new_run, stderr_console
from ssl_core.cli.demo import TerminalView, has_champion
from ssl_core.config.load import load_project
from ssl_core.config.settings import Settings
from ssl_core.errors import CheckFailed, UserError
from ssl_core.services import live_digits
from ssl_core.services.follow import Follower, Run

if TYPE_CHECKING:
    from rich.table import Table

_STORY = {
    "quiet": "{n} more digits of the same kind arrive",
    "shifted": "{n} digits from another scanner arrive: turned, thicker, noisy",
}


@click.command("demo-drift")
def demo_drift() -> None:
    """Play drift on real digits: a champion, three quiet windows, two shifted ones, an alarm, and a champion that has learned.

    Uses the services of `make demo`, and starts them where they do not run. Called again, it goes on where it stopped.
    """
    settings = load_settings()
    data = _data(settings)
    notes, out = stderr_console(), Console(highlight=False)
    from ssl_core.services import airflow
    from ssl_core.services.platform import bring_up, links, mend

    path = live_digits.write_project(settings.projects_dir, data)
    live_digits.arrive(data, 0)
    bring_up(settings, lambda text: notes.print(f"  {text}", style="dim", markup=False, soft_wrap=True))
    view = TerminalView(notes)
    address = settings.browser_airflow_url
    follower = Follower(
        airflow.api(settings), live_digits.NAME, view, lambda: mend(settings, view.note), address=address
    )
    try:
        runs = [] if _is_over(settings) else _play(settings, follower, notes)
    except KeyboardInterrupt:
        view.close()
        notes.print("[yellow]no longer watching; Airflow goes on.[/yellow] Go on: make demo-drift")
        raise
    finally:
        view.close()
    said = runs[-1].tasks["promote"].result if runs else None
    out.print()
    out.print(_table(settings, path))
    if said is not None:
        out.print(said.summary, markup=False, soft_wrap=True)
    out.print()
    for title, text in (links(settings) | follower.links(runs)).items():
        out.print(f"{title + ':':13} {text}", markup=False, soft_wrap=True)
    out.print(
        f"\nThe reports of the monitor: {live_digits.NAME}.monitor in Airflow. Remove the project: rm {path}",
        style="dim",
        soft_wrap=True,
    )
    if not _is_over(settings):
        raise CheckFailed(
            f"{live_digits.NAME} has no champion that learned from a shifted window: the alarm came early, or the gate did not promote",
            place=runs[-1].url if runs else "",
            next_step="read the gate's report; a person may decide: ssl-core promote",
        )


def _play(settings: Settings, follower: Follower, notes: Console) -> list[Run]:
    """The story from where it stands; the runs that it took, the last one a `finetune`."""
    runs: list[Run] = []
    arrived = _versions(settings)
    if arrived == 0 or not has_champion(settings, live_digits.NAME):
        _say(notes, f"a champion learns from the first {live_digits.FIRST:,} digits")
        runs += follower.chain()
        arrived = 1
    for window, kind in enumerate(live_digits.WINDOWS, start=1):
        if window + 1 < arrived:
            continue  # judged before this call
        _say(notes, f"window {window}: " + _STORY[kind].format(n=live_digits.EACH))
        live_digits.arrive(_data(settings), window)
        ingested = follower.one("ingest")
        judged = follower.one("monitor", after=ingested)
        runs += [ingested, judged]
        if judged.tasks["monitor"].state == "success":  # it had news: the asset of drift was emitted
            _say(notes, "the alarm wakes a fine-tuning that goes on from the champion")
            return [*runs, follower.one("finetune", after=judged)]
    if not _alarmed(settings):
        raise CheckFailed(
            "no alarm was raised, though the last windows are shifted",
            place=f"{live_digits.NAME}.monitor",
            next_step="look at the drift reports of its runs",
        )
    # The story was interrupted after its alarm: the fine-tuning is what is left.
    return [*runs, follower.one("finetune")]


def _alarmed(settings: Settings) -> bool:
    """Whether the monitor has called for a fine-tuning."""
    from ssl_core.monitoring.record import Records
    from ssl_core.store import Store

    records = Records(Store(settings.store_url, settings.cache), live_digits.NAME).all()
    return any(one.report.retrain for mine in records.values() for one in mine)


def _data(settings: Settings) -> Path:
    return settings.home / "demo-drift" / live_digits.NAME


def _versions(settings: Settings) -> int:
    """How many dataset versions there are."""
    from ssl_core.data.repository import DataRepository
    from ssl_core.data.windows import version_number

    try:
        tag = DataRepository(settings).resolve(live_digits.NAME, "latest").tag or ""
    except UserError:
        return 0
    return version_number(tag) or 0


def _is_over(settings: Settings) -> bool:
    """Whether the champion has learned from a window with a shift."""
    from ssl_core.data.windows import version_number
    from ssl_core.registry import versions
    from ssl_core.registry.client import connect, mlflow_errors

    with mlflow_errors(settings):
        champion = versions.by_alias(connect(settings), live_digits.NAME, versions.CHAMPION)
    learned = champion.tags.get("ssl.dataset", "") if champion is not None else ""
    return (version_number(learned) or 0) > 1 + live_digits.WINDOWS.index("shifted")


def _table(settings: Settings, path: Path) -> Table:
    """Accuracy of every model that was champion, on old and on new test images."""
    from rich.table import Table

    from ssl_core.data.repository import DataRepository
    from ssl_core.registry.answers import answers
    from ssl_core.registry.ledger import Ledger
    from ssl_core.step import StepContext
    from ssl_core.store import Store

    store = Store(settings.store_url, settings.cache)
    promoted = [e.model_version for e in Ledger(store, live_digits.NAME).entries() if e.action == "PROMOTED"]
    first = 2 + live_digits.WINDOWS.index("shifted")
    sides = {"old world": range(1, first), "new world": range(first, _versions(settings) + 1)}
    table = Table(
        title="Accuracy on test images that no model was trained on", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )  # fmt: skip
    table.add_column("model")
    for name in sides:
        table.add_column(name, justify="right")
    with store.scratch() as out:
        ctx = StepContext(
            project=load_project(path), settings=settings, inputs={"dataset": DataRepository(settings).resolve(live_digits.NAME, "latest")},
            run=new_run(), key="demo-drift", out=out, store=store, checkpoints=store.checkpoints(live_digits.NAME, "demo-drift", "table"),
        )  # fmt: skip
        for version in dict.fromkeys(promoted):
            row = []
            for windows in sides.values():
                found = answers(ctx, version, windows=windows) if len(windows) else None
                shown = found is not None and len(found.sample_ids)
                row.append(f"{100 * found.quality.mean():.1f}% of {shown}" if found is not None and shown else "-")
            table.add_row(f"{live_digits.NAME} version {version}", *row)
    return table


def _say(notes: Console, text: str) -> None:
    notes.print(f"\n[bold]{escape(text)}[/bold]", soft_wrap=True)
