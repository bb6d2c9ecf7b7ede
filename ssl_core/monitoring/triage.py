"""Triage before action: what kind of change is it, and therefore what is to be done, by whom?

    schema, validation, one source, one corrupt field    data bug          quarantine and alert, never train on it
    the mix of classes, and nothing within classes       prior shift       propose to recalibrate
    other images of the known kind                       covariate shift   fine-tune again
    far from all that is known, and the probe fails      new territory     propose to pretrain again; a person decides

The order is that of harm: what would be made worse by training is asked first. ``triage`` is a pure function of numbers;
``evidence.gather`` computes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssl_core.config.monitor import MonitorConfig
from ssl_core.monitoring.document import MOST_REASONS, Action, Finding, Kind

MOST_QUARANTINED = 0.1
"""Share of a window's files that could not be used, from which the feed is broken and not the world."""
LEVEL = 0.05
"""The p-value above which nothing is seen; and of the mix of classes, where the embeddings show a change already."""
CHANGED = 0.1
"""PSI of the mix of classes from which a change counts (``columns.CHANGED``)."""
SURE = 0.01
"""The p-value up to which the mix of classes, or a part of a window, is said to differ: each window is asked."""
QUALITY_LOST = 0.05
"""How far below the reference's the quality may surely be, while nothing looks different, before the labels are in doubt."""
BEYOND = 0.5
"""New territory: so many samples of the window are farther from the reference than 95% of its own."""
FARTHER = 1.5
"""And their median distance is so many times the reference's own."""
SERVES = 0.6
"""The encoder's features still serve where a probe keeps so much of what it reaches on the reference, both above chance."""
SURE_ENOUGH = 0.6
"""Without labels: where the champion keeps so much of its confidence above chance. A guess: a network may be surely wrong."""
UNKNOWN_LABELS = 0.2
"""Share of the window's labels that are no class of the champion's, from which they are told."""
FEWEST_LABELS = 30
"""A probe of fewer labels says nothing."""

_ACTIONS: dict[Kind, Action] = {
    "quiet": "none",
    "cannot-tell": "none",
    "data-bug": "quarantine",
    "prior-shift": "recalibrate",
    "covariate-shift": "finetune",
    "new-territory": "pretrain",
}


Judgement = tuple[Kind, list[str]]


@dataclass(frozen=True)
class Separation:
    """How well a classifier tells some samples of the window from the reference."""

    auc: float
    p_value: float

    def is_seen(self, least: float) -> bool:
        """Whether there is a difference: hardly by chance, and at least ``least``."""
        return self.p_value <= SURE and self.auc >= least


@dataclass(frozen=True)
class Part:
    """One source, and the window with and without it."""

    name: str
    rows: int
    alone: Separation
    rest: Separation


@dataclass(frozen=True)
class Probe:
    """Leave-one-out accuracy of nearest neighbours on frozen embeddings, with equally many labels on both sides."""

    labels: int
    reference: float
    window: float
    chance: float
    """What the most frequent class of the window alone would reach."""

    @property
    def holds(self) -> bool:
        return self.window - self.chance >= SERVES * max(0.0, self.reference - self.chance)


@dataclass(frozen=True)
class Evidence:
    """What is known of a window. None stands for "not known", and is never taken for "nothing there"."""

    samples: int
    exceeded: bool | None
    """Whether a two-sample test on the embeddings is above its threshold; None: it could not be done."""
    auc: float | None = None
    mmd_ratio: float | None = None
    """MMD as a share of its threshold."""
    schema: Sequence[str] = ()
    """How the window's columns differ from the reference's, in words."""
    quarantined: float = 0.0
    """Share of the window's files that could not be used."""
    broken: Sequence[str] = ()
    """Columns that are constant, missing or impossible, in words."""
    drifted: Sequence[str] = ()
    """Names of the columns that changed (``columns.Column.drifted``)."""
    culprit: Part | None = None
    """A source that differs from the reference, while the window without it does not."""
    mix_psi: float | None = None
    mix_q: float | None = None
    """Of the champion's answers, window against reference."""
    label_psi: float | None = None
    label_q: float | None = None
    """The same of the labels, where both sides have enough."""
    unexplained: Separation | None = None
    """Window against a reference whose mix of classes was made the window's: what no change of the mix explains."""
    beyond: float | None = None
    """Share of the window farther from the reference than 95% of its own samples."""
    median_ratio: float | None = None
    probe: Probe | None = None
    sureness: float | None = None
    """The champion's mean confidence above chance, as a share of the reference's: asked where no labels can be."""
    unknown_labels: float = 0.0
    """Share of the window's labels that are no class of the champion's."""
    quality_low: float | None = None
    quality_high: float | None = None
    """95% interval of labelled quality, window minus reference."""

    @property
    def mix_changed(self) -> bool:
        """Whether the champion answers other classes than it used to; where the embeddings show a change, less has to be proved."""
        return _changed(self.mix_psi, self.mix_q, LEVEL if self.exceeded else SURE)


def triage(evidence: Evidence, config: MonitorConfig) -> Finding:
    """What kind of change ``evidence`` shows, with the reasons, and the action that follows."""
    judges = (_broken_feed, _too_few, _broken_part, _not_compared, _only_the_mix, _wrong_labels, _nothing, _how_far)
    kind, reasons = next(found for judge in judges if (found := judge(evidence, config)))
    action = _ACTIONS[kind]
    return Finding(
        kind=kind,
        reasons=reasons[:MOST_REASONS],
        action=action,
        who="platform" if action in ("none", "finetune") else "person",
    )


# Each judge says what it found, or None where it is for the next one to say.


def _broken_feed(evidence: Evidence, _: MonitorConfig) -> Judgement | None:
    """Faults that few samples show as well as many."""
    reasons = [f"schema: {difference}" for difference in evidence.schema]
    if evidence.quarantined >= MOST_QUARANTINED:
        reasons.append(f"{evidence.quarantined:.0%} of the window's files could not be used")
    return ("data-bug", reasons) if reasons else None


def _too_few(evidence: Evidence, config: MonitorConfig) -> Judgement | None:
    if evidence.samples >= config.min_samples:
        return None
    return "cannot-tell", [f"{evidence.samples:,} samples; monitor.min_samples is {config.min_samples:,}"]


def _broken_part(evidence: Evidence, _: MonitorConfig) -> Judgement | None:
    reasons = list(evidence.broken)
    if (part := evidence.culprit) is not None:
        reasons.append(
            f"{part.name} alone explains the change: its {part.rows:,} samples differ (AUC {part.alone.auc:.2f}), the "
            f"window without them does not (AUC {part.rest.auc:.2f})"
        )
    return ("data-bug", reasons) if reasons else None


def _not_compared(evidence: Evidence, _: MonitorConfig) -> Judgement | None:
    if evidence.exceeded is not None:
        return None
    return "cannot-tell", ["the embeddings could not be compared with the reference's"]


def _only_the_mix(evidence: Evidence, config: MonitorConfig) -> Judgement | None:
    """The classes come in other shares, and nothing else changed."""
    if not evidence.mix_changed:
        return None
    reason = f"the champion answers other classes than on the reference (PSI {evidence.mix_psi:.2f})"
    if evidence.unexplained is None:
        if evidence.exceeded:  # there may be a change within the classes as well
            return None
        reason += ", and the embeddings show no other change"
    elif evidence.unexplained.is_seen(config.min_auc):
        return None
    else:
        reason += (
            "; a classifier cannot tell the window from a reference with this mix "
            f"(AUC {evidence.unexplained.auc:.2f}): within the classes nothing changed"
        )
    return "prior-shift", [reason, *_quality(evidence)]


def _wrong_labels(evidence: Evidence, _: MonitorConfig) -> Judgement | None:
    """The samples look as ever, and their labels contradict the champion."""
    if evidence.exceeded or evidence.mix_changed:
        return None
    if evidence.quality_high is None or evidence.quality_high > -QUALITY_LOST:
        return None
    return "data-bug", [
        f"the samples look as they used to, but the champion is at least {-evidence.quality_high:.0%} worse by their labels: the "
        "labels are wrong, or mean something else now"
    ]


def _nothing(evidence: Evidence, _: MonitorConfig) -> Judgement | None:
    if evidence.exceeded:
        return None
    seen = f" (AUC {evidence.auc:.2f})" if evidence.auc is not None else ""
    reasons = [f"the champion's encoder sees no difference that matters{seen}"]
    if evidence.mix_changed:
        reasons.append(
            "the champion answers other classes, but more than the mix of classes changed: too little to say what"
        )
    if evidence.drifted:
        reasons.append(f"other values in {_listed(evidence.drifted)}, which make no difference to it")
    if _changed(evidence.label_psi, evidence.label_q):
        reasons.append("other classes were labelled than before; the champion answers as ever on the whole window")
    return "quiet", [*reasons, *_quality(evidence)]


def _how_far(evidence: Evidence, config: MonitorConfig) -> Judgement:
    """New territory, or known one."""
    kind, reasons = _distance(evidence)
    return kind, [_seen(evidence), *reasons, *_remaining(evidence, config), *_quality(evidence)]


def _distance(evidence: Evidence) -> Judgement:
    beyond, ratio = evidence.beyond, evidence.median_ratio
    if beyond is None or ratio is None:
        return "covariate-shift", ["how far the window lies from the reference is not known"]
    distance = f"{beyond:.0%} of it lies farther from the reference than 95% of the reference's own, {ratio:.1f} times as far in the middle"
    if beyond < BEYOND or ratio < FARTHER:
        return "covariate-shift", [f"known territory: {distance}"]
    serves, why = _serves(evidence)
    return ("covariate-shift", [f"far away: {distance}", why]) if serves else ("new-territory", [distance, why])


def _serves(evidence: Evidence) -> tuple[bool, str]:
    """Whether the encoder's features still tell classes apart: by the labels there are, else by the champion's own doubt."""
    if (probe := evidence.probe) is not None:
        said = "still serve" if probe.holds else "do not serve"
        return probe.holds, (
            f"the encoder's features {said}: nearest neighbours on them reach {probe.window:.0%} with {probe.labels:,} labels, "
            f"{probe.reference:.0%} on the reference"
        )
    if evidence.sureness is None:
        return False, "nothing tells whether the encoder's features still serve: there are no labels"
    kept = (
        f"the champion keeps {max(0.0, evidence.sureness):.0%} of its confidence, and there are too few labels to ask"
    )
    return evidence.sureness >= SURE_ENOUGH, kept


def _seen(evidence: Evidence) -> str:
    sizes = []
    if evidence.auc is not None:
        sizes.append(f"a classifier tells window from reference with AUC {evidence.auc:.2f}")
    if evidence.mmd_ratio is not None:
        sizes.append(f"MMD is {evidence.mmd_ratio:.1f} times its threshold")
    return "; ".join(sizes) or "the embeddings differ from the reference's"


def _remaining(evidence: Evidence, config: MonitorConfig) -> Iterator[str]:
    if evidence.mix_changed and evidence.unexplained is not None and evidence.unexplained.is_seen(config.min_auc):
        yield f"the mix of classes changed too, but does not explain it (AUC {evidence.unexplained.auc:.2f} left)"
    if evidence.unknown_labels >= UNKNOWN_LABELS:
        yield f"{evidence.unknown_labels:.0%} of its labels are classes that the champion does not know"
    if evidence.drifted:
        yield f"other values in {_listed(evidence.drifted)}"


def _quality(evidence: Evidence) -> Iterator[str]:
    if evidence.quality_high is not None and evidence.quality_low is not None and evidence.quality_high < 0:
        yield (
            f"on labelled samples the champion is {-evidence.quality_high:.1%} to {-evidence.quality_low:.1%} worse than on the "
            "reference"
        )


def _changed(psi: float | None, q: float | None, level: float = SURE) -> bool:
    return psi is not None and q is not None and q <= level and psi >= CHANGED


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
