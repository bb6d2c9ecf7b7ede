"""Which label a text has, from its row, a separate file or its folder; and every way in which that can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.config.project import ProjectConfig
from ssl_core.data.files import open_files
from ssl_core.data.layout import LABELS_FILE
from ssl_core.data.text.labels import Labels, canonical_label, scalar_text
from ssl_core.data.text.source import RULES
from ssl_core.errors import UserError

Make = Callable[..., Path]
Open = Callable[..., Labels]


@pytest.fixture
def open_labels(make_folder: Make, make_project: Callable[..., ProjectConfig]) -> Open:
    """``open_labels({"a.txt": "..."}, classes=[...])``: the labels of a folder with these files."""

    def do(contents: dict[str, str], **data: Any) -> Labels:
        folder = make_folder(contents)
        project = make_project(modality="text", data={"source": str(folder), **data})
        files = open_files(str(folder), RULES, None)
        return Labels(project, files, files.table("data.labels", data.get("labels"), LABELS_FILE))

    return do


def said(error: pytest.ExceptionInfo[UserError], place: str, *parts: str) -> None:
    assert place in error.value.place
    assert error.value.next_step
    for part in parts:
        assert part in str(error.value)


def of_rows(labels: Labels, values: Sequence[object], file: str = "a.jsonl") -> list[str | None]:
    """What each row of a file says, asked in its order."""
    return [labels.of(file, f"{file}:{i}", f"{file} line {i}", value, None) for i, value in enumerate(values, 1)]


# ---- one value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" good ", "good"),
        ("", None),
        ("  ", None),
        (None, None),
        (0, "0"),
        (1.0, "1"),
        (0.5, "0.5"),
        (True, "true"),
        (False, "false"),
        ("這", "這"),
        (10**30, "1" + "0" * 30),
        (Decimal("7.00"), "7"),
        (Decimal("7.50"), "7.5"),
    ],
)
def test_a_cell_as_text(value: object, text: str | None) -> None:
    assert scalar_text(value) == text
    assert canonical_label(value, "class") == text


@pytest.mark.parametrize(
    ("value", "label_type", "label"),
    [
        (["b", "a", "b"], "classes", '["a", "b"]'),
        ("b; a;;a ", "classes", '["a", "b"]'),
        ('["b", "a"]', "classes", '["a", "b"]'),
        ('["a;b"]', "classes", '["a;b"]'),
        ([1, 2.0, True], "classes", '["1", "2", "true"]'),
        ("one", "classes", '["one"]'),
        (3, "classes", '["3"]'),
        ("這;部", "classes", '["這", "部"]'),
        ([], "classes", "[]"),
        ("[]", "classes", "[]"),
        (";", "classes", "[]"),
        ([None, ""], "classes", "[]"),
        ("", "classes", None),
        (None, "classes", None),
        (" 3 ", "number", "3.0"),
        (3, "number", "3.0"),
        ("-1e3", "number", "-1000.0"),
        (0.1, "number", "0.1"),
        (Decimal("4.50"), "number", "4.5"),
        ("", "number", None),
        (None, "number", None),
    ],
)
def test_a_label_has_one_form(value: object, label_type: Any, label: str | None) -> None:
    assert canonical_label(value, label_type) == label


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda s: s == s.strip())))
def test_classes_are_a_set_in_any_order(names: list[str]) -> None:
    found = canonical_label(names, "classes")
    assert json.loads(found or "") == sorted(set(names))
    assert found == canonical_label(names[::-1] + names, "classes") == canonical_label(found, "classes")


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_kept_exactly(number: float) -> None:
    found = canonical_label(number, "number")
    assert float(found or "nan") == number
    assert canonical_label(found, "number") == found


@pytest.mark.parametrize(
    ("value", "label_type", "reason"),
    [
        (["a"], "class", "is a list; set data.label_type: classes"),
        ({"a": 1}, "class", "is no single value"),
        (math.nan, "class", "is not a finite number"),
        ("a\0b", "class", "holds a NUL character"),
        ("caf\udce9", "class", "holds not UTF-8 (byte 0xe9)"),
        ([["a"]], "classes", "is a list"),
        ('["a"', "classes", "begins as a JSON list and is none"),
        ("good", "number", "is not a finite number"),
        ("nan", "number", "is not a finite number"),
        (math.inf, "number", "is not a finite number"),
        (True, "number", "is not a finite number"),
        ([1], "number", "is not a finite number"),
        (10**400, "number", "is not a finite number"),
    ],
)
def test_what_is_no_label(value: object, label_type: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        canonical_label(value, label_type)
    assert reason in str(caught.value)


# ---- in the rows


def test_rows_say_their_labels(open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""})
    assert of_rows(labels, ["good", "bad ", None, "", "good"]) == ["good", "bad", None, None, "good"]
    labels.finish()


@pytest.mark.parametrize(
    ("label_type", "values", "stored"),
    [
        ("classes", ["b;a", [], None], ['["a", "b"]', "[]", None]),
        ("number", ["1", 2.5, None], ["1.0", "2.5", None]),
    ],
)
def test_rows_of_other_types(label_type: str, values: list[object], stored: list[object], open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""}, label_type=label_type)
    assert of_rows(labels, values) == stored
    labels.finish()


def test_a_row_whose_label_is_none_is_named_with_file_and_line(open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""}, label_type="number")
    with pytest.raises(UserError) as caught:
        of_rows(labels, ["1", "many"])
    said(caught, "a.jsonl line 2", "the label 'many' is not a finite number", "leave it empty")


def test_a_long_label_is_shown_shortened(open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""}, label_type="number")
    with pytest.raises(UserError) as caught:
        of_rows(labels, ["long " * 1000])
    assert len(str(caught.value)) < 300
    assert "..." in str(caught.value)


@pytest.mark.parametrize("label_type", ["class", "classes"])
def test_a_label_outside_the_classes_is_named_where_it_is_first(label_type: str, open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""}, classes=["good", "bad"], label_type=label_type)
    of_rows(labels, ["good", "godo", "bad", "godo"])
    with pytest.raises(UserError) as caught:
        labels.finish()
    said(caught, "a.jsonl line 2", "the label 'godo' is not in data.classes; did you mean 'good'?", "good, bad")


def test_one_class_is_nothing_to_tell_apart(open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""})
    of_rows(labels, ["good", None, "good"])
    with pytest.raises(UserError) as caught:
        labels.finish()
    said(caught, "data.labels", "only one class, 'good' (a.jsonl line 1)", "unlabeled")


@pytest.mark.parametrize(("label_type", "value"), [("classes", "good"), ("number", "1"), ("class", None)])
def test_where_one_class_is_enough(label_type: str, value: str | None, open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""}, label_type=label_type)
    of_rows(labels, [value, value])
    labels.finish()


def test_a_column_of_labels_that_no_file_has_is_told(open_labels: Open) -> None:
    labels = open_labels({"a.csv": "", "b.csv": ""}, label="sentimnt")
    labels.columns(["text", "sentiment", "stars"])
    labels.columns(["text", "date"])
    with pytest.raises(UserError) as caught:
        labels.finish()
    said(
        caught,
        "data.label",
        "no file has a column 'sentimnt', did you mean `sentiment`? (there: text, sentiment, stars, date)",
    )


def test_a_column_of_labels_may_be_in_one_file_alone_or_nowhere_by_default(open_labels: Open) -> None:
    labels = open_labels({"a.csv": "", "b.csv": ""}, label="mood")
    labels.columns(["text"])
    labels.columns(["text", "mood"])
    labels.finish()
    labels = open_labels({})
    labels.columns(["text", "other"])
    labels.finish()


def test_texts_as_labels_are_noticed(open_labels: Open) -> None:
    labels = open_labels({"a.jsonl": ""})
    with pytest.raises(UserError) as caught:
        of_rows(labels, [f"label {i}" for i in range(10_001)])
    said(caught, "a.jsonl line 10001", "more than 10,000 different labels", "data.label_type: number")


# ---- folders


def test_class_folders_of_txt_files(open_labels: Open) -> None:
    labels = open_labels(
        {"good/1.txt": "", "good/deep/2.txt": "", "bad/1.txt": "", "unlabeled/3.txt": "", "Unlabelled/4.txt": "", "5.txt": ""}
    )  # fmt: skip
    names = ["good/1.txt", "good/deep/2.txt", "bad/1.txt", "unlabeled/3.txt", "Unlabelled/4.txt", "5.txt"]
    found = [labels.of(name, name, name, None, None) for name in names]
    assert found == ["good", "good", "bad", None, None, None]
    labels.finish()


def test_folders_of_rows_are_no_classes(open_labels: Open) -> None:
    labels = open_labels({"2024/a.jsonl": "", "2025/b.jsonl": ""})
    assert of_rows(labels, ["x", None], "2024/a.jsonl") == ["x", None]
    assert of_rows(labels, ["y"], "2025/b.jsonl") == ["y"]
    labels.finish()


def test_folders_are_sets_of_classes_and_never_numbers(open_labels: Open) -> None:
    contents = {"1/a.txt": "", "2;3/b.txt": ""}
    labels = open_labels(contents, label_type="classes")
    assert [labels.of(name, name, name, None, None) for name in contents] == ['["1"]', '["2", "3"]']
    labels = open_labels(contents, label_type="number")
    assert [labels.of(name, name, name, None, None) for name in contents] == [None, None]
    labels.finish()


def test_a_folder_that_is_no_class_is_named(open_labels: Open) -> None:
    labels = open_labels({"good/1.txt": "", "badd/1.txt": ""}, classes=["good", "bad"])
    with pytest.raises(UserError) as caught:
        labels.finish()
    said(caught, "badd", "'badd' is not in data.classes; did you mean 'bad'?")


def test_one_folder_is_no_class(open_labels: Open) -> None:
    with pytest.raises(UserError) as caught:
        open_labels({"texts/1.txt": ""}).finish()
    said(caught, "data.labels", "only one class, 'texts'", "'unlabeled'")


# ---- a separate file, by id


ROWS = {"a.csv": "text,nr\n"}


def ask(labels: Labels, *ids: object) -> list[str | None]:
    return [labels.of("a.csv", f"a.csv:{line}", f"a.csv line {line}", "own", key) for line, key in enumerate(ids, 2)]


def test_labels_by_id(open_labels: Open) -> None:
    labels = open_labels(ROWS | {"labels.csv": "id,label\n1,good\n2,bad\n 3 ,\n"}, id="nr")
    assert ask(labels, "1", 2, 3.0, "4") == ["good", "bad", None, None], "the row's own label does not count"
    labels.finish()


@pytest.mark.parametrize(
    ("label_type", "labels_csv", "stored"),
    [
        ("classes", 'id,label\n1,b;a\n2,"[""a"", ""c""]"\n', ['["a", "b"]', '["a", "c"]']),
        ("number", "id,label\n1,4\n2,0.5\n", ["4.0", "0.5"]),
    ],
)
def test_labels_of_other_types_by_id(label_type: str, labels_csv: str, stored: list[str], open_labels: Open) -> None:
    labels = open_labels(ROWS | {"labels.csv": labels_csv}, id="nr", label_type=label_type)
    assert ask(labels, "1", "2") == stored
    labels.finish()


def test_without_a_column_of_ids_the_file_and_line_are_one(open_labels: Open) -> None:
    labels = open_labels(ROWS | {"caf\u00e9.txt": "", "labels.csv": "id,label\n./a.csv:2,x\ncafe\u0301.txt,y\n"})
    assert ask(labels, None, None) == ["x", None]
    assert labels.of("caf\u00e9.txt", "caf\u00e9.txt", "", None, None) == "y"
    labels.finish()


def test_an_id_that_is_nowhere_is_named_with_its_line(open_labels: Open) -> None:
    labels = open_labels(ROWS | {"labels.csv": "id,label\n1,x\n7,y\n2,y\n8,\n"}, id="nr")
    ask(labels, "1", "2")
    with pytest.raises(UserError) as caught:
        labels.finish()
    said(caught, "labels.csv line 3", "2 listed ids are not in", "line 3: '7'; line 5: '8'", "the column 'nr'")


def test_of_many_ids_that_are_nowhere_some_are_shown(open_labels: Open) -> None:
    listed = "".join(f"{i},x\n" for i in range(50))
    labels = open_labels(ROWS | {"labels.csv": f"id,label\n{listed}"}, id="nr")
    with pytest.raises(UserError, match="50 listed ids are not in") as caught:
        labels.finish()
    assert "'9'; ..." in str(caught.value)
    assert "'10'" not in str(caught.value)


def test_an_id_that_is_nowhere_may_be_that_of_a_row_that_cannot_be_used(open_labels: Open) -> None:
    labels = open_labels(ROWS | {"labels.csv": "id,label\n1,x\n2,y\n3,y\n"}, id="nr")
    ask(labels, "1", "2")
    labels.unidentified("a.csv:4")
    labels.finish()
    labels = open_labels({"labels.csv": "id,label\na.csv:2,x\na.csv:3,y\na.csv:9,y\n"})
    ask(labels, None)
    labels.unidentified("a.csv:3")
    with pytest.raises(UserError, match="1 listed id is not in") as caught:
        labels.finish()
    said(caught, "labels.csv line 4", "'a.csv:9'", "reviews.csv:17")


def test_an_id_that_is_listed_twice(open_labels: Open) -> None:
    labels = open_labels(ROWS | {"labels.csv": "id,label\n1,x\n2,y\n1,x\n"}, id="nr")
    assert ask(labels, "1", "2") == ["x", "y"], "said twice, and the same"
    with pytest.raises(UserError) as caught:
        open_labels({"labels.csv": "id,label\n1,x\n2,y\n1,y\n"}, id="nr")
    said(caught, "labels.csv line 4", "'1' is 'y' here and 'x' in line 2", "keep one of the two lines")


@pytest.mark.parametrize(
    ("content", "place", "cause"),
    [
        ("id,label\n1,x\n,y\n", "labels.csv line 3", "the id is empty"),
        ("id,label\n1\n", "labels.csv line 2", "1 columns instead of 2"),
        ("id,label\n1,x,y\n", "labels.csv line 2", "that holds a comma needs quotes"),
        ("nr,label\n1,x\n", "labels.csv line 1", "the header is 'nr,label', not 'id,label' or 'file,label'"),
        ("", "labels.csv line 1", "the header is ''"),
        ('id,label\n"1,x\n', "labels.csv line", "not a CSV file"),
    ],
)
def test_a_wrong_file_of_labels(content: str, place: str, cause: str, open_labels: Open) -> None:
    with pytest.raises(UserError) as caught:
        open_labels(ROWS | {"labels.csv": content}, id="nr")
    said(caught, place, cause)


def test_a_listed_label_that_is_none_or_no_class_names_its_line(open_labels: Open) -> None:
    with pytest.raises(UserError) as caught:
        open_labels(ROWS | {"labels.csv": "id,label\n1,3\n2,many\n"}, id="nr", label_type="number")
    said(caught, "labels.csv line 3", "the label 'many' is not a finite number")
    labels = open_labels({"labels.csv": "id,label\n1,x\n2,zebra\n"}, id="nr", classes=["x", "y"])
    ask(labels, "1", "2")
    with pytest.raises(UserError) as caught:
        labels.finish()
    said(caught, "labels.csv line 3", "'zebra' is not in data.classes")


@pytest.mark.parametrize("identity", [["a"], {"a": 1}, math.nan, "a\0"])
def test_an_id_that_is_none_names_its_row(identity: object, open_labels: Open) -> None:
    labels = open_labels(ROWS | {"labels.csv": "id,label\n1,x\n"}, id="nr")
    with pytest.raises(UserError) as caught:
        ask(labels, "1", identity)
    said(caught, "a.csv line 3", "the id ", "give each row an id")


# ---- a separate file, by file


def test_labels_by_file_stand_for_all_of_it(open_labels: Open) -> None:
    labels = open_labels(
        {"a.txt": "", "b.jsonl": "", "bad/c.txt": "", "labels.csv": "file,label\na.txt,x\n./b.jsonl,y\nbad/c.txt,\n"}
    )
    assert labels.of("a.txt", "a.txt", "", None, None) == "x"
    assert of_rows(labels, ["own", None], "b.jsonl") == ["y", "y"]
    assert labels.of("bad/c.txt", "bad/c.txt", "", None, None) is None, (
        "folders are no classes where a file says the labels"
    )
    labels.finish()


@pytest.mark.parametrize(("label_type", "stored"), [("classes", '["1"]'), ("number", "1.0")])
def test_labels_of_other_types_by_file(label_type: str, stored: str, open_labels: Open) -> None:
    labels = open_labels({"a.txt": "", "labels.csv": "file,label\na.txt,1\n"}, label_type=label_type)
    assert labels.of("a.txt", "a.txt", "", None, None) == stored


@pytest.mark.parametrize(
    ("content", "place", "cause"),
    [
        ("file,label\na.txt,x\nnone.txt,y\n", "labels.csv line 3", "1 listed file is not in"),
        ("file,label\nnotes.md,x\n", "labels.csv line 2", "'notes.md' is no text file"),
        ("file,label\na.txt,x\na.txt,y\n", "labels.csv line 3", "'y' here and 'x' in line 2"),
        ("file,label\n../a.txt,x\n", "labels.csv line 2", "leads out of the source folder"),
    ],
)
def test_wrong_files_are_named_with_their_line(content: str, place: str, cause: str, open_labels: Open) -> None:
    with pytest.raises(UserError) as caught:
        open_labels({"a.txt": "", "notes.md": "", "labels.csv": content})
    said(caught, place, cause)
