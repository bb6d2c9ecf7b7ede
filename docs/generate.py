"""Writes docs/project-yaml.md and docs/project.schema.json from the schema, and dvc.yaml from the step table.

python docs/generate.py           # write
python docs/generate.py --check   # exit 1 where the files are out of date
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ssl_core.cli.dvc_file import chosen_project, dvc_yaml
from ssl_core.config.load import load_project
from ssl_core.config.project import ImageProject, TextProject, project_schema
from ssl_core.config.settings import Settings

DOCS = Path(__file__).parent
PIPELINE = DOCS.parent / "dvc.yaml"


def reference() -> str:
    """The Markdown reference of the project file and of the platform settings."""
    parts = [
        "# Project YAML reference",
        "",
        "Generated from `ssl_core/config/` by `make docs`; do not edit. Only `name` and `data.source` are required.",
        "An unknown key or a wrong type is an error that names file, line and key. Check a file with `ssl-core lint FILE`.",
        "For completion in an editor: `ssl-core schema > project.schema.json`.",
        "",
        "What a section may hold depends on the `modality` of the project: first for images (the default), then for texts.",
        "",
        *section("", ImageProject),
        *section("", TextProject),
        "# Platform settings",
        "",
        "Environment variables; the same for every project. A project file does not change between laptop and cluster.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"SSL_{name.upper()}")
        parts.append(f"| `{variable}` | {default(field)} | {field.description} |")
    return "\n".join(parts) + "\n"


def section(path: str, model: type[BaseModel]) -> Iterator[str]:
    """One table per section of the file, nested sections after it."""
    yield f"## `{path}`" if path else "## Top level"
    yield ""
    yield (model.__doc__ or "").strip().replace("\n    ", " ")
    yield ""
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = inner_section(field.annotation)
        key = f"{path}.{name}" if path else name
        if inner is not None:
            many = "[]" if typing.get_origin(field.annotation) is tuple else ""
            nested.append((key + many, inner))
        shown = f"[section](#{anchor(nested[-1][0])})" if inner is not None else default(field)
        yield f"| `{name}` | {kind(field)} | {shown} | {field.description or ''} |"
    yield ""
    for key, inner in nested:
        yield from section(key, inner)


def anchor(heading: str) -> str:
    return "".join(c for c in heading.lower() if c.isalnum() or c in "-_")


def inner_section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := inner_section(arg))), None)


def kind(field: FieldInfo) -> str:
    """The type in words, with its limits."""
    return type_name(field.annotation) + limits(field.metadata)


def limits(metadata: Iterable[Any]) -> str:
    found = []
    for rule in metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if isinstance(rule, getattr(annotated_types, attribute.title())):
                found.append(f"{sign} {getattr(rule, attribute):g}")
    return f", {', '.join(found)}" if found else ""


def type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0]) + limits(rule for info in arguments[1:] for rule in info.metadata)
    if origin is Literal:
        return " \\| ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        return "list of " + type_name(arguments[0])
    if origin is dict:
        return "mapping"
    if arguments:
        return " \\| ".join(type_name(a) for a in arguments if a is not type(None))
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true \\| false", "Path": "path"}
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return "section" if is_section else names.get(annotation.__name__, annotation.__name__)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value in (None, "", ()) or value is PydanticUndefined or isinstance(value, SecretStr):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if isinstance(value, str | Path) else f"`{json.dumps(value)}`"


def main() -> int:
    project = chosen_project(PIPELINE)
    file = PIPELINE.parent / "projects" / f"{project}.yaml"
    modality = load_project(file).modality if file.exists() else "image"
    wanted = {
        DOCS / "project-yaml.md": reference(),
        DOCS / "project.schema.json": json.dumps(project_schema(), indent=2) + "\n",
        PIPELINE: dvc_yaml(project, modality),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
        return 0
    for path in stale:
        sys.stderr.write(f"{path} is out of date: make docs\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
