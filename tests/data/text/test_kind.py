"""Texts as ingest sees them: what is stored, what is measured, what is refused; and ingest itself on texts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_core.config.project import ProjectConfig
from ssl_core.data.bad_sample import BadSample
from ssl_core.data.dataset import read_content, read_info, read_manifest_file
from ssl_core.data.ingest import run
from ssl_core.data.reader import fetch
from ssl_core.data.text.kind import KIND, letters, normalise
from ssl_core.errors import CheckFailed, UserError
from ssl_core.step import StepContext

PROJECT = ProjectConfig.model_validate({"name": "tiny", "modality": "text", "data": {"source": "sample://reviews"}})


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")))
def test_what_is_stored_is_the_text_in_one_form(text: str) -> None:
    stored = normalise(text.encode())
    assert stored == unicodedata.normalize("NFC", text.removeprefix("\ufeff")).strip()
    assert normalise(stored.encode()) == stored or stored.startswith("\ufeff")


def test_equal_texts_are_one_sample_however_they_are_written() -> None:
    composed, apart = "caf\u00e9 noir", " cafe\u0301 noir\n"
    ids = {KIND.decode(text.encode(), PROJECT).sample_id for text in (composed, apart, "\ufeff" + composed)}
    assert len(ids) == 1
    assert KIND.decode(b"Cafe noir", PROJECT).sample_id not in ids


@pytest.mark.parametrize(
    ("text", "characters", "words", "share"),
    [
        ("A fine film!", 12, 3, 9 / 10),
        ("這部電影", 4, 4, 1.0),
        ("👍👍 10/10", 8, 2, 0.0),
        ("e\u0301te\u0301", 3, 1, 1.0),
        ("नमस्ते दुनिया", 13, 2, 1.0),
    ],
)
def test_measures(text: str, characters: int, words: int, share: float) -> None:
    measures = KIND.decode(text.encode(), PROJECT).measures
    assert (measures["characters"], measures["words"]) == (characters, words)
    assert measures["letters"] == pytest.approx(share)
    assert set(measures) == {field.name for field in KIND.measures}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no text"),
        (b" \n\t", "no text"),
        (b"ab\0c", "NUL character .character 3"),
        (b"caf\xe9", "not UTF-8 .byte 3"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        KIND.decode(data, PROJECT)


def test_short_texts_are_refused_where_the_project_says_so() -> None:
    project = ProjectConfig.model_validate(
        {"name": "tiny", "modality": "text", "data": {"source": "sample://reviews", "min_characters": 5}}
    )
    with pytest.raises(BadSample, match=r"4 characters, fewer than data\.min_characters"):
        KIND.decode(b"four", project)


def test_no_letters_in_nothing() -> None:
    assert letters("") == letters(" ") == 0


# ---- ingest


@pytest.fixture
def ingested(
    tmp_path: Path, make_project: Callable[..., ProjectConfig], make_context: Callable[..., StepContext]
) -> Callable[..., tuple[Any, pd.DataFrame, Path]]:
    """``ingested(content, name="a.jsonl", **data)``: the step on one file; its output, the manifest and the dataset's folder."""

    def do(content: str, name: str = "a.jsonl", **data: Any) -> tuple[Any, pd.DataFrame, Path]:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / name).write_text(content, encoding="utf-8")
        project = make_project(modality="text", data={"source": str(source), "max_quarantined": 0.3} | data)
        ctx = make_context(project, step="ingest", key=name.replace(".", ""), inputs={})
        output = run(ctx)
        folder = fetch(output.outputs["candidate"], ctx.settings)  # type: ignore[arg-type]
        return output, read_manifest_file(folder / "manifest.parquet"), folder

    return do


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


TEXTS = [
    f"Film number {i} has {'wonder' if i % 2 else 'boredom'} in it, scene {i * 7919 % 101} above all."
    for i in range(40)
]


def test_texts_become_a_dataset(ingested: Callable[..., Any]) -> None:
    rows = [
        {"text": text, "label": "good" if i % 2 else "bad"} if i < 30 else {"text": text}
        for i, text in enumerate(TEXTS)
    ]
    output, manifest, folder = ingested(lines(*rows, {"text": TEXTS[0]}, {"text": "\0"}))
    info = read_info(folder)
    assert (info.modality, info.rows, info.labelled, info.classes) == ("text", 40, 30, ["bad", "good"])
    assert (info.duplicates, info.quarantined) == (1, 1)
    assert info.summary["words_p50"] == 11
    stored = {i: text for ids, texts in read_content(folder, "text") for i, text in zip(ids, texts, strict=True)}
    assert sorted(stored.values()) == sorted(TEXTS)
    assert list(stored) == manifest["sample_id"].tolist()
    assert set(manifest["source"]) == {f"a.jsonl:{i + 1}" for i in range(40)}
    assert "**40 texts**, 30 labelled, 2 classes" in output.summary


def test_parts_of_a_long_text_stay_on_one_side(ingested: Callable[..., Any]) -> None:
    long = " ".join(f"word{i * 7919 % 100_003}" for i in range(2000))
    _, manifest, folder = ingested(lines({"text": long}, *({"text": text} for text in TEXTS)), max_characters=1000)
    parts = manifest[manifest["source"].str.startswith("a.jsonl:1") & ~manifest["source"].str.match(r"a\.jsonl:1\d")]
    assert len(parts) > 10
    assert parts["group"].nunique() == parts["split"].nunique() == 1
    whole = {name: text for (ids, texts) in read_content(folder, "text") for name, text in zip(ids, texts, strict=True)}
    assert sum(len(whole[i]) for i in parts["sample_id"]) >= 0.98 * len(long)  # what was cut is space


def test_documents_with_a_part_in_common_stay_on_one_side(ingested: Callable[..., Any]) -> None:
    """That part is kept once; without it nothing else would tie what is left of the second document to the first."""

    def words(kind: str) -> str:
        return "".join(f"{kind}{i * 7919 % 100_003:06} " for i in range(12)) + "end "

    rows = [{"text": words("a") + words("b") + words("c")}, {"text": words("d") + words("b") + words("e")}]
    _, manifest, _ = ingested(
        lines(*rows, *({"text": text} for text in TEXTS)), max_characters=100, near_duplicates=False
    )
    parts = manifest[manifest["source"].str.match(r"a\.jsonl:[12](#|$)")]
    assert len(parts) == 5
    assert parts["group"].nunique() == 1


def test_near_duplicates_share_a_group(ingested: Callable[..., Any]) -> None:
    base = (
        "The actors carry a thin story through two hours that never feel long, and the music stays with you for days, "
        "while the camera looks for faces in the crowd and finds them, one after the other, as if nobody were watching."
    )
    rows = [{"text": base}, {"text": base.replace("thin", "slim")}, {"text": base.upper() + "!"}]
    output, manifest, _ = ingested(lines(*rows, *({"text": f"{i} {text[::-1]}"} for i, text in enumerate(TEXTS[:5]))))
    assert manifest[manifest["source"].isin(["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"])]["group"].nunique() == 1
    assert output.metrics["near_duplicate_groups"] >= 1


@pytest.mark.parametrize(
    ("label_type", "labels", "stored", "classes"),
    [
        ("classes", [["b", "a"], ["a"], []], ['["a", "b"]', '["a"]', None], ["a", "b"]),
        ("number", [1, 2.5, -3], ["1.0", "2.5", "-3.0"], []),
    ],
)
def test_several_classes_and_numbers(
    ingested: Callable[..., Any], label_type: str, labels: list[Any], stored: list[str | None], classes: list[str]
) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels * 10, strict=False)]
    _, manifest, folder = ingested(lines(*rows), label_type=label_type)
    info = read_info(folder)
    assert (info.label_type, info.classes) == (label_type, classes)
    by_source = dict(zip(manifest["source"], manifest["label"], strict=True))
    found = [by_source[f"a.jsonl:{i + 1}"] for i in range(3)]
    assert found[:2] == stored[:2]
    assert found[2] == stored[2] or found[2] == "[]"


def test_bad_input_is_told(ingested: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"data\.source"):
        ingested("", name="empty.txt", unit="line")
    with pytest.raises(CheckFailed, match="texts could not be used"):
        ingested(lines({"text": "fine"}, {"other": 1}, {"text": 3}) + "{broken\n", name="b.jsonl")


def test_one_line_and_copies_alone(ingested: Callable[..., Any]) -> None:
    _, manifest, _ = ingested("only this line\n", name="one.txt", unit="line")
    assert len(manifest) == 1


def test_a_corpus_of_copies_is_one_text(ingested: Callable[..., Any]) -> None:
    output, manifest, _ = ingested("the same again\n" * 500, name="same.txt", unit="line")
    assert len(manifest) == 1
    assert output.metrics["duplicates"] == 499
