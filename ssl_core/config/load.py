"""From a project file to a ``ProjectConfig``, with errors that name file, line and key."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ssl_core.config.project import ProjectConfig, project_class
from ssl_core.config.secrets import find_secrets, secret_lines
from ssl_core.config.settings import expanduser
from ssl_core.errors import UserError, did_you_mean

_MAX_BYTES = 1_000_000
_MAX_NODES = 20_000

PATHS = ("data.source", "data.labels", "data.triples", "encoder.init_from", "objective.masking.entities")
"""The keys that may name a file or folder on this machine."""

Location = tuple[str | int, ...]


def find_project(name_or_path: str, projects_dir: Path) -> Path:
    """The project file that a command line argument means: a path, or the name of one in ``projects_dir``."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_file():
            return path
        raise UserError("no such project file", place=str(path), next_step="ssl-core init NAME --data PATH writes one")
    candidates = {p.stem: p for p in sorted(projects_dir.glob("*.y*ml"))}
    if name_or_path in candidates:
        return candidates[name_or_path]
    known = ", ".join(candidates) or "none"
    raise UserError(
        f"no project called '{name_or_path}'{did_you_mean(name_or_path, candidates)} (there: {known})",
        place=str(projects_dir),
        next_step="name a project file, or set SSL_PROJECTS_DIR",
    )


def load_project(path: Path, overrides: Mapping[str, Any] | None = None, *, given_by: str = "--set") -> ProjectConfig:
    """Reads and validates a project file. ``overrides`` maps dotted keys to values; ``given_by`` says where they come from.

    A relative path (``PATHS``) is taken from the file's folder; beside a source in S3, labels that do not
    start with ``/``, ``~`` or ``.`` are an object of that source.

    Raises:
        UserError: the file cannot be read, is not YAML, or breaks the schema; all problems are listed.
    """
    data, lines = _read(path)
    if overrides and isinstance(data.get("runner"), str):  # the short form, of which a part is changed
        data["runner"] = {"kind": data["runner"]}
    for key, value in (overrides or {}).items():
        _override(data, key, value, given_by)
    for key in PATHS:
        section, leaf = _section_of(data, key)
        value = section.get(leaf)
        in_s3 = str(section.get("source", "")).startswith("s3://")
        if key == "data.labels" and in_s3 and not str(value).startswith(("/", "~", ".")):
            continue
        if isinstance(value, str) and value and "://" not in value and not value.startswith("models:/"):
            section[leaf] = str((path.absolute().parent / expanduser(value)).resolve())
    set_here = {tuple(key.split(".")) for key in overrides or {}}
    return _validate(data, str(path), lines, set_here, given_by)


def parse_project(data: Mapping[str, Any], place: str = "SSL_STEP_SPEC") -> ProjectConfig:
    """Validates a configuration that is already data, for example a step spec's."""
    return _validate(dict(data), place, {})


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """``["pretrain.epochs=5"]`` as ``{"pretrain.epochs": 5}``; values are YAML."""
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"'{item}' is not KEY=VALUE", place="--set", next_step="for example --set pretrain.epochs=5"
            )
        try:
            overrides[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"the value of '{key}' is not YAML", place="--set") from error
    return overrides


def local_paths(project: ProjectConfig) -> list[Path]:
    """The files and folders of this machine that a project names."""
    found = []
    for key in PATHS:
        value: Any = project
        for part in key.split("."):
            value = getattr(value, part, None)
        if isinstance(value, str) and "://" not in value and Path(value).is_absolute():
            found.append(Path(value))
    return found


def _section_of(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that holds the dotted ``key``, and its last part; an empty section where there is none."""
    *sections, leaf = key.split(".")
    here: Any = data
    for section in sections:
        here = here.get(section)
        if not isinstance(here, dict):
            return {}, leaf
    return here, leaf


def _override(data: dict[str, Any], key: str, value: Any, given_by: str) -> None:
    *sections, leaf = key.split(".")
    here = data
    for section in sections:
        below = here.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"'{section}' in '{key}' is not a section", place=given_by)
        here = below
    here[leaf] = value


def _read(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    place = str(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError("the file is larger than 1 MB; this is not a project file", place=place)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text (byte {error.start})", place=place, next_step="save the file as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", place=place) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Location, int] = {}
        _locate(node, (), lines, place, [0])
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{place}:{mark.line + 1}" if mark else place
        raise UserError(
            f"not valid YAML: {error.problem}", place=at, next_step="check indentation and quotes here"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not valid YAML: {error}", place=place) from error
    if not isinstance(data, dict):
        raise UserError(
            "the file is empty or not a mapping of keys",
            place=place,
            next_step="ssl-core init NAME --data PATH writes a first one",
        )
    _refuse_secrets(data, place, lines, text)
    return data, lines


def _refuse_secrets(
    data: Mapping[str, Any], place: str, lines: Mapping[Location, int] | None = None, text: str = ""
) -> None:
    """Before anything else is said about the file, so that no other message repeats the value."""
    problems: dict[int | Location, str] = {}
    for loc, message in find_secrets(data):
        at = loc
        while at and lines and at not in lines:
            at = at[:-1]
        line = (lines or {}).get(at)
        where = f"{place}:{line}" if line else place
        problems[line or loc] = f"{where}: {_dotted(loc)}: {message}"
    for line, message in secret_lines(text):  # what is left are comments, and values of several lines
        problems.setdefault(line, f"{place}:{line}: {message}")
    if problems:
        raise UserError(
            "\n".join(problems.values()),
            next_step="take it out of the project file; where it was committed or shared, make a new secret and withdraw this one",
        )


def _locate(node: yaml.Node | None, at: Location, lines: dict[Location, int], place: str, count: list[int]) -> None:
    """Notes each key's line, and refuses duplicate keys and aliases that blow up."""
    count[0] += 1
    if count[0] > _MAX_NODES:
        raise UserError("too many nodes (aliases that multiply?)", place=place)
    if node is None:
        return
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise UserError(
                    "the key stands twice",
                    place=f"{place}:{line}: {_dotted((*at, key))}",
                    next_step="remove one of the two",
                )
            seen.add(key)
            lines[(*at, key)] = line
            _locate(value_node, (*at, key), lines, place, count)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _locate(item, (*at, index), lines, place, count)


def _validate(
    data: dict[str, Any],
    place: str,
    lines: Mapping[Location, int],
    set_here: Set[Location] = frozenset(),
    given_by: str = "--set",
) -> ProjectConfig:
    """``set_here``: the keys that were overridden; an error there must not send the reader to the file."""
    _refuse_secrets(data, given_by if set_here else place)
    try:
        return ProjectConfig.model_validate(data)
    except ValidationError as error:
        details = error.errors()
    given = [any(_is_of(_location(detail), key, lines) for key in set_here) for detail in details]
    problems = [
        _describe(project_class(data), detail, given_by if by_option else place, {} if by_option else lines)
        for detail, by_option in zip(details, given, strict=True)
    ]
    next_step = (
        f"correct it in the {given_by}" if all(given) else "mend the file and check it with: ssl-core lint " + place
    )
    raise UserError("\n".join(problems), next_step=next_step)


def _is_of(loc: Location, key: Location, lines: Mapping[Location, int]) -> bool:
    """Whether the override of ``key`` is what is wrong at ``loc``: there, below, or above in a section that it made."""
    return loc[: len(key)] == key or (key[: len(loc)] == loc and loc not in lines)


def _location(detail: ErrorDetails) -> Location:
    """The key at fault; where two sections were compared (``elsewhere``), the one that the rule names."""
    return tuple(detail["ctx"]["key"].split(".")) if detail["type"] == "elsewhere" else _without_tags(detail["loc"])


def _without_tags(loc: Location) -> Location:
    """pydantic adds validators and union tags to a location; a user's file has no such key."""
    return tuple(part for part in loc if not (isinstance(part, str) and part.startswith(("function-", "tagged-"))))


def _describe(project: type[ProjectConfig], detail: ErrorDetails, place: str, lines: Mapping[Location, int]) -> str:
    loc = _location(detail)
    kind, message = detail["type"], detail["msg"]
    at = loc
    while at and at not in lines:
        at = at[:-1]
    if kind == "extra_forbidden":
        known = _fields(project, loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) or (f" (known here: {', '.join(sorted(known))})" if known else "")
        message = f"unknown key{hint}"
    elif kind == "missing":
        message = "is required"
    elif kind != "elsewhere":
        message = message.removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
        shown = re.sub(r"://[^@/\s]*@", "://***@", repr(detail["input"]))  # a password must not reach a log
        message = f"{message}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"
        expected = detail.get("ctx", {}).get("expected")
        if kind == "literal_error" and isinstance(detail["input"], str) and expected:
            message += did_you_mean(
                detail["input"], [word.strip("'\" ") for word in expected.replace(" or ", ",").split(",")]
            )
    where = f"{place}:{lines[at]}" if at in lines else place
    return f"{where}: {_dotted(_without_branches(loc))}: {message}"


def _without_branches(loc: Location) -> Location:
    """pydantic adds the member it tried of ``int | "auto"`` to the location; a user's file has no such key."""
    return tuple(
        part
        for part in loc
        if not (
            isinstance(part, str) and (part in {"int", "str", "float"} or part.startswith(("literal[", "constrained")))
        )
    )


def _fields(project: type[ProjectConfig], loc: Location) -> set[str]:
    """The keys that the section at ``loc`` knows."""
    model: Any = project
    for part in loc:
        if isinstance(part, int):
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return set()
        model = _section(model.model_fields[part].annotation)
    return set(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else set()


def _section(annotation: Any) -> Any:
    """The section class inside an annotation such as ``tuple[ExpectationConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _section(arg)) is not None), None)


def _dotted(loc: Location) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(top level)"
