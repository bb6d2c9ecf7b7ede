"""Step ``promote``, and the command of the same name: the only places that move a champion alias.

The ledger is the truth and the aliases follow it. A promotion is one new entry; the aliases are then set to what the
ledger says. A crash in between is mended by the next call, which starts by doing just that, and by asking the champion by its
alias where that is still to be done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl_core.config.settings import Settings
from ssl_core.contracts import GOLDEN_FILE, ArtifactRef, GateReport, LedgerEntry, ModelRef, RunContext, Verdict
from ssl_core.errors import CheckFailed, StepError, TryAgain, UserError
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors, version_link
from ssl_core.registry.gate import current_champion, dataset_name
from ssl_core.registry.ledger import Ledger, Standing, standing, terminal
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

Action = Literal["PROMOTED", "REJECTED", "DECLINED", "EXPIRED"]
_LEAST_DIGEST = 8
_DONE = "ssl.ledger"  # a version's tag: the ledger entry whose every consequence was drawn


@dataclass(frozen=True)
class Outcome:
    """What became of a report: the new ledger entry, if any, and what to tell a person."""

    entry: LedgerEntry | None
    text: str


def run(ctx: StepContext) -> StepOutput:
    """Acts on the gate's verdict and writes ``promotion.json``.

    PROMOTE: entry PROMOTED, aliases moved, the golden batch replayed through the alias. REJECT: entry REJECTED.
    NEEDS_HUMAN: no entry, the summary names the command. Raises ``CheckFailed`` where the new champion does not answer as
    it should; the old one is then back.
    """
    ref: ArtifactRef = ctx.input("gate_report")
    report = GateReport.model_validate_json(ctx.fetch("gate_report").read_bytes())
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        ledger = Ledger(ctx.store, ctx.project.name)
        mended = reconcile(client, ledger) + finish(client, ctx.store, ledger, ctx.run)
        if report.verdict is Verdict.NEEDS_HUMAN and "already_decided" not in report.details:
            outcome = Outcome(None, waiting(report, ref.sha256))
        else:
            action: Action = "PROMOTED" if report.verdict is Verdict.PROMOTE else "REJECTED"
            outcome = settle(client, ctx.store, ledger, report, ref.sha256, action, ctx.run)
    document = {
        "entry": outcome.entry.model_dump(mode="json") if outcome.entry else None,
        "verdict": report.verdict.value, "report_digest": ref.sha256, "mended": mended, "text": outcome.text,
    }  # fmt: skip
    path = ctx.out / "promotion.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    ctx.tracker.artifact(path)  # MLflow's copy of the ledger entry
    ctx.tracker.tags(
        {"ssl.verdict": report.verdict.value, "ssl.action": outcome.entry.action if outcome.entry else "none"}
    )
    # By this run: a second try finds the entry that the first one wrote before it was cut off.
    promoted = any(e.action == "PROMOTED" and e.run.run_id == ctx.run.run_id for e in ledger.entries())
    link = version_link(ctx.settings, report.challenger.name, report.challenger.version)
    return StepOutput(
        outputs={"promotion": Output("promotion", "promotion.json")}, links={"Model": link},
        summary="\n".join([outcome.text, *mended]), news=promoted,
    )  # fmt: skip


def waiting(report: GateReport, digest: str) -> str:
    """What a person is told whose decision is needed."""
    return (
        f"{report.challenger.name} version {report.challenger.version} waits for a person: {report.reasons[0]}\n"
        f"  promote it: ssl-core promote {report.project} --approve {digest[:12]}\n"
        f"  turn it down: ssl-core promote {report.project} --decline {digest[:12]}"
    )


def reconcile(client: MlflowClient, ledger: Ledger) -> list[str]:
    """Sets the aliases to what the ledger says; returns a line for each that differed. Without entries nothing is touched."""
    lines: list[str] = []
    while True:
        entries = ledger.entries()
        if not any(entry.action in ("PROMOTED", "ROLLED_BACK") for entry in entries):
            return lines
        lines += _follow(client, ledger.project, standing(entries))
        if len(ledger.entries()) == len(
            entries
        ):  # else another promotion came in between, and ours may have undone its aliases
            return lines


def _follow(client: MlflowClient, project: str, now: Standing) -> list[str]:
    encoder = versions.encoder_name(project)
    wanted = [
        (project, versions.PREVIOUS, now.previous), (project, versions.CHAMPION, now.champion),
        (encoder, versions.PREVIOUS, now.encoder_previous), (encoder, versions.CHAMPION, now.encoder_champion),
    ]  # fmt: skip
    lines: list[str] = []
    for name, alias, version in wanted:
        if version is not None and versions.get_version(client, name, version) is None:
            lines.append(
                f"the ledger's {alias}, {name} version {version}, is not in the registry any more; the alias is left as it is"
            )
        elif versions.set_alias(client, name, alias, version):
            lines.append(
                f"{name}@{alias} is version {version} again, as the ledger says"
                if version
                else f"{name}@{alias} is gone, as the ledger says"
            )
    return lines


def settle(
    client: MlflowClient, store: Store, ledger: Ledger, report: GateReport, digest: str, action: Action, run: RunContext
) -> Outcome:
    """Records ``action`` on a report in the ledger, once, and moves the aliases where it is a promotion."""
    challenger = report.challenger
    title = f"{challenger.name} version {challenger.version}"
    if settled := ledger.terminal(dataset_name(report.dataset), report.recipe):
        return _nothing_new(title, settled)
    version = versions.get_version(client, challenger.name, challenger.version)
    golden = store.fetch(challenger) / GOLDEN_FILE if action == "PROMOTED" else None
    if golden is not None:
        # Before anything is written: what does not load or answers differently never enters the ledger.
        versions.require_golden(f"models:/{challenger.name}/{challenger.version}", golden)

    def make(entries: list[LedgerEntry]) -> dict[str, Any] | None:
        if terminal(entries, dataset_name(report.dataset), report.recipe) is not None:
            return None
        champion = current_champion(client, report.project, entries)
        if action == "PROMOTED" and champion != report.champion_version:
            raise CheckFailed(
                f"the champion is version {champion}, but the report compares with {report.champion_version or 'none'}",
                place=f"gate report {digest[:12]}",
                next_step=f"ask the gate again: ssl-core run {report.project}",
            )
        return {
            "action": action, "model_version": challenger.version, "encoder_version": version.tags.get("ssl.encoder_version", "") if version else "",
            "replaced_version": champion if action == "PROMOTED" else None, "dataset": dataset_name(report.dataset), "recipe": report.recipe,
            "verdict": report.verdict, "reasons": report.reasons, "report_digest": digest, "user": run.user, "run": run,
        }  # fmt: skip

    entry = ledger.append(make)
    if entry is None:
        settled = terminal(ledger.entries(), dataset_name(report.dataset), report.recipe)
        assert settled is not None
        return _nothing_new(title, settled)
    reconcile(client, ledger)
    if action == "PROMOTED":
        assert golden is not None
        _check_alias(client, ledger, entry, golden, run)
    _mark(client, entry, challenger)
    words = {
        "PROMOTED": "is the champion",
        "REJECTED": "was rejected",
        "DECLINED": "was declined",
        "EXPIRED": "was not decided on in time",
    }
    replaced = f", in place of version {entry.replaced_version}" if entry.replaced_version else ""
    return Outcome(entry, f"{title} {words[action]}{replaced} (ledger entry {entry.seq})")


def finish(client: MlflowClient, store: Store, ledger: Ledger, run: RunContext) -> list[str]:
    """Completes a promotion that was cut off before its champion was asked by the alias; a line where there was one.

    Raises ``CheckFailed`` where that champion fails; the one before is then back.
    """
    entries = ledger.entries()
    champion = standing(entries).champion
    entry = next((e for e in reversed(entries) if e.action == "PROMOTED" and e.model_version == champion), None)
    version = versions.get_version(client, ledger.project, entry.model_version) if entry else None
    if entry is None or version is None:
        return []
    marked = version.tags.get(_DONE, "")
    if marked.isdigit() and int(marked) >= entry.seq:
        return []
    ref = versions.to_ref(version)
    _check_alias(client, ledger, entry, store.fetch(ref) / GOLDEN_FILE, run)
    _mark(client, entry, ref)
    return [f"{ref.name} version {ref.version}, promoted in ledger entry {entry.seq}, now answered by its alias"]


def _nothing_new(title: str, settled: LedgerEntry) -> Outcome:
    return Outcome(
        None,
        f"{title}: nothing new to promote, ledger entry {settled.seq} ({settled.action}) holds for {settled.dataset} and this recipe",
    )


def _check_alias(client: MlflowClient, ledger: Ledger, entry: LedgerEntry, golden: Path, run: RunContext) -> None:
    """Replays the golden batch through ``@champion``; where it fails, the ledger and the aliases go back.

    ``TryAgain`` leaves the promotion as it is, without its mark: the next call asks again.
    """
    try:
        versions.require_golden(f"models:/{ledger.project}@{versions.CHAMPION}", golden)
    except TryAgain as error:
        error.cause = (
            f"version {entry.model_version} is the champion, but was not asked by its alias yet: {error.cause}"
        )
        raise
    except CheckFailed as error:
        roll_back(client, ledger, entry, str(error), run)
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


def roll_back(
    client: MlflowClient, ledger: Ledger, entry: LedgerEntry, reason: str, run: RunContext
) -> LedgerEntry | None:
    """Undoes the promotion ``entry`` in the ledger and the aliases, if it is still the one in force."""

    def make(entries: list[LedgerEntry]) -> dict[str, Any] | None:
        if standing(entries).champion != entry.model_version:
            return None
        before = standing(entries[: entry.seq - 1])
        return entry.model_dump(exclude={"seq", "previous", "at", "project"}) | {
            "action": "ROLLED_BACK", "verdict": Verdict.REJECT, "model_version": before.champion or "", "encoder_version": before.encoder_champion or "",
            "replaced_version": entry.model_version, "reasons": [reason], "user": run.user, "run": run,
        }  # fmt: skip

    undone = ledger.append(make)
    reconcile(client, ledger)
    return undone


def _mark(client: MlflowClient, entry: LedgerEntry, challenger: ModelRef) -> None:
    """``challenger`` is free again, and the version's tags; last the one that says that nothing is left to do."""
    tags = {
        "ssl.verdict": entry.verdict.value,
        "ssl.action": entry.action,
        "ssl.decided_by": entry.user,
        _DONE: str(entry.seq),
    }
    if versions.get_version(client, challenger.name, challenger.version) is None:
        return
    holder = versions.by_alias(client, challenger.name, versions.CHALLENGER)
    if holder is not None and str(holder.version) == challenger.version:
        versions.set_alias(client, challenger.name, versions.CHALLENGER, None)
    for name, value in tags.items():
        client.set_model_version_tag(challenger.name, challenger.version, name, value)


def find_report(store: Store, project: str, digest: str) -> tuple[GateReport, str]:
    """The stored gate report whose SHA-256 starts with ``digest``; ``UserError`` where there is none or more than one."""
    if len(digest) < _LEAST_DIGEST or not all(c in "0123456789abcdef" for c in digest):
        raise UserError(f"not a digest: at least {_LEAST_DIGEST} hexadecimal digits are needed", place=digest)
    found: dict[str, ArtifactRef] = {}
    for key in store.names(f"{project}/gate"):
        result = store.result(project, "gate", key)
        ref = result.outputs.get("gate_report") if result else None
        if isinstance(ref, ArtifactRef) and ref.sha256.startswith(digest):
            found[ref.sha256] = ref
    if len(found) != 1:
        raise UserError(
            f"{len(found) or 'no'} gate reports of {project} start with {digest}",
            place="gate report",
            next_step=f"the digest is in the summary of the promote step: ssl-core run {project}",
        )
    sha256, ref = found.popitem()
    return GateReport.model_validate_json(store.fetch(ref).read_bytes()), sha256


def decide(
    settings: Settings, project: str, digest: str, action: Literal["PROMOTED", "DECLINED"], run: RunContext
) -> Outcome:
    """A person's decision on a stored gate report. Raises ``UserError`` for one that cannot be decided on."""
    store = Store(settings.store_url, settings.cache)
    report, sha256 = find_report(store, project, digest)
    if action == "PROMOTED" and report.verdict is Verdict.REJECT:
        raise UserError(
            f"the gate rejected it: {report.reasons[0]}",
            place=f"gate report {digest}",
            next_step="a person approves what the gate leaves open, not what it turned down",
        )
    with mlflow_errors(settings):
        client = connect(settings)
        ledger = Ledger(store, project)
        try:
            reconcile(client, ledger)
            finish(client, store, ledger, run)
            return settle(client, store, ledger, report, sha256, action, run)
        except StepError as error:
            error.place = error.place or f"gate report {digest}"
            raise
