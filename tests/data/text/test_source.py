"""Texts as a source: folders, files and S3, and every way in which they can be wrong. What one file holds is in ``test_files``."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.data.folder_files import FolderFiles
from ssl_core.data.layout import Refused
from ssl_core.data.sources import Source
from ssl_core.data.text import encodings
from ssl_core.data.text.source import open_texts
from ssl_core.errors import StepError, TryAgain, UserError
from ssl_core.step import NoProgress
from tests.data import test_s3_source
from tests.data.fake_s3 import FakeS3
from tests.data.text.bars import Bars

Make = Callable[..., Path]
Open = Callable[..., Source]
s3 = test_s3_source.s3  # the fixture


@pytest.fixture
def open_source(make_project: Callable[..., ProjectConfig], tmp_path: Path) -> Open:
    """``open_source("folder or s3://...", unit="line")``: a source of texts with a cache of this test's own."""

    def do(where: object, cache: str = "cache", **data: Any) -> Source:
        return open_texts(make_project(modality="text", data={"source": str(where), **data}), tmp_path / cache)

    return do


def sync(texts: Source) -> int:
    return texts.sync(NoProgress(), threading.Event())


def contents(texts: Source) -> dict[str, str]:
    """What each item holds, or why it cannot be read."""
    found: dict[str, str] = {}
    for item in texts.items():
        try:
            found[item.name] = item.read().decode()
        except Refused as refused:
            found[item.name] = f"refused: {refused}"
    assert len(found) == len(texts)
    return found


def labelled(texts: Source) -> dict[str, str | None]:
    return {item.name: item.label for item in texts.items()}


def fails(texts: Callable[[], Source], kind: type[StepError], *parts: str) -> StepError:
    with pytest.raises(kind) as caught:
        sync(texts())
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.place
    assert caught.value.next_step
    return caught.value


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    raw = io.BytesIO()
    pq.write_table(pa.table(columns), raw, **options)
    return raw.getvalue()


MIXED: dict[str, str | bytes] = {
    "a.csv": "text,label\none,x\ntwo,y\n",
    "b.jsonl": '{"text": "three", "label": "x"}\n\n{"text": "four"}\n',
    "c.tsv": "text\tlabel\nfive\tx\n",
    "d.parquet": parquet({"text": [f"row {i}" for i in range(5)], "label": ["x", "y", None, "x", "y"]}, row_group_size=2),
    "good/e.txt": "這部電影\n很好看",
    "unlabeled/f.TXT": "\ufeffsix",
    "notes.md": "no text",
    ".hidden.txt": "no text",
}  # fmt: skip
READ = {
    "a.csv:2": ("one", "x"),
    "a.csv:3": ("two", "y"),
    "b.jsonl:1": ("three", "x"),
    "b.jsonl:3": ("four", None),
    "c.tsv:2": ("five", "x"),
    "d.parquet:1": ("row 0", "x"),
    "d.parquet:2": ("row 1", "y"),
    "d.parquet:3": ("row 2", None),
    "d.parquet:4": ("row 3", "x"),
    "d.parquet:5": ("row 4", "y"),
    "good/e.txt": ("這部電影\n很好看", "good"),
    "unlabeled/f.TXT": ("six", None),
}


# ---- layouts


def test_a_folder_of_every_kind_of_file(make_folder: Make, open_source: Open) -> None:
    texts = open_source(make_folder(MIXED))
    assert {item.name: (item.read().decode(), item.label) for item in texts.items()} == READ
    assert list(contents(texts)) == list(READ), "in the order of the files' names and of their rows"
    assert {item.document for item in texts.items()} == {""}
    assert sync(texts) == 0, "nothing had to be fetched"


def test_one_file_is_a_source_too(make_folder: Make, open_source: Open) -> None:
    folder = make_folder(MIXED)
    assert contents(open_source(folder / "a.csv")) == {"a.csv:2": "one", "a.csv:3": "two"}
    assert contents(open_source(folder / "good/e.txt", unit="line")) == {"e.txt:1": "這部電影", "e.txt:2": "很好看"}
    fails(lambda: open_source(folder / "notes.md"), UserError, "data.source", "no texts in", "notes.md")


def test_lines_of_class_folders(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"good/a.txt": "one\n\ntwo", "bad/b.txt": "three\n", "c.txt": "four"})
    found = labelled(open_source(folder, unit="line"))
    assert found == {"bad/b.txt:1": "bad", "c.txt:1": None, "good/a.txt:1": "good", "good/a.txt:3": "good"}


@pytest.mark.parametrize(
    ("labels_csv", "more", "found"),
    [
        ("id,label\n7,x\n8,y\n", {"id": "nr"}, {"a.csv:2": "x", "a.csv:3": "y", "b.txt": None}),
        ("id,label\na.csv:3,x\nb.txt,y\n", {}, {"a.csv:2": None, "a.csv:3": "x", "b.txt": "y"}),
        ("file,label\na.csv,x\nb.txt,y\n", {}, {"a.csv:2": "x", "a.csv:3": "x", "b.txt": "y"}),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_separate_file_of_labels(
    labels_csv: str, more: dict[str, str], found: dict[str, str], elsewhere: bool, make_folder: Make, open_source: Open
) -> None:
    folder = make_folder({"a.csv": "text,nr,label\none,7,own\ntwo,8,own\n", "b.txt": "three"})
    path = (folder.parent if elsewhere else folder) / "labels.csv"
    path.write_text(labels_csv)
    assert labelled(open_source(folder, **more, **({"labels": str(path)} if elsewhere else {}))) == found


def test_long_texts_are_parts_of_one_document(make_folder: Make, open_source: Open) -> None:
    whole = " ".join(f"word{i}" for i in range(100))
    folder = make_folder({"a.txt": whole, "b.jsonl": json.dumps({"text": whole}) + '\n{"text": "short"}\n'})
    items = list(open_source(folder, max_characters=100).items())
    for name in ("a.txt", "b.jsonl:1"):
        parts = [item for item in items if item.document == name]
        assert [part.name for part in parts] == [name, *(f"{name}#{i}" for i in range(2, len(parts) + 1))]
        assert len(parts) > 5
        assert b"".join(part.read() for part in parts).decode() == whole
    assert (items[-1].name, items[-1].document) == ("b.jsonl:2", "")


def test_triples_of_a_knowledge_graph_are_texts_without_label(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"a.csv": "text,label\none,x\ntwo,y\n", "kg.tsv": "Marie Curie\tbornIn\tWarsaw\n"})
    texts = open_source(folder, triples="kg.tsv")
    assert contents(texts) == {"a.csv:2": "one", "a.csv:3": "two", "kg.tsv:1": "Marie Curie born in Warsaw"}
    assert labelled(texts)["kg.tsv:1"] is None
    before = texts.fingerprint()
    make_folder({"kg.tsv": "Marie Curie\tbornIn\tParis, France\n"})
    assert open_source(folder, triples="kg.tsv").fingerprint() != before
    make_folder({"kg.tsv": "Marie Curie\tbornIn\n"})
    fails(lambda: open_source(folder, triples="kg.tsv"), UserError, "kg.tsv line 1", "2 columns instead of 3")
    fails(lambda: open_source(folder, triples="none.tsv"), UserError, "data.triples", "no such file")


# ---- encodings


def test_each_file_says_its_encoding_by_its_mark(make_folder: Make, open_source: Open) -> None:
    text = "naïve 這 e\u0301 👩\u200d👧"
    folder = make_folder(
        {f"{name}.jsonl": json.dumps({"text": text}, ensure_ascii=False).encode(name) for name in ("utf-8", "utf-8-sig", "utf-16", "utf-32")}
    )  # fmt: skip
    assert set(contents(open_source(folder)).values()) == {text}


def test_an_encoding_that_is_not_utf8_is_refused_with_the_line_or_named(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"a.txt": "good\ncafé\n".encode("cp1252"), "b.csv": "text\nfine\nnaïve\n".encode("cp1252")})
    reason = "; name the file's encoding in data.encoding"
    assert contents(open_source(folder)) == {
        "a.txt": "refused: line 2: not UTF-8 (byte 0xe9)" + reason,
        "b.csv:2": "fine",
        "b.csv:3": "refused: line 3: not UTF-8 (byte 0xef)" + reason,
    }
    found = contents(open_source(folder, encoding="cp1252"))
    assert (found["a.txt"], found["b.csv:3"]) == ("good\ncafé\n", "naïve")


# ---- texts that cannot be used


def test_what_cannot_be_used_has_a_reason_with_its_line_or_row(make_folder: Make, open_source: Open) -> None:
    folder = make_folder(
        {
            "a.txt": "fine\nfine\nnot\0fine",
            "b.jsonl": '{"text": "fine"}\n{"text": "cut o',
            "c.jsonl": '{"txt": "fine"}\n{"text": "nul\\u0000"}\n',
            "d.csv": "text,label\na,b,c\n",
            "e.csv": "txt,label\na,b\n",
            "f.parquet": parquet({"text": ["fine", None]}),
            "g.parquet": parquet({"text": ["fine"]})[:-10],
            "h.parquet": parquet({"body": ["fine"]}),
        }
    )
    found = contents(open_source(folder))
    assert {name: text.partition(": ")[2] for name, text in found.items() if text.startswith("refused")} == {
        "a.txt": "line 3: a NUL character",
        "b.jsonl:2": "line 2: no JSON: Unterminated string starting at at character 10",
        "c.jsonl:1": "line 1: no 'text', did you mean `txt`? (there: txt); set data.text",
        "c.jsonl:2": "line 2: a NUL character",
        "d.csv:2": "line 2: 3 columns instead of 2; a text that holds one needs quotes",
        "e.csv": "line 1: no column 'text', did you mean `txt`? (there: txt, label); set data.text",
        "f.parquet:2": "row 2: 'text' is empty and not a text",
        "g.parquet": found["g.parquet"].removeprefix("refused: "),
        "h.parquet": "no column 'text' (there: body); set data.text",
    }
    assert "not a Parquet file that can be read" in found["g.parquet"]
    assert [name for name, text in found.items() if text == "fine"] == ["b.jsonl:1", "f.parquet:1"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "txt,label\na,b\n", "a.csv: line 1: no column 'text', did you mean `txt`? (there: txt, label); set data.text"),
        ("a.jsonl", '{"txt": "a"}\n{"txt": "b"}\n', "a.jsonl:1: line 1: no 'text', did you mean `txt`? (there: txt); set data.text"),
        ("a.parquet", parquet({"txt": ["a"], "label": ["b"]}), "a.parquet: no column 'text', did you mean `txt`? (there: txt, label)"),
        ("a.txt", "café".encode("latin-1"), "a.txt: line 1: not UTF-8 (byte 0xe9); name the file's encoding in data.encoding"),
        ("a.parquet", b"PAR1", "a.parquet: not a Parquet file that can be read"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_used_the_first_reason_is_told(
    name: str, content: str | bytes, reason: str, make_folder: Make, open_source: Open
) -> None:
    fails(lambda: open_source(make_folder({name: content})), UserError, "no text in", reason)


def test_links_out_of_the_folder_are_not_read(make_folder: Make, open_source: Open, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder = make_folder({"a.txt": "fine"})
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "in.txt").symlink_to("a.txt")
    found = contents(open_source(folder))
    assert found == {
        "a.txt": "fine",
        "in.txt": "fine",
        "out.txt": "refused: a link that leads out of the source folder",
    }


def test_names_of_any_kind(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"日本/naïve b.txt": "one", "d/line\nbreak.txt": "two"})
    (folder / os.fsdecode(b"\xff.txt")).write_bytes(b"three")
    found = contents(open_source(folder))
    assert found == {"日本/naïve b.txt": "one", "d/line\nbreak.txt": "two", "\\xff.txt": "three"}


# ---- mistakes


def test_missing_and_empty_sources(make_folder: Make, open_source: Open, tmp_path: Path) -> None:
    fails(lambda: open_source(tmp_path / "none"), UserError, "data.source", "no such folder", "texts")
    folder = make_folder({})
    fails(lambda: open_source(folder), UserError, "data.source", "no texts in")
    make_folder({"notes.md": "", ".a.txt": "hidden"})
    fails(lambda: open_source(folder), UserError, "1 files that are no texts")


@pytest.mark.parametrize(
    ("name", "content", "data"),
    [
        ("a.txt", "", {"unit": "line"}),
        ("a.txt", " \n\n\t", {"unit": "line"}),
        ("a.jsonl", "", {}),
        ("a.jsonl", "\n\n", {}),
        ("a.csv", "text,label\n", {}),
        ("a.parquet", parquet({"text": pa.array([], pa.string())}), {}),
    ],
)
def test_files_without_a_text(
    name: str, content: str | bytes, data: dict[str, str], make_folder: Make, open_source: Open
) -> None:
    fails(lambda: open_source(make_folder({name: content}), **data), UserError, "data.source", "its files are empty")


def test_a_corpus_of_one_line_and_one_of_copies(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"a.txt": "the only line"})
    assert contents(open_source(folder, unit="line")) == {"a.txt:1": "the only line"}
    make_folder({"a.txt": "the same\n" * 3000})
    texts = open_source(folder, unit="line")
    assert set(contents(texts).values()) == {"the same"}
    assert len(texts) == 3000, "ingest counts the copies, the source has them all"


def test_mistakes_in_labels_name_the_file_and_the_line(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"a.csv": "text,stars\none,5\ntwo,many\n"})
    number = {"label": "stars", "label_type": "number"}
    fails(lambda: open_source(folder, **number), UserError, f"{folder}/a.csv line 3", "'many' is not a finite number")
    classes = {"label": "stars", "classes": ["5", "1"]}
    fails(lambda: open_source(folder, **classes), UserError, f"{folder}/a.csv line 3", "'many' is not in data.classes")
    fails(lambda: open_source(folder, label="star"), UserError, "data.label", "did you mean `stars`?")
    make_folder({"labels.csv": "id,label\na.csv:2,x\na.csv:4,y\n"})
    fails(lambda: open_source(folder), UserError, "labels.csv line 3", "1 listed id is not in", "'a.csv:4'")
    make_folder({"b.parquet": parquet({"text": ["a", "b"], "label": [1.5, float("nan")]})})
    fails(lambda: open_source(folder / "b.parquet"), UserError, "b.parquet row 2", "is not a finite number")


def test_a_wrong_encoding_is_told_before_anything_is_kept(make_folder: Make, open_source: Open, tmp_path: Path) -> None:
    fails(lambda: open_source(make_folder({"a.txt": "a"}), encoding="base64"), UserError, "data.encoding", "base64")
    assert left_behind(tmp_path) == []


# ---- large


def test_one_line_of_50_mb_becomes_parts(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"a.txt": b"word " * 10_000_000, "b.txt": b"last"})
    texts = open_source(folder, unit="line")
    items = list(texts.items())
    parts = [item for item in items if item.document == "a.txt:1"]
    assert (len(items), len(parts)) == (len(parts) + 1, len(parts))
    assert sum(len(part.read()) for part in parts) == 50_000_000
    assert items[-1].read() == b"last"


def test_the_bar_reaches_the_size_of_all_files(make_folder: Make, open_source: Open) -> None:
    folder = make_folder(
        {"a.txt": "line\n" * 50_000, "b.csv": "text\n" + "row\n" * 5000, "notes.md": "", "more.md": ""}
    )
    bars = Bars()
    open_source(folder, unit="line").sync(bars, threading.Event())
    total, done = bars.sums["read texts"]
    assert total == pytest.approx(done, abs=0.001)
    assert total == pytest.approx(0.27, abs=0.001)
    (note,) = bars.notes
    assert "2 files are left out" in note
    assert ".jsonl" in note


# ---- fingerprint


def test_the_fingerprint_changes_with_files_and_labels_and_reads_none(
    make_folder: Make, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderFiles, "open", lambda self, name: pytest.fail(f"opened {name}"))
    folder = make_folder({"a.txt": "one", "labels.csv": "file,label\n"})
    prints = [open_source(folder).fingerprint()]
    assert open_source(folder).fingerprint() == prints[0]
    for change in ({"b.txt": "two"}, {"b.txt": "three"}, {"labels.csv": "file,label\na.txt,x\nb.txt,y\n"}):
        make_folder(change)
        prints.append(open_source(folder).fingerprint())
    make_folder({"notes.md": "no text"})
    assert open_source(folder).fingerprint() == prints[-1]
    assert len(set(prints)) == 4


# ---- interrupted


def left_behind(folder: Path) -> list[str]:
    """Files in the cache, and open files that lie there without a name."""
    gc.collect()
    held = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    named = [str(path) for path in (folder / "cache").rglob("*") if path.is_file()]
    return named + [path for path in held if path.startswith(str(folder / "cache"))]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "word " * 100_000), ("a.jsonl", '{"text": "one"}\n' * 2000), ("a.csv", "text\n" + "one\n" * 2000)],
)
def test_a_stop_in_the_middle_leaves_nothing_behind(
    name: str, content: str, make_folder: Make, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "_CHUNK_BYTES", 1000)
    stop = threading.Event()
    seen = []
    whole = encodings.text_chunks

    def stopping(raw: Any, encoding: str) -> Any:
        for number, chunk in enumerate(whole(raw, encoding)):
            seen.append(number)
            if number == 3:
                stop.set()
            yield chunk

    folder = make_folder({name: content})
    with monkeypatch.context() as patch:
        patch.setattr("ssl_core.data.text.files.text_chunks", stopping)
        with pytest.raises(TryAgain, match="told to stop while reading the texts; nothing was committed") as caught:
            open_source(folder).sync(NoProgress(), stop)
    assert str(folder / name) in caught.value.place
    assert max(seen) < 6, "it stopped there and then"
    del caught
    assert left_behind(tmp_path) == []
    assert len(contents(open_source(folder))) in (1, 2000)


def test_the_spool_goes_with_the_source(make_folder: Make, open_source: Open, tmp_path: Path) -> None:
    texts = open_source(make_folder({"a.txt": "one"}))
    assert contents(texts) == {"a.txt": "one"}
    assert len(left_behind(tmp_path)) == 1, "held open, and without a name"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    del texts
    assert left_behind(tmp_path) == []


def test_a_disk_that_fails_in_the_middle_is_try_again(
    make_folder: Make, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            if not data:
                raise OSError(errno.EIO, "Input/output error")
            return data

    folder = make_folder({"a.txt": "one\ntwo\n"})
    monkeypatch.setattr(FolderFiles, "open", lambda self, name: Failing(b"one\ntwo\n"))
    fails(lambda: open_source(folder, unit="line"), TryAgain, f"{folder}/a.txt", "Input/output error")
    assert left_behind(tmp_path) == []


def test_a_file_that_changes_while_it_is_read_is_try_again(
    make_folder: Make, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"a.txt": "one\ntwo\n"})
    real = FolderFiles.open

    def changing(self: FolderFiles, name: str) -> Any:
        opened = real(self, name)
        time.sleep(0.02)
        make_folder({"a.txt": "three"})
        return opened

    monkeypatch.setattr(FolderFiles, "open", changing)
    fails(lambda: open_source(folder), TryAgain, f"{folder}/a.txt", "changed while it was being read")


def test_a_file_that_is_gone_is_refused(make_folder: Make, open_source: Open) -> None:
    folder = make_folder({"a.txt": "one", "b.txt": "two"})
    texts = open_source(folder)
    (folder / "a.txt").unlink()
    assert contents(texts) == {"a.txt": "refused: cannot be read: No such file or directory", "b.txt": "two"}


# ---- S3


def put(s3: FakeS3, files: dict[str, Any], prefix: str = "data/") -> None:
    s3.put({prefix + name: data.encode() if isinstance(data, str) else data for name, data in files.items()})


def test_a_prefix_is_read_as_the_same_folder_would_be(s3: FakeS3, open_source: Open) -> None:
    put(s3, MIXED | {"sub/deep/g.jsonl": '{"text": "seven", "label": "y"}'})
    put(s3, {"x.txt": "beside the prefix"}, prefix="database/")
    texts = open_source("s3://bucket/data")
    assert sync(texts) == 7
    found = {item.name: (item.read().decode(), item.label) for item in texts.items()}
    assert found == READ | {"sub/deep/g.jsonl:1": ("seven", "y")}
    assert sync(open_source("s3://bucket/data/")) == 0, "what was fetched stays"


def test_one_object_is_a_source_too(s3: FakeS3, open_source: Open) -> None:
    put(s3, MIXED)
    assert contents(open_source("s3://bucket/data/a.csv")) == {"a.csv:2": "one", "a.csv:3": "two"}
    fails(lambda: open_source("s3://bucket/data/none.csv"), UserError, "data.source", "s3://bucket/data/none.csv")


def test_labels_in_s3(s3: FakeS3, open_source: Open) -> None:
    rows = '{"text": "one", "nr": 7}\n{"text": "two", "nr": 8}\n'
    put(s3, {"a.jsonl": rows, "lists/mine.csv": "id,label\n7,x\n8,y\n"})
    found = labelled(open_source("s3://bucket/data", id="nr", labels="s3://bucket/data/lists/mine.csv"))
    assert found == {"a.jsonl:1": "x", "a.jsonl:2": "y"}, "what holds the labels is no text"
    del s3.objects["data/lists/mine.csv"]
    put(s3, {"labels.csv": "id,label\n7,x\n9,y\n"})
    place = "s3://bucket/data/labels.csv line 3"
    fails(
        lambda: open_source("s3://bucket/data", id="nr"),
        UserError,
        place,
        "1 listed id is not in s3://bucket/data: line 3: '9'",
    )


def test_mistakes_in_s3_name_the_object_and_the_line(s3: FakeS3, open_source: Open) -> None:
    put(s3, {"a.csv": "text,label\none,x\ntwo,zebra\n", "b.jsonl": '{"text": "fine"}\n{"text": "caf\udce9"}'.encode(errors="surrogateescape")})  # fmt: skip
    assert contents(open_source("s3://bucket/data"))["b.jsonl:2"].startswith("refused: line 2: not UTF-8 (byte 0xe9)")
    fails(lambda: open_source("s3://bucket/data", classes=["x", "y"]), UserError, "s3://bucket/data/a.csv line 3")
    put(s3, {"x.md": ""}, prefix="other/")
    fails(lambda: open_source("s3://bucket/other"), UserError, "no texts in s3://bucket/other", "1 objects")


def test_an_object_that_vanishes_after_the_listing_is_refused(s3: FakeS3, open_source: Open) -> None:
    put(s3, {"a.txt": "one", "b.txt": "two"})
    texts = open_source("s3://bucket/data")
    del s3.objects["data/a.txt"]
    found = contents(texts)
    assert found["a.txt"] == "refused: it was removed from the bucket while it was being read"
    assert found["b.txt"] == "two"


def test_a_stop_while_objects_are_read_leaves_only_whole_copies(s3: FakeS3, open_source: Open, tmp_path: Path) -> None:
    put(s3, {"a.txt": "line\n" * 500, "b.txt": "last"})
    stop = threading.Event()
    stop.set()
    with pytest.raises(TryAgain, match="told to stop"):
        open_source("s3://bucket/data", unit="line").sync(NoProgress(), stop)
    assert not [path for path in left_behind(tmp_path) if "spool" in path]
    assert len(contents(open_source("s3://bucket/data", unit="line"))) == 501
