"""Small losses that add up: the challenger against the versions that first learned a window, not only against the champion.

Each promotion may lose a little on what is old without anyone being able to tell; after ten of them it is a lot. The forgetting
matrix (``registry.forgetting``) says which version learned each window; here the challenger is compared with that one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_core.contracts import ModelRef, Verdict
from ssl_core.data.table import SampleTable
from ssl_core.evaluation.predictions import Predictions, paired_quality
from ssl_core.registry import answers, forgetting
from ssl_core.registry.compare import LEVEL, Comparison, compare_quality, holm
from ssl_core.registry.judge import Finding, difference, tolerated
from ssl_core.registry.slices import windows_of
from ssl_core.step import StepContext


def look(
    ctx: StepContext, table: SampleTable, mine: Predictions, champion: str
) -> tuple[list[Finding], dict[str, float], dict[str, Any]]:
    """What was forgotten since it was learned; and the matrix as metrics and as details for the report.

    A window on which the challenger is worse than the version that learned it, for sure after Holm's correction over these
    windows and by more than is tolerated: NEEDS_HUMAN. Windows that the champion itself learned are the slices' matter.
    """
    challenger: ModelRef = ctx.input("registered_model")
    matrix = forgetting.measure(ctx, mine, challenger.version)
    if matrix is None:
        return [], {}, {}
    metrics = {"window_mean": matrix.average}
    if matrix.backward_transfer is not None and matrix.worst_change is not None:
        metrics |= {"backward_transfer": matrix.backward_transfer, "worst_window_change": matrix.worst_change}
    compared: dict[tuple[int, str], Comparison] = {}
    window = windows_of(mine, np.arange(len(mine.sample_ids)), table)
    for number, row in zip(matrix.windows, matrix.learned, strict=True):
        version = matrix.versions[row] if 0 <= row < len(matrix.versions) - 1 else champion
        chosen = window == number
        if version == champion or chosen.sum() < ctx.project.promotion.min_slice:
            continue
        first, second = paired_quality(mine, answers.answers(ctx, version, sample_ids=mine.sample_ids))
        compared[number, version] = compare_quality(
            first[chosen], second[chosen], mine.label_type,
            resamples=ctx.project.evaluate.bootstrap, seed=ctx.project.evaluate.seed,
        )  # fmt: skip
    return findings(compared, tolerated(ctx.project.promotion)), metrics, {"forgetting": matrix.as_dict()}


def findings(compared: dict[tuple[int, str], Comparison], may_lose: float) -> list[Finding]:
    """Of comparisons by (window, the version that learned it)."""
    adjusted = holm([c.p_value if c.difference < 0 else 1.0 for c in compared.values()])
    return [
        Finding(
            f"window=v{number}", Verdict.NEEDS_HUMAN,
            f"forgotten since version {version} learned window v{number} (p = {p:.3g} after Holm's correction): {difference(c)}",
        )
        for ((number, version), c), p in zip(compared.items(), adjusted, strict=True)
        if p < LEVEL and c.difference < -may_lose
    ]  # fmt: skip
