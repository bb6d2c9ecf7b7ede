"""One writer at a time, across processes, released on any exit: a lock that the kernel holds on an open file."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_core.errors import TryAgain
from ssl_core.store import storage_errors

_POLL_SECONDS = 0.1


@contextmanager
def file_lock(path: Path, *, timeout: float, note: Callable[[str], None], purpose: str) -> Iterator[None]:
    """Holds ``path`` exclusively; waits up to ``timeout`` seconds for another holder, and says so once.

    The file stays when the lock is released: removing it would let two processes lock two files of one name.
    Raises ``TryAgain`` naming the holder when the time is over.
    """
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout
        waiting = False
        while not _try_lock(descriptor):
            holder = _holder(path)
            if not waiting:
                note(f"waiting for {purpose}: {holder} is writing")
                waiting = True
            if time.monotonic() >= deadline:
                raise TryAgain(
                    f"{purpose} has been locked by {holder} for the last {timeout:g} s",
                    place=str(path),
                    next_step="run again once that process has ended",
                )
            time.sleep(_POLL_SECONDS)
        with suppress(OSError):  # for people only: a full disk must not stop a writer that may need no space
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
