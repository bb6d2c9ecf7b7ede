"""Reads dataset versions by content address, straight from the DVC remote: no Git, no DVC, any machine.

An object lies at ``<remote>/files/md5/ab/cdef...``; a folder is an object too, a list of file names and digests. Local
copies keep that layout in ``<cache>/files/md5`` (DVC's own, so what this machine ingested is never downloaded), and a
version is a folder of hard links to them in ``<cache>/datasets/<md5>``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import fsspec

from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data.lock import file_lock
from ssl_core.errors import TryAgain
from ssl_core.step import NoProgress, Progress
from ssl_core.store import storage_errors

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 8 * 1024 * 1024
_DOWNLOADS = 8
_LOCK_TIMEOUT = 3600.0


def fetch(ref: DatasetRef, settings: Settings, progress: Progress | None = None) -> Path:
    """A local, read-only folder with the content of ``ref``.

    Every byte is checked against its md5 when the folder is made; afterwards names and sizes are. Raises ``TryAgain``
    naming the object that is missing from the remote or differs from its address.
    """
    folder, record = _places(ref, settings)
    if _is_whole(folder, record):
        return folder
    progress = progress or NoProgress()
    lock = settings.cache / "locks" / folder.name
    with file_lock(lock, timeout=_LOCK_TIMEOUT, note=progress.note, purpose=f"the local copy of {ref.tag or ref.name}"):
        if not _is_whole(folder, record):  # otherwise another process made it meanwhile
            _assemble(ref, settings, folder, record, progress)
    return folder


def fetch_file(ref: DatasetRef, settings: Settings, name: str) -> Path:
    """A local, read-only, verified copy of one file of the dataset; nothing else is fetched."""
    folder, record = _places(ref, settings)
    if _is_whole(folder, record) and (folder / name).is_file():
        return folder / name
    objects = _Objects(ref, settings.cache)
    files = objects.listing()
    if name not in files:
        raise TryAgain(
            f"{ref.tag or ref.name} holds no {name}", place=f"{ref.remote} {ref.md5}", next_step="run ingest again"
        )
    return objects.get(files[name])


def read_manifest(ref: DatasetRef, settings: Settings) -> pd.DataFrame:
    """The manifest of a version, one row a sample; the shards are not fetched."""
    from ssl_core.data.dataset import MANIFEST_FILE, read_manifest_file

    return read_manifest_file(fetch_file(ref, settings, MANIFEST_FILE))


def missing_objects(ref: DatasetRef, settings: Settings) -> list[str]:
    """Addresses of the version's objects that the remote lacks, or holds in another size than the local copy's.

    Reads no content but the folder's listing. Raises ``TryAgain`` where the remote cannot be reached.
    """
    objects = _Objects(ref, settings.cache)
    if not objects.is_stored(ref.md5):
        return [objects.url(ref.md5)]
    addresses = list(objects.listing().values())
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        return [
            objects.url(md5)
            for md5, stored in zip(addresses, pool.map(objects.is_stored, addresses), strict=True)
            if not stored
        ]


def is_stored(ref: DatasetRef, settings: Settings) -> bool:
    """Whether the remote holds all of a version."""
    return not missing_objects(ref, settings)


class _Objects:
    """The content-addressed objects of one version: in the local cache, else in the remote."""

    def __init__(self, ref: DatasetRef, cache: Path) -> None:
        self._ref = ref
        self._cache = cache
        with storage_errors(ref.remote):
            self._fs, root = fsspec.core.url_to_fs(ref.remote)
        self._root = root.rstrip("/")

    def listing(self) -> dict[str, str]:
        """File name to md5."""
        files = {entry["relpath"]: entry["md5"] for entry in json.loads(self.get(self._ref.md5).read_bytes())}
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise TryAgain(
                    f"a file of the dataset is called {name!r}",
                    place=self.url(self._ref.md5),
                    next_step="run ingest again",
                )
        return files

    def get(self, md5: str) -> Path:
        """The verified local copy of an object."""
        local = self._local(md5)
        if _md5(local) == md5.removesuffix(".dir"):
            return local
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
        try:
            with storage_errors(str(local)):
                local.parent.mkdir(parents=True, exist_ok=True)
                digest = self._download(md5, temporary)
                if digest != md5.removesuffix(".dir"):
                    raise TryAgain(
                        f"an object of {self._ref.tag or self._ref.name} is corrupt: its content has the md5 {digest}",
                        place=self.url(md5),
                        next_step="remove this object and run ingest again, or restore it from a backup",
                    )
                temporary.chmod(0o444)
                temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)
        return local

    def is_stored(self, md5: str) -> bool:
        """Whether the remote holds an object, in the size of the local copy where there is one."""
        try:
            size = int(self._fs.size(self._path(md5)))
        except FileNotFoundError:
            return False
        except Exception as error:  # every storage has errors of its own
            raise self._unreachable(md5, error) from error
        local = self._local(md5)
        return not local.exists() or local.stat().st_size == size

    def _download(self, md5: str, target: Path) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with target.open("wb") as file:
            try:
                source = self._fs.open(self._path(md5), "rb", block_size=_BLOCK, cache_type="readahead")
            except FileNotFoundError:
                raise self._missing(md5) from None
            except Exception as error:
                raise self._unreachable(md5, error) from error
            with source:
                while block := self._read(source, md5):
                    digest.update(block)
                    file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _read(self, source: object, md5: str) -> bytes:
        try:
            return bytes(source.read(_BLOCK))  # type: ignore[attr-defined]
        except FileNotFoundError:
            raise self._missing(md5) from None
        except Exception as error:
            raise self._unreachable(md5, error) from error

    def _local(self, md5: str) -> Path:
        return self._cache / "files" / "md5" / md5[:2] / md5[2:]

    def _path(self, md5: str) -> str:
        return f"{self._root}/files/md5/{md5[:2]}/{md5[2:]}"

    def url(self, md5: str) -> str:
        return f"{self._ref.remote}/files/md5/{md5[:2]}/{md5[2:]}"

    def _missing(self, md5: str) -> TryAgain:
        return TryAgain(
            f"an object of {self._ref.tag or self._ref.name} is missing from the DVC remote",
            place=self.url(md5),
            next_step="restore it from a backup, or run ingest again with the same source",
        )

    def _unreachable(self, md5: str, error: Exception) -> TryAgain:
        return TryAgain(
            f"the DVC remote cannot be read: {type(error).__name__}: {error}",
            place=self.url(md5),
            next_step="check the address and the rights (AWS_*), then run again",
        )


def _places(ref: DatasetRef, settings: Settings) -> tuple[Path, Path]:
    """The folder of a version, and the record of its files' sizes beside it."""
    folder = settings.cache / "datasets" / ref.md5.removesuffix(".dir")
    return folder, folder.with_name(f"{folder.name}.json")


def _assemble(ref: DatasetRef, settings: Settings, folder: Path, record: Path, progress: Progress) -> None:
    objects = _Objects(ref, settings.cache)
    files = objects.listing()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        with storage_errors(str(folder)):
            temporary.mkdir(parents=True)
            with (
                progress.bar(f"fetch {ref.tag or ref.name}", len(files), "files") as bar,
                ThreadPoolExecutor(_DOWNLOADS) as pool,
            ):
                for name, path in zip(files, pool.map(objects.get, files.values()), strict=True):
                    _link(path, temporary / name)
                    bar.advance()
            _write(record, json.dumps({name: (temporary / name).stat().st_size for name in files}).encode())
            shutil.rmtree(folder, ignore_errors=True)  # incomplete, or it would have been used
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path, record: Path) -> bool:
    try:
        sizes = json.loads(record.read_bytes())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _md5(path: Path) -> str:
    """The md5 of a file, empty where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return ""


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)
        target.chmod(0o444)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_bytes(data)
    temporary.replace(path)
