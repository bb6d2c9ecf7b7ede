"""Files beside the dataset that an encoder follows from: another content is another key, and another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_core.config.project import TextProject
from ssl_core.data.text.outside import fingerprint
from ssl_core.pipeline import recipe_digest
from ssl_core.registry.versions import encoder_recipe


def make(**parts: Any) -> TextProject:
    return TextProject.model_validate(
        {"name": "tiny", "modality": "text", "task": {"name": "text-classification"}, "data": {"source": "texts"}}
        | parts
    )


def test_the_key_and_the_recipe_change_with_the_entities(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    project = make(objective={"name": "mlm", "masking": {"strategy": "entity", "entities": str(names)}})
    assert fingerprint(make()) == ""
    assert encoder_recipe(make()) == recipe_digest(make(), "pretrain")
    missing, no_recipe = fingerprint(project), encoder_recipe(project)
    names.write_text("red tree\n")
    first, recipe = fingerprint(project), encoder_recipe(project)
    names.write_text("red tree\nblue river\n")
    assert len({missing, first, fingerprint(project)}) == 3
    assert len({no_recipe, recipe, encoder_recipe(project)}) == 3
    names.write_text("red tree\n")
    assert (fingerprint(project), encoder_recipe(project)) == (first, recipe)


def test_the_key_and_the_recipe_change_with_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    project = make(encoder={"init_from": str(folder)})
    first, recipe = fingerprint(project), encoder_recipe(project)
    (folder / "config.json").write_text("{ }")
    assert first != fingerprint(project) != ""
    assert recipe != encoder_recipe(project)
