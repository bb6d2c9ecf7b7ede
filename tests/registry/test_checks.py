"""What the gate looks at beside quality, each with a planted fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ssl_core.config.promotion import PromotionConfig
from ssl_core.contracts import Verdict
from ssl_core.data.table import SampleTable
from ssl_core.evaluation.predictions import Predictions, make_predictions
from ssl_core.registry import checks, reuse
from ssl_core.store import Store
from tests.registry.conftest import CLASSES, dataset_ref, manifest_rows

PROMOTE, REJECT, HUMAN = Verdict.PROMOTE, Verdict.REJECT, Verdict.NEEDS_HUMAN
TEST = [f"s{i}" for i in range(20)]


def verdicts(findings: list[checks.Finding]) -> list[Verdict]:
    return [finding.verdict for finding in findings]


# ---- origin


def test_an_older_dataset_version_is_stale() -> None:
    assert verdicts(checks.stale("tiny@v1", "tiny@v2", "3")) == [REJECT]
    assert "trained on tiny@v1, the champion (version 3) on tiny@v2" in checks.stale("tiny@v1", "tiny@v2", "3")[0].text
    for newer in ("tiny@v2", "tiny@v10", "tiny@0123.dir"):
        assert checks.stale(newer, "tiny@v2", "3") == []
    assert checks.stale("tiny@v1", "candidate", "3") == []


def test_a_copy_is_known_by_its_weights_alone(tmp_path: Path) -> None:
    for name, weights, about in (("a", b"w", "{}"), ("b", b"w", '{"dataset": "tiny@v2"}'), ("c", b"x", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "head.safetensors").write_bytes(weights)
        (tmp_path / name / "golden.safetensors").write_text(name)
        (tmp_path / name / "training.json").write_text(about)
    a, b, c = (checks.weights_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    assert verdicts(checks.copy_of_champion(a, b, "1")) == [REJECT]
    assert checks.copy_of_champion(a, c, "1") == []


# ---- data


def table(**changes: Any) -> SampleTable:
    train, test = manifest_rows([f"t{i}" for i in range(10)], "train"), manifest_rows(TEST, "test")
    manifest = pd.concat([train, test], ignore_index=True)
    for sample, group in changes.items():
        manifest.loc[manifest["sample_id"] == sample, "group"] = group
    return SampleTable(manifest, CLASSES)


def test_clean_training_data_leaks_nothing() -> None:
    assert checks.leakage({"sample_ids": ["t0", "t1"]}, table(), TEST, "test set") == []
    assert checks.leakage({"sample_ids": ["t0", "t1"]}, table(t0="g", t5="g"), TEST, "test set") == []


def test_leaks_are_found_by_content_and_by_group() -> None:
    same = checks.leakage({"sample_ids": ["t0", "s3"]}, table(), TEST, "test set")
    assert verdicts(same) == [REJECT]
    assert "the labels of 1 samples of the test set" in same[0].text
    near = checks.leakage({"sample_ids": ["t0", "t1"]}, table(t0="s3"), TEST, "test set")
    assert verdicts(near) == [REJECT]
    assert "of 1 near-duplicates" in near[0].text
    assert verdicts(checks.leakage({"sample_ids": ["t0"]}, table(t7="s3"), TEST, "test set")) == [HUMAN]
    assert verdicts(checks.leakage({}, table(), TEST, "test set")) == [HUMAN]
    assert verdicts(checks.leakage({"sample_ids": "t0"}, table(), TEST, "test set")) == [HUMAN]


def test_a_champion_that_was_trained_on_the_test_set_is_told() -> None:
    assert verdicts(checks.champion_leakage({"sample_ids": ["s1", "t0"]}, TEST, "4")) == [HUMAN]
    assert checks.champion_leakage({"sample_ids": ["t0"]}, TEST, "4") == []
    assert checks.champion_leakage({}, TEST, "4") == []


@pytest.mark.parametrize(
    ("reports", "passed"),
    [
        ([], None),
        ([("md5", True)], True),
        ([("md5", False)], False),
        ([("md5", False), ("md5", True)], True),  # after the suite was mended
        ([("other", True)], None),
        (["not JSON", ("md5", True)], True),
    ],
)
def test_validation_is_looked_up_by_content(tmp_path: Path, reports: list[Any], passed: bool | None) -> None:
    store, ref = Store(tmp_path.as_uri(), tmp_path / "cache"), dataset_ref()
    for number, report in enumerate(reports):
        text = "{" if isinstance(report, str) else json.dumps(
            {"passed": report[1], "dataset": {"md5": ref.md5 if report[0] == "md5" else "x"}}
        )  # fmt: skip
        store.write(f"tiny/validate/k{number}/out/validation/validation.json", text.encode())
    assert checks.validation_of(store, ref) is passed
    wanted = {True: [], None: [HUMAN], False: [REJECT]}[passed]
    assert verdicts(checks.validation(passed, ref)) == wanted


# ---- seeds


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "one seed only"),
        ({"seeds": [{"seed": 0, "val_quality": 0.9, "loss": 0.1}]}, "one seed only"),
        (
            {"seeds": [{"seed": s, "val_quality": q, "loss": 0.1} for s, q in enumerate((0.9, 0.92, 0.88))]},
            "3 seeds, the median one kept: quality on val 0.880 to 0.920",
        ),
        ({"seeds": [{"seed": s, "val_quality": None, "loss": 0.1} for s in range(3)]}, "without labels on split val"),
        ({"seeds": "broken"}, "one seed only"),
    ],
)
def test_seeds_are_told_and_decide_nothing(record: dict[str, Any], words: str) -> None:
    found = checks.seeds(record)
    assert verdicts(found) == [PROMOTE]
    assert words in found[0].text


# ---- calibration


def sure(confidence: float, n: int = 400, right: float = 0.8) -> Predictions:
    """``right`` of them right, all answered with the same confidence."""
    labels = np.arange(n) % 3
    hit = np.arange(n) < right * n
    scores = np.full((n, 3), (1 - confidence) / 2, dtype=np.float32)
    scores[np.arange(n), np.where(hit, labels, (labels + 1) % 3)] = confidence
    return make_predictions([f"s{i:05d}" for i in range(n)], labels, scores, CLASSES)


def test_calibration_against_the_champions() -> None:
    promotion = PromotionConfig()
    for confidence, wanted in ((0.8, []), (0.84, []), (0.99, [REJECT])):
        found, metrics = checks.calibration(sure(confidence), sure(0.8), promotion)
        assert verdicts(found) == wanted
        assert metrics["ece"] == pytest.approx(confidence - 0.8, abs=1e-6)
        assert metrics["champion_ece"] == pytest.approx(0, abs=1e-6)
    assert checks.calibration(sure(0.8), sure(0.99), promotion)[0] == [], "better calibrated is no fault"
    few = checks.calibration(sure(0.87, n=60), sure(0.8, n=60), promotion)[0]
    assert verdicts(few) in ([HUMAN], [PROMOTE])
    assert "promotion.max_calibration_loss" in few[0].text


def test_calibration_is_for_single_classes() -> None:
    truth = np.zeros((5, 1))
    numbers = make_predictions(TEST[:5], np.zeros(5), truth, (), label_type="number", targets=truth, spread=1.0)
    assert checks.calibration(numbers, numbers, PromotionConfig()) == ([], {})


def test_classes_of_two_models_may_differ_in_order() -> None:
    mine = sure(0.8)
    turned = make_predictions(list(mine.sample_ids), 2 - mine.labels, mine.scores[:, ::-1], CLASSES[::-1])
    found, metrics = checks.calibration(mine, turned, PromotionConfig())
    assert found == []
    assert metrics["ece"] == pytest.approx(metrics["champion_ece"])


# ---- budgets


def test_size_and_latency_against_their_budgets(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(bytes(2_000_000))
    assert checks.megabytes(tmp_path) == pytest.approx(2)
    budget = PromotionConfig(max_megabytes=1, max_latency_ms=10)
    assert verdicts(checks.size(2.0, budget)) == [REJECT]
    assert "too large: 2.0 MB, allowed 1" in checks.size(2.0, budget)[0].text
    assert verdicts(checks.latency(11.0, budget)) == [REJECT]
    assert "too slow: 95 of 100 single answers within 11.0 ms" in checks.latency(11.0, budget)[0].text
    assert checks.size(0.5, budget) == checks.latency(9.0, budget) == []
    assert checks.size(1e9, PromotionConfig()) == checks.latency(1e9, PromotionConfig()) == []


# ---- reuse


def test_reuse_counts_other_challengers_once_each(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri(), tmp_path / "cache")
    assert reuse.count(store, "tiny", "test", "d1", "1") == reuse.Uses(0, 0)
    for version, digest in (("1", "d1"), ("1", "d1"), ("2", "d1"), ("2", "d2"), ("3", "d2")):
        reuse.mark(store, "tiny", "test", digest, version, REJECT)
    reuse.mark(store, "tiny", "vault", "d1", "9", PROMOTE)
    assert reuse.count(store, "tiny", "test", "d1", "4") == reuse.Uses(2, 1)
    assert reuse.count(store, "tiny", "test", "d1", "2") == reuse.Uses(1, 1), "itself is no other"
    assert reuse.count(store, "tiny", "vault", "d1", "4") == reuse.Uses(1, 0)
    assert json.loads(store.read("tiny/judged-by/test-d1/1.json") or b"")["verdict"] == "REJECT"


def test_reuse_warns_from_some_number_on() -> None:
    assert reuse.finding(reuse.Uses(0, 0)) == []
    few, many = reuse.finding(reuse.Uses(3, 2))[0], reuse.finding(reuse.Uses(reuse.WARN_FROM - 1, 1))[0]
    assert few.verdict is many.verdict is PROMOTE
    assert "judged 3 other challengers" in few.text
    assert "by chance alone" not in few.text
    assert "by chance alone" in many.text
