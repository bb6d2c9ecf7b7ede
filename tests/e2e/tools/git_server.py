"""A Git server for tests: ``git daemon`` on loopback, which takes pushes. What a team's Git host is in production."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def git_server(folder: Path) -> Iterator[str]:
    """Serves the empty bare repository ``folder/data.git``; yields its URL."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(folder / "data.git")], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}", "--export-all", "--enable=receive-pack", "--reuseaddr", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "git daemon ended"
            assert time.monotonic() < deadline, "git daemon does not listen"
            time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/data.git"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
