"""The step on real digits: quiet windows, a world that moves, and everything that may be missing or broken on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.data.dataset import write_dataset
from ssl_core.errors import TryAgain, UserError
from ssl_core.monitoring import monitor, watch
from ssl_core.monitoring.report import read
from ssl_core.registry.client import connect
from ssl_core.serving.prediction_log import schema
from ssl_core.store import Store
from ssl_core.training.image_bench import ImageBench
from tests import texts
from tests.data.remotes import stored_version
from tests.monitoring.world import World, enlist, places_of, step_context, turned


def test_a_world_that_moves_is_an_alarm_at_the_second_window_and_wakes_a_retraining_once(world: World) -> None:
    for name in ("v2", "v3"):
        world.arrive(100)
        report, made = world.watch()
        assert report.window.name == name
        assert (report.finding.kind, report.alarm, made.news) == ("quiet", False, False)
        assert report.embedding is not None
        assert report.embedding.auc < report.embedding.auc_threshold
        assert report.rule.calibrated_by == "resampling"
        assert report.performance is not None
        assert report.performance.low < 0 < report.performance.high
        assert made.alert == ""
    world.arrive(100, turned)
    first, made = world.watch()
    assert first.embedding is not None
    assert first.embedding.exceeded
    assert first.embedding.auc_p < 0.01
    assert (first.alarm, first.retrain, made.news) == (False, False, False), "one window is none"
    world.arrive(100, turned)
    report, made = world.watch(run="the-one")
    assert report.alarm
    assert [one.exceeded for one in report.history] == [False, False, True, True]
    assert report.performance is not None
    assert report.performance.high < 0
    assert report.finding.kind in ("covariate-shift", "new-territory")
    assert report.retrain is (report.finding.kind == "covariate-shift")
    assert made.news is report.retrain
    again, repeated = world.watch()
    assert (again, repeated.news, repeated.alert) == (report, False, made.alert), (
        "the same window twice: an open incident stays open"
    )
    retried, second_try = world.watch(run="the-one")
    assert (retried, second_try.news) == (report, made.news), "a second try of the run loses no alarm"


def test_windows_that_nobody_looked_at_are_judged_in_order_and_only_the_last_may_wake(world: World) -> None:
    for change in (None, turned, turned, None):
        world.arrive(100, change)
    report, made = world.watch()
    assert [(one.window, one.exceeded, one.alarm) for one in report.history] == [
        ("v2", False, False), ("v3", True, False), ("v4", True, True), ("v5", False, False),
    ]  # fmt: skip
    assert not report.alarm
    assert not made.news
    assert sorted(world.store.names("monitor/tiny/1")) == ["v2.json", "v3.json", "v4.json", "v5.json"]


def test_what_is_known_is_not_computed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.arrive(100)
    world.watch()
    world.store.remove("monitor/tiny")
    monkeypatch.setattr(ImageBench, "embed", None)
    monkeypatch.setattr(ImageBench, "scores", None)
    report, _ = world.watch()
    assert report.finding.kind == "quiet"


def test_cool_down_and_cap_hold_a_retraining_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        watch, "triage", lambda evidence, config: watch.doc.Finding(kind="covariate-shift", reasons=["moved"], action="finetune")
    )  # fmt: skip
    world.arrive(100, turned)
    world.watch()
    world.arrive(100, turned)
    assert world.watch()[0].retrain
    world.arrive(100, turned)
    report, made = world.watch(cooldown_days=3)
    assert report.alarm
    assert (report.retrain, made.news) == (False, False)
    assert report.held_back.startswith("cool-down")
    world.arrive(100, turned)
    report, made = world.watch(retrains_per_month=1)
    assert report.held_back.startswith("cap: 1 retrainings")
    assert made.alert.startswith("drift: cap"), "a person has to decide"


def test_without_a_champion_nothing_is_compared(bare: World) -> None:
    report, made = bare.watch()
    assert (report.finding.kind, report.alarm, made.news) == ("cannot-tell", False, False)
    assert "no champion yet" in made.summary
    assert bare.store.names("monitor/tiny") == []


def test_nothing_new_and_too_little_new_cannot_be_judged(world: World) -> None:
    report, made = world.watch()
    assert (report.window.rows, report.finding.kind, made.news) == (0, "cannot-tell", False)
    assert "nothing arrived since v1" in made.summary
    world.arrive(0)  # a version that brought labels only
    report, _ = world.watch()
    assert (report.window.name, report.window.rows, report.finding.kind) == ("v2", 0, "cannot-tell")
    world.arrive(40)
    report, _ = world.watch()
    assert report.finding.kind == "cannot-tell"
    assert "monitor.min_samples is 50" in report.finding.reasons[0]
    assert report.history[-1].score is None
    for _ in range(2):
        world.arrive(100, turned)
        report, _ = world.watch()
    assert report.alarm, "what could not be judged is not counted"


def test_windows_without_labels_say_nothing_of_performance(world: World) -> None:
    world.arrive(100, labelled=False)
    report, _ = world.watch()
    assert report.performance is None
    assert report.window.labelled == 0
    assert "label" not in [one.name for one in report.columns]
    assert report.finding.kind == "quiet"


def test_a_newer_schema_is_a_fault_of_the_data_and_no_crash(world: World) -> None:
    world.arrive(100)
    for changed in ({"schema_version": 2}, {"something_new": 1}):
        report, made = world.watch(dataset=world.publish(**changed))
        assert (report.finding.kind, report.finding.action) == ("data-bug", "quarantine")
        assert made.alert.startswith("data-bug: v2")
        assert not made.news
    assert world.store.names("monitor/tiny") == [], "a release that knows the schema judges it"
    report, _ = world.watch()
    assert report.finding.kind == "quiet"


def test_a_class_that_got_lost_is_a_fault_of_the_data(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.arrive(100)
    monkeypatch.setattr("ssl_core.monitoring.seen.recorded", lambda ctx, entry: SimpleNamespace(classes=["0", "ten"]))
    report, made = world.watch()
    assert (report.finding.kind, made.news) == ("data-bug", False)
    assert report.finding.reasons == ["schema: the class ten is gone, which the champion knows"]
    assert made.alert.startswith("data-bug")


def test_a_window_of_which_many_files_could_not_be_used_is_a_broken_feed(world: World) -> None:
    world.arrive(100)
    report, made = world.watch(dataset=world.publish(quarantined=20))
    assert report.finding.kind == "data-bug"
    assert "18% of the window's files" in report.finding.reasons[0]
    assert "v2" in made.alert
    world.arrive(100)
    report, _ = world.watch(dataset=world.publish(quarantined=22))
    assert report.finding.kind == "quiet", "of these, only two came with the window"


def test_broken_files_after_a_clean_history_are_seen(world: World) -> None:
    world.arrive(100)
    assert world.watch()[0].finding.kind == "quiet"
    world.arrive(100)
    report, _ = world.watch(dataset=world.publish(quarantined=50))
    assert report.finding.kind == "data-bug"
    assert "36% of the window's files" in report.finding.reasons[0]


def test_a_broken_window_in_a_backlog_is_told_though_the_last_one_is_quiet(world: World) -> None:
    world.arrive(100, contrast=np.float32(0))
    world.arrive(100)
    report, made = world.watch()
    assert (report.window.name, report.finding.kind) == ("v3", "quiet")
    assert made.alert.startswith("data-bug: v2")


def test_a_source_that_was_replaced_leaves_nothing_to_compare_with(world: World) -> None:
    world.arrive(100)
    world.frames[0] = world.frames[0].iloc[:0]
    world.pictures[0] = world.pictures[0][:0]
    report, made = world.watch(dataset=world.publish())
    assert (report.finding.kind, report.alarm, made.news) == ("data-bug", False, False)
    assert "nothing is left of the data up to v1" in report.finding.reasons[0]


def test_files_of_the_champion_that_are_gone_are_told_with_what_to_do(world: World) -> None:
    world.arrive(100)
    shutil.rmtree(world.store.path("tiny/model/k"))
    with pytest.raises(UserError, match="version 1 are not in the store any more") as caught:
        world.watch()
    assert "rollback tiny" in caught.value.next_step
    connect(world.settings).delete_model_version("tiny-encoder", "1")
    with pytest.raises(UserError, match="encoder of tiny version 1"):
        world.watch()


def test_mlflow_out_of_reach_is_tried_again(world: World) -> None:
    world.arrive(100)
    away = Settings(home=world.settings.root, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    world.settings = away
    with pytest.raises(TryAgain, match="MLflow cannot be reached"):
        world.watch()


def test_a_long_history_of_its_own_sets_the_thresholds(bare: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "needed_windows", lambda config: 4)
    for _ in range(5):
        bare.arrive(100)
    bare.crown(version=6)
    bare.arrive(100)
    report, _ = bare.watch()
    assert (report.rule.calibrated_by, report.rule.windows_used) == ("history", 5), "v1 is most of the reference"
    assert report.finding.kind == "quiet"


def test_what_is_answered_where_it_is_served_is_one_more_column(world: World, tmp_path: Path) -> None:
    world.arrive(100, labelled=False)
    now = datetime.now(UTC)
    row = {
        "at": now,
        "model": "tiny",
        "version": "1",
        "label": "3",
        "confidence": 0.9,
        "probabilities": None,
        "content": None,
    }
    rows = [row | {"id": f"r{i}", "truth": "3" if i % 2 else "5"} for i in range(80)]
    (tmp_path / "log").mkdir()
    pq.write_table(
        pa.Table.from_pylist([*rows, row | {"id": "of nobody", "label": "eleven", "truth": None}], schema=schema()),
        tmp_path / "log" / "a.parquet",
    )
    report, _ = world.watch(predictions=str(tmp_path / "log"))
    [column] = [one for one in report.columns if one.name == "served answers"]
    assert column.drifted
    assert report.performance is not None
    assert (report.performance.n, report.performance.quality) == (80, 0.5)
    assert any("1 row left out" in reason for reason in report.finding.reasons)
    world.arrive(100, labelled=False)
    report, _ = world.watch(predictions=str(tmp_path / "nothing"))
    assert "served answers" not in [one.name for one in report.columns]


def test_texts_with_numbers_as_labels(
    settings: Settings, make_project: Callable[..., ProjectConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RESAMPLES", 60)
    store = Store(settings.store_url, settings.cache)
    project = make_project(
        modality="text", data={"source": str(tmp_path), "label_type": "number"}, pretrain={"threads": 1, "device": "cpu", "precision": "float32"}
    )  # fmt: skip
    usual, other = texts.sentences(360), [" ".join([word] * 6) for word in texts.WORDS[:8] for _ in range(8)]
    everything = [*usual, *other]
    first = np.repeat([1, 2, 3], [300, 60, len(other)]).astype(np.int32)
    manifest = pd.DataFrame({
        "sample_id": [f"{row:064d}" for row in range(len(everything))], "group": [f"{row:064d}" for row in range(len(everything))],
        "split": np.where(np.arange(len(everything)) % 4 == 0, "train", "test"), "label": pd.Series([str(len(t)) for t in everything], dtype=object),
        "source": [f"file.jsonl:{row}" for row in range(len(everything))], "first_version": first,
        "arrived_at": pd.Series([pd.Timestamp("2026-01-01", tz="UTC")] * len(everything), dtype="datetime64[us, UTC]"),
        "characters": np.array([len(t) for t in everything], np.int32), "words": np.int32(5), "bytes": np.array([len(t) for t in everything], np.int32),
        "letters": np.float32(1),
    })  # fmt: skip
    folder = tmp_path / "dataset"
    write_dataset(
        folder, manifest, everything.__getitem__, name="tiny", modality="text", classes=[], label_type="number"
    )
    dataset = stored_version(folder, tmp_path / "remote", tag="tiny@v3")
    places = places_of(store)
    texts.write_encoder(places["encoder"])
    texts.write_classifier(places["model"], "number")
    places["evaluation"].mkdir(parents=True)
    enlist(settings, store, dataset)
    monitor.run(step_context(settings, store, project, dataset, tmp_path / "out", "run"))
    report = read(tmp_path / "out")
    assert [(one.window, one.exceeded) for one in report.history] == [("v2", False), ("v3", True)]
    assert report.predictions is None
    assert report.performance is None, "the champion's evaluation is not on record"
    assert {one.name for one in report.columns} >= {"characters", "label", "letters"}
    assert (tmp_path / "out" / "drift.html").stat().st_size > 1000
    assert (tmp_path / "out" / "drift.png").stat().st_size > 1000


def test_the_interval_of_a_difference_is_agresti_and_caffos() -> None:
    window, reference = np.repeat([1.0, 0.0], [40, 10]), np.repeat([1.0, 0.0], [90, 10])
    low, high = watch.difference_interval(window, reference)
    p, q = 41 / 52, 91 / 102
    half = 1.959964 * np.sqrt(p * (1 - p) / 52 + q * (1 - q) / 102)
    assert (low, high) == (pytest.approx(p - q - half), pytest.approx(p - q + half))
    low, high = watch.difference_interval(np.ones(30), np.ones(30))
    assert low < 0 < high, "all right on both sides is still not certain"
