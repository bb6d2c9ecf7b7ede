"""The gate's report for a person: what was decided, why, and the numbers that matter, in at most 4 KB and a minute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl_core.contracts import SUMMARY_BYTES_LIMIT, ModelRef
from ssl_core.registry.compare import LEVEL
from ssl_core.registry.judge import Decision

_SLICES = 8
_NAME = 44
_REASON = 420
_MORE = "- and more, see gate.json"


def summary(challenger: ModelRef, champion: str | None, dataset: str, decision: Decision) -> str:
    """Markdown: the verdict, the reasons, both models side by side, and the slices that matter."""
    against = f"champion version {champion}" if champion else "no champion yet"
    head = [
        f"# {decision.verdict.value}: {challenger.name} version {challenger.version}", "",
        f"Challenger trained on {dataset}; {against}.", "",
    ]  # fmt: skip
    tables = [*_models(decision), *_slices(decision.details.get("slices", []))]
    room = SUMMARY_BYTES_LIMIT - sum(len(line.encode()) + 1 for line in [*head, *tables, _MORE, ""]) - 1
    reasons: list[str] = []
    for number, reason in enumerate(decision.reasons):
        line = f"- {_shortened(_plain(reason), _REASON)}"
        if number == 0:
            line = f"- **{line[2:]}**"
        room -= len(line.encode()) + 1
        if room < 0:
            reasons.append(_MORE)
            break
        reasons.append(line)
    text = "\n".join([*head, *reasons, "", *tables])
    return text.encode()[:SUMMARY_BYTES_LIMIT].decode(errors="ignore")


def _models(decision: Decision) -> list[str]:
    c, metrics = decision.details.get("comparison"), decision.metrics
    if not c:
        return []
    with_champion = decision.details["against"] == "champion"
    lines = [
        f"| | challenger | {'champion' if with_champion else 'random init'} |", "|---|---|---|",
        f"| {c['headline']} on {c['n']} test samples | {c['first']:.4f} | {c['second']:.4f} |",
        f"| better than the other | {c['only_first']} | {c['only_second']} |",
    ]  # fmt: skip
    if "ece" in metrics:
        lines.append(f"| calibration error (ECE) | {metrics['ece']:.3f} | {metrics['champion_ece']:.3f} |")
    if "backward_transfer" in metrics:
        lines.append(f"| change on older windows since they were learned | {metrics['backward_transfer']:+.3f} | |")
    if vault := decision.details.get("vault"):
        lines.append(
            f"| {vault['headline']} on {vault['n']} vault samples | {vault['first']:.4f} | {vault['second']:.4f} |"
        )
    return [*lines, ""]


def _slices(slices: Sequence[dict[str, Any]]) -> list[str]:
    """Protected ones and those that are worse first, then the newest window, then those that lost most."""
    compared = [one for one in slices if one["comparison"]]
    if not slices:
        return []
    windows = [one["name"] for one in compared if one["name"].startswith("window=")]

    def rank(one: dict[str, Any]) -> tuple[bool, bool, bool, float]:
        c = one["comparison"]
        worse = c is not None and c["difference"] < 0 and one["adjusted"] < LEVEL
        return (
            not one["protected"],
            not worse,
            not (windows and one["name"] == windows[-1]),
            c["difference"] if c else 0.0,
        )

    shown = sorted([one for one in slices if one["comparison"] or one["protected"]], key=rank)[:_SLICES]
    lines = ["| slice | n | challenger | champion | difference (95% interval) |", "|---|---|---|---|---|"]
    for one in shown:
        c, name = one["comparison"], _shortened(_plain(one["name"]), _NAME)
        name += " (protected)" if one["listed"] else ""
        if c is None:
            lines.append(f"| {name} | {one['n']} | insufficient | | |")
            continue
        mark = " **worse**" if c["difference"] < 0 and one["adjusted"] < LEVEL else ""
        lines.append(
            f"| {name} | {one['n']} | {c['first']:.3f} | {c['second']:.3f} "
            f"| {c['difference']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f}){mark} |"
        )
    small = sum(one["comparison"] is None for one in slices)
    rest = len(compared) - sum(one["comparison"] is not None for one in shown)
    left = [f"{rest} more slices in gate.json"] if rest else []
    left += [f"{small} too small to tell"] if small else []
    return [*lines, *([f"| {', '.join(left)} | | | | |"] if left else []), ""]


def _plain(text: str) -> str:
    """Text that may hold names from data, in which nothing is a table's or Markdown's own."""
    return (
        " ".join(text.split())
        .replace("|", "/")
        .replace("`", "'")
        .replace("<", "&lt;")
        .replace("[", "(")
        .replace("]", ")")
    )


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
