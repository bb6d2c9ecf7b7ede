"""Step ``gate``: may the challenger become the champion? It always ends with exit code 0 and a verdict: PROMOTE, REJECT or NEEDS_HUMAN.

This file collects what is known and writes the report. The rules are in ``judge`` (quality, slices, the vault), ``checks``
(origin, leakage, calibration, size, speed) and ``reuse`` (how worn out the test set is); ``answers`` says what the champion
makes of samples that came after it. docs/promotion.md tells the whole story.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_core.contracts import GOLDEN_FILE, DatasetRef, GateReport, LedgerEntry, ModelRef, Verdict
from ssl_core.data.table import SampleTable
from ssl_core.data.windows import version_number
from ssl_core.errors import CheckFailed, UserError
from ssl_core.evaluation.predictions import Predictions, read_predictions
from ssl_core.registry import answers, checks, creep, reuse, versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.compare import compare
from ssl_core.registry.gate_report import summary
from ssl_core.registry.judge import (
    FEWEST_SAMPLES,
    Decision,
    Finding,
    already_decided,
    apply_approval,
    decide,
    judge,
    judge_first,
    with_vault,
)
from ssl_core.registry.ledger import Ledger, standing, terminal
from ssl_core.registry.slices import cut
from ssl_core.step import Output, StepContext, StepOutput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREDICTIONS = answers.PREDICTIONS_FILE
RANDOM_INIT = "predictions-random-init.parquet"


def run(ctx: StepContext) -> StepOutput:
    """Writes ``gate.json`` (a ``GateReport``), and the same as Markdown to MLflow."""
    challenger: ModelRef = ctx.input("registered_model")
    dataset: DatasetRef = ctx.input("dataset")
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        version = versions.get_version(client, challenger.name, challenger.version)
        entries = Ledger(ctx.store, ctx.project.name).entries()
        champion = current_champion(client, ctx.project.name, entries)
        holder = versions.get_version(client, ctx.project.name, champion) if champion else None
    recipe = version.tags["ssl.recipe"] if version is not None else ""
    settled = terminal(entries, dataset_name(dataset), recipe)
    if settled is not None:
        decision = already_decided(settled)
    elif version is None:
        gone = f"{challenger.name} version {challenger.version} is not in the registry any more"
        decision = Decision(Verdict.REJECT, [gone])
    elif version.tags.get("ssl.golden") != "passed":
        decision = Decision(Verdict.REJECT, ["the golden batch was not passed at registration"])
    elif champion is not None and holder is None:
        gone = f"champion version {champion} cannot be compared with: it is not in the registry any more"
        decision = Decision(Verdict.NEEDS_HUMAN, [gone])
    else:
        decision = apply_approval(_examine(ctx, version, holder), ctx.project.promotion)
    report = GateReport(
        verdict=decision.verdict, reasons=decision.reasons,
        summary_md=summary(challenger, champion, dataset_name(dataset), decision), project=ctx.project.name,
        challenger=challenger, champion_version=champion, dataset=dataset, recipe=recipe,
        metrics=decision.metrics, details=decision.details,
    )  # fmt: skip
    (ctx.out / "gate.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    markdown = ctx.out / "gate.md"
    markdown.write_text(report.summary_md, encoding="utf-8")
    link = ctx.tracker.artifact(markdown)
    ctx.tracker.tags({"ssl.verdict": report.verdict.value})
    ctx.tracker.metrics(report.metrics)
    if version is not None and settled is None:
        with mlflow_errors(ctx.settings):
            client.set_model_version_tag(challenger.name, challenger.version, "ssl.verdict", report.verdict.value)
    return StepOutput(
        outputs={"gate_report": Output("gate-report", "gate.json")}, metrics=report.metrics,
        links={"Gate report": link} if link else {},
        # The first line for logs and chats; all of it is what a person is asked with, in Airflow.
        summary=f"{report.verdict.value}: {report.reasons[0][:500]}\n\n{report.summary_md}",
        verdict=report.verdict, news="already_decided" not in report.details,
    )  # fmt: skip


def dataset_name(dataset: DatasetRef) -> str:
    """How the ledger names a dataset version."""
    return dataset.tag or f"{dataset.name}@{dataset.md5}"


def current_champion(client: MlflowClient, project: str, entries: list[LedgerEntry]) -> str | None:
    """The champion's version: what the ledger says (an alias may lag behind it), else the alias."""
    champion = standing(entries).champion
    if champion is not None or any(e.action in ("PROMOTED", "ROLLED_BACK") for e in entries):
        return champion
    version = versions.by_alias(client, project, versions.CHAMPION)
    return str(version.version) if version else None


def _examine(ctx: StepContext, version: ModelVersion, champion: ModelVersion | None) -> Decision:
    """A challenger that may be judged, against the champion or, without one, against random weights."""
    challenger: ModelRef = ctx.input("registered_model")
    dataset: DatasetRef = ctx.input("dataset")
    folder = ctx.store.fetch(challenger)
    if champion is not None and (origin := _origin(ctx, folder, dataset, champion)):
        return decide(origin)
    table = answers.read_table(ctx, dataset)
    mine = read_predictions(ctx.fetch("evaluation") / PREDICTIONS)
    uses = reuse.count(ctx.store, ctx.project.name, "test", mine.digest, challenger.version)
    more, metrics = _own_checks(ctx, folder, table, mine)
    more += reuse.finding(uses)
    if champion is None:
        decision = _first(ctx, mine, more)
    else:
        decision = _against(ctx, table, mine, champion, more)
        if decision.verdict is Verdict.PROMOTE:
            decision = _ask_vault(ctx, table, champion, decision)
    decision.metrics |= metrics | {"test_set_uses": float(uses.total)}
    decision.details |= {"test_set": {"sha256": mine.digest, "n": len(mine.sample_ids), "uses": asdict(uses)}}
    reuse.mark(ctx.store, ctx.project.name, "test", mine.digest, challenger.version, decision.verdict)
    return decision


def _origin(ctx: StepContext, folder: Path, dataset: DatasetRef, champion: ModelVersion) -> list[Finding]:
    """What makes a comparison pointless: a copy of the champion, or one that knows older data than it."""
    number, tags = str(champion.version), champion.tags
    found = checks.stale(dataset_name(dataset), tags.get("ssl.dataset", ""), number)
    theirs = versions.to_ref(champion)
    if ctx.store.exists(theirs.uri):
        mine = checks.weights_digest(folder)
        found += checks.copy_of_champion(mine, checks.weights_digest(ctx.store.fetch(theirs)), number)
    elif ctx.input("registered_model").sha256 == theirs.sha256:
        found += checks.copy_of_champion(theirs.sha256, theirs.sha256, number)
    return found


def _own_checks(
    ctx: StepContext, folder: Path, table: SampleTable, mine: Predictions
) -> tuple[list[Finding], dict[str, float]]:
    """What there is to say about the challenger without any other model."""
    promotion, dataset = ctx.project.promotion, ctx.input("dataset")
    challenger: ModelRef = ctx.input("registered_model")
    record = checks.training_record(folder)
    metrics = {"megabytes": checks.megabytes(folder)}
    found = checks.leakage(record, table, mine.sample_ids, "test set")
    found += checks.validation(checks.validation_of(ctx.store, dataset), dataset)
    found += checks.size(metrics["megabytes"], promotion)
    if promotion.max_latency_ms is not None:
        try:
            with mlflow_errors(ctx.settings):
                metrics["latency_ms"] = checks.latency_ms(challenger, folder / GOLDEN_FILE, promotion.max_latency_ms)
            found += checks.latency(metrics["latency_ms"], promotion)
        except CheckFailed as error:
            found.append(Finding("latency", Verdict.REJECT, f"its speed cannot be measured: {error.cause}"))
    return found + checks.seeds(record), metrics


def _first(ctx: StepContext, mine: Predictions, more: list[Finding]) -> Decision:
    path = ctx.fetch("evaluation") / RANDOM_INIT
    if not path.is_file():
        missing = f"there is no champion yet, and no {RANDOM_INIT} to compare with"
        return decide([Finding("quality", Verdict.NEEDS_HUMAN, missing), *more])
    return judge_first(compare(mine, read_predictions(path), **_bootstrap(ctx)), more)


def _against(
    ctx: StepContext, table: SampleTable, mine: Predictions, champion: ModelVersion, more: list[Finding]
) -> Decision:
    """On all labelled test samples of the challenger's dataset version; what the champion was never asked is inferred."""
    promotion, number = ctx.project.promotion, str(champion.version)
    try:
        theirs = answers.answers(ctx, number, sample_ids=mine.sample_ids)
        doubts: list[Finding] = []
    except UserError as error:
        known = answers.recorded(ctx, champion)
        common = set(known.sample_ids) & set(mine.sample_ids) if known is not None else set()
        why = f"champion version {number} cannot be asked about all test samples: {error.cause}"
        if known is None or len(common) < FEWEST_SAMPLES:
            few = f"{why}; its evaluation on record shares {len(common)} with the challenger"
            return decide([Finding("champion", Verdict.NEEDS_HUMAN, few), *more])
        theirs = known
        doubts = [
            Finding("champion", Verdict.NEEDS_HUMAN, f"{why}; compared on the {len(common)} that it was evaluated on")
        ]
    slices = cut(
        mine, theirs, table, promotion,
        champion_window=version_number(champion.tags.get("ssl.dataset", "")), **_bootstrap(ctx),
    )  # fmt: skip
    sure, metrics = checks.calibration(mine, theirs, promotion, seed=ctx.project.evaluate.seed)
    held = versions.to_ref(champion)
    if ctx.store.exists(held.uri):
        record = checks.training_record(ctx.store.fetch(held))
        doubts += checks.champion_leakage(record, mine.sample_ids, number)
    forgotten, remembered, matrix = creep.look(ctx, table, mine, number)
    decision = judge(compare(mine, theirs, **_bootstrap(ctx)), promotion, slices, [*doubts, *forgotten, *sure, *more])
    decision.metrics |= metrics | remembered
    decision.details |= matrix
    return decision


def _ask_vault(ctx: StepContext, table: SampleTable, champion: ModelVersion, decision: Decision) -> Decision:
    """Only a challenger that would be promoted is shown to the vault: every question wears it out."""
    held_out = table.positions("vault", labelled=True)
    if not ctx.project.promotion.vault:
        note = "the vault was not asked (promotion.vault: false)"
        return Decision(decision.verdict, [*decision.reasons, note], decision.metrics, decision.details)
    if len(held_out) < FEWEST_SAMPLES:
        note = f"the vault was not asked: it holds {len(held_out)} labelled samples, and fewer than {FEWEST_SAMPLES} decide nothing"
        return Decision(decision.verdict, [*decision.reasons, note], decision.metrics, decision.details)
    challenger: ModelRef = ctx.input("registered_model")
    record = checks.training_record(ctx.store.fetch(challenger))
    if leaks := checks.leakage(record, table, answers.ids_at(table, held_out), "vault"):
        return _beside(decision, leaks[0])
    try:
        mine = answers.answers(ctx, challenger, split="vault")
        theirs = answers.answers(ctx, str(champion.version), split="vault")
    except UserError as error:
        return _beside(
            decision,
            Finding("vault", Verdict.NEEDS_HUMAN, f"the vault could not be asked: {str(error).splitlines()[0]}"),
        )
    uses = reuse.count(ctx.store, ctx.project.name, "vault", mine.digest, challenger.version)
    decision = with_vault(decision, compare(mine, theirs, **_bootstrap(ctx)), uses.total)
    reuse.mark(ctx.store, ctx.project.name, "vault", mine.digest, challenger.version, decision.verdict)
    return decision


def _beside(decision: Decision, finding: Finding) -> Decision:
    """A promotion that something speaks against after all."""
    return Decision(finding.verdict, [finding.text, *decision.reasons], decision.metrics, decision.details)


def _bootstrap(ctx: StepContext) -> dict[str, int]:
    return {"resamples": ctx.project.evaluate.bootstrap, "seed": ctx.project.evaluate.seed}
