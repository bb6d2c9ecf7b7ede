import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import ArtifactRef, DatasetRef
from ssl_core.pipeline import (
    STEPS,
    config_slice,
    get_step,
    producer,
    recipe_digest,
    skip_reason,
    step_key,
    walk_for,
)


def artifact(sha: str) -> ArtifactRef:
    return ArtifactRef(kind="x", uri="a/b", sha256=sha, producer="p/k")


def dataset(labelled: int) -> DatasetRef:
    return DatasetRef(
        kind="dataset", name="tiny", tag="tiny@v1", revision="r", path="tiny/data", md5="m.dir", remote="/remote",
        sha256="d", producer="publish/k", rows=90, labelled=labelled, classes=3,
    )  # fmt: skip


def test_every_input_is_made_by_an_earlier_step():
    made: set[str] = set()
    for step in STEPS:
        assert set(step.inputs) <= made, step.name
        made |= set(step.outputs)
    assert len(made) == sum(len(step.outputs) for step in STEPS), "two steps make the same artifact"


def test_the_producer_of_an_artifact_is_the_one_step_that_lists_it():
    for step in STEPS:
        for artifact_name in step.outputs:
            assert producer(artifact_name) is step
    assert producer("registered_encoder").name == "register-encoder"
    with pytest.raises(KeyError):
        producer("nope")


PRETRAIN = {"pretrain", "register-encoder"}
WITH_LABELS = {"finetune", "evaluate", "register", "gate", "promote"}


@pytest.mark.parametrize(
    ("artifacts", "skipped"),
    [
        ({}, set()),
        ({"dataset": dataset(9)}, set()),
        ({"dataset": dataset(0)}, WITH_LABELS),
        ({"dataset": dataset(9), "registered_encoder": artifact("r")}, PRETRAIN),
        ({"dataset": dataset(0), "registered_encoder": artifact("r")}, PRETRAIN | WITH_LABELS),
        # An encoder of this very run: it was trained, so registering it is not left out when it is asked again.
        ({"dataset": dataset(9), "encoder": artifact("e"), "registered_encoder": artifact("r")}, set()),
        ({"candidate": dataset(0)}, set()),
    ],
)
def test_what_has_nothing_to_do(artifacts, skipped):
    skipped_texts = skipped | ({"tokenize"} if "pretrain" in skipped else set())
    assert {step.name for step in walk_for("image") if skip_reason(step, artifacts)} == skipped
    assert {step.name for step in walk_for("text") if skip_reason(step, artifacts)} == skipped_texts


def test_why_a_step_has_nothing_to_do():
    reused = skip_reason(get_step("pretrain"), {"registered_encoder": artifact("r")})
    assert reused == "the registered encoder of this recipe is reused"
    assert "no labels yet" in skip_reason(get_step("finetune"), {"dataset": dataset(0)})


def test_functions_exist_as_named():
    for step in STEPS:
        for name in filter(None, (step.function, step.fingerprint, step.verify)):
            module, function = name.split(":")
            spec = find_spec(module)
            assert spec, name
            assert spec.origin, name
            # Read, not imported: most of these modules load torch or MLflow.
            defined = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
            assert function in {node.name for node in defined if isinstance(node, ast.FunctionDef)}, name


def test_configuration_paths_exist(make_project):
    for step in STEPS:
        config_slice(make_project(), step.config)


def test_a_key_follows_what_the_step_reads_and_nothing_else(make_project):
    pretrain, inputs = get_step("pretrain"), {"dataset": artifact("1")}
    key = step_key(pretrain, make_project(), inputs)
    assert key == step_key(pretrain, make_project(evaluate={"draws": 5}), inputs)
    assert key == step_key(pretrain, make_project(pretrain={"when": "always", "checkpoint_seconds": 1}), inputs)
    assert key != step_key(pretrain, make_project(pretrain={"epochs": 7}), inputs)
    assert key != step_key(pretrain, make_project(), {"dataset": artifact("2")})
    assert key != step_key(pretrain, make_project(), inputs, extra="x")


HARMLESS = {"labels", "label", "label_type", "classes", "id", "max_quarantined"}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_an_encoder_is_never_reused_for_samples_that_are_read_in_another_way(modality):
    """It may have been trained on what is now the test set."""
    other = {
        "source": "elsewhere", "split": {"train": 0.6, "test": 0.3}, "near_duplicates": False, "image_size": 16, "channels": 3,
        "max_pixels": 9, "min_side": 9, "text": "body", "unit": "line", "encoding": "cp1252", "max_characters": 500,
        "min_characters": 9, "similarity": 0.5, "triples": "graph.csv", "labels": "l.csv", "label": "rating",
        "label_type": "class" if modality == "image" else "classes", "classes": ["a", "b"], "id": "key", "max_quarantined": 0.5,
    }  # fmt: skip

    def project(**data):
        task = {"name": f"{modality}-classification"}
        return ProjectConfig.model_validate(
            {"name": "tiny", "modality": modality, "task": task, "data": {"source": "here"} | data}
        )

    recipe = recipe_digest(project(), "pretrain")
    for name in type(project().data).model_fields:
        assert (recipe_digest(project(**{name: other[name]}), "pretrain") == recipe) == (name in HARMLESS), name


def test_the_key_follows_the_source(make_project, monkeypatch):
    step = get_step("pretrain")
    key = step_key(step, make_project(), {})
    monkeypatch.setattr("ssl_core.pipeline.source_digest", lambda: "other")
    assert key != step_key(step, make_project(), {})


def test_an_unknown_step_is_a_key_error():
    with pytest.raises(KeyError):
        get_step("nope")


def test_the_table_imports_nothing_heavy():
    code = (
        "import sys, ssl_core.contracts, ssl_core.pipeline, ssl_core.config.load, ssl_core.config.settings;"
        "bad = {'torch','transformers','mlflow','pandas','numpy','great_expectations','dvc','sklearn','fsspec'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
