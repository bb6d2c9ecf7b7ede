"""How often a test set, or the vault, has already decided on a challenger: each decision wears it out a little.

A mark per challenger lies at ``<store>/<project>/judged-by/<test or vault>-<digest of the sample ids>/<model version>.json``; asking
twice about the same version is one use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ssl_core.contracts import Verdict
from ssl_core.registry.judge import Finding
from ssl_core.store import Store

WARN_FROM = 20
"""At the 5% level, one of so many equal challengers looks better by chance alone."""


@dataclass(frozen=True)
class Uses:
    """Other challengers that were judged before."""

    same: int
    """By exactly these samples."""
    others: int
    """By an earlier or later form of them: as data grows, most samples stay."""

    @property
    def total(self) -> int:
        return self.same + self.others


def count(store: Store, project: str, kind: str, digest: str, version: str) -> Uses:
    """How many versions other than ``version`` were judged by this ``test`` set or ``vault``."""
    here, same, others = f"{project}/judged-by", set(), set()
    for name in store.names(here):
        if name.startswith(f"{kind}-"):
            found = {mark.removesuffix(".json") for mark in store.names(f"{here}/{name}")} - {version}
            if name == f"{kind}-{digest}":
                same |= found
            else:
                others |= found
    return Uses(len(same), len(others - same))


def mark(store: Store, project: str, kind: str, digest: str, version: str, verdict: Verdict) -> None:
    """Remembers one use; the first verdict on a version stays."""
    uri = f"{project}/judged-by/{kind}-{digest}/{version}.json"
    store.create(uri, json.dumps({"version": version, "verdict": verdict.value}).encode())


def finding(uses: Uses) -> list[Finding]:
    """The count in words; from ``WARN_FROM`` on with what to do. Never a verdict: the vault is there for that."""
    if not uses.total:
        return []
    judged = f"{uses.same} other challenger{'' if uses.same == 1 else 's'}"
    text = f"this test set has judged {judged} before, other versions of it {uses.others} more"
    if uses.total >= WARN_FROM:
        text += (
            f": from about {WARN_FROM} on, one looks better by chance alone. Label a fresh window, "
            "and trust the vault and the newest windows more than the whole"
        )
    return [Finding("test-set reuse", Verdict.PROMOTE, text)]
