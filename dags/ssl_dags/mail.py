"""Notices by mail, through the server that ``SSL_SMTP_URL`` names.

``smtp://user:password@host:587?to=a@b.org,c@d.org&from=x@y.org``: plain until the server offers STARTTLS, which is then taken.
``smtps://`` speaks TLS from the first byte. A password never goes over an open line, unless that ends on this machine.
"""

from __future__ import annotations

import smtplib
import ssl
import threading
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import parse_qs, unquote, urlsplit

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"smtp": 25, "smtps": 465}


class NotSent(Exception):
    """Why a mail did not leave, in words that hold no password."""


@dataclass(frozen=True)
class Server:
    """What ``SSL_SMTP_URL`` says."""

    host: str
    port: int
    tls: bool
    to: tuple[str, ...]
    sender: str
    user: str = ""
    password: str = field(default="", repr=False)


def parse(url: str) -> Server:
    """Raises ``NotSent`` where the address is not one, without repeating it."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host, user = parts.hostname or "", unquote(parts.username or "")
    except ValueError:
        raise NotSent("SSL_SMTP_URL is no address") from None
    if parts.scheme not in _PORTS or not host:
        raise NotSent("SSL_SMTP_URL is no smtp:// or smtps:// address with a host")
    query = parse_qs(parts.query)
    to = tuple(address.strip() for value in query.get("to", []) for address in value.split(",") if address.strip())
    if not to:
        raise NotSent("SSL_SMTP_URL names nobody to write to: add ?to=somebody@example.org")
    sender = query.get("from", [user if "@" in user else to[0]])[0].strip()
    if not all(_is_address(address) for address in (*to, sender)):
        raise NotSent("SSL_SMTP_URL: `to` and `from` take addresses such as somebody@example.org")
    return Server(
        host, port or _PORTS[parts.scheme], parts.scheme == "smtps", to, sender, user, unquote(parts.password or "")
    )


def _is_address(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    return bool(local and domain) and text.isprintable() and not set(text) & set(" ,;<>\"'\\")


def send(url: str, subject: str, text: str, seconds: float) -> None:
    """Hands one mail to the server within ``seconds``, whatever it does. Raises ``NotSent`` where that failed."""
    server = parse(url)
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = server.sender
    message["To"] = ", ".join(server.to)
    message["Auto-Submitted"] = "auto-generated"  # no answers from holiday machines
    message.set_content(text)
    failed: list[str] = []

    def hand_over() -> None:
        try:
            _hand_over(server, message, seconds)
        except NotSent as error:
            failed.append(str(error))
        except Exception as error:  # what a server says may repeat what it was sent
            failed.append(type(error).__name__)

    # A time-out of the socket is for one answer; a slow server gives many.
    thread = threading.Thread(target=hand_over, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NotSent(f"the mail server took longer than {seconds:g} s")
    if failed:
        raise NotSent(f"the mail server did not take it: {failed[0]}")


def _hand_over(server: Server, message: EmailMessage, seconds: float) -> None:
    context = ssl.create_default_context()
    connection = (
        smtplib.SMTP_SSL(server.host, server.port, timeout=seconds, context=context)
        if server.tls
        else smtplib.SMTP(server.host, server.port, timeout=seconds)
    )
    with connection as smtp:
        smtp.ehlo()
        safe = server.tls
        if not safe and smtp.has_extn("starttls"):
            smtp.starttls(context=context)
            smtp.ehlo()
            safe = True
        if server.password:
            if not safe and server.host not in _LOOPBACK:
                raise NotSent("it offers no TLS, and a password does not go over an open line")
            smtp.login(server.user, server.password)
        smtp.send_message(message)
