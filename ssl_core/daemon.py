"""A background process of this platform home: started once, found again by its pid file, stopped with all it started."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ssl_core.errors import UserError

_LOG_BYTES = 10_000_000
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file ``path``; waits for another holder. The kernel lets go of it however the holder ends.

    Not reentrant. Raises ``UserError`` where its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(
            f"cannot write here: {error.strerror}",
            place=str(path.parent),
            next_step="set SSL_HOME to a writable folder",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def port_taken(port: int) -> bool:
    """Whether some program listens on this port of the loopback interface (or of all)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port(after: int) -> int:
    """The next free port behind ``after``; any free one where there is none."""
    for port in range(after + 1, min(after + 200, 65_536)):
        if not port_taken(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Record:
    """What a pid file says. A pid alone may be another process by now, so the start time counts as well."""

    pid: int
    started: float
    extra: dict[str, Any]

    def process(self) -> psutil.Process | None:
        """The process, None where it has ended or its number belongs to another one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if same else None

    def replaced(self) -> bool:
        """Whether its number belongs to another process by now (and not to itself, ended or not)."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) >= 1
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Daemon:
    """One background process, known by ``name`` in ``folder``.

    ``lock`` is to be held from the look whether it runs to the start, so that two callers at once start one.
    """

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        return self.folder / f"{self.name}.json"

    def lock(self) -> AbstractContextManager[None]:
        """A context manager; raises ``UserError`` where the folder cannot be written."""
        return exclusive(self.folder / f"{self.name}.lock")

    def written(self) -> Record | None:
        """What its last start wrote, whether it still runs or not; None where it was stopped or never started."""
        try:
            content = dict(json.loads(self.pid_file.read_text()))
            return Record(int(content.pop("pid")), float(content.pop("started")), content)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def record(self) -> Record | None:
        """What was written at its start, while it still runs."""
        record = self.written()
        return record if record is not None and record.process() else None

    def process(self) -> psutil.Process | None:
        """The process, None where it does not run."""
        record = self.record()
        return record.process() if record else None

    def start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, **extra: Any) -> int:
        """Starts ``command`` in a session of its own and returns its pid; ``extra`` goes into the pid file.

        A log that has grown large is moved aside first: one old one is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), **extra}
        temporary = self.folder / f".{self.name}.json"
        temporary.write_text(json.dumps(record))
        temporary.replace(self.pid_file)
        return process.pid

    def stop(self, timeout: float, number: int = signal.SIGTERM) -> bool:
        """Sends ``number`` to its whole group, after ``timeout`` seconds SIGKILL; False where it did not run.

        Its children count too, in other groups as well. Other processes are never touched.
        """
        process = self.process()
        if process is not None:
            try:
                members = [process, *process.children(recursive=True)]
            except psutil.Error:
                members = [process]
            signal_group(process.pid, number)
            alive = wait_ended(members, timeout)
            if alive:
                signal_group(process.pid, signal.SIGKILL)
                kill(alive)
        self.pid_file.unlink(missing_ok=True)
        return process is not None

    def last_words(self) -> str:
        """The last line of its log, for an error message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 10_000))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return "no log"
        return lines[-1][:300] if lines else "nothing in its log"


def signal_group(pid: int, number: int) -> None:
    """Signals a daemon's group: it was started as the leader of a session of its own, so its group is its pid."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def wait_ended(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Waits until all have ended and returns those that have not after ``timeout`` seconds.

    One that its parent has not asked about yet (a zombie) has ended: in a container the first process may never ask, and
    ``psutil.wait_procs`` would wait for it in vain.
    """
    deadline = time.monotonic() + timeout
    while alive := [process for process in processes if not _ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    return alive


def _ended(process: psutil.Process) -> bool:
    try:
        if not process.is_running():
            return True
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
    except psutil.NoSuchProcess:
        return True
    with suppress(ChildProcessError):  # ours: it shall not stay in the process table
        os.waitpid(process.pid, os.WNOHANG)
    return True


def kill(processes: Sequence[psutil.Process]) -> None:
    """Ends processes that did not end when asked, and waits for them. psutil compares start times: never another one."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_ended(processes, _KILL_SECONDS)
