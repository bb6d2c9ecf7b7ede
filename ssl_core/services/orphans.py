"""What a platform started, however it was orphaned: every process carries its home in the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from ssl_core.daemon import kill, wait_ended

MARKER = "SSL_PLATFORM_ID"
_ROUNDS = 5


def marker(home: Path) -> str:
    """The value of ``MARKER`` for this home: the same by whatever way it is reached."""
    return str(home.resolve())


def marked(home: Path, *, but: Iterable[int] = ()) -> list[psutil.Process]:
    """This user's processes whose environment names ``home`` as their platform.

    Never this process, nor one that it descends from: ``ssl-core down`` may itself have been started by a job. Nor those
    whose pids are in ``but``, nor their children.
    """
    mine = psutil.Process()
    spared = {mine.pid, *(parent.pid for parent in mine.parents())}
    for pid in but:
        try:
            kept = psutil.Process(pid)
            spared |= {pid, *(child.pid for child in kept.children(recursive=True))}
        except psutil.Error:
            continue
    found, wanted = [], marker(home)
    for process in psutil.process_iter():
        try:
            if process.pid in spared or process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARKER) == wanted:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def of_session(leader: int) -> Callable[[psutil.Process], bool]:
    """Whether a process belongs to the session of a leader that has ended: no other can have its number meanwhile."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == leader
        except OSError:
            return False

    return belongs


def end(find: Callable[[], list[psutil.Process]], *, grace: float) -> int:
    """SIGTERM to all that ``find`` finds, after ``grace`` seconds SIGKILL, again until there are none; how many there were.

    Again, because a process may start another one while it is being ended.
    """
    ended: set[int] = set()
    for _ in range(_ROUNDS):
        processes = find()
        if not processes:
            break
        ended |= {process.pid for process in processes}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        kill(wait_ended(processes, grace))
    return len(ended)
