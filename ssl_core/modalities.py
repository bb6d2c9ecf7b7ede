"""What a modality brings: one row each, its parts as strings, so that importing the table imports no machine learning.

Steps know nothing of images or texts; they ask for the part they need: ``part(project.modality, "bench")``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ssl_core.config.project import PROJECTS, ProjectConfig


@dataclass(frozen=True)
class Modality:
    """One row of the table."""

    name: str
    kind: str
    """``module:name`` of its ``data.kinds.Kind``: what ingest and the dataset folder have to know."""
    pretrain: str
    """``module:function``, called as ``function(ctx, dataset, runtime) -> training.pretrain.Prepared``."""
    bench: str
    """``module:function``, called as ``function(ctx, dataset, runtime) -> training.bench.Bench``: for finetune and evaluate."""
    package: str
    """``module:name`` of its ``serving.package.Package``: what travels with a registered model."""
    fingerprint: str = ""
    """``module:function(project) -> str`` of the files outside the dataset that pretraining reads."""


MODALITIES = {
    row.name: row
    for row in (
        Modality(
            "image",
            kind="ssl_core.data.image_kind:KIND",
            pretrain="ssl_core.training.image_pretrain:prepare",
            bench="ssl_core.training.image_bench:open_bench",
            package="ssl_core.serving.image_package:PACKAGE",
        ),
        Modality(
            "text",
            kind="ssl_core.data.text.kind:KIND",
            pretrain="ssl_core.training.text_pretrain:prepare",
            bench="ssl_core.training.text_bench:open_bench",
            package="ssl_core.serving.text_package:PACKAGE",
            fingerprint="ssl_core.data.text.outside:fingerprint",
        ),
    )
}


def noun(modality: str) -> str:
    """What the samples of a modality are called, in the plural."""
    return PROJECTS[modality].noun


def fingerprint(project: ProjectConfig) -> str:
    """Changes with the files outside the dataset that pretraining reads; empty where it reads none."""
    return str(part(project.modality, "fingerprint")(project)) if MODALITIES[project.modality].fingerprint else ""


def part(modality: str, name: str) -> Any:
    """The part called ``name`` of a modality, imported."""
    module, attribute = str(getattr(MODALITIES[modality], name)).split(":")
    return getattr(import_module(module), attribute)
