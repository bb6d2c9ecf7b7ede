"""Removing a registered version: only one that nothing names and nothing could go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_core.config.settings import Settings
from ssl_core.errors import UserError
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.ledger import Ledger, Standing, standing
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def remove_version(settings: Settings, store: Store, project: str, version: str, *, encoder: bool = False) -> str:
    """Removes a version of ``project`` (of its encoder) from the registry; returns its name in words.

    Raises ``UserError`` with the reason where an alias names it, the ledger says that it is or may become the champion again,
    or a registered model was made from it. ``CheckFailed`` where the ledger does not hold: it cannot be asked then.
    """
    name = versions.encoder_name(project) if encoder else project
    title = f"{name} version {version}"
    with mlflow_errors(settings):
        client = connect(settings)
        found = versions.get_version(client, name, version)
        if found is None:
            raise UserError(
                "is not in the registry", place=title, next_step="look at the registered versions in MLflow"
            )
        # MLflow reads `02` as 2: what is compared, and removed, is the number as the registry writes it.
        version = str(found.version)
        title = f"{name} version {version}"
        if why := _why_kept(client, Ledger(store, project), name, version, encoder):
            raise UserError(f"is kept: {why}", place=title, next_step=f"see what it is for: ssl-core history {project}")
        client.delete_model_version(name, version)
    return title


def _why_kept(client: MlflowClient, ledger: Ledger, name: str, version: str, encoder: bool) -> str:
    named = [alias for alias, holder in client.get_registered_model(name).aliases.items() if str(holder) == version]
    if named:
        return f"the alias {', '.join(sorted(named))} names it"
    line = in_line(ledger)
    if encoder:
        used = [str(v.version) for v in versions.by_tag(client, ledger.project, "ssl.encoder_version", version)]
        if used:
            return f"{ledger.project} version {', '.join(sorted(used, key=int))} was made from it"
        if version in {found for now in line for found in (now.encoder_champion, now.encoder_previous)}:
            return "the ledger says that it belongs to the champion, or to one that can be gone back to"
    elif version in {found for now in line for found in (now.champion, now.previous)}:
        return "the ledger says that it is the champion, or one that can be gone back to"
    return ""


def in_line(ledger: Ledger) -> list[Standing]:
    """How things stand, and how they would after each further roll-back until there is none before."""
    entries = ledger.entries()
    found = [standing(entries)]
    seen = {found[0].champion}
    while (before := found[-1].previous) is not None and before not in seen:
        seen.add(before)
        # As `standing` goes back: to how it was when that version was last in use.
        states = [standing(entries[:end]) for end in range(len(entries), 0, -1)]
        found.append(next((s for s in states if s.champion == before), Standing(before)))
    return found
