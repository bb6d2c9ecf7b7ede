"""``ssl-core init`` for texts: every layout gives a file that validates and that ingest's own source can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from ssl_core.cli import main
from ssl_core.cli.init import look, write_project
from ssl_core.cli.init_text import TextLook
from ssl_core.config.data import TextDataConfig
from ssl_core.config.load import load_project
from ssl_core.config.project import TextProject
from ssl_core.data.text.kind import KIND
from ssl_core.errors import UserError
from tests.texts import sentences

TEXTS = [f"{text} {number}" for number, text in enumerate(sentences(60, length=12))]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_HOME", str(tmp_path / "home"))


def started(tmp_path: Path, data: Path, modality: str | None = None) -> tuple[TextDataConfig, TextProject, str]:
    """The data section, the project and the file's text; and the source opens with them, as a run would open it."""
    path = write_project("first", str(data), tmp_path / "projects", modality)
    project = load_project(path)
    assert isinstance(project, TextProject)
    source = KIND.open(project, tmp_path / "cache")
    assert len(source) >= project.validation.min_rows
    return project.data, project, path.read_text()


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_columns_are_found_by_what_lies_in_them(tmp_path: Path, ending: str) -> None:
    rows = [
        {"nr": f"a{i}", "Review": text, "source": "web", "stars": ("bad", "good, really")[i % 2]}
        for i, text in enumerate(TEXTS)
    ]
    data, project, text = started(tmp_path, write_rows(tmp_path / "data" / f"reviews{ending}", rows))
    assert (data.text, data.label, data.label_type) == ("Review", "stars", "class")
    assert data.classes == ("bad", "good, really")
    assert project.validation.min_rows == 30
    assert project.encoder.max_length == 32
    assert f"# 1 file ({ending}): 60 texts, 60 labelled, in 2 classes" in text
    assert "the column with the longest texts" in text
    assert "by its name: the labels" in text
    assert f"source: ../data/reviews{ending}" in text
    assert project.task.labels == "all"


def test_the_default_columns_need_no_line(tmp_path: Path) -> None:
    rows = [{"text": text, "label": i % 3, "summary": text * 2} for i, text in enumerate(TEXTS)]
    data, _, text = started(tmp_path, write_rows(tmp_path / "data" / "a.csv", rows))
    assert (data.text, data.label, data.classes) == ("text", "label", ("0", "1", "2"))
    assert "  text:" not in text
    assert "  label:" not in text


def test_a_column_of_few_values_is_taken_where_it_is_the_only_one(tmp_path: Path) -> None:
    rows = [{"text": text, "id": i, "team": ("red", "blue")[i % 2]} for i, text in enumerate(TEXTS)]
    data, _, text = started(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert data.label == "team"
    assert "the only other column with few different values, 2" in text
    rows = [row | {"month": ("May", "June")[i % 2]} for i, row in enumerate(rows)]
    data, _, text = started(tmp_path / "two", write_rows(tmp_path / "two" / "a.jsonl", rows))
    assert data.label == "label"
    assert "if one of these holds them: id, team, month" in text
    assert "No labels were found" in text


@pytest.mark.parametrize(
    ("labels", "label_type", "words"),
    [
        ([["a", "b"], ["a"], []], "classes", "each with any of 2 classes"),
        (["a;b", "a", "b"], "classes", "each with any of 2 classes"),
        (['["a"]', '["b"]', "[]"], "classes", "each with any of 2 classes"),
        ([1.5, 2.25, -3.0], "number", "-3 to 2.25: a quantity"),
        (list(range(30)), "number", "0 to 29: a quantity"),
        ([1, 2, 3, 4, 5], "class", "in 5 classes"),
        (["1.5 stars", "2", "3"], "class", "in 3 classes"),
        ([True, False], "class", "in 2 classes"),
    ],
)
def test_the_type_of_label_is_found(tmp_path: Path, labels: list[Any], label_type: str, words: str) -> None:
    rows = [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(TEXTS)]
    data, _, text = started(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert data.label_type == label_type
    assert words in text


def test_lines_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    data, project, text = started(tmp_path, tmp_path / "corpus.txt")
    assert data.unit == "line"
    assert "60 texts, 0 labelled" in text
    assert "No labels were found" in text
    assert project.pretrain.epochs == 40


def test_one_file_a_text_in_class_folders(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS):
        path = tmp_path / "data" / ("spam", "ham")[i % 2] / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n\nsecond paragraph\n")
    data, _, text = started(tmp_path, tmp_path / "data")
    assert data.unit == "file"
    assert data.classes == ("ham", "spam")
    assert "60 files (.txt): 60 texts, 60 labelled, in 2 classes" in text


def test_a_separate_file_of_labels_is_no_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "a.csv", [{"body": text, "n": i} for i, text in enumerate(TEXTS)])
    listed = "".join(f"a.csv:{i + 2},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    (tmp_path / "data" / "labels.csv").write_text("id,label\n" + listed)
    data, _, text = started(tmp_path, tmp_path / "data")
    assert data.classes == ("no", "yes")
    assert "1 file (.csv): 60 texts, 40 labelled, in 2 classes" in text


def test_long_documents_are_told_to_be_seen_window_by_window(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{i}.txt").write_text(" ".join(TEXTS * 3) + f" {i}")
    _, project, text = started(tmp_path, tmp_path / "data")
    assert project.encoder.max_length == 512
    assert "longer texts are seen window by window" in text


def test_a_script_without_spaces_gets_a_tokenizer_that_needs_none(tmp_path: Path) -> None:
    rows = [{"text": "今天天气很好我们去公园散步吧" + chr(0x4E00 + i) * 3} for i in range(60)]
    _, project, text = started(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert project.tokenizer.kind == "unigram"
    assert "17 to 17 characters" in text


@pytest.mark.parametrize(("broken", "limit"), [(0, 0.02), (6, 0.2), (30, 0.02)])
def test_the_guard_stays_on_where_many_rows_are_broken(tmp_path: Path, broken: int, limit: float) -> None:
    rows = [{"text": text if i >= broken else " "} for i, text in enumerate(TEXTS)]
    data, _, text = started(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert data.max_quarantined == limit
    assert (f"{broken} of these cannot be used, for example a.jsonl:1: there is no text in it" in text) == (broken > 0)
    assert ("ingest will stop" in text) == (broken == 30)


def test_a_large_corpus_gets_a_wider_encoder_and_few_passes(tmp_path: Path) -> None:
    seen = look("x", str(write_rows(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])))
    assert isinstance(seen, TextLook)
    large = TextLook(seen.layout, 3_000_000, {}, 0, seen.columns, "", seen.words, False)
    text = large.compose("x", "sample://reviews")
    assert "hidden: 256" in text
    assert "epochs: 1 " in text
    assert "# budget: 30m" in text


def test_hostile_names_and_labels_stay_values(tmp_path: Path) -> None:
    labels = ["a: b", "#c", 'it\'s "quoted"', "new\nline: x", "日本", "- dash", "!!python", "null"]
    rows = [{"my: #text\n": text, "label": labels[i % 8], "x\n  injected: true": "y"} for i, text in enumerate(TEXTS)]
    data, _, _ = started(tmp_path, write_rows(tmp_path / "my #data: it's" / "a\nb: c.jsonl", rows))
    assert data.text == "my: #text\n"
    assert data.classes is not None
    assert set(data.classes) == set(labels)


def test_what_lies_there_decides_and_a_person_may_say_otherwise(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    write_rows(mixed / "notes.jsonl", [{"text": text} for text in TEXTS])
    for i in range(8):
        Image.new("L", (16, 16), i).save(mixed / f"{i}.png")
    assert not isinstance(look("x", str(mixed)), TextLook)
    assert started(tmp_path, mixed, "text")[1].modality == "text"
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (16, 16)).save(images / "a.png")
    (images / "labels.csv").write_text("file,label\na.png,\n")
    assert not isinstance(look("x", str(images)), TextLook)
    assert not isinstance(look("x", "sample://digits"), TextLook)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no texts in"),
        ({"a.pdf": "x"}, "1 files that are no texts"),
        ({"a.txt": ""}, "none of the 1 text looked at can be used"),
        ({"a.txt": "a\0b"}, "can be used .1 looked at.; a.txt: line 1: a NUL character"),
        ({"a.jsonl": '{"number": 1}\n'}, "a.jsonl:1: line 1: no 'text' .there: number.; set data.text"),
        ({"a.jsonl": '{"text": "b", "label": "x"}\n{"text": "c", "label": "x"}\n'}, "only one class"),
    ],
)
def test_data_that_cannot_be_used_is_told(tmp_path: Path, files: dict[str, str], words: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        write_project("first", str(data), tmp_path / "projects", "text")
    assert caught.value.next_step
    assert not (tmp_path / "projects").exists()


def test_the_command_says_what_it_saw_and_what_is_next(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)])
    arguments = ["init", "notes", "--data", str(tmp_path / "a.csv"), "--projects-dir", str(tmp_path / "p")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "1 file (.csv): 60 texts, 60 labelled, in 2 classes" in result.output
    assert "looked at 60 texts: 13 to 13 words, half of them have 13 or more" in result.output
    assert f"ssl-core run {tmp_path / 'p' / 'notes.yaml'}" in result.output
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert again.exit_code == 2
    assert "--force" in again.output
    wrong = CliRunner().invoke(main, [*arguments, "--force", "--modality", "image"], catch_exceptions=False)
    assert wrong.exit_code == 2
