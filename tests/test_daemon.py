"""Background processes: one start for two callers, found again, and stopped with all they started."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ssl_core.daemon import Daemon, exclusive, free_port, port_taken, wait_ended
from ssl_core.errors import UserError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# Starts a child, and neither of them minds SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"],
    start_new_session=True)
time.sleep(60)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path / "a folder")
    yield daemon
    daemon.stop(1, signal.SIGKILL)


def begin(daemon: Daemon, command: list[str] = SLEEP, **extra: object) -> int:
    return daemon.start(command, env={"PATH": "/usr/bin:/bin"}, cwd=daemon.folder.parent, **extra)


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_started_found_again_by_another_object_and_stopped(daemon: Daemon) -> None:
    pid = begin(daemon, port=4321)
    found = Daemon(daemon.name, daemon.folder).record()
    assert found is not None
    assert (found.pid, found.extra) == (pid, {"port": 4321})
    assert daemon.stop(5)
    assert daemon.process() is None
    assert not psutil.pid_exists(pid), "no zombie either"
    assert not daemon.stop(5)


def test_what_ignores_sigterm_is_killed_with_its_child_in_another_session(daemon: Daemon) -> None:
    begin(daemon, [sys.executable, "-c", STUBBORN])
    until(lambda: daemon.log.read_text() == "ready\n")
    process = daemon.process()
    assert process is not None
    children = process.children(recursive=True)
    assert len(children) == 1
    assert daemon.stop(0.3)
    assert wait_ended(children, 5) == []


def test_two_callers_at_once_start_one(daemon: Daemon) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ssl_core.daemon import Daemon\n"
        "daemon = Daemon('sleeper', Path(sys.argv[1]))\n"
        "with daemon.lock():\n"
        "    if daemon.process() is None:\n"
        "        time.sleep(0.3)\n"
        "        print(daemon.start(['sleep', '60'], env={'PATH': '/usr/bin:/bin'}, cwd=Path('/')))\n"
    )
    callers = [
        subprocess.Popen([sys.executable, "-c", script, str(daemon.folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = "".join(caller.communicate(timeout=60)[0] for caller in callers).split()
    assert len(said) == 1
    record = daemon.record()
    assert record is not None
    assert record.pid == int(said[0])


def test_a_process_that_got_the_number_is_not_touched(daemon: Daemon) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        daemon.folder.mkdir()
        started = psutil.Process(other.pid).create_time() - 100
        daemon.pid_file.write_text(json.dumps({"pid": other.pid, "started": started}))
        written = daemon.written()
        assert written is not None
        assert written.replaced()
        assert daemon.record() is None
        assert not daemon.stop(1)
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("content", ["", "[]", "{}", "no json", '{"pid": "x", "started": 1}', '{"pid": 1}'])
def test_a_damaged_pid_file_is_nobodys(daemon: Daemon, content: str) -> None:
    daemon.folder.mkdir()
    daemon.pid_file.write_text(content)
    assert daemon.written() is None
    assert not daemon.stop(1)


def test_a_process_whose_parent_does_not_ask_has_ended() -> None:
    """In a container nobody may ever ask: waiting for its number to go would take all the time there is."""
    keeper = [
        sys.executable,
        "-c",
        "import subprocess, time; child = subprocess.Popen(['true']); print(child.pid, flush=True); time.sleep(60)",
    ]
    with subprocess.Popen(keeper, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        zombie = psutil.Process(int(parent.stdout.readline()))
        began = time.monotonic()
        assert wait_ended([zombie], 10) == []
        assert time.monotonic() - began < 5
        assert psutil.pid_exists(zombie.pid)
        parent.kill()


def test_a_large_log_is_moved_aside_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_core.daemon._LOG_BYTES", 100)
    daemon.folder.mkdir()
    daemon.log.write_text("x" * 101 + "\n")
    begin(daemon, ["echo", "the new one"])
    until(lambda: daemon.last_words() == "the new one")
    assert daemon.log.read_text() == "the new one\n"
    assert daemon.log.with_suffix(".log.1").read_text().startswith("xxx")
    begin(daemon, ["echo", "appended"])
    until(lambda: daemon.log.read_text() == "the new one\nappended\n")


def test_last_words_of_no_log_and_of_an_empty_one(daemon: Daemon) -> None:
    assert daemon.last_words() == "no log"
    daemon.folder.mkdir()
    daemon.log.touch()
    assert daemon.last_words() == "nothing in its log"


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write") as caught, exclusive(tmp_path / "file" / "lock"):
        pass
    assert "SSL_HOME" in caught.value.next_step


def test_the_next_free_port_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_taken(port)
        proposed = free_port(port - 1)
        assert proposed != port
        assert not port_taken(proposed)
    assert 0 < free_port(65_535) < 65_536
