"""The step: planted challengers against a champion, each with its own reason in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import GateReport, Ref, Verdict
from ssl_core.errors import CheckFailed
from ssl_core.evaluation.predictions import Predictions, make_predictions, test_set_digest, write_predictions
from ssl_core.registry import checks
from tests.registry.conftest import CLASSES, World, predictions_with, tiny_project, train_ids, without_models

PROMOTE, REJECT, HUMAN = Verdict.PROMOTE, Verdict.REJECT, Verdict.NEEDS_HUMAN


@pytest.fixture
def project(make_project: Callable[..., ProjectConfig]) -> Callable[..., ProjectConfig]:
    """``project(protected_slices=[...])``: the world's project with another section ``promotion``."""

    def make(**promotion: Any) -> ProjectConfig:
        return make_project(encoder={"widths": [8]}, evaluate={"bootstrap": 500}, promotion=promotion)

    return make


@pytest.fixture(scope="module")
def first(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose champion has 170 of 200 test samples right; made once."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_models(patch)
        shutil.copyfile(empty_database, folder / "mlflow.db")
        settings = Settings(home=folder / "home", MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}")
        made = World(settings, tiny_project(), folder)
        made.promote(made.gate(made.register("a", right=170))[1])
    return made


@pytest.fixture
def champion(first: World, world: World) -> World:
    """A world of this test's own that goes on from ``first``."""
    shutil.copytree(first.settings.home, world.settings.home, dirs_exist_ok=True)
    shutil.copyfile(first.tmp / "mlflow.db", world.tmp / "mlflow.db")
    world.runs, world.datasets, world.sizes = 1000, dict(first.datasets), dict(first.sizes)
    return world


def answered(right: np.ndarray, confidence: float = 1.0) -> Predictions:
    """The test samples of the world, answered right where ``right`` says so."""
    ids, labels, _ = predictions_with(0, len(right))
    scores = np.full((len(right), 3), (1 - confidence) / 2, dtype=np.float32)
    scores[np.arange(len(right)), np.where(right, labels, (labels + 1) % 3)] = confidence
    return make_predictions(ids, labels, scores, CLASSES)


def judged(world: World, *, project: ProjectConfig | None = None, **how: Any) -> GateReport:
    """The report on a challenger ``b`` that is trained on the next dataset version, unless told otherwise."""
    how = {"right": 190, "dataset": 2} | how
    report, _ = world.gate(world.register("b", **how), project=project)
    assert len(report.summary_md.encode()) <= 4096
    return report


def test_a_better_challenger_is_promoted_and_the_report_says_why(champion: World) -> None:
    report = judged(champion)
    assert report.verdict is PROMOTE
    assert report.reasons[0].startswith("better than the champion: accuracy 0.950 against 0.850 on 200 samples")
    assert "| accuracy on 200 test samples | 0.9500 | 0.8500 |" in report.summary_md
    assert "| label=ant | 67 |" in report.summary_md
    assert any("one seed only" in reason for reason in report.reasons)
    assert any("judged 1 other challenger before" in reason for reason in report.reasons)
    assert any("the vault was not asked" in reason for reason in report.reasons)
    for name in ("difference", "floor", "detectable", "ece", "champion_ece", "megabytes", "test_set_uses"):
        assert isinstance(report.metrics[name], float), name
    assert json.loads(report.model_dump_json())["details"]["test_set"]["n"] == 200


def test_shuffled_labels_fall_by_quality(champion: World) -> None:
    report = judged(champion, right=67)
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("worse than the champion: accuracy 0.335 against 0.850")


def test_equal_on_few_samples_is_a_persons_matter(champion: World) -> None:
    report = judged(champion, right=170, wrong_first=True)
    assert report.verdict is HUMAN
    assert "cannot be ruled out" in report.reasons[0]
    assert "would have shown" in report.reasons[0]


def test_a_copy_of_the_champion_is_refused_in_words(champion: World) -> None:
    import zlib

    report = judged(champion, seed=zlib.crc32(b"a"), change=lambda folder: (folder / "training.json").write_text("{}"))
    assert report.verdict is REJECT
    assert report.reasons == ["a copy of the champion: its weights are those of version 1"]


def test_a_stale_challenger_is_refused_in_words(world: World) -> None:
    world.promote(world.gate(world.register("a", right=150, dataset=2))[1])
    report = judged(world, right=200, dataset=1)
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("stale: trained on tiny@v1, the champion (version 1) on tiny@v2")


def test_a_tiny_test_set_decides_nothing(world: World) -> None:
    world.promote(world.gate(world.register("a", right=12, random_right=4, n=20))[1])
    report = judged(world, right=20, n=20)
    assert report.verdict is HUMAN
    assert "share 20 test samples" in report.reasons[0]


def test_a_broken_slice_needs_a_person_and_a_protected_one_rejects(champion: World, project: Any) -> None:
    right = np.ones(200, bool)
    right[np.flatnonzero(np.arange(200) % 3 == 2)[:30]] = False  # cats, that the champion has right
    inputs = champion.register("b", right=170, dataset=2, predictions=answered(right))
    report, _ = champion.gate(inputs)
    assert report.verdict is HUMAN
    assert any(reason.startswith("worse on label=cat, also after Holm") for reason in report.reasons)
    assert "| label=cat | 66 |" in report.summary_md
    report, _ = champion.gate(inputs, project=project(protected_slices=["label=cat"]))
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("worse on the protected slice label=cat")
    report, _ = champion.gate(inputs, project=project(protected_slices=["label=dog", "source=camera-1"], min_slice=20))
    assert any(reason.startswith("insufficient: the protected slice label=dog has 0") for reason in report.reasons)


def test_what_is_forgotten_counts_though_more_is_gained(champion: World) -> None:
    right = np.ones(500, bool)
    right[:25] = False  # of 170 that the champion has right; it has a third of the 300 new ones
    report = judged(champion, right=475, n=500, predictions=answered(right))
    assert report.metrics["samples"] == 500, "the champion was asked about what came after it"
    assert report.metrics["difference"] > 0.1
    assert report.verdict is PROMOTE, "it lost some and gained as many"
    right[:170] = False
    right[170:] = True
    report, _ = champion.gate(champion.register("c", right=330, n=500, dataset=2, predictions=answered(right)))
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("worse on the champion's older windows (up to v1)")


def test_labels_of_the_test_set_are_found_in_the_training_set(champion: World) -> None:
    def leak(folder: Path) -> None:
        (folder / "training.json").write_text(json.dumps({"sample_ids": [*train_ids(), "s00007"]}))

    report = judged(champion, change=leak)
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("leakage: trained on the labels of 1 samples of the test set")


def test_a_near_duplicate_on_the_other_side_is_a_leak(champion: World) -> None:
    def near(manifest: Any) -> None:
        manifest.loc[manifest["sample_id"] == "t00005", "group"] = "s00007"

    champion.dataset(2, change=near)
    report = judged(champion)
    assert report.verdict is REJECT
    assert "and of 1 near-duplicates of them" in report.reasons[0]


def test_a_miscalibrated_challenger_is_rejected(champion: World) -> None:
    report = judged(champion, predictions=answered(np.arange(200) < 190, confidence=0.5))
    assert report.verdict is REJECT
    assert "its calibration error (ECE) is 0.450" in report.reasons[0]


def test_budgets_of_size_and_time(champion: World, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = champion.register("b", right=190, dataset=2)
    report, _ = champion.gate(inputs, project=project(max_megabytes=0.001))
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("too large")
    monkeypatch.setattr(checks, "latency_ms", lambda model, golden, budget: 12.5)
    report, _ = champion.gate(inputs, project=project(max_latency_ms=5, max_megabytes=100))
    assert report.verdict is REJECT
    assert report.reasons[0].startswith("too slow: 95 of 100 single answers within 12.5 ms")
    assert report.metrics["latency_ms"] == 12.5


def test_a_model_that_cannot_be_timed_is_no_champion(
    champion: World, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> float:
        raise CheckFailed("the model cannot be loaded and called: no head")

    monkeypatch.setattr(checks, "latency_ms", broken)
    report, _ = champion.gate(champion.register("b", right=190, dataset=2), project=project(max_latency_ms=5))
    assert report.verdict is REJECT
    assert "no head" in report.reasons[0]


def test_latency_is_measured_on_the_served_model(real_world: World, project: Any) -> None:
    inputs = real_world.register("a", right=150)
    report, _ = real_world.gate(inputs, project=project(max_latency_ms=60_000))
    assert report.verdict is PROMOTE
    assert 0 < report.metrics["latency_ms"] < 60_000


def test_training_data_must_have_passed_validation(champion: World) -> None:
    inputs = champion.register("b", right=190, dataset=2)
    uri = "tiny/validate/v{}/out/validation/validation.json"
    failed = {"passed": False, "dataset": {"md5": champion.datasets[2].md5}}
    for version in (1, 2):  # the two versions hold the same
        champion.store.remove(uri.format(version))
    report, _ = champion.gate(inputs)
    assert report.verdict is HUMAN
    assert report.reasons[0].startswith("no validation report on tiny@v2")
    champion.store.write(uri.format(2), json.dumps(failed).encode())
    report, _ = champion.gate(inputs)
    assert report.verdict is REJECT
    assert "did not pass validation" in report.reasons[0]


def plant_vault(world: World, inputs: dict[str, Ref], right: np.ndarray) -> None:
    """What a version answers on the vault, kept as if it had been asked."""
    ids = [f"v{i:05d}" for i in range(len(right))]
    labels = np.arange(len(right)) % 3
    scores = np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
    path = world.tmp / "vault.parquet"
    write_predictions(path, make_predictions(ids, labels, scores, CLASSES, split="vault"))
    sha256 = inputs["registered_model"].sha256
    world.store.write(f"tiny/answers/{sha256}/{test_set_digest(ids)}.parquet", path.read_bytes())


@pytest.mark.parametrize(("mine", "verdict"), [(60, REJECT), (90, PROMOTE)])
def test_the_vault_may_contradict(world: World, mine: int, verdict: Verdict) -> None:
    first = world.register("a", right=170, vault=100)
    plant_vault(world, first, np.arange(100) < 85)
    report, given = world.gate(first)
    assert "vault_uses" not in report.metrics, "without a champion there is nothing to ask"
    world.promote(given)
    second = world.register("b", right=190, dataset=2, vault=100)
    plant_vault(world, second, np.arange(100) < mine)
    report, _ = world.gate(second)
    assert report.verdict is verdict
    assert report.metrics["vault_difference"] == pytest.approx((mine - 85) / 100)
    assert any("asked 0 times before" in reason for reason in report.reasons)
    words = "the vault contradicts the test set" if verdict is REJECT else "the vault does not contradict"
    assert any(reason.startswith(words) for reason in report.reasons)
    assert f"| accuracy on 100 vault samples | {mine / 100:.4f} | 0.8500 |" in report.summary_md
    third = world.register("c", right=195, dataset=2, vault=100)
    plant_vault(world, third, np.arange(100) < 90)
    assert world.gate(third)[0].metrics["vault_uses"] == 1


def test_the_vault_is_shown_only_to_what_would_be_promoted(world: World, project: Any) -> None:
    first = world.register("a", right=170, vault=100)
    world.promote(world.gate(first)[1])
    worse = world.register("b", right=100, dataset=2, vault=100)
    assert "vault_uses" not in world.gate(worse)[0].metrics
    better = world.register("c", right=195, dataset=2, vault=100)
    report, _ = world.gate(better, project=project(vault=False))
    assert report.verdict is PROMOTE
    assert any("promotion.vault: false" in reason for reason in report.reasons)
    assert not [name for name in world.store.names("tiny/judged-by") if name.startswith("vault-")]


def test_a_champion_without_its_evaluation_is_asked_again(champion: World) -> None:
    champion.store.remove("tiny/evaluate/a")
    assert judged(champion).metrics["samples"] == 200


def test_a_champion_whose_files_are_deleted_needs_a_person(champion: World) -> None:
    champion.store.remove("tiny/finetune/a")
    inputs = champion.register("b", right=290, n=300, dataset=2)
    report, _ = champion.gate(inputs)
    assert report.verdict is HUMAN
    assert "the weights of tiny version 1 are gone from the store; compared on the 200" in report.reasons[0]
    assert report.metrics["samples"] == 200
    champion.store.remove("tiny/evaluate/a")
    report, _ = champion.gate(inputs)
    assert report.verdict is HUMAN
    assert "its evaluation on record shares 0 with the challenger" in report.reasons[0]


def test_a_version_without_a_passed_golden_batch_is_rejected(world: World) -> None:
    inputs = world.register("a", right=190)
    world.client.set_model_version_tag("tiny", "1", "ssl.golden", "failed")
    report, _ = world.gate(inputs)
    assert report.verdict is REJECT


def test_approval_by_a_person_never_turns_a_rejection_around(world: World, project: Any) -> None:
    report, _ = world.gate(world.register("a", right=10, random_right=60), project=project(approval="human"))
    assert report.verdict is REJECT
