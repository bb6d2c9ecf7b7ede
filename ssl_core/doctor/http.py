"""One request over HTTP, and why there was no answer in words that a person knows."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Reply:
    """What a server answered; any status is an answer. ``headers`` by lower-case name; ``body``: its first 4 KB."""

    status: int
    headers: Mapping[str, str]
    body: str


class NoAnswer(Exception):
    """Nothing answered in HTTP; the text says why."""


def ask(url: str, timeout: float = 5.0) -> Reply:
    """GET ``url``. Raises ``NoAnswer``."""
    # A proxy must not be asked for this machine's own server.
    handlers = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOOPBACK else []
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as answer:
            return Reply(answer.status, _lower(answer.headers), answer.read(4096).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        return Reply(error.code, _lower(error.headers), "")
    except urllib.error.URLError as error:
        raise NoAnswer(in_words(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(in_words(error)) from error


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def in_words(reason: object) -> str:
    """Why a connection failed, in a few words."""
    for kinds, words in (
        (ConnectionRefusedError, "connection refused: nothing listens there"),
        (socket.gaierror, "unknown host name"),
        (ssl.SSLError, "its TLS certificate or handshake was refused"),
        (TimeoutError, "it does not answer in time"),
        ((ConnectionError, http.client.RemoteDisconnected), "the connection broke"),
        (http.client.HTTPException, "what answers does not speak HTTP"),
    ):
        if isinstance(reason, kinds):  # type: ignore[arg-type]
            return words
    return str(getattr(reason, "strerror", None) or reason)
