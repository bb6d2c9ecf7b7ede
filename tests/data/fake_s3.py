"""A small S3 on loopback whose answers a test chooses: what a real server would not do on demand, or not keep (`../` in a key)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

Answer = tuple[int, bytes, dict[str, str]]


class FakeS3:
    """``objects`` by key in one bucket, called ``bucket``. ``requests`` are (method, key or "?list") in their order."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        """Sizes to be announced instead of the true ones."""
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.before: Callable[[str, str, dict[str, str]], str | Answer | None] = lambda method, key, headers: None
        """Called before each answer: an error code such as ``AccessDenied``, an answer of its own, or None for the true one."""
        self.url = ""

    def put(self, files: dict[str, bytes]) -> None:
        self.objects |= files

    def etag(self, key: str) -> str:
        return f'"{hashlib.md5(self.objects[key]).hexdigest()}"'

    @property
    def fetched(self) -> list[str]:
        return [key for method, key in self.requests if method == "GET" and key != "?list"]

    def answer(self, method: str, key: str, query: dict[str, list[str]], headers: dict[str, str]) -> Answer:
        self.requests.append((method, key))
        said = self.before(method, key, headers)
        if isinstance(said, tuple):
            return said
        if said is not None:
            return error(said)
        if key == "?list":
            return 200, self._listing(query), {"Content-Type": "application/xml"}
        if key not in self.objects:
            return error("NoSuchKey")
        if headers.get("if-match", self.etag(key)) != self.etag(key):
            return error("PreconditionFailed")
        data, status = self.objects[key], 200
        if "range" in headers:
            self.ranges.append(headers["range"])
            start, end = headers["range"].removeprefix("bytes=").split("-")
            data, status = data[int(start) : int(end) + 1], 206
        return status, data, {"ETag": self.etag(key)}

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", [""])[0]
        limit = min(1000, int(query.get("max-keys", ["1000"])[0]))
        entries: dict[str, str] = {}
        for key in sorted(self.objects, key=str.encode):
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                entries[folder] = f"<CommonPrefixes><Prefix>{escape(quote(folder))}</Prefix></CommonPrefixes>"
                continue
            entries[key] = (
                f"<Contents><Key>{escape(quote(key))}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(self.etag(key))}</ETag><Size>{self.sizes.get(key, len(self.objects[key]))}</Size></Contents>"
            )
        names = [name for name in sorted(entries, key=str.encode) if name.encode() > after.encode()]
        more = len(names) > limit
        token = f"<NextContinuationToken>{escape(names[limit - 1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><Name>bucket</Name><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{''.join(entries[name] for name in names[:limit])}</ListBucketResult>"
        ).encode()


def error(code: str, status: int = 0) -> Answer:
    statuses = {"NoSuchKey": 404, "NoSuchBucket": 404, "PreconditionFailed": 412, "SlowDown": 503}
    body = f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()
    return status or statuses.get(code, 403), body, {"Content-Type": "application/xml"}


@contextmanager
def fake_s3() -> Iterator[FakeS3]:
    fake = FakeS3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            key = unquote(parts.path).removeprefix("/bucket").removeprefix("/")
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body, more = fake.answer(self.command, key or "?list", parse_qs(parts.query), headers)
            try:
                self._send(status, body, more)
            except OSError:  # the client has gone
                self.close_connection = True

        def _send(self, status: int, body: bytes, more: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            if "Content-Length" not in more:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if int(more.get("Content-Length", len(body))) > len(body):
                self.close_connection = True

        do_GET = do_HEAD = handle_any

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
