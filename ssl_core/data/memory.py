"""All images of a dataset version as one memory map: decoded once, in parallel, and kept by content address.

Training, probes and evaluation read the same pixels many times; decoding is paid once per (version, size, channels).
Layout: ``<cache>/decoded/<key>/pixels.u8``, raw uint8 ``(N, C, H, W)`` in manifest order, and ``record.json`` with the
checksums. ``N`` samples, ``C`` channels, ``H`` height, ``W`` width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.config.data import ImageDataConfig
from ssl_core.config.settings import Settings, usable_cpus
from ssl_core.contracts import DatasetRef
from ssl_core.data import images as decoding
from ssl_core.data.dataset import MANIFEST_FILE, DatasetInfo, read_content, read_info, read_manifest_file
from ssl_core.data.lock import file_lock
from ssl_core.data.reader import fetch
from ssl_core.data.table import SampleTable
from ssl_core.errors import TryAgain
from ssl_core.step import NoProgress, Progress
from ssl_core.store import storage_errors

if TYPE_CHECKING:
    import pandas as pd

DECODER_VERSION = 1
"""Raise it when the same bytes would give other pixels."""

_PIXELS = "pixels.u8"
_RECORD = "record.json"
_LARGEST_AUTO_SIDE = 96
_SMALLEST_SIDE = 8
_CHECKED_BLOCK = 64 * 2**20
_BATCH_BYTES = 4 * 2**20
_LOCK_TIMEOUT = 3600.0


@dataclass(frozen=True, kw_only=True)
class Images(SampleTable):
    """The images of one dataset version, decoded."""

    pixels: np.ndarray
    """``(N, C, H, W)`` uint8 memory map in manifest order; read-only."""


def choose_size(info: DatasetInfo, config: ImageDataConfig) -> tuple[int, int]:
    """``(side, channels)`` that encoders see, with ``auto`` resolved.

    The automatic side is the longer median side, at most 96 and at least 8 pixels: images keep their aspect ratio inside
    the square, so this enlarges nothing typical. Colour is kept where any image has it.
    """
    side = max(info.summary["median_width"], info.summary["median_height"])
    size = max(_SMALLEST_SIDE, min(_LARGEST_AUTO_SIDE, side)) if config.image_size == "auto" else config.image_size
    channels = (3 if info.summary["has_colour"] else 1) if config.channels == "auto" else config.channels
    return int(size), int(channels)


def open_images(
    ref: DatasetRef, settings: Settings, *, size: int, channels: int, progress: Progress | None = None
) -> Images:
    """The images of ``ref`` as ``(N, channels, size, size)`` uint8; decoded on the first call, mapped on the next ones.

    The map is read through once and checked against its checksums when opened, which also brings it into the page cache;
    a damaged one is decoded again. Memory stays bounded by a few batches. Raises ``TryAgain`` for storage, and for
    a dataset whose shards and manifest disagree.
    """
    import PIL

    progress = progress or NoProgress()
    folder = fetch(ref, settings, progress)
    info = read_info(folder)
    manifest = read_manifest_file(folder / MANIFEST_FILE)
    shape = (len(manifest), channels, size, size)
    # Pillow's version is part of the address: another one may resize to other pixels.
    named = json.dumps([ref.md5, size, channels, DECODER_VERSION, PIL.__version__])
    target = settings.cache / "decoded" / hashlib.sha256(named.encode()).hexdigest()[:32]
    if not _is_whole(target, shape):
        lock = settings.cache / "locks" / target.name
        with file_lock(
            lock, timeout=_LOCK_TIMEOUT, note=progress.note, purpose=f"the decoded images of {ref.tag or ref.name}"
        ):
            if not _is_whole(target, shape):  # otherwise another process made it meanwhile
                _decode_all(folder, manifest, target, shape, progress)
    pixels: Any = (
        np.memmap(target / _PIXELS, dtype=np.uint8, mode="r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
    )
    return Images(pixels=pixels, manifest=manifest, classes=list(info.classes))


def _decode_all(folder: Path, manifest: pd.DataFrame, target: Path, shape: tuple[int, ...], progress: Progress) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    checksums: list[int] = []
    try:
        with storage_errors(str(target)):
            temporary.mkdir(parents=True)
            # Written from front to back, not through the map: a full disk is then an error here instead of a SIGBUS.
            with (temporary / _PIXELS).open("wb") as file, progress.bar("decode images", shape[0], "images") as bar:
                for batch in _decoded(folder, manifest, shape):
                    file.write(batch.data)
                    bar.advance(len(batch))
                file.flush()
                os.fsync(file.fileno())
            checksums = _checksums(temporary / _PIXELS)
            (temporary / _RECORD).write_text(json.dumps({"shape": shape, "crc32": checksums}))
            shutil.rmtree(target, ignore_errors=True)  # damaged, or it would have been used
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decoded(folder: Path, manifest: pd.DataFrame, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Batches ``(n, C, H, W)`` in manifest order; a bounded number of them is in flight."""
    workers = usable_cpus()
    rows = int(np.clip(_BATCH_BYTES // max(1.0, float(manifest["bytes"].mean())), 1, 256)) if len(manifest) else 1
    expected = manifest["sample_id"].tolist()
    position = 0
    pending: deque[Future[np.ndarray]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for sample_ids, encoded in read_content(folder, "image", batch=rows):
            if sample_ids != expected[position : position + len(sample_ids)]:
                raise TryAgain(
                    "the shards and the manifest hold different samples",
                    place=str(folder),
                    next_step="run ingest again",
                )
            position += len(sample_ids)
            pending.append(pool.submit(_decode_batch, encoded, shape[1], shape[2]))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        if position != len(expected):
            raise TryAgain(
                "the manifest holds more samples than the shards", place=str(folder), next_step="run ingest again"
            )
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_batch(encoded: list[bytes], channels: int, size: int) -> np.ndarray:
    batch = np.empty((len(encoded), channels, size, size), dtype=np.uint8)
    for row, data in enumerate(encoded):
        # Ingest has judged size and content already; here only the pixels are wanted.
        image = decoding.normalise(decoding.open_header(data, max_pixels=sys.maxsize, min_side=1))
        batch[row] = decoding.to_array(image, size, channels)
    return batch


def _is_whole(target: Path, shape: tuple[int, ...]) -> bool:
    try:
        record = json.loads((target / _RECORD).read_bytes())
        pixels = target / _PIXELS
        return (
            tuple(record["shape"]) == shape
            and pixels.stat().st_size == int(np.prod(shape))
            and _checksums(pixels) == record["crc32"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksums(path: Path) -> list[int]:
    """CRC-32 of each block of a file; blocks are read side by side."""

    def one(start: int) -> int:
        checksum = 0
        with path.open("rb") as file:
            file.seek(start)
            for _ in range(16):
                checksum = zlib.crc32(file.read(_CHECKED_BLOCK // 16), checksum)
        return checksum

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(0, path.stat().st_size, _CHECKED_BLOCK)))
