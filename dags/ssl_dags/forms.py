"""Trigger forms, generated from the project schema: a new key of a section shows in the form without a line here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from airflow.sdk import Param
from pydantic import BaseModel

from ssl_core.config.base import IN_FORM, Section
from ssl_core.config.project import ProjectConfig
from ssl_core.errors import UserError, did_you_mean

REVISION_PATTERN = r"^(latest|[\w.@-]+)$"
VERSION_PATTERN = r"^[1-9][0-9]*$"
_SECTIONS = {
    "ingest": ("data", "validation"),
    "pretrain": ("pretrain", "objective", "tokenizer", "encoder"),
    "finetune": ("task", "evaluate", "continual", "promotion"),
    "monitor": ("monitor",),
    "rollback": (),
    "fire-drill": ("promotion", "monitor"),
}
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "enum")
_PLAIN = ("integer", "number", "boolean", "string")


def form(project: ProjectConfig, template: str) -> dict[str, Param]:
    """The trigger form of a template: which data and encoder, then the keys of its sections, then free overrides.

    A field is called as its key in the project file, and starts with the value that stands there.
    """
    fields: dict[str, Param] = {}
    if template == "rollback":
        fields["to"] = Param(
            None,
            type=["string", "null"],
            pattern=VERSION_PATTERN,
            title="Back to version",
            description_md=f"A version of `{project.name}` that was the champion before. Empty: the one before this one",
        )
        fields["reason"] = Param(
            None, type=["string", "null"], maxLength=500, title="Why", description_md="Goes into the ledger"
        )
    elif template != "ingest":
        fields["dataset"] = Param(
            "latest",
            type="string",
            pattern=REVISION_PATTERN,
            title="Dataset version",
            description_md=f"`latest`, or a version such as `v3` or `{project.name}@v3`",
        )
    if template == "finetune":
        fields["encoder_version"] = Param(
            None,
            type=["string", "null"],
            pattern=VERSION_PATTERN,
            title="Encoder version",
            description_md=f"A version of `{project.name}-encoder` in the registry. Empty: the encoder that woke the run, "
            "else the champion's, else the newest",
        )
    leaves = [
        leaf
        for name in _SECTIONS[template]
        if name in type(project).model_fields
        for leaf in _leaves(getattr(project, name), name)
    ]
    for key, value, schema in sorted(leaves, key=lambda leaf: not leaf[2]["first"]):  # stable: the rest in its order
        name = key.partition(".")[0]
        section = None if schema["first"] else f"{name}: {type(project).model_fields[name].description}"
        fields[key] = _field(key, value, schema, section)
    fields["overrides"] = Param(
        {},
        type=["object", "null"],
        title="Any other keys of the project file",
        description_md='JSON, for this run only: `{"pretrain.seed": 1}` or `{"pretrain": {"seed": 1}}`. '
        "Checked by the first task, against the whole schema",
        section="overrides: Any key, for this run only",
    )
    return fields


def overrides(conf: Mapping[str, Any], project: ProjectConfig, template: str) -> dict[str, Any]:
    """What the form (or a trigger's JSON) changes against the project file, as dotted keys.

    Raises ``UserError`` for a key that the form does not have.
    """
    known = form(project, template)
    changes: dict[str, Any] = {}
    for key, value in conf.items():
        if key not in known:
            raise UserError(
                f"unknown field{did_you_mean(key, known)}",
                place=f"trigger form: {key}",
                next_step="keys that are not in the form go into the field `overrides`",
            )
        if "." in key and value != known[key].value:
            changes[key] = _value(key, value, project)
    return changes | dict(_flatten(conf.get("overrides") or {}))


@cache
def _properties(section: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of a section's fields; made once, as many projects have the same sections."""
    properties: dict[str, Any] = section.model_json_schema()["properties"]
    return properties


def _leaves(section: Section, path: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """``(dotted key, value in the project, JSON schema)`` of every field that a form can show."""
    schemas = _properties(type(section))
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{path}.{name}")  # type: ignore[arg-type]
        elif (schema := _simple(schemas[name])) is not None:
            yield f"{path}.{name}", value, schema


def _simple(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema as one field of a form can hold it; None for lists and mappings, which go into overrides."""
    text: dict[str, Any] = {
        "description": schema.get("description", ""),
        "first": schema.get("form") == IN_FORM["form"],
    }
    kinds = schema.get("anyOf", [schema])
    if any(kind.get("type", "string") not in (*_PLAIN, "null") or "$ref" in kind for kind in kinds):
        return None
    if "const" in schema and len(kinds) == 1:
        return None  # nothing to choose
    limits = {key: kind[key] for kind in kinds for key in _LIMITS if key in kind}
    types = [kind.get("type", "string") for kind in kinds]
    words = [word for kind in kinds for word in [kind.get("const"), *kind.get("enum", [])] if word is not None]
    if words and not all(isinstance(word, str) for word in words):  # words and numbers to choose from
        return text | {"type": "string", "enum": [str(word) for word in words], "x-mixed": True}
    if len(set(types) - {"null"}) > 1:  # a number or a word, such as `auto`
        choices = "|".join(str(word) for word in words)
        number = r"[0-9]+(\.[0-9]+)?" if "number" in types else "[0-9]+"
        return text | {"type": "string", "pattern": f"^({choices}|{number})$", "x-mixed": True}
    kind = next(t for t in types if t != "null")
    return text | limits | {"type": [kind, "null"] if "null" in types else kind}


def _field(key: str, value: Any, schema: dict[str, Any], section: str | None) -> Param:
    rules = {k: v for k, v in schema.items() if k not in ("description", "first", "x-mixed")}
    rules |= {"section": section} if section else {}
    words = key.split(".")[1:]
    title = " / ".join(words).replace("_", " ")
    if "x-mixed" in schema:
        value = str(value)
    return Param(value, title=title[:1].upper() + title[1:], description_md=schema["description"], **rules)


def _value(key: str, value: Any, project: ProjectConfig) -> Any:
    """A field that takes a number or a word holds text; the schema wants the number."""
    if isinstance(value, str) and re.fullmatch(
        r"[0-9]{1,18}(\.[0-9]{1,18})?", value
    ):  # a longer one is refused as it stands
        section: Any = project
        for name in key.split(".")[:-1]:
            section = getattr(section, name)
        kind: type[BaseModel] = type(section)
        schema = _simple(_properties(kind)[key.rpartition(".")[2]])
        if schema is not None and "x-mixed" in schema:
            return float(value) if "." in value else int(value)
    return value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
