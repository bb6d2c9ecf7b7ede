"""The ledger is the truth and the aliases follow it: what promotion and roll-back share.

Each is one new entry; the aliases are then set to what the ledger says, and the champion is asked by its alias in a fresh
process. A crash in between is mended by the next call, which starts by doing just that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.config.settings import Settings
from ssl_core.contracts import GOLDEN_FILE, LedgerEntry, RunContext, Verdict
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.registry import afresh, versions
from ssl_core.registry.client import connect
from ssl_core.registry.ledger import MOVES, Ledger, Standing, standing
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DONE = "ssl.ledger"  # a version's tag: the ledger entry whose every consequence was drawn
_SHA256 = "ssl.ledger_sha256"


@dataclass(frozen=True)
class Registrar:
    """Who moves the aliases of one project, in the name of one run."""

    client: MlflowClient
    settings: Settings
    store: Store
    ledger: Ledger
    run: RunContext

    @classmethod
    def of(cls, settings: Settings, store: Store, project: str, run: RunContext) -> Registrar:
        """Raises ``TryAgain`` where MLflow does not answer."""
        return cls(connect(settings), settings, store, Ledger(store, project), run)

    def reconcile(self) -> list[str]:
        """Sets the aliases to what the ledger says; a line for each that differed. Without a champion in it nothing is touched.

        Raises ``CheckFailed`` where the ledger is not the one that was written.
        """
        lines: list[str] = []
        while True:
            entries = self.ledger.entries()
            if not any(entry.action in MOVES for entry in entries):
                return lines
            self._require_newest(entries)
            lines += self._follow(standing(entries))
            # Else another promotion came in between, and ours may have undone its aliases.
            if len(self.ledger.entries()) == len(entries):
                return lines

    def _require_newest(self, entries: list[LedgerEntry]) -> None:
        """The newest entry has no successor that holds its digest; the registry has it, and how many there were."""
        project, newest = self.ledger.project, entries[-1]
        champion = versions.by_alias(self.client, project, versions.CHAMPION)
        if champion is not None and _number(champion.tags.get(_DONE)) > newest.seq:
            raise self.ledger.broken(
                newest.seq + 1, f"it is missing, the registry knows {champion.tags[_DONE]} entries of it"
            )
        about = newest.model_version or newest.replaced_version or ""
        version = versions.get_version(self.client, project, about) if about else None
        if version is None or _number(version.tags.get(_DONE)) != newest.seq or _SHA256 not in version.tags:
            return
        if version.tags[_SHA256] != self.ledger.digest(newest.seq):
            raise self.ledger.broken(newest.seq, "it was changed after it was written")

    def _follow(self, now: Standing) -> list[str]:
        project = self.ledger.project
        encoder = versions.encoder_name(project)
        wanted = [
            (project, versions.PREVIOUS, now.previous), (project, versions.CHAMPION, now.champion),
            (encoder, versions.PREVIOUS, now.encoder_previous), (encoder, versions.CHAMPION, now.encoder_champion),
        ]  # fmt: skip
        lines: list[str] = []
        for name, alias, version in wanted:
            if version is not None and versions.get_version(self.client, name, version) is None:
                lines.append(
                    f"the ledger's {alias}, {name} version {version}, is not in the registry any more; the alias is left as it is"
                )
            elif versions.set_alias(self.client, name, alias, version):
                lines.append(
                    f"{name}@{alias} is version {version} again, as the ledger says"
                    if version
                    else f"{name}@{alias} is gone, as the ledger says"
                )
        return lines

    def finish(self) -> list[str]:
        """Completes a promotion or roll-back that was cut off before its champion was asked by the alias; a line where there was one.

        Raises ``CheckFailed`` where that champion fails; the one before is then back.
        """
        entry = next((e for e in reversed(self.ledger.entries()) if e.action in MOVES), None)
        if entry is None or not entry.model_version:
            return []
        version = versions.get_version(self.client, self.ledger.project, entry.model_version)
        if version is None or _number(version.tags.get(_DONE)) >= entry.seq:
            return []
        ref = versions.to_ref(version)
        self.require_alias(entry, self.store.fetch(ref) / GOLDEN_FILE)
        self.mark(entry)
        how = "promoted" if entry.action == "PROMOTED" else "gone back to"
        return [f"{ref.name} version {ref.version}, {how} in ledger entry {entry.seq}, now answered by its alias"]

    def require_alias(self, entry: LedgerEntry, golden: Path) -> None:
        """Replays the golden batch through ``@champion``; where it fails, the ledger and the aliases go back.

        ``TryAgain`` leaves the entry as it is, without its mark: the next call asks again.
        """
        try:
            afresh.require_golden(self.settings, f"models:/{self.ledger.project}@{versions.CHAMPION}", golden)
        except TryAgain as error:
            error.cause = (
                f"version {entry.model_version} is the champion, but was not asked by its alias yet: {error.cause}"
            )
            raise
        except CheckFailed as error:
            self.undo(entry, str(error))
            raise CheckFailed(
                f"the new champion, version {entry.model_version}, failed when asked by its alias; "
                + (
                    f"version {entry.replaced_version} is the champion again"
                    if entry.replaced_version
                    else "there is no champion again"
                )
                + f": {error.cause}",
                place=error.place,
                next_step="look at the model version in MLflow; a new run decides again once data or recipe change",
            ) from error

    def undo(self, entry: LedgerEntry, reason: str) -> LedgerEntry | None:
        """Takes ``entry`` back in the ledger and the aliases, if it is still the one in force."""

        def make(entries: list[LedgerEntry]) -> dict[str, Any] | None:
            if standing(entries).champion != entry.model_version:
                return None
            before = standing(entries[: entry.seq - 1])
            return entry.model_dump(exclude={"seq", "previous", "at", "project"}) | {
                "action": "ROLLED_BACK", "verdict": Verdict.REJECT, "model_version": before.champion or "", "encoder_version": before.encoder_champion or "",
                "replaced_version": entry.model_version, "reasons": [reason], "user": self.run.user, "run": self.run,
            }  # fmt: skip

        undone = self.ledger.append(make)
        self.reconcile()
        if undone is not None:
            # It was in use a moment ago. Asked now, it might fail too, and the two would take turns for ever.
            self.mark(undone)
        return undone

    def mark(self, entry: LedgerEntry) -> None:
        """What the registry knows of an entry: a copy, tags of the versions it is about, last the one that nothing is left to do."""
        project = self.ledger.project
        if entry.action == "ROLLED_BACK" and entry.replaced_version:
            self._tag(entry.replaced_version, {"ssl.action": entry.action, "ssl.decided_by": entry.user})
        about = entry.model_version or entry.replaced_version or ""
        version = versions.get_version(self.client, project, about) if about else None
        if version is None:
            return
        if entry.action != "ROLLED_BACK":
            holder = versions.by_alias(self.client, project, versions.CHALLENGER)
            if holder is not None and str(holder.version) == about:
                versions.set_alias(self.client, project, versions.CHALLENGER, None)
            said = {"ssl.verdict": entry.verdict.value, "ssl.action": entry.action, "ssl.decided_by": entry.user}
            self._tag(about, said)
        if version.run_id:
            text = entry.model_dump_json(indent=1)
            self.client.log_text(version.run_id, text, f"ledger/{entry.seq:08d}.json")
        self._tag(about, {_SHA256: self.ledger.digest(entry.seq), _DONE: str(entry.seq)})

    def _tag(self, version: str, tags: dict[str, str]) -> None:
        if versions.get_version(self.client, self.ledger.project, version) is None:
            return
        for name, value in tags.items():
            self.client.set_model_version_tag(self.ledger.project, version, name, value)


def _number(tag: str | None) -> int:
    return int(tag) if tag and tag.isdigit() else 0
