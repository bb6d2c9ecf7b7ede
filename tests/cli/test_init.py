"""``ssl-core init``: every layout gives a file that validates, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from ssl_core.cli.init import init, look, write_project
from ssl_core.config.data import ImageDataConfig
from ssl_core.config.load import load_project
from ssl_core.errors import UserError


def images(folder: Path, count: int, *, size: tuple[int, int] = (24, 24), mode: str = "L", start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(start)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    for i in range(start, start + count):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8), mode).save(folder / f"{i}.png")


def test_class_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label in ("oak", "elm", "ash"):
        images(data / label, 20, size=(30, 40), mode="RGB")
    path = write_project("trees", str(data), tmp_path / "projects")
    project = load_project(path)
    assert project.name == "trees"
    assert Path(project.data.source) == data.resolve()
    assert project.data.classes == ("ash", "elm", "oak")
    assert (project.data.image_size, project.data.channels) == (40, 3)
    assert project.validation.min_rows == 30
    assert project.objective.augment.flip is False
    assert project.pretrain.batch_size == 8
    text = path.read_text()
    assert "# class folders: 60 files, 60 labelled, in 3 classes" in text
    assert "source: ../data" in text  # project and data lie in one place and may move together


def test_a_folder_with_labels_csv(tmp_path: Path) -> None:
    images(tmp_path / "flat", 30)
    rows = [f"{i}.png,{'yes' if i % 2 else 'no'}" for i in range(20)]
    (tmp_path / "flat" / "labels.csv").write_text("file,label\n" + "\n".join(rows))
    path = write_project("flat", str(tmp_path / "flat"), tmp_path / "projects")
    project = load_project(path)
    assert project.data.classes == ("no", "yes")  # quoted: YAML would read them as booleans
    assert "a folder with labels.csv: 30 files, 20 labelled, in 2 classes" in path.read_text()
    assert project.data.channels == 1


def test_a_folder_without_labels(tmp_path: Path) -> None:
    images(tmp_path / "flat", 10, size=(200, 300))
    path = write_project("flat", str(tmp_path / "flat"), tmp_path / "projects")
    project = load_project(path)
    assert project.data.classes is None
    assert project.data.image_size == 96
    assert len(project.encoder.widths) == 4  # larger images: one stage more
    assert "No labels were found" in path.read_text()


def test_the_bundled_digits(tmp_path: Path) -> None:
    project = load_project(write_project("numbers", "sample://digits", tmp_path))
    assert project.data.source == "sample://digits"
    assert (project.data.image_size, project.data.channels) == (8, 1)
    assert project.pretrain.batch_size == 256
    assert len(project.data.classes or ()) == 10


def test_data_elsewhere_is_named_absolutely(tmp_path: Path) -> None:
    images(tmp_path / "far" / "data", 8)
    path = write_project("far", str(tmp_path / "far" / "data"), tmp_path / "here" / "projects")
    assert yaml.safe_load(path.read_text())["data"]["source"] == str((tmp_path / "far" / "data").resolve())


def test_hostile_names_stay_values(tmp_path: Path) -> None:
    labels = ["a: b", "#c", 'it\'s "quoted"', "new\nline: x", "日本", "- dash", "!!python", "x" * 200]
    data = tmp_path / "my #data: it's"
    for i, label in enumerate(labels):
        images(data / label, 4, start=10 * i)
    (data / labels[0] / "bad\n  injected: true.png").write_text("no image")
    project = load_project(write_project("odd", str(data), tmp_path / "projects"))
    assert project.data.classes is not None
    assert set(project.data.classes) == set(labels)
    assert Path(project.data.source) == data.resolve()
    assert project.data.max_quarantined > 1 / 33  # the file must run as it is


@pytest.mark.parametrize(("broken", "limit"), [(2, 0.2), (4, 0.4), (5, ImageDataConfig(source="x").max_quarantined)])
def test_the_guard_stays_on_where_many_files_are_broken(tmp_path: Path, broken: int, limit: float) -> None:
    """Up to a fifth the file runs as it is; above, ingest has to stop with its list."""
    images(tmp_path / "data", 20 - broken)
    for i in range(broken):
        (tmp_path / "data" / f"broken-{i}.png").write_text("no image")
    path = write_project("mixed", str(tmp_path / "data"), tmp_path / "projects")
    assert load_project(path).data.max_quarantined == limit
    assert f"{broken} of 20 files looked at cannot be used" in path.read_text()
    assert ("ingest will stop" in path.read_text()) == (broken == 5)


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    images(tmp_path / "data", 8)
    for name in ("mine.yaml", "other.yml"):
        (tmp_path / name).write_text("precious: true\n")
        with pytest.raises(UserError, match="exists") as caught:
            write_project(name.split(".")[0], str(tmp_path / "data"), tmp_path)
        assert "--force" in caught.value.next_step
        assert (tmp_path / name).read_text() == "precious: true\n"
    assert load_project(write_project("mine", str(tmp_path / "data"), tmp_path, force=True)).name == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "data",
        "mine.yaml",
        "other.yml",
    ]  # nothing half-written is left


@pytest.mark.parametrize(
    ("name", "better"),
    [("My Photos", "my-photos"), ("2024_run", "p-2024-run"), ("é", "p"), ("x" * 60, "x" * 40), ("../up", "up")],
)
def test_a_bad_name_gets_a_suggestion(tmp_path: Path, name: str, better: str) -> None:
    with pytest.raises(UserError) as caught:
        write_project(name, str(tmp_path), tmp_path)
    assert f"init {better} " in caught.value.next_step


def test_missing_empty_and_imageless_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        look("x", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    for name in ("", "labels.csv", "notes.md"):
        if name:
            (tmp_path / "empty" / name).write_text("file,label\n")
        with pytest.raises(UserError, match=r"no images and no texts in .*empty\n") as caught:
            look("x", str(tmp_path / "empty"))
        assert ".png" in caught.value.next_step
        assert ".jsonl" in caught.value.next_step
    with pytest.raises(UserError, match="no images in"):
        look("x", str(tmp_path / "empty"), "image")
    with pytest.raises(UserError, match="no texts in") as caught:
        look("x", str(tmp_path / "empty"), "text")
    assert "put text files (.txt, .jsonl, .ndjson, .csv, .tsv, .parquet) there" in caught.value.next_step
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("this is no image")
    with pytest.raises(UserError, match="none of the 1 file looked at is an image"):
        look("x", str(tmp_path / "text"))
    images(tmp_path / "single" / "only", 8)
    with pytest.raises(UserError, match="only one class"):
        look("x", str(tmp_path / "single"))
    assert not list(tmp_path.glob("**/*.yaml"))


def test_at_most_a_few_hundred_images_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "one", 1)
    png = (tmp_path / "one" / "0.png").read_bytes()
    (tmp_path / "many").mkdir()
    for i in range(1000):
        (tmp_path / "many" / f"{i:04d}.png").write_bytes(png)
    seen = look("many", str(tmp_path / "many"))
    assert (seen.files, seen.looked_at) == (1000, 300)


def test_the_command_says_what_it_saw_and_what_is_next(tmp_path: Path) -> None:
    images(tmp_path / "data", 12)
    result = CliRunner().invoke(
        init, ["plants", "--data", str(tmp_path / "data"), "--projects-dir", str(tmp_path / "p")]
    )
    assert result.exit_code == 0, result.output
    assert "12 files, 0 labelled" in result.output
    assert "looked at 12 images: 24 x 24 pixels, grey" in result.output
    assert f"ssl-core run {tmp_path / 'p' / 'plants.yaml'}" in result.output
