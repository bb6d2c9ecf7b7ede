"""The texts in one file, of every kind, and what is found in the place of a row that cannot be used."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.config.data import TextDataConfig
from ssl_core.data.text import encodings, files
from ssl_core.data.text.encodings import bad_character
from ssl_core.data.text.files import READERS, Reading, ending

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0\ufeff"))
LANGUAGES = ["A fine film, all in all.", "這部電影很好看。", "👩\u200d👩\u200d👧 10/10 🇩🇪", "e\u0301te\u0301 नमस्ते"]


@dataclass
class Content:
    """All of a file as its reader finds it."""

    texts: dict[int, str] = field(default_factory=dict)
    labels: dict[int, object] = field(default_factory=dict)
    ids: dict[int, object] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    columns: list[list[str]] = field(default_factory=list)


def read(name: str, data: str | bytes, **config: Any) -> Content:
    """What ``data`` holds as a file called ``name``; each number once."""
    content = Content()
    how = Reading(TextDataConfig(source="data", **config), content.columns.append)
    raw = io.BytesIO(data.encode() if isinstance(data, str) else data)
    for found in READERS[ending(name)](raw, how):
        assert found.number not in content.texts | content.problems
        if found.problem:
            content.problems[found.number] = found.problem
        else:
            content.texts[found.number] = "".join(found.pieces)
            content.labels[found.number] = found.label
            content.ids[found.number] = found.identity
    return content


def rows(*records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def table(delimiter: str, *records: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(records)
    return text.getvalue()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    raw = io.BytesIO()
    pq.write_table(pa.table(columns), raw, **options)
    return raw.getvalue()


def as_file(kind: str, texts: list[str], labels: list[str] | None = None) -> bytes:
    """The same rows as a file of this kind, with the columns ``text`` and ``label``."""
    labels = labels or ["x"] * len(texts)
    if kind in ("jsonl", "ndjson"):
        return rows(*({"text": text, "label": label} for text, label in zip(texts, labels, strict=True))).encode()
    if kind == "parquet":
        return parquet({"text": pa.array(texts, pa.string()), "label": pa.array(labels, pa.string())})
    pairs = [[text, label] for text, label in zip(texts, labels, strict=True)]
    return table("," if kind == "csv" else "\t", ["text", "label"], *pairs).encode()


KINDS = ["jsonl", "ndjson", "csv", "tsv", "parquet"]


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_labels_of_any_language(kind: str) -> None:
    content = read(f"a.{kind}", as_file(kind, LANGUAGES, ["a", "b", "c", "這"]))
    assert list(content.texts.values()) == LANGUAGES
    assert list(content.labels.values()) == ["a", "b", "c", "這"]
    assert not content.problems
    assert content.columns[0] == ["text", "label"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_what_a_library_writes_is_read_back(kind: str, texts: list[str]) -> None:
    content = read(f"a.{kind}", as_file(kind, texts))
    assert list(content.texts.values()) == texts
    assert not content.problems


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_chosen_by_name(kind: str) -> None:
    columns = {"nr": ["1", "2"], "text": ["no", "no"], "review": ["one", "two"], "stars": ["5", "1"]}
    names = list(columns)
    records = list(zip(*columns.values(), strict=True))
    if kind == "parquet":
        data = parquet(columns)
    elif kind in ("csv", "tsv"):
        data = table("," if kind == "csv" else "\t", names, *map(list, records)).encode()
    else:
        data = rows(*(dict(zip(names, record, strict=True)) for record in records)).encode()
    content = read(f"a.{kind}", data, text="review", label="stars", id="nr")
    assert list(content.texts.values()) == ["one", "two"]
    assert list(content.labels.values()) == ["5", "1"]
    assert list(content.ids.values()) == ["1", "2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_told_with_those_that_are(kind: str) -> None:
    content = read(f"a.{kind}", as_file(kind, ["one"]), text="texts")
    (problem,) = content.problems.values()
    assert not content.texts
    assert "no " in problem
    assert "'texts', did you mean `text`? (there: text, label); set data.text" in problem


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_is_not_there_names_its_key(kind: str) -> None:
    (problem,) = read(f"a.{kind}", as_file(kind, ["one"]), id="nr").problems.values()
    assert "'nr'" in problem
    assert "data.id" in problem


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_a_label_may_be_missing(kind: str) -> None:
    content = read(f"a.{kind}", as_file(kind, ["one", "two"]), label="sentiment")
    assert list(content.labels.values()) == [None, None]


def test_the_ending_says_the_kind_whatever_its_case() -> None:
    assert ending("folder.csv/A.TXT") == ".txt"
    assert ending("a.JsonL") in READERS
    assert ending("notes.md") not in READERS


# ---- .txt


def test_a_whole_file_is_one_text() -> None:
    content = read("a.txt", "one\r\ntwo\n\n")
    assert content.texts == {0: "one\ntwo\n\n"}
    assert content.columns == []


def test_each_line_is_a_text_and_blank_ones_are_none() -> None:
    content = read("a.txt", "one\n\n  \t\nfour\r\n這\n\u3000\nseven", unit="line")
    assert content.texts == {1: "one", 4: "four", 5: "這", 7: "seven"}


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_lines_of_any_length_are_read_through_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_CHUNK_BYTES", chunk)
    content = read("a.txt", "a longer line 這\n\n            \nb\n   c   \n ", unit="line")
    assert {number: text.strip() for number, text in content.texts.items()} == {1: "a longer line 這", 4: "b", 5: "c"}


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_blank_last_line_is_no_text_however_the_file_ends(end: str) -> None:
    assert read("a.txt", "one\n   " + end, unit="line").texts == {1: "one"}


def test_a_line_that_is_not_asked_for_to_its_end_does_not_disturb_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_CHUNK_BYTES", 4)
    how = Reading(TextDataConfig(source="data", unit="line"), lambda names: None)
    first = []
    for found in files.read_txt(io.BytesIO(b"a long first line\nb\nanother long line"), how):
        first.append((found.number, next(iter(found.pieces))))
    assert [number for number, _ in first] == [1, 2, 3]
    assert first[1] == (2, "b")


def test_one_line_of_50_mb_is_read_in_little_memory() -> None:
    raw = io.BytesIO(b"word " * 10_000_000 + b"\nlast\n")
    how = Reading(TextDataConfig(source="data", unit="line"), lambda names: None)
    tracemalloc.start()
    found = [(found.number, sum(map(len, found.pieces))) for found in files.read_txt(raw, how)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, 50_000_000), (2, 4)]
    assert peak < 10 * 2**20


# ---- JSON lines


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut o', "no JSON: Unterminated string starting at at character 10"),
        ("{'text': 1}", "no JSON: Expecting property name enclosed in double quotes at character 2"),
        ("plain text", "no JSON: Expecting value at character 1"),
        ('["text"]', "a list and not an object {...}"),
        ('"text"', "a text and not an object {...}"),
        ("null", "empty and not an object {...}"),
        ('{"text": 5}', "'text' is a number and not a text"),
        ('{"text": null}', "'text' is empty and not a text"),
        ('{"text": ["a"]}', "'text' is a list and not a text"),
        ('{"text": true}', "'text' is true or false and not a text"),
        ('{"body": "a"}', "no 'text' (there: body); set data.text"),
        ("{}", "no 'text' (there: ); set data.text"),
        ('{"text": "\\ud83d"}', "half of a surrogate pair as an escape (\\ud800 to \\udfff)"),
        ("[" * 100_000, "no JSON that can be read"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "no JSON that can be read"),
        ('{"text": "a\0b"}', "a NUL character"),
    ],
)
def test_a_line_that_cannot_be_used_costs_one_line(line: str, problem: str) -> None:
    content = read("a.jsonl", '{"text": "before"}\n' + line + '\n\n{"text": "behind"}')
    assert content.texts == {1: "before", 4: "behind"}
    assert list(content.problems) == [2]
    assert problem in content.problems[2]


def test_bytes_that_are_not_utf8_cost_one_line() -> None:
    content = read("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n{"text": "three"}\n')
    assert content.texts == {1: "one", 3: "three"}
    assert content.problems == {2: "not UTF-8 (byte 0xe9); name the file's encoding in data.encoding"}
    assert read("a.jsonl", b'{"text": "caf\xe9"}', encoding="cp1252").texts == {1: "café"}


def test_an_escaped_pair_is_one_sign_and_an_escaped_nul_is_found_later() -> None:
    assert read("a.jsonl", '{"text": "\\ud83d\\ude00"}').texts == {1: "😀"}
    escaped = read("a.jsonl", '{"text": "a\\u0000b, and no more of them"}').texts[1]
    assert bad_character(escaped) == (1, "a NUL character")


def test_values_come_as_they_are() -> None:
    content = read("a.jsonl", rows({"text": "a", "label": ["x"]}, {"text": "b", "label": 2.5}, {"text": "c"}))
    assert list(content.labels.values()) == [["x"], 2.5, None]
    assert content.columns[0] == ["text", "label"]


def test_an_id_that_is_null_is_told() -> None:
    content = read("a.jsonl", rows({"text": "a", "nr": 0}, {"text": "b", "nr": None}), id="nr")
    assert content.ids == {1: 0}
    assert content.problems == {2: "no 'nr', which data.id names"}


def test_a_label_that_comes_late_is_told_of() -> None:
    content = read("a.jsonl", rows({"text": "a"}, {"text": "b", "mood": "x"}), label="mood")
    assert any("mood" in names for names in content.columns)


# ---- CSV and TSV


def test_quoted_cells_may_hold_anything_and_rows_are_numbered_by_their_first_line() -> None:
    data = 'text,label\r\n"one, ""quoted""",x\r\n"two\r\nlines",y\r\n\r\nlast,z\r\n'
    content = read("a.csv", data)
    assert content.texts == {2: 'one, "quoted"', 3: "two\nlines", 6: "last"}
    assert content.labels == {2: "x", 3: "y", 6: "z"}


def test_tabs_part_the_columns_of_tsv_alone() -> None:
    assert read("a.tsv", "text\tlabel\none, two\tx\n").texts == {2: "one, two"}
    assert read("a.csv", "text,label\none\ttwo,x\n").texts == {2: "one\ttwo"}


def test_a_header_with_blanks_around_it_and_a_mark_before_it() -> None:
    assert read("a.csv", "\ufeff text , label \na,x\n").labels == {2: "x"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a, b,x", "3 columns instead of 2; a text that holds one needs quotes"),
        ("a", "1 columns instead of 2"),
        ('"a"b,x', "not CSV: ',' expected after '\"'"),
    ],
)
def test_a_wrong_row_costs_one_row(row: str, problem: str) -> None:
    content = read("a.csv", f"text,label\nbefore,x\n{row}\nbehind,y\n")
    assert content.texts == {2: "before", 4: "behind"}
    assert content.problems == {3: problem}


def test_a_missing_quote_tells_of_every_line_that_it_swallows() -> None:
    content = read("a.csv", 'text,label\nbefore,x\n"never closed,x\nlost,y\n')
    assert content.texts == {2: "before"}
    assert list(content.problems) == [3, 4]
    assert "a row from line 3 to 4: is a quote missing?" in content.problems[3]


@pytest.mark.parametrize(
    ("name", "header", "hint"),
    [
        ("a.csv", "text;label", "; the columns seem to be parted by semicolons, not by commas"),
        ("a.csv", "text\tlabel", "; the columns seem to be parted by tabs, not by commas"),
        ("a.tsv", "text,label", "; the columns seem to be parted by commas, not by tabs"),
    ],
)
def test_another_delimiter_is_guessed(name: str, header: str, hint: str) -> None:
    content = read(name, f"{header}\na,b\n")
    assert list(content.problems) == [0]
    assert content.problems[0].startswith("line 1: no column 'text'")
    assert content.problems[0].endswith(hint)


def test_a_column_that_is_there_twice_is_refused() -> None:
    assert read("a.csv", "text,text\na,b\n").problems == {0: "line 1: the column 'text' is there twice"}
    assert read("a.csv", "text,label,label\na,b,c\n").problems == {0: "line 1: the column 'label' is there twice"}
    assert read("a.csv", "text,x,x\na,b,c\n").texts == {2: "a"}


def test_an_empty_csv_and_one_of_a_header_alone() -> None:
    assert read("a.csv", "").problems == {0: "an empty file"}
    assert read("a.csv", "text,label\n") == Content(columns=[["text", "label"]])


def test_bad_bytes_stay_in_their_cell() -> None:
    content = read("a.csv", b"text,label\ncaf\xe9,x\nfine,y\n")
    assert content.texts[3] == "fine"
    assert bad_character(content.texts[2]) is not None


# ---- Parquet


def test_row_groups_are_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {number}" for number in range(25)]
    data = parquet({"other": list(range(25)), "label": ["a", None] * 12 + ["b"], "text": texts}, row_group_size=4)
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 7
    for most in (3, 4096):
        monkeypatch.setattr(files, "_MOST_BATCH_ROWS", most)
        content = read("a.parquet", data)
        assert content.texts == dict(enumerate(texts, 1))
        assert list(content.labels.values()) == ["a", None] * 12 + ["b"]
    assert content.columns == [["other", "label", "text"]]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_text(type_: pa.DataType) -> None:
    array = pa.array(["a", "b", None, "a"], pa.string()).cast(type_)
    content = read("a.parquet", parquet({"text": array}))
    assert content.texts == {1: "a", 2: "b", 4: "a"}
    assert content.problems == {3: "'text' is empty and not a text"}


def test_labels_of_every_type_come_as_values() -> None:
    columns = {"text": ["a", "b"], "label": pa.array([["x", "y"], []], pa.list_(pa.string())), "id": [7, 8]}
    content = read("a.parquet", parquet(columns), id="id")
    assert list(content.labels.values()) == [["x", "y"], []]
    assert list(content.ids.values()) == [7, 8]


def test_a_column_of_numbers_is_no_text() -> None:
    content = read("a.parquet", parquet({"text": [1, 2], "body": ["a", "b"]}))
    assert content.problems == {0: "the column 'text' holds int64 and no text; set data.text"}


def test_text_that_is_not_utf8_costs_one_row() -> None:
    broken = pa.array([b"one", b"caf\xe9", b"three"], pa.binary()).view(pa.string())
    content = read("a.parquet", parquet({"text": broken}))
    assert content.texts == {1: "one", 3: "three"}
    assert content.problems == {2: "not UTF-8"}


@pytest.mark.parametrize("size", [0, 3, 100, -1, -50])
def test_a_file_that_is_cut_off_is_told(size: int) -> None:
    data = as_file("parquet", LANGUAGES * 50)
    content = read("a.parquet", data[:size])
    assert content.texts == {}
    assert list(content.problems) == [0]
    assert content.problems[0].startswith("not a Parquet file that can be read: ")
    assert "\n" not in content.problems[0]


def test_a_damaged_row_group_is_told_behind_the_sound_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_BATCH_ROWS", 4)
    texts = [f"{number:0200d}" for number in range(8)]
    data = bytearray(parquet({"text": texts}, row_group_size=4, use_dictionary=False))
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    content = read("a.parquet", bytes(data))
    assert list(content.texts.values()) == texts[:4]
    assert list(content.problems) == [5]
    assert "not a Parquet file that can be read" in content.problems[5]


def test_an_empty_table_holds_no_texts() -> None:
    assert read("a.parquet", as_file("parquet", [])).texts == {}
    assert read("a.parquet", as_file("parquet", [])).problems == {}


# ---- too long to be held


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_row_of_50_mb_is_refused_clearly_and_not_held(kind: str) -> None:
    head, before, behind = {"jsonl": ("", '{"text": "', '"}'), "csv": ("text\n", '"', '"')}[kind]
    data = (head + before).encode() + b"word " * 10_000_000 + f"{behind}\n{before}last{behind}\n".encode()
    tracemalloc.start()
    content = read(f"a.{kind}", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first = 1 if kind == "jsonl" else 2
    assert content.texts == {first + 1: "last"}
    assert "longer than 16,777,216 characters" in content.problems[first]
    assert ".txt" in content.problems[first], "what to do instead"
    assert peak < 2**26


def test_a_quote_that_is_never_closed_is_not_held_without_end() -> None:
    content = read("a.csv", 'text\n"open\n' + ("some words " * 10_000 + "\n") * 300)
    assert "field larger than field limit" in content.problems[2]
    assert "is a quote missing?" in content.problems[2]
    last = max(content.problems)
    assert 100 < last < 200
    assert list(content.texts) == list(range(last + 1, 303)), "what lies behind the limit is read"


def test_the_limit_follows_the_longest_text_that_is_asked_for() -> None:
    long = "word " * 4_000_000
    assert list(read("a.jsonl", rows({"text": long})).problems) == [1]
    assert read("a.jsonl", rows({"text": long}), max_characters=6_000_000).texts == {1: long}
