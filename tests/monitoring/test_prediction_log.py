"""Prediction logs: what is written is read, whatever else lies in the folder, and nothing that anybody wrote stops the reader."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_core.monitoring.prediction_log import LogWindow, read_log
from ssl_core.serving import prediction_log
from ssl_core.serving.prediction_log import PredictionLog, digest, schema, served_log

CLASSES = ("cat", "dog", "owl")
SINCE = datetime(2026, 11, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def row(number: int = 0, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": f"r{number}", "at": SINCE + timedelta(hours=number), "model": "pets", "version": "3", "label": "dog", "confidence": 0.7,
        "probabilities": [("cat", 0.2), ("dog", 0.7), ("owl", 0.1)], "content": f"sha256:{number}", "truth": None,
    }  # fmt: skip
    return values | more


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), path)
    return path


def read(folder: Path, **more: Any) -> LogWindow:
    return read_log(str(folder), CLASSES, **({"version": "3", "since": SINCE, "now": NOW} | more))


def test_what_serving_writes_is_what_the_monitor_reads(tmp_path: Path) -> None:
    log = PredictionLog(str(tmp_path / "log"), "pets", "3")
    answer = pd.DataFrame({
        "label": ["dog", "owl"], "confidence": [0.8, 0.6],
        "probabilities": [{"cat": 0.1, "dog": 0.8, "owl": 0.1}, {"cat": 0.2, "dog": 0.2, "owl": 0.6}],
    })  # fmt: skip
    log.add(answer, [digest(b"one"), digest("two")])
    log.close()
    (file,) = (tmp_path / "log").rglob("*.parquet")
    assert file.parent.name == f"{datetime.now(UTC):%Y-%m-%d}"
    assert pq.read_schema(file).equals(schema())
    found = read_log(str(tmp_path / "log"), CLASSES, version="3", since=datetime.now(UTC) - timedelta(minutes=5))
    assert sorted(found.labels.tolist()) == [1, 2]
    assert found.probabilities is not None
    assert found.probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert found.truth.tolist() == [-1, -1]
    assert (found.bad, found.unreadable, found.other_versions) == ({}, {}, 0)
    assert b"one" not in file.read_bytes()


# ---- which rows count


def test_rows_of_this_version_since_then_in_the_order_of_time(tmp_path: Path) -> None:
    write(tmp_path / "b" / "late.parquet", [row(5), row(3)])
    write(tmp_path / "a.parquet", [row(-1), row(0), row(1, version="2"), row(-2, version="2"), row(4, label="owl")])
    found = read(tmp_path)
    assert found.at.tolist() == [(SINCE + timedelta(hours=n)).replace(tzinfo=None) for n in (0, 3, 4, 5)]
    assert found.labels.tolist() == [1, 1, 2, 1]
    assert found.other_versions == 1
    assert found.files == 2
    assert found.name == "predictions of 2026-11-01"
    assert read(tmp_path, version="9").name == "no predictions"


def test_the_newest_are_kept_of_more_than_are_looked_at(tmp_path: Path) -> None:
    for part in range(4):
        write(tmp_path / f"{part}.parquet", [row(n) for n in range(part, 400, 4)])
    found = read(tmp_path, most=100)
    assert len(found) == 100
    assert found.at[0] == np.datetime64((SINCE + timedelta(hours=300)).replace(tzinfo=None))
    assert found.cut == 300
    assert "of 400 rows the newest 100 were looked at" in found.notes()[-1]


def test_a_log_that_is_sent_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0), row(1)])
    write(tmp_path / "again.parquet", [row(0), row(1), row(2)])
    found = read(tmp_path)
    assert len(found) == 3
    assert found.bad == {"the same id once more": 2}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"at": NOW + timedelta(days=2)}, "a time in the future"),
        ({"label": "wolf"}, "a label that the champion does not know"),
        ({"label": "dog" * 100_000}, "a label that the champion does not know"),
        ({"confidence": float("nan"), "probabilities": None}, "a confidence that is no probability"),
        ({"confidence": 1.5}, "a confidence that is no probability"),
        ({"probabilities": [("dog", 0.7)]}, "probabilities that do not sum to 1"),
        ({"probabilities": [("dog", 0.7), ("wolf", 0.3)]}, "probabilities that do not sum to 1"),
        ({"probabilities": [("dog", 1.7), ("cat", -0.7)]}, "probabilities that do not sum to 1"),
        ({"probabilities": [("dog", float("nan")), ("cat", 1.0)]}, "probabilities that do not sum to 1"),
        ({"probabilities": []}, "probabilities that do not sum to 1"),
    ],
)
def test_rows_that_make_no_sense_are_left_out_and_told(fault: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0), row(1, **fault), row(2)])
    found = read(tmp_path)
    assert len(found) == 2
    ((told, count),) = found.bad.items()
    assert told.startswith(reason)
    assert count == 1
    assert found.notes()[0].startswith("prediction log: 1 row left out: ")


@pytest.mark.parametrize("name", ["id", "at", "label"])
def test_a_row_that_lacks_what_it_must_have_is_left_out(name: str, tmp_path: Path) -> None:
    loose = pa.schema([field.with_nullable(True) for field in schema()])
    pq.write_table(pa.Table.from_pylist([row(0), row(1, **{name: None})], schema=loose), tmp_path / "a.parquet")
    found = read(tmp_path)
    assert len(found) == 1
    assert list(found.bad) == [{"id": "no id", "at": "no time", "label": "no label"}[name]]


def test_a_confidence_follows_from_probabilities_and_probabilities_may_be_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0, confidence=None)])
    assert read(tmp_path).confidence.tolist() == pytest.approx([0.7])
    write(tmp_path / "b.parquet", [row(1, probabilities=None)])
    found = read(tmp_path)
    assert len(found) == 2
    assert found.probabilities is None, "all or none"


@pytest.mark.parametrize("form", ["fields", "naive", "milliseconds", "dictionary"])
def test_logs_of_other_programs_are_read(form: str, tmp_path: Path) -> None:
    frame = pd.DataFrame([row(n) for n in range(3)])
    frame["probabilities"] = [dict(p) for p in frame["probabilities"]]
    if form == "naive":
        frame["at"] = frame["at"].dt.tz_localize(None)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if form == "milliseconds":
        table = table.set_column(1, "at", table["at"].cast(pa.timestamp("ms", tz="Europe/Berlin")))
    if form == "dictionary":
        table = table.set_column(4, "label", table["label"].dictionary_encode())
    pq.write_table(table.append_column("more", pa.array([1, 2, 3])), tmp_path / "a.parquet")
    found = read(tmp_path)
    assert found.unreadable == {}
    assert len(found) == 3
    assert found.probabilities is not None
    assert found.probabilities[0] == pytest.approx([0.2, 0.7, 0.1])


# ---- labels that come later


def test_labels_come_later_by_id_or_by_content(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0, truth="cat"), row(1), row(2), row(3), row(4)])
    pq.write_table(pa.table({"id": ["r1", "zzz"], "truth": ["dog", "cat"]}), tmp_path / "labels-1.parquet")
    pq.write_table(pa.table({"content": ["sha256:2", "sha256:3"], "truth": ["owl", "wolf"]}), tmp_path / "z.parquet")
    found = read(tmp_path)
    assert found.truth.tolist() == [0, 1, 2, -1, -1]
    assert found.bad == {"only its truth: a class that the champion does not know": 1}


# ---- files


def test_files_that_are_none_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", [row(n) for n in range(2000)]).read_bytes()
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[200:1200] = b"\xff" * 1000
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    pq.write_table(
        pa.table({"id": ["a"], "at": ["today"], "version": ["3"], "label": ["cat"]}), tmp_path / "times.parquet"
    )
    pq.write_table(
        pa.table({"id": ["a"], "at": [SINCE], "version": ["3"], "label": ["cat"], "probabilities": ["0.3"]}),
        tmp_path / "words.parquet",
    )
    (tmp_path / ".half-written.parquet").write_bytes(b"PAR1")
    (tmp_path / "notes.txt").write_text("ignored")
    found = read(tmp_path, now=datetime(2027, 6, 1, tzinfo=UTC))
    assert len(found) == 2000
    assert set(found.unreadable) == {
        f"{n}.parquet" for n in ("empty", "half", "damaged", "text", "other", "times", "words")
    }
    assert found.unreadable["other.parquet"] == "it has no column id, at, version, label"
    assert found.unreadable["times.parquet"] == "at holds string, not times"
    assert found.unreadable["words.parquet"] == "probabilities hold string, not a number for each class"
    notes = found.notes()
    assert len(notes) == 6
    assert notes[-1] == "prediction log: and 2 files more"


def test_no_folder_an_empty_one_and_a_log_without_rows_are_no_error(tmp_path: Path) -> None:
    missing = read(tmp_path / "none")
    assert len(missing) == 0
    assert "there is no" in missing.notes()[0]
    assert len(read(tmp_path)) == 0
    write(tmp_path / "a.parquet", [])
    empty = read(tmp_path)
    assert (len(empty), empty.files, empty.notes(), empty.probabilities) == (0, 1, [], None)


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "outside.parquet", [row(0)])
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.parquet").symlink_to(tmp_path / "outside.parquet")
    found = read(tmp_path / "log")
    assert len(found) == 0
    assert "a.parquet" in found.unreadable


def test_a_large_log_is_read_in_little_time_and_what_is_older_is_skipped(tmp_path: Path) -> None:
    count = 400_000
    times = np.datetime64("2026-10-01T00:00:00", "us") + np.arange(count) * np.timedelta64(10_000_000, "us")
    table = pa.table({
        "id": pa.array(np.arange(count).astype(str)), "at": pa.array(times, pa.timestamp("us", tz="UTC")), "version": ["3"] * count,
        "label": np.array(CLASSES)[np.arange(count) % 3], "confidence": np.full(count, 0.9),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20_000)
    started = time.monotonic()
    found = read(tmp_path, since=datetime(2026, 11, 10, tzinfo=UTC))
    assert time.monotonic() - started < 5
    assert len(found) == count - 40 * 8640
    assert found.notes() == []


# ---- the writer


def test_rows_are_written_when_there_are_enough_or_after_a_while(tmp_path: Path) -> None:
    answer = pd.DataFrame({"label": ["cat"], "confidence": [1.0], "probabilities": [{"cat": 1.0}]})
    many = PredictionLog(str(tmp_path / "many"), "pets", "3", rows=3, seconds=600)
    soon = PredictionLog(str(tmp_path / "soon"), "pets", "3", rows=1000, seconds=0.1)
    for _ in range(3):
        many.add(answer, [None])
    soon.add(answer, [None])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not all([*tmp_path.glob(f"{n}/*/*.parquet")] for n in ("many", "soon")):
        time.sleep(0.02)
    for log, rows in ((many, 3), (soon, 1)):
        log.close()
        (file,) = (tmp_path / ("many" if log is many else "soon")).rglob("*.parquet")
        assert pq.read_table(file).num_rows == rows
    assert not [*tmp_path.rglob(".*")]


def test_a_log_that_cannot_be_written_harms_no_answer_and_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "MOST_HELD", 5)
    (tmp_path / "log").write_text("a file stands where the folder should")
    log = PredictionLog(str(tmp_path / "log"), "pets", "3", seconds=600)
    answer = pd.DataFrame({"label": ["cat"], "confidence": [1.0], "probabilities": [{"cat": 1.0}]})
    for number in range(8):
        log.add(answer, [str(number)])
        log.flush()
    log.add(answer, ["too", "many"])
    log.add(pd.DataFrame({"value": [1.0]}), [None])
    assert "the log at" in caplog.text
    assert "predictions are lost" in caplog.text
    (tmp_path / "log").unlink()
    log.close()
    (file,) = (tmp_path / "log").rglob("*.parquet")
    assert pq.read_table(file)["content"].to_pylist() == ["3", "4", "5", "6", "7"]


def test_a_served_model_logs_where_it_is_asked_to_under_its_own_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "artifacts" / "model"
    artifact.mkdir(parents=True)
    (tmp_path / "MLmodel").write_text("flavors:\n  python_function: {}\nmodel_id: m-1234\n")
    monkeypatch.delenv(prediction_log.VARIABLE, raising=False)
    assert served_log(artifact) is None
    monkeypatch.setenv(prediction_log.VARIABLE, str(tmp_path / "log"))
    assert vars(served_log(artifact))["_version"] == "m-1234"
    (tmp_path / "registered_model_meta").write_text("model_name: pets\nmodel_version: '12'\n")
    log = served_log(artifact)
    assert (vars(log)["_model"], vars(log)["_version"]) == ("pets", "12")


def test_a_server_that_is_told_to_stop_writes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prediction_log.VARIABLE, str(tmp_path / "log"))
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        log = served_log(tmp_path / "artifacts" / "model")
        assert log is not None
        log.add(pd.DataFrame({"label": ["cat"], "confidence": [1.0], "probabilities": [{"cat": 1.0}]}), [None])
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]
    assert len([*(tmp_path / "log").rglob("*.parquet")]) == 1
    log.close()
