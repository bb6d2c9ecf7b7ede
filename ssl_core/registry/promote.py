"""Step ``promote``, and the command of the same name: what becomes of a challenger that the gate has judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from ssl_core.config.settings import Settings
from ssl_core.contracts import GOLDEN_FILE, Approval, ArtifactRef, GateReport, LedgerEntry, RunContext, Verdict
from ssl_core.errors import CheckFailed, StepError, UserError
from ssl_core.registry import versions
from ssl_core.registry.client import mlflow_errors, version_link
from ssl_core.registry.gate import current_champion, dataset_name
from ssl_core.registry.ledger import terminal
from ssl_core.registry.registrar import Registrar
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.store import Store

Action = Literal["PROMOTED", "REJECTED", "DECLINED", "EXPIRED"]
_ANSWERS: dict[str, Action] = {"approve": "PROMOTED", "decline": "DECLINED", "expired": "EXPIRED"}
_NOBODY = "nobody"
_LEAST_DIGEST = 8


@dataclass(frozen=True)
class Outcome:
    """What became of a report: the new ledger entry, if any, and what to tell a person."""

    entry: LedgerEntry | None
    text: str
    report_digest: str = ""


def run(ctx: StepContext) -> StepOutput:
    """Acts on the gate's verdict, or on what a person answered where that left it open, and writes ``promotion.json``.

    PROMOTE, or approved: entry PROMOTED, aliases moved, the golden batch replayed through the alias. Else an entry REJECTED, DECLINED or
    EXPIRED. NEEDS_HUMAN without an answer: no entry, the summary names the command. Raises ``CheckFailed`` where the new
    champion does not answer as it should; the old one is then back.
    """
    ref: ArtifactRef = ctx.input("gate_report")
    report = GateReport.model_validate_json(ctx.fetch("gate_report").read_bytes())
    with mlflow_errors(ctx.settings):
        registrar = Registrar.of(ctx.settings, ctx.store, ctx.project.name, ctx.run)
        mended = registrar.reconcile() + registrar.finish()
        if report.verdict is Verdict.NEEDS_HUMAN and "already_decided" not in report.details and not ctx.approval:
            outcome = Outcome(None, waiting(report, ref.sha256))
        elif report.verdict is Verdict.NEEDS_HUMAN and ctx.approval:
            outcome = settle(registrar, report, ref.sha256, _ANSWERS[ctx.approval.answer], ctx.approval)
        else:
            action: Action = "PROMOTED" if report.verdict is Verdict.PROMOTE else "REJECTED"
            outcome = settle(registrar, report, ref.sha256, action)
    document = {
        "entry": outcome.entry.model_dump(mode="json") if outcome.entry else None,
        "verdict": report.verdict.value, "report_digest": ref.sha256, "mended": mended, "text": outcome.text,
    }  # fmt: skip
    path = ctx.out / "promotion.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    ctx.tracker.artifact(path)  # MLflow's copy of the ledger entry
    action_tag = outcome.entry.action if outcome.entry else "none"
    ctx.tracker.tags(
        {"ssl.verdict": report.verdict.value, "ssl.action": action_tag, "mlflow.note.content": outcome.text}
    )
    # By this run, or on this report by the command line while the run waited: a second try finds the entry that is there.
    promoted = any(
        e.action == "PROMOTED" and (e.run.run_id == ctx.run.run_id or e.report_digest == ref.sha256)
        for e in registrar.ledger.entries()
    )
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


def settle(
    registrar: Registrar,
    report: GateReport,
    digest: str,
    action: Action,
    approval: Approval | None = None,
    *,
    reopen: bool = False,
) -> Outcome:
    """Records ``action`` on a report in the ledger, once, and moves the aliases where it is a promotion.

    ``reopen``: a person decides on a report whose time ran out, which nobody has judged yet.
    """
    challenger, name, ledger = report.challenger, dataset_name(report.dataset), registrar.ledger
    title = f"{challenger.name} version {challenger.version}"

    def settled(entries: list[LedgerEntry]) -> LedgerEntry | None:
        found = terminal(entries, name, report.recipe)
        expired = found is not None and found.action == "EXPIRED" and found.report_digest == digest
        return None if expired and reopen else found

    if before := settled(ledger.entries()):
        return _nothing_new(title, before)
    version = versions.get_version(registrar.client, challenger.name, challenger.version)
    golden = registrar.store.fetch(challenger) / GOLDEN_FILE if action == "PROMOTED" else None
    if golden is not None:
        # Before anything is written: what does not load or answers differently never enters the ledger.
        versions.require_golden(f"models:/{challenger.name}/{challenger.version}", golden)
    user, comment = _who(approval, registrar.run)

    def make(entries: list[LedgerEntry]) -> dict[str, Any] | None:
        if settled(entries) is not None:
            return None
        champion = current_champion(registrar.client, report.project, entries)
        if action == "PROMOTED" and champion != report.champion_version:
            raise CheckFailed(
                f"the champion is version {champion}, but the report compares with {report.champion_version or 'none'}",
                place=f"gate report {digest[:12]}",
                next_step=f"ask the gate again: ssl-core run {report.project}",
            )
        return {
            "action": action, "model_version": challenger.version, "encoder_version": version.tags.get("ssl.encoder_version", "") if version else "",
            "replaced_version": champion if action == "PROMOTED" else None, "dataset": name, "recipe": report.recipe,
            "verdict": report.verdict, "reasons": [*comment, *report.reasons], "report_digest": digest, "user": user, "run": registrar.run,
        }  # fmt: skip

    entry = ledger.append(make)
    if entry is None:
        before = settled(ledger.entries())
        assert before is not None
        return _nothing_new(title, before)
    registrar.reconcile()
    if golden is not None:
        registrar.require_alias(entry, golden)
    registrar.mark(entry)
    words = {
        "PROMOTED": "is the champion",
        "REJECTED": "was rejected",
        "DECLINED": f"was declined by {user}",
        "EXPIRED": "was turned down: nobody decided in time",
    }
    replaced = f", in place of version {entry.replaced_version}" if entry.replaced_version else ""
    said = f": {comment[0].partition(': ')[2]}" if comment else ""
    return Outcome(entry, f"{title} {words[action]}{replaced}{said} (ledger entry {entry.seq})")


def _who(approval: Approval | None, run: RunContext) -> tuple[str, list[str]]:
    """Who decided, and what that person had to say, as the first of the reasons."""
    if approval is None:
        return run.user, []
    user = _NOBODY if approval.answer == "expired" else approval.user or run.user
    return user, [f"{user}: {approval.comment}"] if approval.comment else []


def _nothing_new(title: str, settled: LedgerEntry) -> Outcome:
    by = f" by {settled.user}" if settled.user else ""
    return Outcome(
        None,
        f"{title}: nothing new to promote, ledger entry {settled.seq} ({settled.action}{by}) holds for {settled.dataset} and this recipe",
    )


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
    settings: Settings,
    project: str,
    digest: str,
    action: Literal["PROMOTED", "DECLINED"],
    run: RunContext,
    comment: str = "",
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
        registrar = Registrar.of(settings, store, project, run)
        try:
            registrar.reconcile()
            registrar.finish()
            answer: Literal["approve", "decline"] = "approve" if action == "PROMOTED" else "decline"
            approval = Approval(answer=answer, user=run.user, comment=comment)
            outcome = settle(registrar, report, sha256, action, approval, reopen=True)
            return Outcome(outcome.entry, outcome.text, sha256)
        except StepError as error:
            error.place = error.place or f"gate report {digest}"
            raise
