"""The store: every step output, step record, checkpoint and the ledger, on a disk or in S3 (through fsspec).

Layout, the same on both::

    <root>/<project>/<step>/<key>/out/          what the step made
    <root>/<project>/<step>/<key>/checkpoints/  where an interrupted step goes on from
    <root>/<project>/<step>/<key>/result.json   written last: its presence is the commit
    <root>/ledger/<project>/<seq>.json          written once each, by exclusive create
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fsspec
from pydantic import ValidationError

from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef, Ref, StepResult, StepStatus
from ssl_core.errors import TryAgain, UserError
from ssl_core.s3 import explain

_KEPT_CHECKPOINTS = 2


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_sha256(path: Path) -> str:
    """SHA-256 of a file, or of the sorted list of a folder's files and their SHA-256."""
    if path.is_file():
        return file_sha256(path)
    listing = [[p.relative_to(path).as_posix(), file_sha256(p)] for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turns a full disk, a refused write, a lost connection or what S3 answers into an error with the place and the mend."""
    try:
        yield
    except Exception as error:
        known = explain(error, place)
        # What is not there is for the caller to judge, but no object can ever be in a bucket that is not there.
        if known is not None and (not isinstance(error, FileNotFoundError) or "no such bucket" in known.cause):
            raise known from error
        if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
            raise
        if error.errno == errno.ENOSPC:
            raise TryAgain(
                "no space left on the device; nothing was published",
                place=place,
                next_step="free some space (ssl-core gc --apply) and run again",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise TryAgain(
                f"not writable: {error.strerror}", place=place, next_step="check the rights of this folder"
            ) from error
        raise TryAgain(
            f"storage failed: {error}", place=place, next_step="run again once the storage answers"
        ) from error


def _was_there(error: BaseException) -> bool:
    """Whether S3 refused an exclusive create: 412, or 409 where two came at the same moment."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _remove(path: Path) -> None:
    """Removes a file or folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _matches(seal: dict[str, str], folder: Path) -> bool:
    """Whether ``folder`` holds the files of ``seal``, name to SHA-256."""
    return all((folder / part).is_file() and file_sha256(folder / part) == sha for part, sha in seal.items())


class Store:
    """A store at ``url`` (``file://`` or ``s3://``); ``cache`` keeps local copies of what lies in S3."""

    def __init__(self, url: str, cache: Path) -> None:
        self.url = url.rstrip("/")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:  # an unknown kind of storage, or one whose library is not installed
            raise UserError(
                f"no store can be opened at {self.url.split('://')[0]}://",
                place="SSL_STORE",
                next_step="set it to file:///some/folder or s3://bucket/prefix",
            ) from error
        self.root = self.root.rstrip("/")
        self.cache = cache
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    # ---- paths

    def folder(self, project: str, step: str, key: str) -> str:
        return f"{project}/{step}/{key}"

    def path(self, uri: str) -> str:
        return f"{self.root}/{uri}"

    # ---- plain objects

    def read(self, uri: str) -> bytes | None:
        """The bytes at ``uri``, or None where there is nothing."""
        try:
            with storage_errors(self.path(uri)):
                return bytes(self.fs.cat_file(self.path(uri)))
        except FileNotFoundError:
            return None

    def exists(self, uri: str) -> bool:
        """Whether there is a file or folder at ``uri``."""
        with storage_errors(self.path(uri)):
            return bool(self.fs.exists(self.path(uri)))

    def names(self, uri: str) -> list[str]:
        """The names directly below ``uri``, sorted; empty where there is nothing."""
        self.fs.invalidate_cache()
        try:
            with storage_errors(self.path(uri)):
                return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self.path(uri), detail=False))
        except FileNotFoundError:
            return []

    def create(self, uri: str, data: bytes) -> bool:
        """Writes ``data`` at ``uri`` only if nothing is there: the store's one lock. False where something was."""
        path = self.path(uri)
        with storage_errors(path):
            if not self.is_local:
                try:
                    self.fs.pipe_file(path, data, mode="create")
                except OSError as error:
                    if isinstance(error, FileExistsError) or _was_there(error):
                        return False
                    raise
                return True
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._write_temporary(target, data)
            try:
                os.link(temporary, target)  # fails where the name exists, and is never seen half-written
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True

    def write(self, uri: str, data: bytes) -> None:
        """Writes or replaces ``uri`` in one piece."""
        path = self.path(uri)
        with storage_errors(path):
            if not self.is_local:
                self.fs.pipe_file(path, data)
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._write_temporary(target, data).replace(target)

    def remove(self, uri: str) -> None:
        """Removes a file or folder; nothing there is fine."""
        with storage_errors(self.path(uri)):
            if self.exists(uri):
                self.fs.rm(self.path(uri), recursive=True)

    @staticmethod
    def _write_temporary(target: Path, data: bytes) -> Path:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    # ---- step records

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty local folder, on the store's own disk where it is local, so that publishing is a rename."""
        base = Path(self.root) / ".scratch" if self.is_local else self.cache / "scratch"
        folder = base / f"{os.getpid()}-{uuid.uuid4().hex}"
        with storage_errors(str(base)):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def result(self, project: str, step: str, key: str) -> StepResult | None:
        """The record of a step, if it was committed and all files that it names are there."""
        raw = self.read(f"{self.folder(project, step, key)}/result.json")
        if raw is None:
            return None
        try:
            result = StepResult.model_validate_json(raw)
        except ValidationError:
            return None
        refs = [ref for ref in result.outputs.values() if isinstance(ref, ArtifactRef)]
        return result if all(self.exists(ref.uri) for ref in refs) else None

    def publish(self, project: str, result: StepResult, out: Path) -> None:
        """Commits a step: its outputs first, ``result.json`` last. Nothing is visible before that."""
        folder = self.folder(project, result.step, result.key)
        record = f"{folder}/result.json"
        with storage_errors(self.path(folder)):
            earlier = self.result(project, result.step, result.key)
            if earlier and earlier.status is StepStatus.DONE and earlier.outputs == result.outputs:
                return
            self.remove(record)
            self.remove(f"{folder}/out")
            if self.is_local:
                target = Path(self.path(folder))
                target.mkdir(parents=True, exist_ok=True)
                shutil.move(str(out), target / "out")
            elif any(out.iterdir()):
                self.fs.put(f"{out}/", self.path(f"{folder}/out/"), recursive=True)
        self.write(record, result.model_dump_json(indent=1).encode())

    def fetch(self, ref: Ref) -> Path:
        """A local, read-only path of what ``ref`` names, verified against its digest."""
        if isinstance(ref, DatasetRef):
            raise TypeError("datasets are read by content address: ssl_core.data.reader.fetch")
        assert isinstance(ref, ArtifactRef | ModelRef)
        if self.is_local:
            local = Path(self.path(ref.uri))
            whole = local.exists() and path_sha256(local) == ref.sha256
        else:
            local = self.cache / "artifacts" / ref.sha256 / Path(ref.uri).name
            whole = self.copy(ref.uri, local, lambda copy: path_sha256(copy) == ref.sha256)
        if not local.exists():
            raise TryAgain(
                "an artifact is missing from the store",
                place=self.path(ref.uri),
                next_step="run the step that made it again: " + ref.producer,
            )
        if not whole:
            raise TryAgain(
                "an artifact differs from its digest",
                place=self.path(ref.uri),
                next_step="remove its folder and run the step that made it again: " + ref.producer,
            )
        return local

    def copy(self, uri: str, local: Path, is_whole: Callable[[Path], bool]) -> bool:
        """Keeps a copy of ``uri`` at ``local``; returns whether it is whole. One that is not is downloaded anew, once.

        No copy is seen half-written. Nothing at ``uri`` leaves nothing at ``local``.
        """
        if local.exists() and is_whole(local):
            return True
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
        try:
            with storage_errors(self.path(uri)):
                _remove(local)  # torn or changed since: the store has the last word
                temporary.parent.mkdir(parents=True, exist_ok=True)
                self.fs.invalidate_cache()
                self.fs.get(self.path(uri), str(temporary), recursive=True)
                if not local.exists():  # else another process made it meanwhile
                    temporary.replace(local)
        except FileNotFoundError:
            return False
        finally:
            _remove(temporary)
        return is_whole(local)

    def checkpoints(self, project: str, step: str, key: str) -> Checkpoints:
        return Checkpoints(self, f"{self.folder(project, step, key)}/checkpoints")


class Checkpoints:
    """The checkpoints of one step key; the newest whole one survives a kill at any moment, on any machine."""

    def __init__(self, store: Store, uri: str) -> None:
        self._store = store
        self._uri = uri

    def save(self, position: int, folder: Path) -> None:
        """Stores a folder of files as the checkpoint at ``position`` (moved away) and drops all but the last two."""
        seal = {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        name = f"{position:012d}"
        target = f"{self._uri}/{name}"
        with storage_errors(self._store.path(target)):
            self._store.remove(target)
            if self._store.is_local:
                for part in seal:
                    with (folder / part).open("rb") as file:
                        os.fsync(file.fileno())
                path = Path(self._store.path(target))
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(str(folder), path)
            else:
                self._store.fs.put(f"{folder}/", self._store.path(f"{target}/"), recursive=True)
                shutil.rmtree(folder)
        self._store.write(f"{target}/seal.json", json.dumps(seal).encode())
        for old in self._store.names(self._uri)[:-_KEPT_CHECKPOINTS]:
            self._store.remove(f"{self._uri}/{old}")

    def newest(self) -> tuple[int, Path] | None:
        """``(position, local folder)`` of the newest checkpoint whose files match their digests."""
        for name in reversed(self._store.names(self._uri)):
            raw = self._store.read(f"{self._uri}/{name}/seal.json")
            if raw is None or not name.isdigit():
                continue
            is_whole = partial(_matches, json.loads(raw))
            local = Path(self._store.path(f"{self._uri}/{name}"))
            if not self._store.is_local:
                local = self._store.cache / "checkpoints" / hashlib.sha256(raw).hexdigest()
                if self._store.copy(f"{self._uri}/{name}", local, is_whole):
                    return int(name), local
            elif is_whole(local):
                return int(name), local
        return None

    def part(self, name: str) -> Checkpoints:
        """Checkpoints of one of several trainings of a step, below these; ``clear`` of these removes them too."""
        return Checkpoints(self._store, f"{self._uri}/{name}")

    def clear(self) -> None:
        """Removes all checkpoints; called once the step's result is committed."""
        self._store.remove(self._uri)
