"""From a folder to a candidate, version after version, and what happens when anything goes wrong on the way."""

from __future__ import annotations

import csv
import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import SUMMARY_BYTES_LIMIT, DatasetRef, StepResult, StepStatus
from ssl_core.data import dataset, images, ingest, reader, repository, sources
from ssl_core.data.repository import DataRepository
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.step import StepContext, StepOutput
from tests.data.conftest import encode, picture
from tests.data.remotes import quick_dvc

Make = Callable[..., Path]
_COUNT = 24


class Platform:
    """One platform home and one source folder, and the steps on them."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        make_project: Callable[..., ProjectConfig],
        make_context: Callable[..., StepContext],
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.repository = DataRepository(settings)
        self._make_project = make_project
        self._make_context = make_context
        self._runs = 0

    def context(self, **data: object) -> StepContext:
        self._runs += 1
        project = self._make_project(data={"source": str(self.folder), **data})
        return self._make_context(project, key=f"k{self._runs}")

    def ingest(self, **data: object) -> StepOutput:
        return ingest.run(self.context(**data))

    def publish(self, **data: object) -> tuple[DatasetRef, pd.DataFrame]:
        ref = self.repository.publish(self.ingest(**data).outputs["candidate"])
        return ref, reader.read_manifest(ref, self.settings)

    def untouched(self) -> bool:
        """No candidate, no version, no leftover, and the lock is free."""
        with self.repository.lock(timeout=1):
            pass
        scratch = Path(self.settings.root / "store" / ".scratch")
        leftovers = list(scratch.iterdir()) if scratch.exists() else []
        return not leftovers and not self.repository.candidates() and self.repository.latest("tiny") is None


@pytest.fixture
def platform_with_dvc(
    make_folder: Make,
    settings: Settings,
    make_project: Callable[..., ProjectConfig],
    make_context: Callable[..., StepContext],
) -> Platform:
    folder = make_folder({f"{'cat' if i % 2 else 'dog'}/{i:03d}.png": i for i in range(_COUNT)})
    return Platform(folder, settings, make_project, make_context)


@pytest.fixture
def platform(platform_with_dvc: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """With a quick stand-in for the dvc command; the subject of most tests here comes before it."""
    monkeypatch.setattr(repository, "dvc", quick_dvc)
    return platform_with_dvc


def _quarantine(context: StepContext) -> dict[str, str]:
    listing = json.loads((context.out / "quarantine/quarantine.json").read_text())
    return {entry["file"]: entry["reason"] for entry in listing["quarantined"]}


# ---- what is made


def test_a_folder_becomes_a_candidate(platform_with_dvc: Platform) -> None:
    platform = platform_with_dvc
    output = platform.ingest()
    candidate = output.outputs["candidate"]
    assert isinstance(candidate, DatasetRef)
    assert (candidate.kind, candidate.tag, candidate.rows, candidate.labelled, candidate.classes) == (
        "candidate",
        None,
        _COUNT,
        _COUNT,
        2,
    )
    assert platform.repository.latest("tiny") is None
    manifest = reader.read_manifest(candidate, platform.settings)
    assert list(manifest.columns) == dataset.manifest_schema("image").names
    assert set(zip(manifest["source"], manifest["label"], strict=True)) == {
        (f"{'cat' if i % 2 else 'dog'}/{i:03d}.png", "cat" if i % 2 else "dog") for i in range(_COUNT)
    }
    assert set(manifest["first_version"]) == {1}
    assert (manifest["group"] == manifest["sample_id"]).all()
    folder = reader.fetch(candidate, platform.settings)
    rows = dict(zip(manifest["sample_id"], manifest["source"], strict=True))
    stored = {}
    for ids, encoded in dataset.read_content(folder, "image"):
        stored |= dict(zip(ids, encoded, strict=True))
    assert {rows[i]: data for i, data in stored.items()} == {
        name: (platform.folder / name).read_bytes() for name in rows.values()
    }
    assert output.metrics | {"seconds": 0} == {
        "rows": _COUNT,
        "labelled": _COUNT,
        "classes": 2,
        "duplicates": 0,
        "near_duplicate_groups": 0,
        "quarantined": 0,
        "seconds": 0,
    }
    assert f"**{_COUNT} images**" in output.summary


def test_no_labels_at_all(platform: Platform, make_folder: Make) -> None:
    make_folder({"labels.csv": "file,label\n"}, root=platform.folder)
    candidate = platform.ingest().outputs["candidate"]
    assert (candidate.rows, candidate.labelled, candidate.classes) == (_COUNT, 0, 0)


def test_versions_grow_and_nothing_moves(platform: Platform, make_folder: Make) -> None:
    first, before = platform.publish()
    near = Image.eval(picture(3), lambda v: min(255, v + 2))
    make_folder({f"{'cat' if i % 2 else 'dog'}/{i:03d}.png": i for i in range(100, 160)}, root=platform.folder)
    make_folder(
        {"aaa/near.png": encode(near), "labels.csv": "file,label\ncat/001.png,cat\ndog/002.png,dog\n"},
        root=platform.folder,
    )
    second, after = platform.publish()
    assert (first.tag, second.tag) == ("tiny@v1", "tiny@v2")
    assert after["first_version"].tolist() == [1] * _COUNT + [2] * 61
    kept = ["sample_id", "split", "group", "source", "arrived_at", "first_version"]
    pd.testing.assert_frame_equal(after[kept][:_COUNT], before[kept])
    new = after.set_index("source").loc["aaa/near.png"]
    original = after.set_index("source").loc["cat/003.png"]
    assert (new["group"], new["split"]) == (original["sample_id"], original["split"])
    assert after["label"].notna().sum() == 2
    assert new["arrived_at"] > original["arrived_at"]


def test_unchanged_content_makes_no_new_version(platform: Platform) -> None:
    first, _ = platform.publish()
    for path in platform.folder.rglob("*.png"):
        path.touch()  # another fingerprint, the same content
    output = platform.ingest()
    assert output.outputs["candidate"].md5 == first.md5
    assert platform.repository.publish(output.outputs["candidate"]) == first
    assert "0 new since tiny@v1" in output.summary


def test_removed_files_leave_the_next_version(platform: Platform) -> None:
    platform.publish()
    (platform.folder / "cat/001.png").unlink()
    second, after = platform.publish()
    assert (second.tag, second.rows) == ("tiny@v2", _COUNT - 1)
    assert "cat/001.png" not in set(after["source"])


def test_exact_copies_are_dropped_and_counted(platform: Platform, make_folder: Make) -> None:
    make_folder({"cat/copy.png": 1, "aaa.bmp": encode(picture(1), "BMP"), "dog/z.png": 2}, root=platform.folder)
    output = platform.ingest()
    assert (output.metrics["rows"], output.metrics["duplicates"]) == (_COUNT, 3)
    manifest = reader.read_manifest(output.outputs["candidate"], platform.settings).set_index("source")
    assert manifest.loc["aaa.bmp", "label"] == "cat"  # the first by name is kept, the label comes from its copies
    assert "cat/001.png" not in manifest.index


def test_copies_with_different_labels_lose_them_and_are_listed(platform: Platform, make_folder: Make) -> None:
    make_folder({"dog/same.png": 1}, root=platform.folder)
    context = platform.context()
    output = ingest.run(context)
    manifest = reader.read_manifest(output.outputs["candidate"], platform.settings).set_index("source")
    assert pd.isna(manifest.loc["cat/001.png", "label"])
    assert (output.metrics["labelled"], output.metrics["quarantined"]) == (_COUNT - 1, 0)
    conflict = json.loads((context.out / "quarantine/quarantine.json").read_text())["conflicting_labels"]
    assert [entry["file"] for entry in conflict] == ["cat/001.png"]
    assert "dog/same.png is 'dog'" in conflict[0]["reason"]
    assert "copies with different labels" in output.summary


def test_near_duplicates_share_a_side_unless_told_otherwise(platform: Platform, make_folder: Make) -> None:
    changed = {f"cat/near{i}.png": encode(Image.eval(picture(i), lambda v: min(255, v + 1))) for i in range(10)}
    make_folder(changed, root=platform.folder)
    output = platform.ingest()
    assert output.metrics["near_duplicate_groups"] == 10
    manifest = reader.read_manifest(output.outputs["candidate"], platform.settings)
    pairs = manifest.groupby("group").filter(lambda rows: len(rows) > 1).groupby("group")
    assert all(rows["split"].nunique() == 1 and rows["sample_id"].min() == group for group, rows in pairs)
    assert platform.ingest(near_duplicates=False).metrics["near_duplicate_groups"] == 0


def test_mixed_sizes_and_modes(platform: Platform, make_folder: Make) -> None:
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    files = {
        "cat/rgb.png": encode(picture(200, (30, 20), "RGB")),
        "cat/rgba.png": encode(picture(201, (9, 31), "RGBA")),
        "dog/palette.gif": encode(picture(202, (8, 8), "RGB").convert("P"), "GIF"),
        "dog/deep.png": encode(deep),
        "dog/photo.JPG": encode(picture(203, (64, 48), "RGB"), "JPEG"),
        "dog/one.png": encode(picture(204).convert("1")),
    }
    make_folder(files, root=platform.folder)
    output = platform.ingest()
    assert (output.metrics["rows"], output.metrics["quarantined"]) == (_COUNT + 6, 0)
    manifest = reader.read_manifest(output.outputs["candidate"], platform.settings).set_index("source")
    assert manifest.loc["cat/rgba.png", ["width", "height", "channels"]].tolist() == [9, 31, 3]
    assert manifest.loc["dog/deep.png", ["width", "height", "channels"]].tolist() == [20, 20, 1]


# ---- what cannot be used


def _spoil(platform: Platform, make_folder: Make) -> None:
    outside = platform.folder.parent / "outside.png"
    outside.write_bytes(encode(picture(500)))
    make_folder(
        {
            "cat/cut.png": encode(picture(300, (64, 64)))[:2000],
            "cat/text.png": "not a picture",
            "dog/dot.png": encode(picture(301, (1, 1))),
        },
        root=platform.folder,
    )
    (platform.folder / "dog/out.png").symlink_to(outside)


def test_unusable_files_are_listed_with_their_reasons(platform: Platform, make_folder: Make) -> None:
    _spoil(platform, make_folder)
    context = platform.context(max_quarantined=0.5)
    output = ingest.run(context)
    assert (output.metrics["rows"], output.metrics["quarantined"], output.outputs["candidate"].rows) == (
        _COUNT,
        4,
        _COUNT,
    )
    found = _quarantine(context)
    for file, reason in {
        "cat/cut.png": "damaged",
        "cat/text.png": "not an image",
        "dog/dot.png": "data.min_side",
        "dog/out.png": "leads out",
    }.items():
        assert reason in found.pop(file)
    assert not found
    with (context.out / "quarantine/quarantine.csv").open(newline="") as text:
        assert {row["file"] for row in csv.DictReader(text)} == {
            "cat/cut.png",
            "cat/text.png",
            "dog/dot.png",
            "dog/out.png",
        }
    assert "`cat/cut.png`" in output.summary


def test_too_many_unusable_files_fail_and_commit_nothing(
    platform: Platform, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.publish()
    _spoil(platform, make_folder)
    make_folder({f"cat/bad{i:02d}.png": "x" for i in range(20)}, root=platform.folder)
    context = platform.context(max_quarantined=0.1)
    monkeypatch.setattr(context.tracker, "artifact", lambda path, folder="": f"http://mlflow/{folder}/{path.name}")
    with pytest.raises(CheckFailed, match="24 of 48 images could not be used") as caught:
        ingest.run(context)
    assert caught.value.exit_code == 3
    output = caught.value.output
    assert "http://mlflow/ingest/quarantine.csv" in caught.value.next_step
    assert output.outputs["quarantine"].kind == "report"
    assert output.summary.count("\n- `") == 10
    assert "and 14 more" in output.summary
    assert len(_quarantine(context)) == 24
    assert platform.repository.latest("tiny").tag == "tiny@v1"
    assert platform.repository.candidates() == []

    context.store.publish(
        "tiny", StepResult(step="ingest", key=context.key, status=StepStatus.CHECK_FAILED), context.out
    )
    named = Path(next(word for word in caught.value.next_step.split() if "quarantine.csv" in word).rstrip(","))
    assert named.read_text().count("\n") == 1 + 24, "the list lies where the message says, once it is published"


def test_no_usable_image_is_the_users_error(platform: Platform, make_folder: Make) -> None:
    for path in platform.folder.rglob("*.png"):
        path.write_text("x")
    with pytest.raises(UserError, match="none of the 24 images") as caught:
        platform.ingest(max_quarantined=1.0)
    assert "cat/001.png: not an image" in str(caught.value)
    assert platform.untouched()


def test_no_usable_image_fails_with_the_list_where_that_is_above_the_limit(platform: Platform) -> None:
    for path in platform.folder.rglob("*.png"):
        path.write_text("x")
    context = platform.context(max_quarantined=0.5)
    with pytest.raises(CheckFailed, match="24 of 24 images could not be used") as caught:
        ingest.run(context)
    assert caught.value.output.metrics == {"quarantined": 24, "rows": 0}
    assert len(_quarantine(context)) == 24
    assert platform.untouched()


def test_one_class_left_after_quarantine_is_the_users_error(platform: Platform) -> None:
    for path in (platform.folder / "cat").iterdir():
        path.write_text("x")
    with pytest.raises(UserError, match=r"data\.labels: .* are 'dog'"):
        platform.ingest(max_quarantined=1.0)
    assert platform.untouched()


def test_the_summary_stays_within_the_limit_of_a_result(platform: Platform, make_folder: Make) -> None:
    name = "名" * 60
    make_folder({f"cat/{name}{i}.png": "x" for i in range(30)}, root=platform.folder)
    make_folder(
        {f"{other}/{name}-copy{i}.png": 1000 + i for i in range(12) for other in ("cat", "dog")}, root=platform.folder
    )
    output = platform.ingest(max_quarantined=1.0)
    assert "different labels" in output.summary
    assert "and 20 more" in output.summary
    assert len(output.summary.encode()) <= SUMMARY_BYTES_LIMIT


# ---- what is interrupted


def test_a_full_disk_while_shards_are_written(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    written = dataset.pq.ParquetWriter.write_table

    def full(self: object, *arguments: object, **options: object) -> None:
        written(self, *arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dataset.pq.ParquetWriter, "write_table", full)
        with pytest.raises(TryAgain, match="no space left"):
            platform.ingest()
    assert platform.untouched()
    assert platform.ingest().outputs["candidate"].rows == _COUNT


def test_a_full_disk_while_the_candidate_is_committed(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DataRepository, "_push", full)
        with pytest.raises(TryAgain, match="no space left"):
            platform.ingest()
    assert platform.untouched()
    assert platform.publish()[0].tag == "tiny@v1"


@pytest.mark.parametrize("place", ["reading", "writing"])
def test_ctrl_c_leaves_no_lock_and_no_half_candidate(
    place: str, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    module, name = (images, "thumbnail") if place == "reading" else (ingest, "_read_again")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        threads = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            platform.ingest()
    assert threading.active_count() == threads
    assert platform.untouched()
    assert platform.ingest().outputs["candidate"].rows == _COUNT


def test_ctrl_c_ends_with_the_images_at_hand(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole chunks were handed to threads; none of them may go on for long after the main thread was interrupted."""
    decoded = []

    def slow(*arguments: object, real: Callable[..., object] = images.decode, **options: object) -> object:
        decoded.append(1)
        time.sleep(0.02)
        return real(*arguments, **options)

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    context = platform.context()
    monkeypatch.setattr(ingest, "_CHUNK", _COUNT)
    monkeypatch.setattr(images, "decode", slow)
    monkeypatch.setattr(ingest.Future, "result", interrupt)  # where the main thread waits
    with pytest.raises(KeyboardInterrupt):
        ingest.run(context)
    assert len(decoded) < _COUNT / 2


@pytest.mark.parametrize("place", ["reading", "writing"])
def test_told_to_stop(place: str, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    context = platform.context()
    if place == "reading":
        context.stop.set()
    else:
        monkeypatch.setattr(ingest, "_manifest", lambda *a, real=ingest._manifest: (context.stop.set(), real(*a))[1])
    with pytest.raises(TryAgain, match="told to stop"):
        ingest.run(context)
    assert platform.untouched()


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_changes_underneath(change: str, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*arguments: object, real: Callable[..., object] = ingest._manifest) -> object:
        path = platform.folder / "cat/001.png"
        if change == "replaced":
            path.write_bytes(encode(picture(999)))
        else:
            path.unlink()
        return real(*arguments)

    monkeypatch.setattr(ingest, "_manifest", late)
    with pytest.raises(TryAgain, match="changed while it was being ingested") as caught:
        platform.ingest()
    assert caught.value.place == "cat/001.png"
    assert platform.untouched()


def test_another_version_is_published_meanwhile(
    platform: Platform, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = platform.ingest().outputs["candidate"]
    make_folder({"cat/new.png": 400}, root=platform.folder)

    def late(*arguments: object, real: Callable[..., object] = ingest._manifest) -> object:
        platform.repository.publish(first)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_manifest", late)
        with pytest.raises(TryAgain):
            platform.ingest()
    second, after = platform.publish()
    assert second.tag == "tiny@v2"
    assert after.set_index("source").loc["cat/new.png", "first_version"] == 2


def test_two_ingests_at_once(platform: Platform) -> None:
    contexts = [platform.context(), platform.context()]
    outputs: list[StepOutput] = []
    threads = [threading.Thread(target=lambda c=context: outputs.append(ingest.run(c))) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 2
    published = {platform.repository.publish(outputs[0].outputs["candidate"]).tag}
    assert published == {"tiny@v1"}
    assert len(platform.repository.versions("tiny")) == 1


# ---- the step's key and cache


def test_a_cached_candidate_counts_while_it_can_be_published(platform: Platform) -> None:
    candidate = platform.ingest().outputs["candidate"]
    result = StepResult(step="ingest", key="k", status=StepStatus.DONE, outputs={"candidate": candidate})
    assert ingest.still_there(result, platform.settings)
    platform.repository.publish(candidate)
    assert ingest.still_there(result, platform.settings)
    remote = Path(platform.settings.dvc_remote_url) / "files/md5" / candidate.md5[:2] / candidate.md5[2:]
    hidden = remote.with_name("hidden")
    remote.rename(hidden)
    assert not ingest.still_there(result, platform.settings)
    hidden.rename(remote)
    assert ingest.still_there(result, platform.settings)
    assert not ingest.still_there(result.model_copy(update={"outputs": {}}), platform.settings)


def test_a_collected_candidate_is_made_again(platform: Platform) -> None:
    candidate = platform.ingest().outputs["candidate"]
    result = StepResult(step="ingest", key="k", status=StepStatus.DONE, outputs={"candidate": candidate})
    for one in platform.repository.candidates():
        platform.repository.drop_candidate(one)
    assert not ingest.still_there(result, platform.settings)


def test_the_fingerprint_is_that_of_the_source(platform: Platform, make_folder: Make) -> None:
    project = platform.context().project
    first = ingest.fingerprint(project)
    assert first == sources.open_source(project).fingerprint() == ingest.fingerprint(project)
    make_folder({"cat/new.png": 400}, root=platform.folder)
    assert ingest.fingerprint(project) != first
