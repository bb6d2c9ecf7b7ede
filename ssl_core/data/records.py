"""What a commit of the data repository says about a dataset: ``version.json`` and DVC's pointer ``data.dvc``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ssl_core.contracts import DatasetRef
from ssl_core.errors import UserError
from ssl_core.store import file_sha256

RECORD_FILES = ("version.json", "data.dvc")
_KEPT = ("md5", "remote", "sha256", "producer", "rows", "labelled", "classes")


def describe(folder: Path) -> dict[str, Any]:
    """The part of ``version.json`` that follows from a dataset folder."""
    info = json.loads((folder / "dataset.json").read_bytes())
    return {
        "rows": info["rows"], "labelled": info["labelled"], "classes": len(info["classes"]),
        "sha256": file_sha256(folder / "dataset.json"),
    }  # fmt: skip


def pointer_md5(pointer: str) -> str:
    """The content address in a ``.dvc`` file."""
    return str(yaml.safe_load(pointer)["outs"][0]["md5"])


def parse_records(answer: str, paths: list[str], *, place: str) -> list[dict[str, Any] | None]:
    """Records from the output of ``git cat-file --batch`` for ``paths``, ``RECORD_FILES`` of each commit in turn.

    None where a commit does not hold the dataset. Raises ``UserError`` where a record was damaged by hand.
    """
    blobs = iter(_blobs(answer.encode("utf-8", "surrogateescape"), len(paths)))
    records: list[dict[str, Any] | None] = []
    for path, version, pointer in zip(paths[::2], blobs, blobs, strict=True):
        if version is None or pointer is None:
            records.append(None)
            continue
        try:
            records.append(json.loads(version) | {"md5": pointer_md5(pointer)})
        except (ValueError, TypeError, KeyError, IndexError, yaml.YAMLError) as error:
            raise UserError(
                f"the record {path} cannot be read: {error}",
                place=place,
                next_step="only ssl-core writes to the data repository: restore what was changed by hand",
            ) from error
    return records


def to_ref(name: str, commit: str, record: dict[str, Any] | None, tag: str | None) -> DatasetRef:
    """The reference to a version (``tag``) or candidate, from its record."""
    known = {k: v for k, v in (record or {}).items() if k in _KEPT}
    try:
        return DatasetRef(
            kind="dataset" if tag else "candidate", name=name, tag=tag, revision=commit, path=f"{name}/data", **known
        )
    except ValidationError as error:
        raise UserError(
            f"the record of {name} in {tag or commit} is damaged",
            place=f"{name}/version.json",
            next_step="restore the data repository",
        ) from error


def _blobs(answer: bytes, count: int) -> list[str | None]:
    """``<object> blob <size>``, the content, a line break; or ``<path> missing``."""
    blobs: list[str | None] = []
    position = 0
    for _ in range(count):
        end = answer.index(b"\n", position)
        header = answer[position:end].split(b" ")
        position = end + 1
        if header[-1] == b"missing":
            blobs.append(None)
        else:
            size = int(header[-1])
            blobs.append(answer[position : position + size].decode("utf-8", "replace"))
            position += size + 1
    return blobs
