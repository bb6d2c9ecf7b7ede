"""A project on texts: what its file may hold, and how its mistakes are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_core.config.load import load_project, local_paths, parse_project
from ssl_core.config.project import ImageProject, ProjectConfig, TextProject, project_schema
from ssl_core.errors import UserError
from ssl_core.pipeline import config_slice, get_step, step_key, steps_for

MINIMAL: dict[str, Any] = {"name": "tiny", "modality": "text", "data": {"source": "sample://reviews"}}


def test_the_modality_decides_which_sections_there_are() -> None:
    text, image = parse_project(MINIMAL), parse_project({"name": "tiny", "data": {"source": "sample://digits"}})
    assert isinstance(text, TextProject)
    assert isinstance(image, ImageProject)
    assert (text.noun, image.noun) == ("texts", "images")
    assert (text.evaluate.probe, image.evaluate.probe) == ("linear", "label-spreading")
    assert ProjectConfig.model_validate(text.model_dump(mode="json")) == text
    assert ProjectConfig.model_validate(image.model_dump(mode="json")) == image


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modality": "tex"}, "modality: should be 'image' or 'text', got 'tex', did you mean `text`?"),
        ({"modality": 3}, "modality: should be 'image' or 'text', got 3"),
        ({"data": {"source": "x", "image_size": 8}}, "data.image_size: unknown key"),
        ({"data": {"source": "x", "encoding": "utf-99"}}, "data.encoding: is no text encoding that Python knows"),
        ({"data": {"source": "x", "label_type": "number", "classes": ["a", "b"]}}, "label_type: number has no classes"),
        ({"encoder": {"hidden": 100, "heads": 3}}, "encoder: hidden (100) must be a multiple of heads (3)"),
        ({"encoder": {"arch": "resnet"}}, "encoder.arch: should be 'bert' or 'modernbert'"),
        ({"objective": {"masking": {"mask": 0.9, "random": 0.2}}}, "mask + random must be at most 1"),
        ({"objective": {"masking": {"strategy": "entity"}}}, "strategy: entity and a file of entities go together"),
        ({"objective": {"name": "simclr"}}, "objective.name: should be 'mlm'"),
        ({"objective": {"maskin": {}}}, "objective.maskin: unknown key, did you mean `masking`?"),
        ({"pretrain": {"batch_size": 3}}, "pretrain.batch_size: unknown key"),
        ({"pretrain": {"budget": "soon"}}, "pretrain.budget: must be a whole number of seconds, minutes or hours"),
        ({"tokenizer": {"kind": "words"}}, "tokenizer.kind: should be 'wordpiece', 'bpe' or 'unigram'"),
        ({"tokenizer": {"size": 100}}, "tokenizer.size: must be between 300 and 200000, or auto, got 100"),
        ({"tokenizer": {"size": -5}}, "tokenizer.size: must be between 300 and 200000, or auto, got -5"),
        ({"tokenizer": {"added": ["cat", ""]}}, "tokenizer.added: word 2 is blank"),
        ({"tokenizer": {"added": [" cat"]}}, "tokenizer.added: word 1 has blanks around it; write 'cat'"),
        ({"tokenizer": {"added": ["cat", "dog", "cat"]}}, "tokenizer.added: a word is listed twice"),
        (
            {"encoder": {"arch": "modernbert", "hidden": 24, "heads": 8}},
            "encoder: hidden (24) must be an even multiple of heads (8)",
        ),
        ({"data": {"source": "x", "text": "label"}}, "data.label: is the column of `data.text`; name another one"),
        ({"data": {"source": "x", "text": "a", "label": "a"}}, "data.label: is the column of `data.text`"),
        ({"encoder": {"init_from": ""}}, "encoder.init_from: "),
        ({"encoder": {"init_from": "s3://b/x"}}, "encoder.init_from: s3:// cannot be read; name a folder"),
        (
            {"encoder": {"init_from": "models:/x@champion"}},
            "encoder.init_from: does not name a version; write models:/NAME/VERSION",
        ),
        ({"encoder": {"init_from": "models:/x/latest"}}, "encoder.init_from: does not name a version"),
        ({"encoder": {"init_from": "models:x"}}, "encoder.init_from: does not name a version"),
        (
            {"encoder": {"init_from": "sample://nope"}},
            "encoder.init_from: is no bundled checkpoint; sample://minilm is",
        ),
        (
            {"encoder": {"init_from": "hf://bert-base-uncased"}},
            "encoder.init_from: is no name on the hub; write hf://ORGANISATION/NAME",
        ),
        ({"encoder": {"init_from": "hf://../../etc/passwd"}}, "encoder.init_from: is no name on the hub"),
        (
            {"objective": {"masking": {"strategy": "entity", "entities": "s3://b/names.txt"}}},
            "objective.masking.entities: s3:// cannot be read; name a file on this machine",
        ),
        ({"task": {"folds": 1}}, "task.folds: one fold leaves nothing to train on; must be 0, or 2 to 20, got 1"),
        ({"task": {"folds": 4, "labels": 7}}, "task.folds: 7 labels are too few for 4 folds"),
        (
            {"task": {"class_weights": "balanced"}, "data": {"source": "x", "label_type": "number"}},
            "task.class_weights: numbers have no classes that could be balanced",
        ),
        ({"task": {"frozen_layers": 3}}, "task.frozen_layers: asks for 3 frozen layers, but the encoder has 2"),
        (
            {"task": {"frozen_layers": 5}, "encoder": {"layers": 4, "init_from": "x"}},
            "task.frozen_layers: asks for 5 frozen layers, but the encoder has 4",
        ),
        ({"task": {"method": "adapters"}}, "task.method: should be 'full', 'linear' or 'lora'"),
    ],
)
def test_mistakes_name_the_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_project(MINIMAL | changes)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"frozen_layers": 6}, "encoder": {"init_from": "sample://minilm"}},  # how many it has is not said here
        {"task": {"frozen_layers": 6, "method": "lora"}},
        {"task": {"folds": 3, "labels": 6}},
        {"task": {"folds": 20}},
        {"encoder": {"arch": "modernbert", "hidden": 24, "heads": 6}},
    ],
)
def test_what_fits_passes(changes: dict[str, Any]) -> None:
    parse_project(MINIMAL | changes)


def test_a_tokenizer_is_no_key_of_images() -> None:
    with pytest.raises(UserError, match="tokenizer: unknown key"):
        parse_project({"name": "tiny", "data": {"source": "sample://digits"}, "tokenizer": {}})


def test_relative_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "projects" / "tiny.yaml"
    file.parent.mkdir()
    sections = {
        "data": {"source": "texts", "labels": "labels.csv", "triples": "graph.tsv"},
        "encoder": {"init_from": "../bert"},
        "objective": {"masking": {"strategy": "entity", "entities": "names.txt"}},
    }
    file.write_text(yaml.safe_dump(MINIMAL | sections))
    project = load_project(file)
    assert isinstance(project, TextProject)
    here = file.parent
    assert project.encoder.init_from == str(tmp_path / "bert")
    assert local_paths(project) == [
        here / "texts",
        here / "labels.csv",
        here / "graph.tsv",
        tmp_path / "bert",
        here / "names.txt",
    ]


@pytest.mark.parametrize("source", ["models:/reviews-encoder/3", "hf://answerdotai/ModernBERT-base", "sample://minilm"])
def test_what_is_no_path_stays(tmp_path: Path, source: str) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | {"encoder": {"init_from": source}}))
    project = load_project(file)
    assert project.encoder.model_dump()["init_from"] == source
    assert local_paths(project) == []


def test_the_schema_has_both() -> None:
    assert {part["$ref"].rpartition("/")[2] for part in project_schema()["anyOf"]} == {"ImageProject", "TextProject"}


# ---- the step table


def test_a_modality_has_its_steps_and_what_they_take() -> None:
    names = {modality: [step.name for step in steps_for(modality)] for modality in ("image", "text")}
    assert "tokenize" not in names["image"]
    assert names["text"] == [*names["image"][:4], "tokenize", *names["image"][4:]]
    assert get_step("pretrain", "image").inputs == ("dataset",)
    assert get_step("pretrain", "text").inputs == ("dataset", "tokenizer")
    with pytest.raises(KeyError):
        get_step("tokenize", "image")


def test_a_key_reads_what_the_modality_has() -> None:
    project, other = (parse_project(MINIMAL | {"tokenizer": {"size": size}}) for size in (1000, 2000))
    assert config_slice(project, get_step("pretrain").config)["tokenizer"]["size"] == 1000
    assert "data.image_size" not in config_slice(project, get_step("pretrain").config)
    for name, differs in (("tokenize", True), ("pretrain", True), ("ingest", False), ("finetune", False)):
        step = get_step(name, "text")
        assert (step_key(step, project, {}) != step_key(step, other, {})) == differs, name
