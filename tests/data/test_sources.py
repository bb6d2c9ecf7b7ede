"""The layouts of folders, and every way in which a folder or its labels can be wrong."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.data.sources import Refused, open_source
from ssl_core.errors import UserError
from tests.data.conftest import encode, picture

Make = Callable[..., Path]


@pytest.fixture
def open_folder(make_project: Callable[..., ProjectConfig]) -> Callable[..., object]:
    return lambda folder, **data: open_source(make_project(data={"source": str(folder), **data}))


def _labels(source: object) -> dict[str, str | None]:
    items = list(source.items())
    assert len(items) == len(source)
    return {item.name: item.label for item in items}


def _fails(open_folder: Callable[..., object], folder: Path, *parts: str, **data: object) -> None:
    with pytest.raises(UserError) as caught:
        open_folder(folder, **data)
    text = str(caught.value)
    assert caught.value.place
    assert caught.value.next_step
    for part in parts:
        assert part in text


# ---- layouts


def test_class_folders(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder(
        {"cat/1.png": 1, "cat/deep/2.png": 2, "dog/1.png": 3, "4.png": 4, "unlabeled/5.png": 5, "Unlabelled/6.png": 6}
    )
    assert _labels(open_folder(folder)) == {
        "4.png": None,
        "Unlabelled/6.png": None,
        "cat/1.png": "cat",
        "cat/deep/2.png": "cat",
        "dog/1.png": "dog",
        "unlabeled/5.png": None,
    }


def test_a_folder_without_any_label(make_folder: Make, open_folder: Callable[..., object]) -> None:
    assert _labels(open_folder(make_folder({"b.png": 1, "a.png": 2}))) == {"a.png": None, "b.png": None}


def test_labels_csv_with_byte_order_mark_and_partial_labels(
    make_folder: Make, open_folder: Callable[..., object]
) -> None:
    csv = "\ufefffile,label\r\na.png,cat\r\nsub/b.png,dog\r\n\r\n./c.png,\r\na.png,cat\r\n"
    folder = make_folder({"a.png": 1, "sub/b.png": 2, "c.png": 3, "d.png": 4, "labels.csv": csv})
    assert _labels(open_folder(folder)) == {"a.png": "cat", "c.png": None, "d.png": None, "sub/b.png": "dog"}


def test_labels_csv_wins_over_class_folders(make_folder: Make, open_folder: Callable[..., object]) -> None:
    files: dict[str, int | str] = {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3}
    folder = make_folder({**files, "labels.csv": "file,label\ncat/1.png,lynx\ndog/1.png,fox\n"})
    assert _labels(open_folder(folder)) == {"cat/1.png": "lynx", "cat/2.png": None, "dog/1.png": "fox"}
    make_folder({"labels.csv": "file,label\n"})  # a header alone says: these folders are no classes
    assert set(_labels(open_folder(folder)).values()) == {None}


def test_labels_elsewhere(make_folder: Make, open_folder: Callable[..., object], tmp_path: Path) -> None:
    folder = make_folder({"a.png": 1, "b.png": 2, "labels.csv": "no use"})
    (tmp_path / "mine.csv").write_text("file,label\na.png,x\nb.png,y\n")
    assert _labels(open_folder(folder, labels=str(tmp_path / "mine.csv"))) == {"a.png": "x", "b.png": "y"}
    _fails(open_folder, folder, "data.labels", "no such file", labels=str(tmp_path / "none.csv"))


def test_hidden_files_and_sidecars_are_left_alone_but_a_text_named_png_is_tried(
    make_folder: Make, open_folder: Callable[..., object]
) -> None:
    folder = make_folder(
        {
            "a.png": 1,
            ".b.png": 2,
            ".git/c.png": 3,
            "notes.txt": "x",
            "a.json": "{}",
            "other.CSV": "",
            "d.png": "text",
            "noext": 4,
        }
    )
    assert list(_labels(open_folder(folder))) == ["a.png", "d.png", "noext"]


@pytest.mark.parametrize(
    "name",
    [
        "a b.png",
        "it's.png",
        'say "hi".png',
        "naïve-日本.png",
        "comma,here.png",
        "line\nbreak.png",
        "$(x);&.png",
        "-rf.png",
    ],
)
def test_any_file_name(name: str, make_folder: Make, open_folder: Callable[..., object]) -> None:
    quoted = '"d/' + name.replace('"', '""') + '"'
    folder = make_folder({f"d/{name}": 1, "b.png": 2, "labels.csv": f"file,label\n{quoted},x\nb.png,y\n"})
    source = open_folder(folder)
    assert _labels(source) == {"b.png": "y", f"d/{name}": "x"}
    assert next(item for item in source.items() if item.label == "x").read() == encode(picture(1))


def test_a_name_in_another_unicode_form_is_the_same_file(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"cafe\u0301.png": 1, "b.png": 2, "labels.csv": "file,label\ncaf\u00e9.png,x\nb.png,y\n"})
    assert sorted(filter(None, _labels(open_folder(folder)).values())) == ["x", "y"]


def test_a_name_that_is_not_utf8_is_shown_escaped_and_read(
    make_folder: Make, open_folder: Callable[..., object]
) -> None:
    folder = make_folder({"b.png": 2})
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"content")
    items = {item.name: item for item in open_folder(folder).items()}
    assert items["\\xff.png"].read() == b"content"


def test_a_bundled_sample(make_project: Callable[..., ProjectConfig], tmp_path: Path) -> None:
    project = make_project(data={"source": "sample://digits"})
    source = open_source(project, tmp_path)
    assert source.fingerprint().startswith("sample:digits:")
    assert not list(tmp_path.iterdir())  # a fingerprint loads nothing
    labels = _labels(source)
    assert len(labels) == 1797
    assert set(labels.values()) == {str(digit) for digit in range(10)}
    with pytest.raises(UserError, match="no sample called 'digit'"):
        open_source(make_project(data={"source": "sample://digit"}), tmp_path)
    some = make_project(data={"source": "sample://digits", "classes": ["0", "1"]})
    with pytest.raises(UserError, match=r"is not in data\.classes"):
        len(open_source(some, tmp_path))


# ---- nothing outside the folder is read


def test_links_out_of_the_folder_are_refused(
    make_folder: Make, open_folder: Callable[..., object], tmp_path: Path
) -> None:
    outside = make_folder({"secret.png": 1, "more/x.png": 2}, root=tmp_path / "outside")
    folder = make_folder({"a.png": 3})
    (folder / "out.png").symlink_to(outside / "secret.png")
    (folder / "up.png").symlink_to("../outside/secret.png")
    (folder / "folder").symlink_to(outside / "more")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "inside.png").symlink_to("a.png")
    items = {item.name: item for item in open_folder(folder).items()}
    assert set(items) == {"a.png", "out.png", "up.png", "folder", "loop", "broken.png", "inside.png"}
    for name, reason in {
        "out.png": "leads out",
        "up.png": "leads out",
        "folder": "leads out",
        "loop": "link to a folder",
        "broken.png": "to nothing",
    }.items():
        with pytest.raises(Refused, match=reason):
            items[name].read()
    assert items["inside.png"].read() == items["a.png"].read()


def test_a_file_that_becomes_a_link_after_listing_is_refused(
    make_folder: Make, open_folder: Callable[..., object], tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = make_folder({"a.png": 3, "b.png": 4})
    items = {item.name: item for item in open_folder(folder).items()}
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refused, match="leads out"):
        items["a.png"].read()


def test_files_that_cannot_be_read_are_refused(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"a.png": 1, "b.png": 2})
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    items = {item.name: item for item in open_folder(folder).items()}
    (folder / "a.png").unlink()
    with pytest.raises(Refused, match="No such file"):
        items["a.png"].read()
    with pytest.raises(Refused, match="not a regular file"):
        items["pipe.png"].read()


def test_a_huge_file_is_refused_before_it_is_read(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"a.png": 1})
    with (folder / "b.png").open("wb") as file:
        file.truncate(2**40)  # takes no space; reading it would take all memory
    item = next(item for item in open_folder(folder).items() if item.name == "b.png")
    with pytest.raises(Refused, match="larger than 256 MiB"):
        item.read()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../secret.png"])
def test_labels_csv_cannot_lead_out(name: str, make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"a.png": 1, "labels.csv": f"file,label\na.png,x\n{name},y\n"})
    (folder.parent / "secret.png").write_bytes(encode(picture(2)))
    _fails(open_folder, folder, "labels.csv line 3", "leads out of the source folder")


def test_labels_csv_that_is_a_link_out_is_refused(
    make_folder: Make, open_folder: Callable[..., object], tmp_path: Path
) -> None:
    (tmp_path / "secrets.csv").write_text("file,label\n")
    folder = make_folder({"a.png": 1})
    (folder / "labels.csv").symlink_to(tmp_path / "secrets.csv")
    _fails(open_folder, folder, "labels.csv", "leads out")


# ---- mistakes


def test_missing_and_empty_folders(make_folder: Make, open_folder: Callable[..., object], tmp_path: Path) -> None:
    _fails(open_folder, tmp_path / "none", "data.source", "no such folder")
    folder = make_folder({})
    _fails(open_folder, folder, "data.source", "no images")
    make_folder({"notes.txt": "x", ".hidden.png": 1})
    _fails(open_folder, folder, "data.source", "1 files that are no images")
    _fails(open_folder, folder / "notes.txt", "data.source", "not a folder")


def test_names_that_no_file_can_have(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"a.png": 1, "labels.csv": f"file,label\na.png,x\n{'n' * 300}.png,y\n"})
    _fails(open_folder, folder, "labels.csv line 3", "1 listed file is not in", "nnn")
    _fails(open_folder, folder, "data.labels", "no such file", labels="n" * 300)
    _fails(open_folder, folder / ("n" * 300), "data.source", "no such folder")


def test_labels_csv_that_cannot_be_read(
    make_folder: Make, open_folder: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"a.png": 1, "labels.csv": "file,label\n"})

    def refuse(self: Path, *arguments: object, **options: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    _fails(open_folder, folder, "labels.csv", "cannot be read: Permission denied")


def test_a_file_that_vanishes_while_the_folder_is_listed(
    make_folder: Make, open_folder: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"a.png": 1, "b.png": 2})
    real = os.scandir

    def late(path: Path) -> list[os.DirEntry[str]]:
        entries = list(real(path))
        (folder / "a.png").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(os, "scandir", late)
    items = {item.name: item for item in open_folder(folder).items()}
    assert set(items) == {"a.png", "b.png"}
    with pytest.raises(Refused, match="No such file"):
        items["a.png"].read()
    assert items["b.png"].read() == encode(picture(2))


def test_one_class_only(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"images/1.png": 1, "images/2.png": 2})
    _fails(open_folder, folder, "data.labels", "only one class, 'images'", "unlabeled")
    make_folder({"labels.csv": "file,label\nimages/1.png,cat\n"})
    _fails(open_folder, folder, "only one class, 'cat'", "labels.csv line 2")
    _fails(open_folder, folder, "only one class", classes=["cat", "dog"])


def test_a_label_that_is_not_among_the_classes(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"cat/1.png": 1, "dgo/1.png": 2})
    _fails(open_folder, folder, "'dgo' is not in data.classes", "did you mean 'dog'?", "dgo", classes=["cat", "dog"])
    make_folder({"labels.csv": "file,label\ncat/1.png,cat\ndgo/1.png,zebra\n"})
    _fails(open_folder, folder, "labels.csv line 3", "'zebra'", classes=["cat", "dog"])
    make_folder({"labels.csv": "file,label\ncat/1.png,cat\ndgo/1.png,dog\n"})
    assert set(_labels(open_folder(folder, classes=["cat", "dog", "cow"])).values()) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("csv", "parts"),
    [
        ("name,label\na.png,x\n", ["labels.csv line 1", "'name,label'", "'file,label'"]),
        ("file;label\na.png;x\n", ["labels.csv line 1", "file,label"]),
        ("", ["labels.csv line 1"]),
        ("a.png,x\nb.png,y\n", ["labels.csv line 1", "'a.png,x'"]),
        (
            "file,label\na.png,x\nnone.png,y\ngone.png,y\n",
            ["labels.csv line 3", "2 listed files", "'none.png'", "line 4: 'gone.png'"],
        ),
        ("file,label\na.png,x\nnotes.txt,y\n", ["labels.csv line 3", "'notes.txt' is no image file"]),
        ("file,label\na.png,x\nb.png,y\na.png,y\n", ["labels.csv line 4", "'y' here and 'x' in line 2"]),
        ("file,label\na.png,x,extra\n", ["labels.csv line 2", "3 columns"]),
        ("file,label\na.png\n", ["labels.csv line 2", "1 columns"]),
        ('file,label\n"a.png,x\n', ["labels.csv", "not a CSV file"]),
    ],
    ids=[
        "header",
        "semicolons",
        "empty",
        "no-header",
        "missing-files",
        "not-an-image",
        "contradiction",
        "comma",
        "short",
        "quote",
    ],
)
def test_wrong_labels_csv(csv: str, parts: list[str], make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"a.png": 1, "b.png": 2, "notes.txt": "x", "labels.csv": csv})
    _fails(open_folder, folder, *parts)


def test_labels_csv_that_is_not_utf8(make_folder: Make, open_folder: Callable[..., object]) -> None:
    folder = make_folder({"a.png": 1, "labels.csv": "file,label\na.png,caf\xe9\n".encode("latin-1")})
    _fails(open_folder, folder, "labels.csv", "not UTF-8")


# ---- fingerprint


def test_the_fingerprint_changes_with_the_content_and_only_then(
    make_folder: Make, open_folder: Callable[..., object]
) -> None:
    folder = make_folder({"a.png": 1, "sub/b.png": 2, "labels.csv": "file,label\n"})
    prints = [open_folder(folder).fingerprint()]
    assert open_folder(folder).fingerprint() == prints[0]

    def changed() -> None:
        prints.append(open_folder(folder).fingerprint())
        assert len(set(prints)) == len(prints)

    make_folder({"c.png": 3})
    changed()
    make_folder({"c.png": 4})
    changed()
    make_folder({"labels.csv": "file,label\na.png,x\nc.png,y\n"})
    changed()
    (folder / "c.png").rename(folder / "d.png")
    make_folder({"labels.csv": "file,label\n"})
    changed()
    before = (folder / "a.png").stat()
    time.sleep(0.02)
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[::-1])  # same size, and the old time put back
    os.utime(folder / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed()
    (folder / "sub/b.png").unlink()
    changed()


def test_the_fingerprint_reads_no_image(
    make_folder: Make, open_folder: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"a.png": 1, "b.png": 2})
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"read {self}"))
    assert re.fullmatch("[0-9a-f]{64}", open_folder(folder).fingerprint())
