"""The forgetting matrix: closed forms of Lopez-Paz and Ranzato, and what a card shows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ssl_core.data.table import SampleTable
from ssl_core.errors import UserError
from ssl_core.evaluation.predictions import make_predictions
from ssl_core.registry import answers
from ssl_core.registry.forgetting import Row, draw, forgetting_matrix, markdown, measure
from ssl_core.registry.ledger import Ledger
from ssl_core.step import StepContext
from tests.registry.conftest import World, dataset_ref
from tests.registry.test_going_on import entry

WINDOWS = np.array([1] * 4 + [2] * 4 + [3] * 2)


def row(version: str, dataset: int, *right: int) -> Row:
    """``right`` samples of each window are right."""
    quality = np.concatenate([np.arange(n) < k for n, k in zip((4, 4, 2), right, strict=True)])
    return Row(version, dataset, quality.astype(float))


ROWS = [row("1", 1, 4, 2, 0), row("2", 2, 3, 4, 1), row("this", 3, 2, 3, 2)]


def test_closed_forms() -> None:
    matrix = forgetting_matrix(ROWS, WINDOWS)
    np.testing.assert_allclose(matrix.values, [[1, 0.5, 0], [0.75, 1, 0.5], [0.5, 0.75, 1]])
    assert (matrix.windows, matrix.counts, matrix.learned) == ([1, 2, 3], [4, 4, 2], [0, 1, 2])
    assert matrix.average == pytest.approx((0.5 + 0.75 + 1) / 3)
    assert matrix.backward_transfer == pytest.approx(((0.5 - 1) + (0.75 - 1)) / 2)
    assert (matrix.worst_window, matrix.worst_change) == (1, pytest.approx(-0.5))


def test_nothing_learned_before_nothing_forgotten() -> None:
    matrix = forgetting_matrix([row("1", 3, 4, 2, 0)], WINDOWS)
    assert matrix.learned == [0, 0, 0]
    assert (matrix.backward_transfer, matrix.worst_window, matrix.worst_change) == (None, None, None)
    assert "backward transfer" not in markdown(matrix)[-1]
    with pytest.raises(ValueError, match="a version and a test sample"):
        forgetting_matrix([], WINDOWS)


def test_a_row_may_learn_several_windows_and_a_window_may_be_unseen() -> None:
    matrix = forgetting_matrix([row("1", 2, 4, 4, 0), row("2", 2, 4, 2, 0)], WINDOWS)
    assert matrix.learned == [0, 0, -1]
    assert matrix.backward_transfer == pytest.approx(-0.25)
    assert matrix.worst_window == 2


def test_the_table_and_its_record(tmp_path: Path) -> None:
    matrix = forgetting_matrix(ROWS, WINDOWS)
    lines = markdown(matrix)
    assert lines[0] == "| version | v1 (4) | v2 (4) | v3 (2) |"
    assert lines[3] == "| 2 | 0.750 | 1.000* | 0.500 |"
    assert lines[-1] == "Mean over windows 0.750; backward transfer -0.375; worst window v1 (-0.500)."
    assert json.loads(json.dumps(matrix.as_dict()))["values"] == matrix.values.tolist()
    draw(matrix, tmp_path / "matrix.png", "tiny")
    assert (tmp_path / "matrix.png").read_bytes()[:4] == b"\x89PNG"


def test_a_long_history_keeps_the_table_small_and_the_worst_window_in_it() -> None:
    count = 40
    windows = np.arange(1, count + 1)
    rows = [Row(str(n), n, np.where(windows <= n, 1.0, 0.5)) for n in range(1, count)]
    last = np.ones(count)
    last[2] = 0.0
    lines = markdown(forgetting_matrix([*rows, Row("this", count, last)], windows))
    assert "v3 (1)" in lines[0]
    assert f"v{count} (1)" in lines[0]
    assert len(lines) == 2 + 6 + 2
    assert len("\n".join(lines)) < 900


def test_champions_and_the_challenger_answer_for_every_window(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"s{i}" for i in range(6)]
    manifest = pd.DataFrame(
        {"sample_id": ids, "split": "test", "label": pd.Series(["ant", "bee"] * 3, dtype=object), "first_version": [1, 1, 1, 1, 2, 2]}
    )  # fmt: skip
    table = SampleTable(manifest, ["ant", "bee", "cat"])
    scores = np.eye(3, dtype=np.float32)[table.labels]
    wrong = np.roll(scores, 1, axis=1)
    says = {"1": np.concatenate([scores[:4], wrong[4:]]), "2": None}

    def answered(ctx: StepContext, version: str, *, sample_ids: list[str]) -> Any:
        if says[version] is None:
            raise UserError("its weights are gone")
        return make_predictions(ids, table.labels, says[version], table.classes)

    class Tags:
        tags = {"ssl.dataset": "tiny@v1"}  # noqa: RUF012

    monkeypatch.setattr(answers, "read_table", lambda ctx, dataset: table)
    monkeypatch.setattr(answers, "answers", answered)
    monkeypatch.setattr(answers, "registered", lambda ctx, version: Tags)
    mine = make_predictions(ids, table.labels, np.concatenate([wrong[:1], scores[1:]]), table.classes)
    found: list[Any] = []

    def run(ctx: StepContext) -> Any:
        from ssl_core.step import StepOutput

        found.append(measure(ctx, mine))
        return StepOutput()

    world.step("register", run, {"dataset": dataset_ref(2)})
    assert found[-1] is None, "no champion yet"
    ledger = Ledger(world.store, "tiny")
    for number in ("1", "2", "1"):
        ledger.append(lambda _, number=number: entry("PROMOTED", number))
    world.step("register", run, {"dataset": dataset_ref(2)})
    matrix = found[-1]
    assert matrix.versions == ["1", "this"], "a version that cannot be asked has no row"
    np.testing.assert_allclose(matrix.values, [[1, 0], [0.75, 1]])
    assert matrix.backward_transfer == pytest.approx(-0.25)
