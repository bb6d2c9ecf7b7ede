from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssl_dags.runners.base import CannotStart, Finished, Job
from ssl_dags.runners.local import LocalRunner
from tests.dags.conftest import REPOSITORY

SECRET = "wJalrXUtnFEMIbPxRfiCY"
# What the jobs below share: they tell their process ids, and wait until somebody ends them.
PRELUDE = """
import os, signal, sys, time
def say(*words):
    print(*words, flush=True)
def wait():
    while True:
        time.sleep(60)
"""


class Printed:
    """The lines of a job, and the moment of one of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._news:
            self.lines.append(line)
            self._news.notify_all()

    def wait_for(self, word: str, timeout: float = 20) -> str:
        with self._news:
            assert self._news.wait_for(lambda: any(word in line for line in self.lines), timeout), self.lines
            return next(line for line in self.lines if word in line)

    def pid(self, word: str) -> int:
        return int(self.wait_for(word).split()[1])


@pytest.fixture
def run(program):
    """``run(source)``: the job whose Python is ``source``, to its end."""

    def run(source: str, job: Job | None = None) -> tuple[Finished, list[str]]:
        printed = Printed()
        return LocalRunner(program(PRELUDE + source)).run(job or Job("ingest", "{}"), printed), printed.lines

    return run


@pytest.fixture
def started(program):
    """``started(source)``: a runner in a thread, with what it prints and its end to come."""
    with ThreadPoolExecutor(1) as pool:
        runners = []

        def start(source: str):
            runner, printed = LocalRunner(program(PRELUDE + source)), Printed()
            runners.append(runner)
            return runner, printed, pool.submit(runner.run, Job("ingest", "{}"), printed)

        yield start
        for runner in runners:
            runner.kill()


def gone(pid: int, timeout: float = 0.0) -> bool:
    """Whether a process has ended; a zombie has."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


# ---- lines, result, exit code


def test_a_jobs_lines_arrive_while_it_runs(started, tmp_path):
    """The job goes on only after its first line has been seen."""
    seen = tmp_path / "seen"
    _, printed, end = started(f"""
say("first")
while not os.path.exists({str(seen)!r}):
    time.sleep(0.01)
say("last")
""")
    printed.wait_for("first")
    assert not end.done()
    assert printed.lines == ["first"]
    seen.touch()
    assert end.result(20) == Finished(0, None)
    assert printed.lines == ["first", "last"]


def test_it_is_called_as_a_step_and_finds_its_spec(run):
    finished, lines = run(
        """
say(*sys.argv[1:])
path = os.environ["SSL_STEP_SPEC"]
say(path[:1], open(path[1:]).read(), oct(os.stat(os.path.dirname(path[1:])).st_mode & 0o777))
say(repr(sys.stdin.read()), os.environ["PYTHONUNBUFFERED"], os.getsid(0) == os.getpid())
""",
        Job("register-encoder", '{"step": "ü"}'),
    )
    assert finished.exit_code == 0
    assert lines == ["-m ssl_core.cli step register-encoder", '@ {"step": "ü"} 0o700', "'' 1 True"]


def test_the_result_is_read_and_nothing_is_left_behind(run):
    document = b'{"step": "ingest"}\xff'
    finished, lines = run(f"""
path = os.environ["SSL_RESULT_PATH"]
with open(path, "wb") as out:
    out.write({document!r})
say(os.path.dirname(path))
sys.exit(3)
""")
    assert finished == Finished(3, document)
    assert not Path(lines[0]).exists()


@pytest.mark.parametrize(
    ("source", "code"),
    [("sys.exit(75)", 75), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("1 / 0", 1), ("", 0)],
)
def test_the_exit_code_is_the_jobs(run, source, code):
    finished, _ = run(source)
    assert finished == Finished(code, None)


def test_both_streams_in_order(run):
    assert run('say("a"); print("b", file=sys.stderr, flush=True); say("c")')[1] == ["a", "b", "c"]


def test_a_line_without_an_end_comes_too(run):
    assert run('sys.stdout.write("no newline")')[1] == ["no newline"]


def test_a_very_long_line_comes_in_pieces(run):
    _, lines = run('say("x" * 2_500_000); say("after")')
    assert "".join(lines[:-1]) == "x" * 2_500_000
    assert max(map(len, lines)) <= 10_000
    assert lines[-1] == "after"


def test_bytes_that_are_no_text_are_shown_as_such(run):
    _, lines = run(r'sys.stdout.buffer.write(b"\xff\xfe caf\xc3\xa9 \x00\n"); say("after")')
    assert lines == ["\\xff\\xfe café \x00", "after"]


def test_progress_bars_come_line_by_line(run):
    assert run(r'say("10%\r20%\r30%")')[1] == ["10%", "20%", "30%"]


@pytest.mark.parametrize("python", ["/no/such/python", ""])
def test_a_python_that_is_not_there_is_an_error_that_names_it(python, tmp_path):
    with pytest.raises(CannotStart) as error:
        LocalRunner(python or str(tmp_path)).run(Job("ingest", "{}"), print)
    assert (python or str(tmp_path)) in str(error.value)
    assert "SSL_JOB_PYTHON" in str(error.value)


def test_a_machine_that_cannot_start_a_process_now_may_later(monkeypatch):
    def no_memory(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_memory)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        LocalRunner(sys.executable).run(Job("ingest", "{}"), print)


# ---- environment


def test_a_job_sees_what_it_is_given_and_little_else(run, monkeypatch, tmp_path):
    for name in ("MY_DATABASE_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "SSL_WEBHOOK_URL"):  # fmt: skip
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    job = Job("ingest", "{}", environment={"SSL_HOME": "/home/ssl"}, secrets={"MLFLOW_TRACKING_TOKEN": "for the job"})
    finished, lines = run("import json; say(json.dumps(dict(os.environ)))", job)
    found = json.loads(lines[0])
    assert finished.exit_code == 0
    assert SECRET not in lines[0]
    assert found["SSL_HOME"] == "/home/ssl"
    assert found["MLFLOW_TRACKING_TOKEN"] == "for the job"
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["https_proxy"] == "http://proxy:3128"
    assert found["SSL_PARENT_PID"] == str(os.getpid())
    assert found["PATH"].split(os.pathsep)[0] == str(tmp_path)
    ours = {
        "SSL_HOME",
        "MLFLOW_TRACKING_TOKEN",
        "SSL_STEP_SPEC",
        "SSL_RESULT_PATH",
        "SSL_PARENT_PID",
        "PYTHONUNBUFFERED",
    }
    of_the_shell = {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
    surroundings = set(found) - ours - of_the_shell
    assert surroundings <= set(os.environ)
    assert not {name for name in surroundings if name.startswith(("AIRFLOW", "PYTHON", "SSL_", "AWS_"))}


def test_a_jobs_own_environment_wins(run, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    _, lines = run('say(os.environ["TZ"])', Job("ingest", "{}", environment={"TZ": "UTC"}))
    assert lines == ["UTC"]


def test_secrets_are_not_shown(run):
    assert SECRET not in repr(Job("ingest", "{}", secrets={"AWS_SECRET_ACCESS_KEY": SECRET}))


# ---- the end of a job


def test_a_polite_job_is_asked_first(started, tmp_path):
    asked = tmp_path / "asked"
    runner, printed, end = started(f"""
def bow(number, frame):
    open({str(asked)!r}, "w").write(str(number))
    sys.exit(75)
signal.signal(signal.SIGTERM, bow)
say("ready", os.getpid())
wait()
""")
    pid = printed.pid("ready")
    runner.kill()
    assert end.result(20) == Finished(75, None)
    assert asked.read_text() == str(int(signal.SIGTERM))
    assert gone(pid)


def test_a_stubborn_job_and_its_children_are_gone_within_four_seconds(started):
    runner, printed, end = started("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    say("child", os.getpid())
    if os.fork() == 0:
        say("grandchild", os.getpid())
    wait()
say("job", os.getpid())
wait()
""")
    pids = [printed.pid(who) for who in ("job", "child", "grandchild")]
    before = time.monotonic()
    runner.kill()
    took = time.monotonic() - before
    assert end.result(20).exit_code == -signal.SIGKILL
    assert took < 4, "Airflow ends the worker five seconds after it asked"
    assert took > 2.5, "a last checkpoint needs its three seconds"
    assert all(gone(pid, 5) for pid in pids)


def test_what_a_polite_job_leaves_is_ended_too(started):
    runner, printed, end = started("""
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("child", os.getpid())
    wait()
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(75))
say("job", os.getpid())
wait()
""")
    printed.pid("job")
    child = printed.pid("child")
    runner.kill()
    assert end.result(20).exit_code == 75
    assert gone(child, 5)


def test_a_job_that_ended_takes_what_it_left_with_it(started):
    """Though that still holds the pipe that the lines come from."""
    _, printed, end = started("""
child = os.fork()
if child == 0:
    wait()
say("child", child)  # by the job itself: the child may be ended before it came to say anything
say("done")
""")
    child = printed.pid("child")
    assert end.result(20) == Finished(0, None)
    assert gone(child, 5)
    assert "done" in printed.lines


def test_a_job_that_is_asked_to_end_before_it_began_does_not_stay(started):
    runner, _, end = started('signal.signal(signal.SIGTERM, signal.SIG_DFL); say("ready"); wait()')
    runner.kill()  # wherever `run` is
    assert end.result(20).exit_code < 0


def test_an_interrupted_runner_leaves_no_job(program, tmp_path):
    """As by Airflow's time-out, which is an exception in the worker's main thread."""
    printed = Printed()

    def on_line(line: str) -> None:
        printed(line)
        raise TimeoutError

    asked = tmp_path / "asked"
    source = f"""
def bow(number, frame):
    open({str(asked)!r}, "w").write(str(number))
    sys.exit(75)
signal.signal(signal.SIGTERM, bow)
say("job", os.getpid())
wait()
"""
    with pytest.raises(TimeoutError):
        LocalRunner(program(PRELUDE + source)).run(Job("ingest", "{}"), on_line)
    assert gone(printed.pid("job"), 5)
    assert asked.read_text() == str(int(signal.SIGTERM)), "it was asked first, and could save a checkpoint"


def test_a_kill_after_the_end_harms_nobody(program):
    runner = LocalRunner(program(PRELUDE))
    runner.run(Job("ingest", "{}"), print)
    before = time.monotonic()
    runner.kill()
    assert time.monotonic() - before < 2


def test_a_job_whose_runner_was_killed_ends_by_itself(tmp_path):
    """SIGKILL gives the worker no time for anything: the kernel tells the job (``ssl_core.cli.step.end_with_parent``)."""
    job = tmp_path / "job.py"
    job.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from ssl_core.cli.step import end_with_parent
end_with_parent()
print("job", os.getpid(), flush=True)
while True:
    time.sleep(60)
""")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{job}"\n')
    python.chmod(0o755)
    worker = tmp_path / "worker.py"
    worker.write_text(f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "dags")!r})
from ssl_dags.runners.base import Job
from ssl_dags.runners.local import LocalRunner
LocalRunner({str(python)!r}).run(Job("ingest", "{{}}"), lambda line: print(line, flush=True))
""")
    with subprocess.Popen([sys.executable, str(worker)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().split()[1])
        assert not gone(pid)
        process.kill()
        process.wait()
        try:
            assert gone(pid, 10)
        finally:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_job_that_starts_after_its_runner_was_killed_does_nothing(run):
    source = f"""
sys.path.insert(0, {str(REPOSITORY)!r})
sys.path[1:1] = {sys.path!r}
os.environ["SSL_PARENT_PID"] = "1"
from ssl_core.cli.step import end_with_parent
from ssl_core.errors import TryAgain
try:
    end_with_parent()
except TryAgain as error:
    say(error)
    sys.exit(error.exit_code)
"""
    finished, lines = run(source)
    assert finished.exit_code == 75, lines
    assert "is gone" in lines[0]
