"""The rules, on numbers: what is promoted, what falls, and what a person is asked."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.config.promotion import PromotionConfig
from ssl_core.contracts import Verdict
from ssl_core.registry.compare import Comparison, compare_quality
from ssl_core.registry.judge import (
    Finding,
    apply_approval,
    decide,
    judge,
    judge_first,
    points,
    slice_findings,
    with_vault,
)
from ssl_core.registry.slices import Slice

PROMOTE, REJECT, HUMAN = Verdict.PROMOTE, Verdict.REJECT, Verdict.NEEDS_HUMAN


def promotion(**keys: object) -> PromotionConfig:
    return PromotionConfig.model_validate(keys)


def comparison(
    difference: float, low: float, high: float, *, floor: float | None = None, detectable: float = 0.04, n: int = 450
) -> Comparison:
    return Comparison(
        n=n, first=0.9, second=0.9 - difference, difference=difference, low=low, high=high,
        floor=difference - 1.3 * (difference - low) if floor is None else floor, ceiling=difference + 1.68 * (high - difference),
        only_first=1, only_second=1, p_value=0.5 if low <= 0 <= high else 0.01, detectable=detectable,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "low", "high", "verdict"),
    [
        (0.05, 0.02, 0.08, PROMOTE),  # clearly better
        (0.00, -0.015, 0.015, PROMOTE),  # as good, and a loss of two points is ruled out
        (0.00, -0.018, 0.018, HUMAN),  # inside the margin at 95%, not at 99.5%
        (0.01, -0.03, 0.05, HUMAN),  # better, but too few samples to rule out a loss
        (-0.01, -0.03, 0.01, HUMAN),  # a little worse, perhaps
        (-0.002, -0.01, 0.006, HUMAN),  # within the margin, yet measured worse: small losses must not add up
        (-0.01, -0.018, -0.002, REJECT),  # worse for sure, though within the margin
        (-0.05, -0.11, 0.01, REJECT),  # loses more than the test set can show
    ],
)
def test_the_rule(difference: float, low: float, high: float, verdict: Verdict) -> None:
    assert judge(comparison(difference, low, high), promotion()).verdict is verdict


def test_a_margin_that_is_given_counts_for_both() -> None:
    loses = comparison(-0.03, -0.08, 0.02)
    assert judge(loses, promotion(margin=0.02)).verdict is REJECT
    assert judge(loses, promotion()).verdict is HUMAN, "auto: as large as what the test set can show"
    unsure = comparison(0.0, -0.03, 0.03)
    assert judge(unsure, promotion(margin=0.05)).verdict is PROMOTE
    assert judge(unsure, promotion(margin=0)).verdict is HUMAN


@pytest.mark.parametrize(
    ("difference", "low", "high", "detectable", "verdict"),
    [
        (0.05, 0.02, 0.08, 0.04, PROMOTE),
        (0.00, -0.011, 0.011, 0.02, REJECT),  # a gain of two points is ruled out
        (0.00, -0.015, 0.015, 0.02, HUMAN),  # at 95%, not at 99.95%
        (0.001, -0.005, 0.007, 0.01, HUMAN),  # a small gain, perhaps
        (-0.03, -0.05, -0.01, 0.04, REJECT),
    ],
)
def test_superiority(difference: float, low: float, high: float, detectable: float, verdict: Verdict) -> None:
    c = comparison(difference, low, high, detectable=detectable)
    decision = judge(c, promotion(motive="superiority"))
    assert decision.verdict is verdict
    if verdict is HUMAN:
        assert points(detectable) in decision.reasons[0], "the smallest detectable difference is named"


def test_what_cannot_be_told_names_the_smallest_difference() -> None:
    decision = judge(comparison(0.01, -0.03, 0.05, detectable=0.037), promotion())
    assert "would have shown 3.7 points or more" in decision.reasons[0]


def test_too_few_samples_decide_nothing() -> None:
    decision = judge(comparison(0.3, 0.2, 0.4, n=20), promotion())
    assert decision.verdict is HUMAN
    assert "share 20 test samples" in decision.reasons[0]


@pytest.mark.parametrize(("difference", "verdict"), [(0.01, PROMOTE), (0.0, HUMAN), (-0.01, HUMAN), (-0.1, REJECT)])
def test_the_first_champion_must_be_above_random_init(difference: float, verdict: Verdict) -> None:
    assert judge_first(comparison(difference, difference - 0.02, difference + 0.02)).verdict is verdict


def test_the_hardest_finding_wins_and_comes_first() -> None:
    findings = [
        Finding("a", PROMOTE, "fine"),
        Finding("b", HUMAN, "perhaps"),
        Finding("c", REJECT, "first no"),
        Finding("d", REJECT, "second no"),
    ]
    decision = decide(findings)
    assert decision.verdict is REJECT
    assert decision.reasons == ["first no", "second no", "perhaps", "fine"]


def one(name: str, c: Comparison | None, **more: object) -> Slice:
    return Slice(name, c.n if c else 7, c, **more)  # type: ignore[arg-type]


WORSE, PERHAPS, FINE = comparison(-0.1, -0.15, -0.05), comparison(-0.04, -0.09, 0.01), comparison(0.01, -0.02, 0.04)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (one("label=a", WORSE, adjusted=0.01), HUMAN),
        (one("label=a", WORSE, adjusted=0.2), None),  # one of forty
        (one("label=a", PERHAPS), None),
        (one("label=a", None), None),  # insufficient says nothing, and blocks nothing
        (one("label=a", WORSE, adjusted=0.2, listed=True), REJECT),
        (one("label=a", PERHAPS, listed=True), HUMAN),
        (one("label=a", FINE, listed=True), None),
        (one("label=a", None, listed=True), HUMAN),
        (one("the older windows", WORSE, adjusted=0.2, old=True), REJECT),
        (one("the older windows", PERHAPS, old=True), HUMAN),
        (one("the older windows", None, old=True), None),
    ],
)
def test_slices(given: Slice, verdict: Verdict | None) -> None:
    found = slice_findings([given], promotion())
    assert [f.verdict for f in found] == ([verdict] if verdict else [])
    better = comparison(0.05, 0.02, 0.08)
    assert judge(better, promotion(), [given]).verdict is (verdict or PROMOTE)


def test_a_slice_that_is_too_small_is_called_insufficient() -> None:
    found = slice_findings(
        [one("label=a", None, listed=True, hint=", did you mean `label=b`?")], promotion(min_slice=30)
    )
    assert found[0].text.startswith("insufficient: the protected slice label=a has 7 labelled test samples")
    assert "did you mean" in found[0].text


def test_the_longest_name_makes_one_short_reason() -> None:
    found = slice_findings([one("source=" + "a\n" * 5000, WORSE, listed=True)], promotion())
    assert len(found[0].text) < 400
    assert "\n" not in found[0].text


def test_the_vault_turns_a_promotion_around_only_where_it_is_sure() -> None:
    decision = judge(comparison(0.05, 0.02, 0.08), promotion())
    turned = with_vault(decision, WORSE, uses=3)
    assert turned.verdict is REJECT
    assert "the vault contradicts the test set" in turned.reasons[0]
    assert "asked 3 times before" in turned.reasons[0]
    kept = with_vault(decision, PERHAPS, uses=1)
    assert kept.verdict is PROMOTE
    assert kept.reasons[:-1] == decision.reasons
    assert kept.metrics["vault_uses"] == 1


def test_approval_by_a_person_never_turns_a_rejection_around() -> None:
    human = promotion(approval="human")
    assert apply_approval(judge(WORSE, human), human).verdict is REJECT
    asked = apply_approval(judge(comparison(0.05, 0.02, 0.08), human), human)
    assert asked.verdict is HUMAN
    assert "the gate itself would promote" in asked.reasons[0]


@pytest.mark.parametrize("n", [450, 2000])
def test_of_planted_challengers_worse_ones_are_not_promoted(n: int) -> None:
    """The short form of benchmarks/gate_power.py."""
    random = np.random.default_rng(n)
    seen = {true: [Verdict(v) for v in planted(n, true, random)] for true in (-0.02, 0.02)}
    assert seen[-0.02].count(PROMOTE) <= 1
    assert seen[0.02].count(REJECT) == 0


def planted(n: int, true: float, random: np.random.Generator, disagree: float = 0.08, draws: int = 60) -> list[Verdict]:
    found = []
    for b, c, _ in random.multinomial(n, [(disagree + true) / 2, (disagree - true) / 2, 1 - disagree], size=draws):
        first, second = np.ones(n), np.ones(n)
        second[:b] = 0
        first[b : b + c] = 0
        found.append(judge(compare_quality(first, second, "class", resamples=500, seed=0), promotion()).verdict)
    return found
