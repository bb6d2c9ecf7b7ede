"""One bucket: what lies in it, and its objects' bytes, exactly as listed.

boto3 lists, and says whatever there is to say about errors, regions and retries. It also takes about a millisecond of CPU
for each object, most of it not in the network. So once a listing has shown how requests to this bucket look, objects are
fetched over kept-open connections with requests signed here; whatever does not answer such a request with the object is asked
again through boto3. Where requests look otherwise (another signature, a proxy), boto3 fetches everything.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlsplit

from ssl_core.data.layout import Refused
from ssl_core.s3 import error_code, make_client, make_session, s3_errors

THREADS = 16
_PAGE = 1000
_FOLDERS_LISTED_AT_ONCE = 64
_TIMEOUT = 60.0
_BROKEN_OFF = 3
_LINE, _LINES, _BUFFER = 65_536, 200, 65_536
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_GONE = ("NoSuchKey", "404", "NoSuchVersion")
_CHANGED = ("PreconditionFailed", "412", "InvalidRange", "416")
_ARCHIVED = ("InvalidObjectState",)


@dataclass(frozen=True, slots=True)
class S3Object:
    """One object as a listing shows it. ``etag`` changes with the content."""

    key: str
    etag: str
    size: int


class Gone(Exception):
    """There is no such object any more."""


class Changed(Exception):
    """The object is not the one that was listed."""


class Bucket:
    """A bucket as these credentials see it. All methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = f"s3://{name}"
        with s3_errors(self.url):
            self._session = make_session()
            self._client = make_client(self._session, connections=2 * THREADS)
        self._direct: _Direct | None = None
        self._client.meta.events.register("before-send.s3.ListObjectsV2", self._learn)

    @property
    def endpoint(self) -> str:
        """The server that the bucket is on."""
        return str(self._client.meta.endpoint_url)

    # ---- listing

    def objects(self, prefix: str) -> list[S3Object]:
        """All objects whose keys start with ``prefix``, in the order of their keys' bytes.

        The first level of folders is listed at once, in parallel, where there is more than one page. Raises ``UserError`` or
        ``TryAgain`` where S3 refuses or does not answer.
        """
        with s3_errors(f"{self.url}/{prefix}"):
            first = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=_PAGE)
            if not first.get("IsTruncated"):
                return _objects(first)
            top = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, Delimiter="/", MaxKeys=_PAGE)
            folders = [str(found["Prefix"]) for found in top.get("CommonPrefixes", ())]
            if top.get("IsTruncated") or not 1 < len(folders) <= _FOLDERS_LISTED_AT_ONCE:
                return [*_objects(first), *self._pages(prefix, first["NextContinuationToken"])]
            with ThreadPoolExecutor(THREADS, thread_name_prefix="s3-list") as pool:
                below = list(pool.map(lambda folder: list(self._pages(folder)), folders))
            found = [*_objects(top), *(one for folder in below for one in folder)]
            return sorted(found, key=lambda one: one.key.encode())

    def _pages(self, prefix: str, token: str = "") -> Iterator[S3Object]:
        while True:
            more = {"ContinuationToken": token} if token else {}
            page = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=_PAGE, **more)
            yield from _objects(page)
            token = page.get("NextContinuationToken", "")
            if not page.get("IsTruncated") or not token:
                return

    def look(self, key: str) -> S3Object:
        """The object as it is now. Raises ``Gone`` where there is none."""
        with s3_errors(f"{self.url}/{key}"):
            try:
                head = self._client.head_object(Bucket=self.name, Key=key)
            except self._client.exceptions.ClientError as error:
                if error_code(error) in _GONE:
                    raise Gone from None
                raise
        return S3Object(key, str(head["ETag"]), int(head["ContentLength"]))

    # ---- fetching

    def get(self, wanted: S3Object, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``, of exactly this state of the object and in full.

        Raises:
            Gone, Changed: the object is not the one that was listed.
            Refused: it cannot be read as long as it is stored like this (archived).
            UserError, TryAgain: S3 refuses, or does not answer after several tries.
        """
        end = wanted.size if end is None else end
        if self._direct is not None:
            data = self._direct.get(wanted, start, end)
            if data is not None:
                return data
        return self._get(wanted, start, end)

    def _get(self, wanted: S3Object, start: int, end: int) -> bytes:
        part = {} if (start, end) == (0, wanted.size) else {"Range": f"bytes={start}-{end - 1}"}
        with s3_errors(f"{self.url}/{wanted.key}"):
            try:
                answer, data = self._answer(Key=wanted.key, IfMatch=wanted.etag, **part)
            except self._client.exceptions.ClientError as error:
                code = error_code(error)
                if code in _GONE:
                    raise Gone from None
                if code in _CHANGED:
                    raise Changed from None
                if code in _ARCHIVED:
                    raise Refused(
                        "archived: restore the object in S3 first (its storage class cannot be read)"
                    ) from None
                raise
        if answer["ETag"] != wanted.etag or len(data) != end - start:  # a server that knows no If-Match
            raise Changed
        return data

    def _answer(self, **request: Any) -> tuple[dict[str, Any], bytes]:
        """boto3 asks again where there is no answer; where one breaks off in the middle, that is left to the caller."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for attempt in range(_BROKEN_OFF + 1):
            answer = self._client.get_object(Bucket=self.name, **request)
            try:
                return answer, bytes(answer["Body"].read())  # raises where fewer bytes come than were announced
            except (HTTPClientError, IncompleteReadError):
                if attempt == _BROKEN_OFF:
                    raise
                time.sleep(random.random() * 2**attempt)  # noqa: S311 - apart from each other, nothing else
        raise AssertionError("unreachable")

    def close_connections(self) -> None:
        """Ends waits for bytes that do not come, in whichever thread."""
        if self._direct is not None:
            self._direct.close()

    def _learn(self, request: Any, **_: Any) -> None:
        """boto3 calls this with each listing that it sends: it shows where the bucket is and how requests are signed."""
        if self._direct is None:
            self._direct = _Direct.like(request, self._session)


def _objects(page: dict[str, Any]) -> list[S3Object]:
    return [S3Object(found["Key"], found["ETag"], int(found["Size"])) for found in page.get("Contents", ())]


class _Direct:
    """Plain GET requests with AWS's signature of version 4, one kept-open connection for each thread.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """

    def __init__(self, url: str, region: str, credentials: Any, authority: str | None) -> None:
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host, self._hostname = parts.netloc, parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._region = region
        self._credentials = credentials
        self._authority = authority
        self._mine = threading.local()
        self._open: list[_Connection] = []
        self._signing: tuple[tuple[str, str], bytes] = (("", ""), b"")
        self._balance = 3
        """Requests that were answered, less those that boto3 had to be asked for; below zero this way is given up."""

    @classmethod
    def like(cls, request: Any, session: Any) -> _Direct | None:
        """What makes requests like boto3's ``request``; None where it is of a kind that this class cannot make."""
        header = request.headers.get("Authorization", "")
        header = header.decode() if isinstance(header, bytes) else str(header)
        scope = header.partition("Credential=")[2].partition(",")[0].split("/")
        url = str(request.url).partition("?")[0]
        parts = urlsplit(url)
        proxied = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")
        if not header.startswith("AWS4-HMAC-SHA256 ") or scope[3:] != ["s3", "aws4_request"] or proxied:
            return None
        authority = session.get_config_variable("ca_bundle")
        return cls(url, scope[2], session.get_credentials(), authority)

    def get(self, wanted: S3Object, start: int, end: int) -> bytes | None:
        """The bytes, or None where the answer is anything but these."""
        if self._balance < 0:
            return None
        whole = (start, end) == (0, wanted.size)
        path = f"{self._path}/{quote(wanted.key, safe='/~')}"
        headers = self.sign(path, time.time()) | {"If-Match": wanted.etag}
        if not whole:
            headers["Range"] = f"bytes={start}-{end - 1}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        answer = self._connection().get(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode(), end - start)
        if answer is None or answer[:2] != (200 if whole else 206, wanted.etag):
            self._balance -= 1
            return None
        self._balance = 1000
        return answer[2]

    def sign(self, path: str, now: float) -> dict[str, str]:
        """The headers of a GET of ``path`` at ``now``, in seconds since 1970."""
        credentials = self._credentials.get_frozen_credentials()  # renews what has a limited life
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        headers = {"host": self._host, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": stamp}
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"GET\n{path}\n\n{lines}\n{names}\n{_EMPTY_SHA256}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(credentials.secret_key, stamp[:8]), text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _key(self, secret: str, day: str) -> bytes:
        made_for, key = self._signing
        if made_for != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._signing = ((secret, day), key)  # one assignment: another thread sees the old pair or the new one
        return key

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._mine, "connection", None)
        if connection is None:
            context = _tls_context(self._authority) if self._tls else None
            connection = self._mine.connection = _Connection(self._hostname, self._port, context)
            self._open.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._open:
            connection.interrupt()


class _Connection:
    """One connection of HTTP/1.1, kept open as long as answers are of the plainest kind: a length, and so many bytes."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._address = (host, port)
        self._tls = tls
        self._socket: socket.socket | None = None
        self._file: BinaryIO | None = None

    def get(self, request: bytes, size: int) -> tuple[int, str, bytes] | None:
        """Status, ETag and a body of ``size`` bytes; None where the answer is of another kind, or there is none."""
        try:
            if self._socket is None or self._file is None:
                self._connect()
            assert self._socket is not None
            assert self._file is not None
            self._socket.sendall(request)
            status = self._file.readline(_LINE).split(b" ", 2)
            headers: dict[bytes, bytes] = {}
            while (line := self._file.readline(_LINE)) not in (b"\r\n", b"") and len(headers) < _LINES:
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            data = self._file.read(size) if int(headers[b"content-length"]) == size else b""
            if int(status[1]) not in (200, 206) or b"transfer-encoding" in headers or len(data) != size:
                self._close()
                return None
            if headers.get(b"connection", b"").lower() == b"close":
                self._close()
            return int(status[1]), headers.get(b"etag", b"").decode("latin-1"), data
        except (OSError, ValueError, LookupError):
            self._close()
            return None

    def interrupt(self) -> None:
        """Ends a wait in another thread."""
        if (there := self._socket) is not None:
            with suppress(OSError):
                there.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> None:
        plain = socket.create_connection(self._address, timeout=_TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self._tls.wrap_socket(plain, server_hostname=self._address[0]) if self._tls else plain
        self._file = cast(BinaryIO, self._socket.makefile("rb", _BUFFER))

    def _close(self) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
            if self._socket is not None:
                self._socket.close()
        self._socket = self._file = None


@cache
def _tls_context(authority: str | None) -> ssl.SSLContext:
    """Trusts whom boto3 trusts: AWS_CA_BUNDLE, or else the certificates that it comes with."""
    from botocore.httpsession import get_cert_path

    return ssl.create_default_context(cafile=authority or get_cert_path(True))
