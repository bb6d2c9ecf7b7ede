"""Step ``gate``: may the challenger become the champion? It reads predictions, never infers, and always ends with exit code 0.

With a champion, on the test samples that both were evaluated on (d = challenger - champion, in mean quality: accuracy where a sample has one class):

* PROMOTE: d >= 0, and the 95% interval of d lies above ``-promotion.margin``;
* REJECT: the interval lies below 0, or d < ``-promotion.margin``;
* NEEDS_HUMAN: anything else.

Without one, against the same recipe from random weights on the same samples: PROMOTE where d > 0, REJECT where the
interval lies below 0, else NEEDS_HUMAN (a tie on easy data is no reason to have no model, nor to have one unasked).
A golden batch that was not passed is a REJECT. ``promotion.approval: human`` makes of each PROMOTE a NEEDS_HUMAN.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.config.project import PromotionConfig
from ssl_core.contracts import ArtifactRef, DatasetRef, GateReport, LedgerEntry, ModelRef, Verdict
from ssl_core.errors import StepError
from ssl_core.evaluation.predictions import Predictions, read_predictions
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.compare import Comparison, compare
from ssl_core.registry.ledger import Ledger, standing, terminal
from ssl_core.step import Output, StepContext, StepOutput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FEWEST_SAMPLES = 30
PREDICTIONS = "predictions.parquet"
RANDOM_INIT = "predictions-random-init.parquet"


@dataclass
class Decision:
    """A verdict with its reasons, most important first."""

    verdict: Verdict
    reasons: list[str]
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def run(ctx: StepContext) -> StepOutput:
    """Writes ``gate.json`` (a ``GateReport``), and the same as Markdown to MLflow."""
    challenger: ModelRef = ctx.input("registered_model")
    dataset: DatasetRef = ctx.input("dataset")
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        version = versions.get_version(client, challenger.name, challenger.version)
        entries = Ledger(ctx.store, ctx.project.name).entries()
        champion = current_champion(client, ctx.project.name, entries)
    recipe = version.tags["ssl.recipe"] if version is not None else ""
    settled = terminal(entries, dataset_name(dataset), recipe)
    if settled is not None:
        decision = already_decided(settled)
    elif version is None:
        decision = Decision(
            Verdict.REJECT, [f"{challenger.name} version {challenger.version} is not in the registry any more"]
        )
    elif version.tags.get("ssl.golden") != "passed":
        decision = Decision(Verdict.REJECT, ["the golden batch was not passed at registration"])
    else:
        decision = _judge(ctx, ctx.fetch("evaluation"), champion)
        decision = apply_approval(decision, ctx.project.promotion)
    report = GateReport(
        verdict=decision.verdict, reasons=decision.reasons, summary_md=summary(challenger, champion, decision),
        project=ctx.project.name, challenger=challenger, champion_version=champion, dataset=dataset, recipe=recipe,
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
        links={"Gate report": link} if link else {}, summary=f"{report.verdict.value}: {report.reasons[0]}",
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


def already_decided(entry: LedgerEntry) -> Decision:
    """The same verdict again: a second look at the same test samples is not a second chance."""
    return Decision(
        entry.verdict,
        [
            f"already decided in ledger entry {entry.seq}: {entry.action} for {entry.dataset} and this recipe",
            *entry.reasons,
        ],
        details={"already_decided": entry.seq},
    )


def apply_approval(decision: Decision, promotion: PromotionConfig) -> Decision:
    """``promotion.approval: human`` leaves every promotion to a person."""
    if promotion.approval == "human" and decision.verdict is Verdict.PROMOTE:
        return Decision(
            Verdict.NEEDS_HUMAN,
            ["promotion.approval is human; the gate itself would promote", *decision.reasons],
            decision.metrics,
            decision.details,
        )
    return decision


def _judge(ctx: StepContext, folder: Path, champion: str | None) -> Decision:
    options = {"resamples": ctx.project.evaluate.bootstrap, "seed": ctx.project.evaluate.seed}
    mine = read_predictions(folder / PREDICTIONS)
    if champion is None:
        if not (folder / RANDOM_INIT).is_file():
            return Decision(Verdict.NEEDS_HUMAN, [f"there is no champion yet, and no {RANDOM_INIT} to compare with"])
        return judge_first(compare(mine, read_predictions(folder / RANDOM_INIT), **options))
    try:
        theirs = _champion_predictions(ctx, champion)
    except (StepError, KeyError) as error:
        why = f"has no evaluation on record ({error})" if isinstance(error, KeyError) else str(error).splitlines()[0]
        return Decision(Verdict.NEEDS_HUMAN, [f"champion version {champion} cannot be compared with: {why}"])
    common = set(mine.sample_ids) & set(theirs.sample_ids)
    if len(common) < FEWEST_SAMPLES:
        return Decision(
            Verdict.NEEDS_HUMAN,
            [f"challenger and champion share {len(common)} test samples; fewer than {FEWEST_SAMPLES} decide nothing"],
        )
    found = compare(mine, theirs, **options)
    margin = ctx.project.promotion.margin
    return judge(found, max(0.02, found.detectable) if margin == "auto" else margin)


def _champion_predictions(ctx: StepContext, champion: str) -> Predictions:
    with mlflow_errors(ctx.settings):
        version: ModelVersion | None = versions.get_version(connect(ctx.settings), ctx.project.name, champion)
    if version is None:
        raise KeyError("it is not in the registry any more")
    ref = ArtifactRef(
        kind="evaluation", uri=version.tags["ssl.evaluation_uri"], sha256=version.tags["ssl.evaluation_sha256"],
        producer=version.tags["ssl.evaluation_producer"],
    )  # fmt: skip
    return read_predictions(ctx.store.fetch(ref) / PREDICTIONS)


def judge_first(against_random: Comparison) -> Decision:
    """The first champion; the rule is at the top of this file."""
    c = against_random
    text = f"no champion yet; against random init: {_difference(c)}"
    if c.difference > 0:
        verdict, reasons = Verdict.PROMOTE, [text]
    elif c.high < 0:
        verdict, reasons = Verdict.REJECT, [f"worse than random init: {text}"]
    else:
        verdict, reasons = Verdict.NEEDS_HUMAN, [f"not above random init, and not told from it either: {text}"]
    if c.difference > 0 >= c.low:
        reasons.append("the interval holds 0: this test set cannot tell the two apart for sure")
    return Decision(verdict, reasons, _metrics(c, "random_init"), {"against": "random-init", "comparison": asdict(c)})


def judge(c: Comparison, margin: float) -> Decision:
    """Challenger against champion; the rule is at the top of this file."""
    text = _difference(c)
    if c.high < 0:
        verdict, reason = Verdict.REJECT, f"worse than the champion: {text}"
    elif c.difference < -margin:
        verdict, reason = Verdict.REJECT, f"loses more than promotion.margin ({margin:g}): {text}"
    elif c.difference >= 0 and c.low > -margin:
        verdict, reason = Verdict.PROMOTE, f"as good as the champion or better: {text}"
    else:
        verdict, reason = (
            Verdict.NEEDS_HUMAN,
            f"cannot be told from these samples with promotion.margin {margin:g}: {text}",
        )
    reasons = [
        reason,
        f"the smallest difference that {c.n} samples with so many disagreements would have shown: {c.detectable:.3f}",
    ]
    if c.only_in_one:
        reasons.append(
            f"compared on the {c.n} test samples that both were evaluated on; {c.only_in_one} are in one test set only"
        )
    return Decision(
        verdict, reasons, _metrics(c, "champion"), {"against": "champion", "comparison": asdict(c), "margin": margin}
    )


def _difference(c: Comparison) -> str:
    return (
        f"{c.headline} {c.first:.3f} against {c.second:.3f} on {c.n} samples, difference {c.difference:+.3f} "
        f"(95% interval {c.low:+.3f} to {c.high:+.3f}, {c.test} p = {c.p_value:.3g})"
    )


def _metrics(c: Comparison, other: str) -> dict[str, float]:
    return {
        "challenger_quality": c.first, f"{other}_quality": c.second, "difference": c.difference,
        "difference_low": c.low, "difference_high": c.high, "p_value": c.p_value, "samples": float(c.n),
    }  # fmt: skip


def summary(challenger: ModelRef, champion: str | None, decision: Decision) -> str:
    """The report for a person, at most 4 KB."""
    lines = [
        f"# {decision.verdict.value}: {challenger.name} version {challenger.version}", "",
        f"Champion: {f'version {champion}' if champion else 'none yet'}.", "",
        *(f"- {reason}" for reason in decision.reasons), "",
    ]  # fmt: skip
    c = decision.details.get("comparison")
    if c:
        other = "champion" if decision.details["against"] == "champion" else "random init"
        lines += [
            f"| | challenger | {other} |", "|---|---|---|",
            f"| {c['headline']} on {c['n']} test samples | {c['first']:.4f} | {c['second']:.4f} |",
            f"| better than the other | {c['only_first']} | {c['only_second']} |", "",
        ]  # fmt: skip
    return "\n".join(lines).encode()[:4096].decode(errors="ignore")
