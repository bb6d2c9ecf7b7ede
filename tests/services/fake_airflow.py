"""Stands in for the ``airflow`` program: the same processes and answers, up in a moment. Run by test_airflow.py."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HOME = Path(os.environ["AIRFLOW_HOME"])
WORKER = """
import signal, subprocess, sys, time
job = subprocess.Popen(["sleep", "300"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: (job.terminate(), job.wait(), sys.exit()))
time.sleep(300)
"""
POOLS = HOME / "pools.jsonl"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/api/v2/monitor/health":
            stale = (HOME / "stale").read_text() if (HOME / "stale").exists() else datetime.now(UTC).isoformat()
            names = ("scheduler", "triggerer", "dag_processor")
            parts = {name: {"status": "healthy", f"latest_{name}_heartbeat": stale} for name in names}
            self.say(200, {"metadatabase": {"status": "healthy"}, **parts})
        elif self.path.startswith("/api/v2/pools"):
            made = [json.loads(line) for line in POOLS.read_text().splitlines()] if POOLS.exists() else []
            self.say(200, {"pools": made})
        else:
            self.say(404, {"detail": "?"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            known = json.loads(Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).read_text())
            self.say(201 if known.get(body["username"]) == body["password"] else 401, {"access_token": "t"})
        else:
            with POOLS.open("a") as file:
                file.write(json.dumps(body) + "\n")
            self.say(201, body)

    def say(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def main(arguments: list[str]) -> int:
    with (HOME / "calls").open("a") as file:
        file.write(" ".join(arguments) + "\n")
    if (HOME / f"break-{arguments[0]}").exists():
        print("Traceback ...\nOperationalError: no such table: dag", flush=True)
        return 1
    match arguments[0]:
        case "db":
            (HOME / "airflow.db").touch()
            return 0
        case "api-server":
            port = int(os.environ["AIRFLOW__API__PORT"])
            http.server.ThreadingHTTPServer((os.environ["AIRFLOW__API__HOST"], port), Handler).serve_forever(0.02)
        case "scheduler":
            # A worker in its session, with a job in a session of its own that it ends when it is told to.
            subprocess.Popen([sys.executable, "-c", WORKER])
    print("running", flush=True)
    time.sleep(300)
    return 0


sys.exit(main(sys.argv[1:]))
