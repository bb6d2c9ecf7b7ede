"""Triples files, and what can be wrong with them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_core.data.text.triples import numbered_triples, read_triples, relation_words, sentence
from ssl_core.errors import UserError


def _write(folder: Path, text: str | bytes, name: str = "kg.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kg.csv", "subject,relation,object\nMarie Curie,bornIn,Warsaw\n\n Warsaw , capital_of ,Poland\n"),
        ("kg.csv", '\ufeffMarie Curie,bornIn,"Warsaw"\r\nWarsaw,capital_of,Poland'),
        ("kg.tsv", "Subject\tRelation\tObject\nMarie Curie\tbornIn\tWarsaw\nWarsaw\tcapital_of\tPoland\n"),
        ("kg", "Marie Curie\tbornIn\tWarsaw\nWarsaw\tcapital_of\tPoland\n"),
    ],
)
def test_the_layouts(name: str, text: str, tmp_path: Path) -> None:
    found = read_triples(_write(tmp_path, text, name))
    assert found == [("Marie Curie", "bornIn", "Warsaw"), ("Warsaw", "capital_of", "Poland")]


def test_an_empty_file_holds_no_triples(tmp_path: Path) -> None:
    assert read_triples(_write(tmp_path, "")) == []
    assert read_triples(_write(tmp_path, "subject,relation,object\n")) == []


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        ("a,b,c\na,b\n", "line 2", "2 columns instead of 3"),
        ("a,b,c,d\n", "line 1", "needs quotes"),
        ("a,b,c\n\na,,c\n", "line 3", "the relation is empty"),
        ('a,b,c\n"a,b,c\n', "after line", "cannot be split"),
        (b"a,b,c\na,\xff,c\n", "after line", "not UTF-8"),
        ("a,b,c\na,b,c\0\n", "line 2", "NUL"),
    ],
)
def test_mistakes_name_the_file_and_the_line(text: str | bytes, place: str, cause: str, tmp_path: Path) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserError, match=cause) as caught:
        read_triples(path)
    assert str(path) in caught.value.place
    assert place in caught.value.place
    assert caught.value.next_step


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_triples(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("relation", "words"),
    [
        ("bornIn", "born in"),
        ("is_part_of", "is part of"),
        ("capital of", "capital of"),
        ("BornIn", "born in"),
        ("hasURL", "has URL"),
        ("URLPath", "URL path"),
        ("a", "a"),
        ("___", "___"),
        ("größteStadt", "größte stadt"),
        ("属于", "属于"),
    ],
)
def test_a_relation_becomes_words(relation: str, words: str) -> None:
    assert relation_words(relation) == words


def test_a_triple_becomes_a_sentence() -> None:
    assert sentence(("Marie Curie", "wasBornIn", "Warsaw")) == "Marie Curie was born in Warsaw"


_CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda s: s == s.strip())


@given(st.lists(st.tuples(_CELL, _CELL, _CELL), max_size=5), st.sampled_from(["kg.csv", "kg.tsv"]))
def test_what_csv_writes_is_read_back(triples: list[tuple[str, str, str]], name: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="," if name == "kg.csv" else "\t").writerows(
        [("subject", "relation", "object"), *triples]
    )
    found = numbered_triples(lambda: io.StringIO(text.getvalue(), newline=""), name)
    assert [triple for _, triple in found] == triples
