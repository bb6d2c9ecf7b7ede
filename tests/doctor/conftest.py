"""Servers that answer what a test says, over TCP and over a Unix socket."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = tuple[int, bytes | str | dict[str, Any] | list[Any]]
Respond = Callable[[str, str, bytes], Answer]
"""Method, path and body of a request to status and body of the answer."""


def _handler(respond: Respond, headers: dict[str, str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = respond(self.command, self.path, body)
            if isinstance(content, dict | list):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            self.send_response_only(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD" and status != 204:
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def address_string(self) -> str:
            return "test"

        def log_message(self, *_: Any) -> None:
            return

    return Handler


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        request, _ = super().get_request()
        return request, ("unix", 0)


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """``serve(respond, **headers)``: the address of an HTTP server on loopback."""
    with ExitStack() as stack:

        def start(respond: Respond, **headers: str) -> str:
            server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(respond, headers))
            server.daemon_threads = True
            stack.enter_context(_serving(server))
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture
def serve_unix(tmp_path: Path) -> Iterator[Callable[[Respond], Path]]:
    """``serve_unix(respond)``: the socket file of an HTTP server behind it."""
    with ExitStack() as stack:

        def start(respond: Respond) -> Path:
            path = tmp_path / "engine.sock"
            stack.enter_context(_serving(_UnixServer(str(path), _handler(respond, {}))))
            return path

        yield start


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server that takes connections and never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address where every connection is refused: bound, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
