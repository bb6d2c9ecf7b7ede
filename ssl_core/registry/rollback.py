"""Step ``rollback``, and the command of the same name: an earlier champion becomes the champion again.

Nothing moves before that version was loaded and answered its golden batch as the trained network did. It needs the registry and the
store, and neither data nor training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_core.config.settings import Settings
from ssl_core.contracts import GOLDEN_FILE, LedgerEntry, RunContext, Verdict
from ssl_core.errors import TryAgain, UserError
from ssl_core.registry import versions
from ssl_core.registry.client import mlflow_errors, version_link
from ssl_core.registry.gate import current_champion
from ssl_core.registry.ledger import MOVES, standing
from ssl_core.registry.registrar import Registrar
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Back:
    """What a roll-back did: its ledger entry, and what to tell a person."""

    entry: LedgerEntry
    text: str


def run(ctx: StepContext) -> StepOutput:
    """Goes back to ``ctx.rollback_to`` (empty: the champion before) and writes ``rollback.json``; raises as ``roll_back`` does."""
    back = roll_back(ctx.settings, ctx.store, ctx.project.name, ctx.rollback_to, ctx.reason, ctx.run)
    path = ctx.out / "rollback.json"
    path.write_text(back.entry.model_dump_json(indent=1), encoding="utf-8")
    ctx.tracker.artifact(path)
    ctx.tracker.tags({"ssl.action": back.entry.action, "mlflow.note.content": back.text})
    link = version_link(ctx.settings, ctx.project.name, back.entry.model_version)
    return StepOutput(
        outputs={"rollback": Output("rollback", "rollback.json")}, links={"Model": link}, summary=back.text
    )


def roll_back(settings: Settings, store: Store, project: str, to: str, reason: str, run: RunContext) -> Back:
    """Makes version ``to`` of ``project`` (empty: the champion before) the champion, and its encoder the encoder's.

    Raises ``UserError`` for a version that never was the champion, is it already, or is gone; ``CheckFailed`` where it does not
    load or answers differently (then nothing has moved), or fails by its alias (then the champion is the one of before).
    """
    with mlflow_errors(settings):
        registrar = Registrar.of(settings, store, project, run)
        mended = registrar.reconcile()
        entries = registrar.ledger.entries()
        if done := _done_before(entries, run):  # a second try of a task that was cut off
            mended += registrar.finish()
            return Back(done, "\n".join([_text(project, done), *mended]))
        champion = current_champion(registrar.client, project, entries)
        target = _target(registrar, entries, champion, to)
        golden = _golden(registrar, target)
        versions.require_golden(f"models:/{project}/{target.version}", golden)

        def make(now: list[LedgerEntry]) -> dict[str, Any]:
            if (found := current_champion(registrar.client, project, now)) != champion:
                raise UserError(
                    f"the champion has changed meanwhile: it is version {found or 'none'}, not {champion}",
                    place=project,
                    next_step=f"look at it, and go back again where you still want to: ssl-core history {project}",
                )
            # Data and recipe of the version that goes: they are settled with that, and do not come back by themselves.
            gone = next((e for e in reversed(now) if e.model_version == champion and e.action in MOVES), None)
            return {
                "action": "ROLLED_BACK", "model_version": str(target.version), "encoder_version": _encoder(now, target), "replaced_version": champion,
                "dataset": gone.dataset if gone else "", "recipe": gone.recipe if gone else "", "verdict": Verdict.REJECT,
                "reasons": [reason.strip() or "no reason was given"], "report_digest": "", "user": run.user, "run": run,
            }  # fmt: skip

        entry = registrar.ledger.append(make)
        assert entry is not None
        registrar.reconcile()
        registrar.require_alias(entry, golden)
        registrar.mark(entry)
    return Back(entry, "\n".join([_text(project, entry), *mended]))


def _text(project: str, entry: LedgerEntry) -> str:
    return (
        f"{project} version {entry.model_version} is the champion again, in place of version {entry.replaced_version}: "
        f"{entry.reasons[0]} (ledger entry {entry.seq})"
    )


def _done_before(entries: list[LedgerEntry], run: RunContext) -> LedgerEntry | None:
    """This run's own entry, where it is the last word: going back twice would go one too far."""
    moves = [entry for entry in entries if entry.action in MOVES]
    mine = [entry for entry in moves if entry.action == "ROLLED_BACK" and entry.run.run_id == run.run_id]
    # Two of them: it failed by its alias and was taken back.
    return mine[0] if len(mine) == 1 and mine[0] is moves[-1] else None


def former_champions(entries: list[LedgerEntry]) -> list[str]:
    """The versions that were the champion once, the latest last."""
    found: dict[str, None] = {}
    for entry in entries:
        if entry.action not in MOVES:
            continue
        for version in (entry.replaced_version, entry.model_version):
            if version:
                found.pop(version, None)
                found[version] = None
    return list(found)


def _target(registrar: Registrar, entries: list[LedgerEntry], champion: str | None, to: str) -> ModelVersion:
    """The version to go back to. Raises ``UserError`` where it cannot be that one."""
    project, history = registrar.ledger.project, f"ssl-core history {registrar.ledger.project}"
    former = [version for version in former_champions(entries) if version != champion]
    choose = f"choose one of {', '.join(former)}: ssl-core rollback {project} --to {former[-1]}" if former else history
    if champion is None and not former:
        raise UserError("has no champion, and never had one", place=project, next_step=history)
    wanted = to or standing(entries).previous or ""
    if not wanted:
        raise UserError(
            f"there is no champion before version {champion}" if champion else "there is no champion now",
            place=project,
            next_step=choose,
        )
    if wanted == champion:
        raise UserError(f"version {wanted} is the champion already", place=project, next_step=choose)
    if wanted not in former:
        raise UserError(f"version {wanted} never was the champion", place=project, next_step=choose)
    version = versions.get_version(registrar.client, project, wanted)
    if version is None:
        raise UserError(f"version {wanted} is not in the registry any more", place=project, next_step=choose)
    return version


def _golden(registrar: Registrar, target: ModelVersion) -> Any:
    ref = versions.to_ref(target)
    try:
        return registrar.store.fetch(ref) / GOLDEN_FILE
    except TryAgain as error:
        if registrar.store.exists(ref.uri):
            raise
        raise UserError(
            f"the weights of version {target.version} are not in the store any more",
            place=error.place,
            next_step=f"choose another version: ssl-core history {registrar.ledger.project}",
        ) from error


def _encoder(entries: list[LedgerEntry], target: ModelVersion) -> str:
    """The encoder that was in use with it; for a champion from before the ledger, what its tag says."""
    used = (
        e.encoder_version for e in reversed(entries) if e.action in MOVES and e.model_version == str(target.version)
    )
    return next(used, "") or str(target.tags.get("ssl.encoder_version", ""))
