"""The step table. Everything that orders steps (`ssl-core run`, Airflow, dvc.yaml) reads this and nothing else.

A step is a row: the artifacts it takes and makes, the configuration it reads (its cache key), and its function as a
string, so that importing the table imports no machine learning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import DatasetRef, Ref


@dataclass(frozen=True)
class Step:
    """One row of the table."""

    name: str
    template: str
    """The DAG template that holds it (resolve opens each of them). Those of ``WALK`` follow each other."""
    function: str
    """``module:function``, called as ``function(ctx: StepContext) -> StepOutput``."""
    about: str
    """One sentence for people."""
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Inputs that a run may lack."""
    outputs: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    """Dotted paths of the configuration it reads, where the modality has them; ``-path`` leaves a part out. Nothing else reaches its key."""
    cached: bool = True
    """Asked again with the same key, its record is returned."""
    fingerprint: str = ""
    """``module:function(project) -> str`` of what it reads outside the configuration, for its key."""
    modalities: tuple[str, ...] = ()
    """The modalities that have this step; empty: all."""
    needs_labels: bool = False
    """Skipped where the dataset has no labels."""
    pool: str = ""
    """What it must not share: ``gpu`` or ``data-repo``."""
    resumable: bool = False
    """Watches ``ctx.stop`` and saves a checkpoint; other steps are simply ended by a signal."""
    verify: str = ""
    """``module:function(result, settings) -> bool``: whether a cached result still holds outside the store."""


# What an encoder is made from; as a digest, its recipe. All of the data's section is in it but what concerns labels and what
# only decides whether ingest fails: an encoder that is reused for samples that are read, grouped or split in another way may
# have been trained on what is now the test set.
_PRETRAIN = (
    "name",
    "modality",
    "data",
    "-data.labels",
    "-data.label",
    "-data.label_type",
    "-data.classes",
    "-data.id",
    "-data.max_quarantined",
    "tokenizer",
    "encoder",
    "objective",
    "pretrain",
    "-pretrain.when",
    "-pretrain.checkpoint_seconds",
)

# Where and how a network is run: what the steps read that train or ask one.
_RUNTIME = ("pretrain.precision", "pretrain.device", "pretrain.threads")

WALK = ("", "ingest", "pretrain", "finetune")
"""The templates that follow each other from raw data to a champion; the others stand for themselves."""

STEPS: tuple[Step, ...] = (
    Step(
        "resolve",
        "",
        "ssl_core.registry.resolve:run",
        "Freezes the configuration and picks dataset version and encoder for the whole run.",
        outputs=("config",),
        config=("*",),
        cached=False,
    ),
    Step(
        "ingest",
        "ingest",
        "ssl_core.data.ingest:run",
        "Reads the data source and makes a dataset candidate: Parquet shards, a manifest, splits that never change sides.",
        outputs=("candidate",),
        config=("name", "modality", "data"),
        fingerprint="ssl_core.data.ingest:fingerprint",
        verify="ssl_core.data.ingest:still_there",
        pool="data-repo",
    ),
    Step(
        "validate",
        "ingest",
        "ssl_core.validation.validate:run",
        "Judges the candidate by the floors and the Great Expectations suite; a report for people in MLflow.",
        inputs=("candidate",),
        outputs=("validation",),
        config=("name", "modality", "validation", "evaluate.label_budgets", "task.labels"),
        fingerprint="ssl_core.validation.validate:fingerprint",
    ),
    Step(
        "publish",
        "ingest",
        "ssl_core.data.publish:run",
        "Makes the candidate the next dataset version, with a tag in Git and DVC.",
        inputs=("candidate", "validation"),
        outputs=("dataset",),
        config=("name",),
        cached=False,
        pool="data-repo",
    ),
    Step(
        "tokenize",
        "pretrain",
        "ssl_core.data.text.tokenize:run",
        "Trains the tokenizer on the training texts, or takes that of a checkpoint, and says how well it fits.",
        inputs=("dataset",),
        outputs=("tokenizer",),
        config=("name", "modality", "tokenizer", "encoder.init_from", "encoder.max_length"),
        fingerprint="ssl_core.data.text.tokenize:fingerprint",
        modalities=("text",),
    ),
    Step(
        "pretrain",
        "pretrain",
        "ssl_core.training.pretrain:run",
        "Trains the encoder without labels; goes on from its last checkpoint after an interruption.",
        inputs=("dataset", "tokenizer"),
        outputs=("encoder",),
        config=_PRETRAIN,
        fingerprint="ssl_core.modalities:fingerprint",
        pool="gpu",
        resumable=True,
    ),
    Step(
        "register-encoder",
        "pretrain",
        "ssl_core.registry.register:register_encoder",
        "Registers the encoder in MLflow, after it answered as the trained network does.",
        inputs=("dataset", "encoder"),
        outputs=("registered_encoder",),
        config=(*_PRETRAIN, "description", "owner"),  # what the version's tags and card say
        verify="ssl_core.registry.register:still_registered",
    ),
    Step(
        "finetune",
        "finetune",
        "ssl_core.training.finetune:run",
        "Trains encoder and head on the labels.",
        inputs=("dataset", "registered_encoder"),
        optional=("champion",),
        outputs=("model",),
        config=("name", "modality", "task", "continual", *_RUNTIME),
        needs_labels=True,
        pool="gpu",
        resumable=True,
    ),
    Step(
        "evaluate",
        "finetune",
        "ssl_core.evaluation.evaluate:run",
        "Measures on test data whether pretraining helped, beside random init and classical baselines.",
        inputs=("dataset", "registered_encoder", "model"),
        outputs=("evaluation",),
        config=(
            "name",
            "modality",
            "task",
            "evaluate",
            *_RUNTIME,
            "pretrain.seed",
        ),
        needs_labels=True,
        pool="gpu",
    ),
    Step(
        "register",
        "finetune",
        "ssl_core.registry.register:register_model",
        "Registers the model in MLflow as the challenger, after it answered as the trained network does.",
        inputs=("dataset", "registered_encoder", "model", "evaluation"),
        outputs=("registered_model",),
        config=("name", "modality", "description", "owner", "task"),
        needs_labels=True,
        verify="ssl_core.registry.register:still_registered",
    ),
    Step(
        "gate",
        "finetune",
        "ssl_core.registry.gate:run",
        "Compares challenger and champion on the same test samples, whole and in slices: PROMOTE, REJECT or NEEDS_HUMAN, with reasons.",
        inputs=("dataset", "registered_encoder", "registered_model", "evaluation"),
        outputs=("gate_report",),
        config=(
            "name",
            "modality",
            "task",
            "evaluate",
            "promotion",
            *_RUNTIME,
        ),
        cached=False,
        needs_labels=True,
    ),
    Step(
        "promote",
        "finetune",
        "ssl_core.registry.promote:run",
        "Acts on the verdict, moves the aliases where it says so, and writes the ledger.",
        inputs=("registered_encoder", "registered_model", "gate_report"),
        outputs=("promotion",),
        config=("name",),
        cached=False,
        needs_labels=True,
    ),
    Step(
        "monitor",
        "monitor",
        "ssl_core.monitoring.monitor:run",
        "Compares what arrived since the champion's data with what the champion knows; says what it is, and wakes a retraining only where one helps.",
        inputs=("dataset",),
        outputs=("drift",),
        config=("name", "modality", "monitor", "task", *_RUNTIME),
        cached=False,
    ),
    Step(
        "rollback",
        "rollback",
        "ssl_core.registry.rollback:run",
        "Makes an earlier champion the champion again, after it answered as it did when it was trained.",
        outputs=("rollback",),
        config=("name",),
        cached=False,
    ),
    Step(
        "fire-drill",
        "fire-drill",
        "ssl_core.monitoring.fire_drill:run",
        "Plants bad challengers and drifted windows under throw-away names, and fails where a guard misses one.",
        inputs=("dataset",),
        outputs=("drill",),
        config=(
            "name",
            "modality",
            "task",
            "evaluate",
            "promotion",
            "monitor",
            *_RUNTIME,
        ),
        cached=False,
        needs_labels=True,
    ),
)

_ABSENT = object()
_BY_NAME = {step.name: step for step in STEPS}
_PRODUCERS = {artifact: step for step in STEPS for artifact in step.outputs}


def get_step(name: str, modality: str = "") -> Step:
    """The row called ``name``, as the modality has it where one is given; ``KeyError`` where there is none."""
    if not modality:
        return _BY_NAME[name]
    return {step.name: step for step in steps_for(modality)}[name]


@cache
def steps_for(modality: str) -> tuple[Step, ...]:
    """The rows that a modality has, without inputs that none of them makes."""
    rows = [step for step in STEPS if not step.modalities or modality in step.modalities]
    made = {artifact for step in rows for artifact in step.outputs}
    return tuple(replace(step, inputs=tuple(name for name in step.inputs if name in made)) for step in rows)


def walk_for(modality: str) -> tuple[Step, ...]:
    """The rows of a modality that lead from raw data to a champion, in order."""
    return tuple(step for step in steps_for(modality) if step.template in WALK)


def producer(artifact: str) -> Step:
    """The step that makes ``artifact``; ``KeyError`` where none does."""
    return _PRODUCERS[artifact]


def skip_reason(step: Step, artifacts: Mapping[str, Ref]) -> str:
    """Why ``step`` has nothing to do in a run that has these artifacts; empty where it has to be done."""
    if step.template == "pretrain" and "registered_encoder" in artifacts and "encoder" not in artifacts:
        return "the registered encoder of this recipe is reused"
    dataset = artifacts.get("dataset")
    if step.needs_labels and isinstance(dataset, DatasetRef) and dataset.labelled == 0:
        return "no labels yet; they may arrive later"
    return ""


def config_slice(project: ProjectConfig, paths: tuple[str, ...]) -> dict[str, Any]:
    """The part of the configuration that ``paths`` name, as plain JSON values."""
    whole = project.model_dump(mode="json")
    if "*" in paths:
        return whole
    chosen: dict[str, Any] = {}
    for path in (p for p in paths if not p.startswith("-")):
        value: Any = whole
        for part in path.split("."):
            value = value.get(part, _ABSENT)
            if value is _ABSENT:
                break
        if value is not _ABSENT:
            chosen[path] = value
    for path in (p[1:] for p in paths if p.startswith("-")):
        section, _, leaf = path.rpartition(".")
        chosen[section] = {k: v for k, v in chosen[section].items() if k != leaf}
    return chosen


def digest(value: object) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recipe_digest(project: ProjectConfig, step: str) -> str:
    """What a step's configuration amounts to, without its inputs and without the code: names a recipe."""
    return digest(config_slice(project, get_step(step).config))


@cache
def source_digest() -> str:
    """SHA-256 over the package's own source files: other code, other key."""
    root = Path(__file__).parent
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in {".py", ".json", ".html"})
    return digest([[p.relative_to(root).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files])


def step_key(step: Step, project: ProjectConfig, inputs: Mapping[str, Ref], *, extra: str = "") -> str:
    """The key under which a step's outputs lie: configuration slice, input digests, source hash and ``extra``."""
    return digest(
        {
            "step": step.name,
            "config": config_slice(project, step.config),
            "inputs": {name: inputs[name].sha256 for name in (*step.inputs, *step.optional) if name in inputs},
            "source": source_digest(),
            "extra": extra,
        }
    )
