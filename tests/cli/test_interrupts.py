"""Ctrl-C when the work is done already."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.e2e.tools.platform import default_interrupt


def test_an_interrupt_while_the_process_ends_changes_nothing(tmp_path):
    (tmp_path / "tiny.yaml").write_text("name: tiny\ndata: {source: sample://digits}\n")
    for number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "ssl_core.cli", "lint", str(tmp_path / "tiny.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=default_interrupt,
        )
        assert process.stdout is not None
        assert "ok" in process.stdout.readline()
        time.sleep(0.01 + number * 0.004)  # before, Python died of it at any of these moments
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
