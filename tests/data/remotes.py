"""A DVC remote made by hand, and DVC's `add` and `push` in a few lines, for tests whose subject is not DVC itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ssl_core.contracts import DatasetRef


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def add(folder: Path, cache: Path) -> str:
    """What `dvc add` does: objects into the cache; returns the folder's address."""
    listing = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        listing.append({"md5": md5(data), "relpath": path.name})
        _put(cache, md5(data), data)
    packed = json.dumps(listing).encode()
    address = md5(packed) + ".dir"
    _put(cache, address, packed)
    return address


def object_path(remote: Path | str, address: str) -> Path:
    return Path(remote) / "files" / "md5" / address[:2] / address[2:]


def stored_version(folder: Path, remote: Path, *, name: str = "tiny", tag: str | None = "tiny@v1") -> DatasetRef:
    """Lays ``folder`` into ``remote`` and returns the reference that reads it."""
    info = json.loads((folder / "dataset.json").read_bytes())
    return DatasetRef(
        kind="dataset" if tag else "candidate", name=name, tag=tag, revision="0" * 40, path=f"{name}/data", md5=add(folder, remote),
        remote=str(remote), sha256=hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest(), producer="ingest/k",
        rows=info["rows"], labelled=info["labelled"], classes=len(info["classes"]),
    )  # fmt: skip


def quick_dvc(*arguments: str, cwd: Path, site: Path, place: str) -> None:
    """Stands in for ``ssl_core.data.git.dvc``: the same files in the same places, without the seconds of a process."""
    import configparser

    if arguments[0] == "add":
        parser = configparser.ConfigParser()
        parser.read(cwd / ".dvc/config.local")
        data = cwd / arguments[-1]
        address = add(data, Path(parser["cache"]["dir"].strip('"')))
        data.with_suffix(".dvc").write_text(f"outs:\n- md5: {address}\n  hash: md5\n  path: data\n")
        (data.parent / ".gitignore").write_text("/data\n")
        (site.parent / "added").write_text(json.dumps([str(data), address]))
    else:
        data, _ = json.loads((site.parent / "added").read_text())
        add(Path(data), Path(place))


def _put(root: Path, address: str, data: bytes) -> None:
    path = object_path(root, address)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def dataset_folder(folder: Path, shards: list[bytes], **info: Any) -> Path:
    """A folder in the shape of a dataset, with whatever bytes as shards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards):
        (folder / f"data-{number:05d}.parquet").write_bytes(shard)
    content = {
        "rows": len(shards),
        "labelled": 1,
        "classes": ["a", "b"],
        "files": {p.name: md5(p.read_bytes()) for p in sorted(folder.iterdir())},
    }
    (folder / "dataset.json").write_text(json.dumps(content | info))
    return folder
