"""What the gate does with challengers that are known to be worse, equal or better: the shares promoted, rejected, sent to a person.

    .venv/bin/python benchmarks/gate_power.py [--draws 200] [--seed 0] [--out benchmarks/results]

Planted: each test sample is right for both models, for one alone, or for none, at random, so that the challenger is worse by 2
points in truth, as good, or better by 2 points; 200 test sets each. How many samples the two disagree on decides everything, so it
is measured first, between seeds of a small network on scikit-learn's digits at several label budgets, and 4, 8 and 12 of 100 are
played. Ten classes and two sources make the slices.

Judged by the gate's own functions (``compare``, ``cut``, ``judge``), under the default motive and under superiority; beside them
the quality rule alone, and what other rules would have promoted on the very same test sets:

* ``higher``: the challenger's accuracy is higher, what most registries do;
* ``interval``: the 95% interval lies above -0.02, the textbook's non-inferiority;
* ``interval, margin grows``: the same with the larger of 0.02 and the smallest detectable difference as margin.

Goals: of 200 worse challengers at most 3 are promoted; of the better ones none is rejected, and where a person is asked, the smallest
detectable difference is named. Writes ``gate-power.json`` and ``gate-power.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import processor

from ssl_core.config.promotion import PromotionConfig
from ssl_core.contracts import Verdict
from ssl_core.data.table import SampleTable
from ssl_core.evaluation.predictions import Predictions, make_predictions
from ssl_core.pipeline import source_digest
from ssl_core.registry.compare import Comparison, compare
from ssl_core.registry.judge import Decision, judge
from ssl_core.registry.slices import cut

ROOT = Path(__file__).parent.parent
SIZES = (450, 2000)
TRUE = {"worse": -0.02, "equal": 0.0, "better": 0.02}
DISAGREE = (0.04, 0.08, 0.12)
SHOWN = 0.08
ACCURACY = 0.93
CLASSES = [str(digit) for digit in range(10)]
MOTIVES = ("non-inferiority", "superiority")
VERDICTS = (Verdict.PROMOTE, Verdict.NEEDS_HUMAN, Verdict.REJECT)
MOST_WORSE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=200, help="challengers of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    measured = disagreement()
    rows = [
        row
        for n in SIZES
        for disagree in DISAGREE
        for kind in TRUE
        for row in play(n, kind, disagree, arguments.draws, arguments.seed)
    ]
    document = {
        "what": "planted challengers judged by the gate: 2 points worse, equal, 2 points better",
        "command": shlex.join(["python", "benchmarks/gate_power.py", *sys.argv[1:]]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "numpy", "scipy", "scikit-learn")}
        | {"python": platform.python_version(), "code": source_digest()},
        "seed": arguments.seed,
        "draws": arguments.draws,
        "champion_accuracy": ACCURACY,
        "measured_disagreement": measured,
        "rows": rows,
        "goals": goals(rows, arguments.draws),
        "seconds": round(time.monotonic() - began, 1),
    }
    (arguments.out / "gate-power.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(document, arguments.out / "gate-power.png")
    show(document)


def disagreement() -> list[dict[str, float]]:
    """Between pairs of seeds: the share of test samples that exactly one of two networks has right."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    test = order[:450]
    found = []
    for budget in (100, 300, 1000):
        train = order[450 : 450 + budget]
        right = np.array([
            MLPClassifier((64,), max_iter=3000, random_state=seed).fit(images[train] / 16, labels[train]).predict(images[test] / 16)
            == labels[test]
            for seed in range(5)
        ])  # fmt: skip
        shares = [(right[i] != right[j]).mean() for i in range(5) for j in range(i)]
        found.append(
            {"labels": budget, "accuracy": round(float(right.mean()), 4), "disagree": round(float(np.mean(shares)), 4)}
        )
    return found


def play(n: int, kind: str, disagree: float, draws: int, seed: int) -> list[dict[str, Any]]:
    """All rules on the same ``draws`` test sets."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    named: dict[tuple[str, str], int] = {}
    others = dict.fromkeys(("higher", "interval", "interval, margin grows"), 0)
    table = samples(n)
    for draw in range(draws):
        random = np.random.default_rng([seed, n, round(1000 * disagree), draw, list(TRUE).index(kind)])
        mine, theirs = planted(table, TRUE[kind], disagree, random)
        c = compare(mine, theirs, resamples=2000, seed=draw)
        slices = cut(mine, theirs, table, PromotionConfig(), seed=draw)
        for motive in MOTIVES:
            promotion = PromotionConfig(motive=motive)  # type: ignore[arg-type]
            for scope, decision in (
                ("quality", judge(c, promotion)),
                ("quality and slices", judge(c, promotion, slices)),
            ):
                tally(counts.setdefault((motive, scope), {}), named, (motive, scope), decision)
        for name, promoted in other_rules(c).items():
            others[name] += promoted
    return [
        {
            "n": n, "planted": kind, "true_difference": TRUE[kind], "disagree": disagree, "motive": motive, "scope": scope,
            **{verdict.value: found.get(verdict.value, 0) for verdict in VERDICTS},
            "asked_with_the_smallest_difference_named": named.get((motive, scope), 0),
            "promoted_by_other_rules": others,
        }
        for (motive, scope), found in counts.items()
    ]  # fmt: skip


def tally(found: dict[str, int], named: dict[tuple[str, str], int], at: tuple[str, str], decision: Decision) -> None:
    found[decision.verdict.value] = found.get(decision.verdict.value, 0) + 1
    if decision.verdict is Verdict.NEEDS_HUMAN:
        # One that only a slice holds back was told from the champion; nothing smaller would have been of use.
        told = any("would have shown" in r for r in decision.reasons) or "worse on " in decision.reasons[0]
        named[at] = named.get(at, 0) + told


def other_rules(c: Comparison) -> dict[str, bool]:
    return {
        "higher": c.difference > 0,
        "interval": c.low > -0.02,
        "interval, margin grows": c.low > -max(0.02, c.detectable),
    }


def samples(n: int) -> SampleTable:
    return SampleTable(
        pd.DataFrame(
            {
                "sample_id": [f"{i:06d}" for i in range(n)], "split": "test", "label": [CLASSES[i % 10] for i in range(n)],
                "source": [f"camera-{i % 2}/{i}.png" for i in range(n)], "first_version": 1,
            }
        ),
        CLASSES,
    )  # fmt: skip


def planted(
    table: SampleTable, true: float, disagree: float, random: np.random.Generator
) -> tuple[Predictions, Predictions]:
    """Answers of both models, the challenger's accuracy ``ACCURACY + true`` in truth and the champion's ``ACCURACY``."""
    mine_alone, theirs_alone = (disagree + true) / 2, (disagree - true) / 2
    both = ACCURACY - theirs_alone
    kinds = random.choice(4, size=len(table), p=[both, mine_alone, theirs_alone, 1 - both - disagree])
    labels = table.labels
    ids = table.manifest["sample_id"].tolist()

    def answered(right: np.ndarray) -> Predictions:
        scores = np.eye(10, dtype=np.float32)[np.where(right, labels, (labels + 1) % 10)]
        return make_predictions(ids, labels, scores, CLASSES)

    return answered(kinds <= 1), answered((kinds == 0) | (kinds == 2))


def goals(rows: list[dict[str, Any]], draws: int) -> dict[str, Any]:
    """Whether each goal is reached, whatever n, the disagreement, the motive and the scope."""
    worse = max(row["PROMOTE"] for row in rows if row["planted"] == "worse")
    better = [row for row in rows if row["planted"] == "better"]
    rejected = max(row["REJECT"] for row in better)
    unnamed = max(row["NEEDS_HUMAN"] - row["asked_with_the_smallest_difference_named"] for row in better)
    return {
        "most_worse_promoted": worse,
        "worse_promoted_at_most": MOST_WORSE * draws / 200,
        "worse_reached": worse <= MOST_WORSE * draws / 200,
        "most_better_rejected": rejected,
        "most_better_asked_without_the_smallest_difference": unnamed,
    }


def plot(document: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"PROMOTE": "#1b7837", "NEEDS_HUMAN": "#c7c7c7", "REJECT": "#b2182b"}
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 4.2), sharex=True, layout="constrained")
    for axis, (n, motive) in zip(axes.flat, [(n, m) for m in MOTIVES for n in SIZES], strict=True):
        for place, kind in enumerate(reversed(TRUE)):
            row = next(
                r for r in document["rows"]
                if (r["n"], r["motive"], r["planted"], r["disagree"], r["scope"]) == (n, motive, kind, SHOWN, "quality and slices")
            )  # fmt: skip
            left = 0
            for name, colour in colours.items():
                axis.barh(place, row[name], left=left, color=colour, height=0.7)
                if row[name]:
                    ink = "black" if name == "NEEDS_HUMAN" else "white"
                    middle = left + row[name] / 2
                    if row[name] >= 0.04 * document["draws"]:
                        axis.text(middle, place, row[name], ha="center", va="center", color=ink, fontsize=8)
                left += row[name]
        axis.set_yticks(range(3), [f"{kind} ({TRUE[kind]:+.2f})" for kind in reversed(TRUE)])
        axis.set_title(f"{n:,} test samples, {motive}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, document["draws"])
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(handles, ["promoted", "a person is asked", "rejected"], loc="outside lower center", ncols=3, fontsize=8, frameon=False)  # fmt: skip
    figure.suptitle(f"What the gate does with {document['draws']} planted challengers of each kind ({SHOWN:.0%} disagreement)", fontsize=10)  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(document: dict[str, Any]) -> None:
    """A line for each row."""
    print("measured disagreement:", document["measured_disagreement"])
    for row in document["rows"]:
        print(
            f"n={row['n']:>5}  {row['disagree']:.0%}  {row['planted']:>6}  {row['motive']:>15}, {row['scope']:<18}"
            f"  promoted {row['PROMOTE']:>3}  person {row['NEEDS_HUMAN']:>3}  rejected {row['REJECT']:>3}"
            f"   others promote {row['promoted_by_other_rules']}"
        )
    print("goals:", document["goals"], f"in {document['seconds']} s")


if __name__ == "__main__":
    main()
