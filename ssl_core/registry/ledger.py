"""The ledger: a project's promotions and refusals, one object an entry, written once, each holding the digest of the one before.

Appending is an exclusive create of the next number: that is the lock. Whoever loses the race reads again and decides again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from ssl_core.contracts import LedgerEntry
from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.store import Store

MOVES = ("PROMOTED", "ROLLED_BACK")
"""The actions that make another version the champion."""
TERMINAL = ("PROMOTED", "REJECTED", "DECLINED", "EXPIRED", "ROLLED_BACK")
_ATTEMPTS = 100


@dataclass(frozen=True)
class Standing:
    """What the aliases must be, according to the ledger; None: no such alias."""

    champion: str | None = None
    previous: str | None = None
    encoder_champion: str | None = None
    encoder_previous: str | None = None


class Ledger:
    """The ledger of one project, below ``<store>/ledger/<project>/``."""

    def __init__(self, store: Store, project: str) -> None:
        self._store = store
        self._uri = f"ledger/{project}"
        self.project = project

    def entries(self) -> list[LedgerEntry]:
        """All entries in order. Raises ``CheckFailed`` that names the first entry where the chain does not hold."""
        entries, broken = self.read()
        if broken is not None:
            raise broken
        return entries

    def read(self) -> tuple[list[LedgerEntry], CheckFailed | None]:
        """The entries up to where the chain breaks, and what is wrong there; None where all of it holds."""
        entries: list[LedgerEntry] = []
        before = ""
        for seq, name in enumerate(self._names(), start=1):
            raw = self._store.read(f"{self._uri}/{name}")
            if raw is None or name != _file_name(seq):
                return entries, self.broken(seq, "it is missing")
            try:
                entry = LedgerEntry.model_validate_json(raw)
            except ValidationError:
                return entries, self.broken(seq, "it is not a ledger entry")
            if entry.seq != seq or entry.project != self.project:
                return entries, self.broken(seq, "it belongs elsewhere")
            if entry.previous != before:
                why = f"it was changed after entry {seq} was written" if seq > 1 else "it names an entry before it"
                return entries, self.broken(seq - 1 or seq, why)
            entries.append(entry)
            before = entry_digest(raw)
        return entries, None

    def digest(self, seq: int) -> str:
        """SHA-256 of an entry as it lies in the store; empty where there is none."""
        raw = self._store.read(f"{self._uri}/{_file_name(seq)}")
        return entry_digest(raw) if raw is not None else ""

    def append(self, make: Callable[[list[LedgerEntry]], dict[str, Any] | None]) -> LedgerEntry | None:
        """Appends what ``make(entries so far)`` returns: all fields but seq, previous, at and project; None appends nothing.

        ``make`` is asked again with the new entries where another writer was faster, so its decision is never stale.
        """
        for _ in range(_ATTEMPTS):
            entries = self.entries()
            fields = make(entries)
            if fields is None:
                return None
            seq = len(entries) + 1
            before = self._store.read(f"{self._uri}/{_file_name(seq - 1)}") if entries else None
            entry = LedgerEntry(
                seq=seq, previous=entry_digest(before) if before is not None else "",
                at=datetime.now(UTC).isoformat(timespec="seconds"), project=self.project, **fields,
            )  # fmt: skip
            if self._store.create(f"{self._uri}/{_file_name(seq)}", entry.model_dump_json(indent=1).encode()):
                return entry
        raise TryAgain("the ledger is busy", place=self._store.path(self._uri), next_step="run again")

    def terminal(self, dataset: str, recipe: str) -> LedgerEntry | None:
        """The entry that settled this dataset version and recipe; None while they are open."""
        return terminal(self.entries(), dataset, recipe)

    def standing(self) -> Standing:
        return standing(self.entries())

    def _names(self) -> list[str]:
        return [name for name in self._store.names(self._uri) if name.endswith(".json") and not name.startswith(".")]

    def broken(self, seq: int, why: str) -> CheckFailed:
        """The error that names an entry where the ledger does not hold."""
        return CheckFailed(
            f"the ledger's chain is broken at entry {seq}: {why}",
            place=self._store.path(f"{self._uri}/{_file_name(seq)}"),
            next_step="restore the entry from a backup, or from its copy in the MLflow run of the promotion; nothing is promoted until then",
        )


def _file_name(seq: int) -> str:
    return f"{seq:08d}.json"


def entry_digest(raw: bytes) -> str:
    """SHA-256 of an entry as it lies in the store."""
    return hashlib.sha256(raw).hexdigest()


def terminal(entries: list[LedgerEntry], dataset: str, recipe: str) -> LedgerEntry | None:
    """The last entry that settled this dataset version and recipe."""
    settled = (e for e in reversed(entries) if e.dataset == dataset and e.recipe == recipe and e.action in TERMINAL)
    return next(settled, None)


def standing(entries: list[LedgerEntry]) -> Standing:
    """Who is champion after these entries, and who was before."""
    now = Standing()
    history = [now]
    for entry in entries:
        # A roll-back that takes the first champion away names no version: then there is none.
        champion, encoder = entry.model_version or None, entry.encoder_version or None
        if entry.action == "PROMOTED":
            now = Standing(
                champion, (now.champion or entry.replaced_version) if champion != now.champion else now.previous,
                encoder, now.encoder_champion if encoder != now.encoder_champion else now.encoder_previous,
            )  # fmt: skip
        elif entry.action == "ROLLED_BACK":
            # Back to how it was when that version was last in use: the version rolled away must not become `previous`.
            now = next(
                (s for s in reversed(history) if s.champion == champion), Standing(champion, None, encoder, None)
            )
        else:
            continue
        history.append(now)
    return now
