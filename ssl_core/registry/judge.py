"""The rules of the gate: from what was measured to a verdict. Pure functions; benchmarks and the fire drill call them too.

Each thing that is looked at gives a ``Finding``: what it alone would say, in words. The verdict is the hardest of them, and the
reasons are the findings, hardest first. d = challenger - champion, in mean quality (accuracy where a sample has one class).

* *tolerated*: what a challenger may lose in truth: ``promotion.margin``, or 0.02 where that is ``auto``.
* *limit*: a loss that is measured to be larger turns a challenger down: the same, with ``auto`` at least the smallest
  difference that the test set can show (a loss that chance often makes is no reason).

Quality on the test set, ``motive: non-inferiority``:

* PROMOTE: better for sure (95% interval above 0, test below 5%); or d >= 0 and a loss of more than *tolerated* is ruled out
  (``Comparison.floor``: one-sided 99.5%);
* REJECT: worse for sure, or d < ``-limit``;
* NEEDS_HUMAN: anything else: this test set cannot tell, and the smallest difference that it could have shown is named.

The level of the second condition is what decides how many worse challengers slip through: of those that lose 2 points in
truth, 1 in 200, at any size of the test set. (The usual rule, the 95% interval above the margin, lets 1 in 40 through; and with
a margin that grows with the smallest detectable difference up to 1 in 3: benchmarks/gate_power.py.) d >= 0 keeps many small
losses from adding up over many promotions.

``motive: superiority``: PROMOTE only where it is better for sure; REJECT also where d <= 0 and a gain of *tolerated* is ruled out
(``Comparison.ceiling``: one-sided 99.95%).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ssl_core.config.promotion import PromotionConfig
from ssl_core.contracts import LedgerEntry, Verdict
from ssl_core.registry.compare import LEVEL, Comparison
from ssl_core.registry.slices import Slice

FEWEST_SAMPLES = 30
TOLERATED = 0.02
_NAME = 80
_SEVERITY = (Verdict.REJECT, Verdict.NEEDS_HUMAN, Verdict.PROMOTE)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    verdict: Verdict
    """What it alone would say; PROMOTE: nothing against it."""
    text: str


@dataclass
class Decision:
    """A verdict with its reasons, most important first."""

    verdict: Verdict
    reasons: list[str]
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def decide(
    findings: Sequence[Finding], metrics: dict[str, float] | None = None, details: dict[str, Any] | None = None
) -> Decision:
    """The hardest verdict of ``findings``; among equals, the first one is the most important reason."""
    ordered = sorted(findings, key=lambda finding: _SEVERITY.index(finding.verdict))
    return Decision(ordered[0].verdict, [finding.text for finding in ordered], metrics or {}, details or {})


def judge(
    c: Comparison,
    promotion: PromotionConfig,
    slices: Sequence[Slice] = (),
    more: Sequence[Finding] = (),
) -> Decision:
    """Challenger against champion: the rule above, the slices', and what else was found."""
    findings = [quality(c, promotion), *slice_findings(slices, promotion), *more]
    metrics = comparison_metrics(c, "champion") | {
        "detectable": c.detectable, "tolerated": tolerated(promotion), "floor": c.floor,
    }  # fmt: skip
    compared = [s.comparison.difference for s in slices if s.comparison is not None]
    if compared:
        metrics["worst_slice_difference"] = min(compared)
    details = {"against": "champion", "comparison": asdict(c), "slices": [s.as_dict() for s in slices]}
    return decide(findings, metrics, details | {"findings": [asdict(f) for f in findings]})


def judge_first(against_random: Comparison, more: Sequence[Finding] = ()) -> Decision:
    """The first champion: above the same recipe from random weights on the same samples, else nothing was learned.

    PROMOTE where d > 0; REJECT where the 95% interval lies below 0; else a person decides: a tie on easy data is no reason to
    have no model, nor to have one unasked.
    """
    c = against_random
    text = f"no champion yet; against random init: {difference(c)}"
    if c.difference > 0:
        verdict = Verdict.PROMOTE
    elif c.high < 0:
        verdict, text = Verdict.REJECT, f"worse than random init: {text}"
    else:
        verdict, text = Verdict.NEEDS_HUMAN, f"not above random init, and not told from it either: {text}"
    findings = [Finding("quality", verdict, text), *more]
    if c.difference > 0 >= c.low:
        note = "the interval holds 0: this test set cannot tell the two apart for sure"
        findings.insert(1, Finding("quality", Verdict.PROMOTE, note))
    details = {"against": "random-init", "comparison": asdict(c), "findings": [asdict(f) for f in findings]}
    return decide(findings, comparison_metrics(c, "random_init"), details)


def tolerated(promotion: PromotionConfig) -> float:
    """What a challenger may lose in truth."""
    return TOLERATED if promotion.margin == "auto" else promotion.margin


def limit(c: Comparison, promotion: PromotionConfig) -> float:
    """A measured loss that is larger turns a challenger down."""
    return max(TOLERATED, c.detectable) if promotion.margin == "auto" else promotion.margin


def quality(c: Comparison, promotion: PromotionConfig) -> Finding:
    """The rule for the whole test set."""
    verdict, text = _turned_down(c, promotion) or _accepted(c, promotion) or _left_open(c, promotion)
    return Finding("quality", verdict, f"{text}: {difference(c)}")


def _turned_down(c: Comparison, promotion: PromotionConfig) -> tuple[Verdict, str] | None:
    most, may_lose = limit(c, promotion), tolerated(promotion)
    if c.n < FEWEST_SAMPLES:
        few = f"challenger and champion share {c.n} test samples; fewer than {FEWEST_SAMPLES} decide nothing"
        return Verdict.NEEDS_HUMAN, few
    if c.worse:
        return Verdict.REJECT, "worse than the champion"
    if c.difference < -most:
        return Verdict.REJECT, f"loses more than {points(most)}, the most that may be measured"
    if promotion.motive == "superiority" and c.difference <= 0 and c.ceiling < may_lose:
        return Verdict.REJECT, f"no gain (motive: superiority), one of {points(may_lose)} is ruled out"
    return None


def _accepted(c: Comparison, promotion: PromotionConfig) -> tuple[Verdict, str] | None:
    may_lose = tolerated(promotion)
    if c.better:
        return Verdict.PROMOTE, "better than the champion"
    if promotion.motive == "non-inferiority" and c.difference >= 0 and c.floor > -may_lose:
        return Verdict.PROMOTE, f"as good as the champion or better, a loss of {points(may_lose)} is ruled out"
    return None


def _left_open(c: Comparison, promotion: PromotionConfig) -> tuple[Verdict, str]:
    if promotion.motive == "superiority":
        return Verdict.NEEDS_HUMAN, f"not better for sure (motive: superiority); {_shows(c)}"
    return Verdict.NEEDS_HUMAN, f"a loss of {points(tolerated(promotion))} cannot be ruled out; {_shows(c)}"


def _shows(c: Comparison) -> str:
    """The smallest detectable difference, in words."""
    return f"{c.n:,} samples with so many disagreements would have shown {points(c.detectable)} or more"


def slice_findings(slices: Sequence[Slice], promotion: PromotionConfig) -> list[Finding]:
    """What single slices say.

    A protected slice (listed, or the champion's older windows) that is worse at the 5% level of its own: REJECT. One that was
    measured to lose more than is tolerated, or holds fewer than ``min_slice`` samples: NEEDS_HUMAN. Any other that is worse for
    sure after Holm's correction over all slices: NEEDS_HUMAN, for a gain elsewhere may be worth it, and a person weighs that.
    One that is too small says so and blocks nothing.
    """
    findings: list[Finding] = []
    for one in slices:
        name = shortened_name(one.name)
        c, protected = one.comparison, f"the protected slice {name}" if one.listed else name
        if c is None:
            if one.listed:
                few = f"has {one.n} labelled test samples, and fewer than {promotion.min_slice} (promotion.min_slice) say nothing"
                findings.append(Finding(one.name, Verdict.NEEDS_HUMAN, f"insufficient: {protected} {few}{one.hint}"))
        elif one.protected and c.worse:
            findings.append(Finding(one.name, Verdict.REJECT, f"worse on {protected}: {difference(c)}"))
        elif one.protected and c.difference < -tolerated(promotion):
            lost = (
                f"measured to lose {points(-c.difference)} on {protected}, and too few samples to tell that from chance"
            )
            findings.append(Finding(one.name, Verdict.NEEDS_HUMAN, f"{lost}: {difference(c)}"))
        elif not one.protected and c.difference < 0 and one.adjusted < LEVEL:
            text = f"worse on {name}, also after Holm's correction (p = {one.adjusted:.3g}): {difference(c)}"
            findings.append(Finding(one.name, Verdict.NEEDS_HUMAN, text))
    return findings


def shortened_name(name: str) -> str:
    """Sources may be called anything; a reason stays one line."""
    plain = " ".join(name.split())
    return plain if len(plain) <= _NAME else f"{plain[: _NAME - 3]}..."


def with_vault(decision: Decision, c: Comparison, uses: int) -> Decision:
    """What the vault says to a promotion: a challenger that is worse there for sure is turned down, whatever the test set says."""
    asked = f"asked {uses} times before" if uses != 1 else "asked once before"
    metrics = decision.metrics | {
        "vault_difference": c.difference, "vault_samples": float(c.n), "vault_uses": float(uses),
    }  # fmt: skip
    details = decision.details | {"vault": asdict(c)}
    if c.worse:
        text = f"the vault contradicts the test set, which may be worn out by earlier challengers ({asked}): {difference(c)}"
        return Decision(Verdict.REJECT, [text, *decision.reasons], metrics, details)
    note = f"the vault does not contradict: {difference(c)}; {asked}"
    return Decision(decision.verdict, [*decision.reasons, note], metrics, details)


def apply_approval(decision: Decision, promotion: PromotionConfig) -> Decision:
    """``promotion.approval: human`` leaves every promotion to a person."""
    if promotion.approval == "human" and decision.verdict is Verdict.PROMOTE:
        reason = "promotion.approval is human; the gate itself would promote"
        return Decision(Verdict.NEEDS_HUMAN, [reason, *decision.reasons], decision.metrics, decision.details)
    return decision


def already_decided(entry: LedgerEntry) -> Decision:
    """The same verdict again: a second look at the same test samples is not a second chance."""
    again = f"already decided in ledger entry {entry.seq}: {entry.action} for {entry.dataset} and this recipe"
    return Decision(entry.verdict, [again, *entry.reasons], details={"already_decided": entry.seq})


def difference(c: Comparison) -> str:
    """A comparison in words."""
    return (
        f"{c.headline} {c.first:.3f} against {c.second:.3f} on {c.n:,} samples, difference {c.difference:+.3f} "
        f"(95% interval {c.low:+.3f} to {c.high:+.3f}, {c.test} p = {c.p_value:.3g})"
    )


def points(share: float) -> str:
    """0.037 as "3.7 points"."""
    return f"{100 * share:.1f} points".replace(".0 points", " points")


def comparison_metrics(c: Comparison, other: str) -> dict[str, float]:
    """A comparison as flat numbers."""
    return {
        "challenger_quality": c.first, f"{other}_quality": c.second, "difference": c.difference,
        "difference_low": c.low, "difference_high": c.high, "p_value": c.p_value, "samples": float(c.n),
    }  # fmt: skip
