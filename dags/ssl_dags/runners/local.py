"""The local runner: a job is a process group on this machine, in the training environment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ssl_dags.runners.base import CannotStart, Finished, Job

# What a process needs of its surroundings to run at all. The rest of a job's environment is the job's own.
_BASE = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)
_BASE_PREFIXES = ("OMP_", "OPENBLAS_", "MKL_", "NVIDIA_")
_BASE_ALSO = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_GRACE_SECONDS = 3.0
_LONGEST_LINE = 10_000
_HOPELESS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ENOEXEC)


class LocalRunner:
    """Runs one job with ``python``; ends it and all its children within ``_GRACE_SECONDS`` of ``kill``."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def run(self, job: Job, on_line: Callable[[str], None]) -> Finished:
        """Raises ``CannotStart`` where there is no such Python, ``OSError`` where the machine cannot do it now."""
        # Spec and result are files that only this user can read, so that neither shows in a process list.
        with tempfile.TemporaryDirectory(prefix="ssl-step-") as folder:
            spec, result = Path(folder) / "spec.json", Path(folder) / "result.json"
            spec.write_text(job.spec, encoding="utf-8")
            environment = self._environment(job) | {
                "SSL_STEP_SPEC": f"@{spec}",
                "SSL_RESULT_PATH": str(result),
                "SSL_PARENT_PID": str(os.getpid()),
                "PYTHONUNBUFFERED": "1",
            }
            self._process = self._start(job.step, environment)
            threading.Thread(target=self._end_with_job, daemon=True).start()
            if self._killed:  # asked for while the process was being started
                self.kill()
            try:
                assert self._process.stdout is not None
                while line := self._process.stdout.readline(_LONGEST_LINE):
                    on_line(line.rstrip())
                code = self._process.wait()
            except BaseException:  # Airflow's time-out: the job may still save a checkpoint
                self.kill()
                raise
            finally:
                self._signal(signal.SIGKILL)  # what the job left running
            return Finished(code, result.read_bytes() if result.is_file() else None)

    def _start(self, step: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                [self._python, "-m", "ssl_core.cli", "step", step],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            if error.errno in _HOPELESS:
                raise CannotStart(f"{error}\n  next: check SSL_JOB_PYTHON") from None
            raise

    def kill(self) -> None:
        """SIGTERM to the whole group, and SIGKILL to what is left of it three seconds later."""
        self._killed = True
        if self._process is None or self._process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        # Not Popen.wait: this runs in a signal handler, which may have interrupted just that, lock in hand.
        while time.monotonic() < deadline and self._group_lives():
            time.sleep(0.05)
        self._signal(signal.SIGKILL)

    def _end_with_job(self) -> None:
        """What a job left running may hold the pipe that its lines come from, and the task with it: it ends with the job."""
        assert self._process is not None
        if hasattr(os, "waitid"):
            try:
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # its exit code is left to `run`
            except ChildProcessError:  # `run` was quicker
                return
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def _group_lives(self) -> bool:
        assert self._process is not None
        try:
            # A job that has ended stays a zombie, and its group with it, until `run` asks for its exit code.
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            state = ""
        if state == "Z":
            return False
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _environment(self, job: Job) -> dict[str, str]:
        base = {k: v for k, v in os.environ.items() if k in (*_BASE, *_BASE_ALSO) or k.startswith(_BASE_PREFIXES)}
        # Tools that a step starts (git, dvc) come from the training environment first.
        base["PATH"] = f"{Path(self._python).parent}{os.pathsep}{base.get('PATH', os.defpath)}"
        return base | dict(job.environment) | dict(job.secrets)
