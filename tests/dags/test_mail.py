"""Notices by mail, against a server of a few lines that speaks SMTP."""

from __future__ import annotations

import base64
import datetime as dt
import email
import ipaddress
import logging
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from email import policy
from pathlib import Path

import pytest

from ssl_core.config.settings import Settings
from ssl_dags import mail, notify

PASSWORD = "p@ss w0rd/of:the mailer"
NOTICE = notify.Notice(
    "step-failed",
    "tiny",
    "tiny.ingest",
    "manual__1",
    "validate",
    "too few rows: 3 < 30 \N{SNOWMAN}",
    "http://airflow/run",
)


class MailServer:
    """Takes every mail; ``starttls`` and ``refuse`` (a command) change what it offers."""

    def __init__(self, certificate: Path | None = None, refuse: str = "", silent: bool = False) -> None:
        self.mails: list[email.message.EmailMessage] = []
        self.commands: list[str] = []
        self.logins: list[str] = []
        self.encrypted = False
        self.release = threading.Event()
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                if silent:
                    server.release.wait(20)
                    return
                self.say("220 ready")
                while line := self.rfile.readline().decode().strip():
                    word = line.split()[0].upper()
                    server.commands.append(word)
                    if word == refuse:
                        self.say(f"550 no, and your password is {PASSWORD}")
                    elif word == "EHLO":
                        self.say("250-here")
                        if certificate and not server.encrypted:
                            self.say("250-STARTTLS")
                        self.say("250-AUTH PLAIN")
                        self.say("250 SIZE 1000000")
                    elif word == "STARTTLS":
                        self.say("220 go on")
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(certificate)
                        try:
                            self.connection = context.wrap_socket(self.connection, server_side=True)
                        except ssl.SSLError:
                            return
                        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
                        server.encrypted = True
                    elif word == "AUTH":
                        server.logins.append(base64.b64decode(line.split()[2]).decode())
                        self.say("235 welcome")
                    elif word == "DATA":
                        self.say("354 send")
                        data = b""
                        while not data.endswith(b"\r\n.\r\n"):
                            data += self.rfile.readline()
                        server.mails.append(email.message_from_bytes(data[:-5], policy=policy.default))
                        self.say("250 taken")
                    elif word == "QUIT":
                        self.say("221 bye")
                        return
                    else:
                        self.say("250 fine")

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Callable[..., MailServer]]:
    made: list[MailServer] = []

    def make(**how: object) -> MailServer:
        made.append(MailServer(**how))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of 127.0.0.1, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail of this test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def address(
    port: int, host: str = "127.0.0.1", scheme: str = "smtp", query: str = "to=a@b.org,c@d.org&from=x@y.org"
) -> str:
    return f"{scheme}://ada:p%40ss%20w0rd%2Fof%3Athe%20mailer@{host}:{port}?{query}"


def test_a_notice_arrives_with_its_text(server, monkeypatch):
    taken = server()
    monkeypatch.setenv("SSL_SMTP_URL", address(taken.port))
    assert notify.send(NOTICE) is True
    (message,) = taken.mails
    assert message["Subject"] == "[tiny] tiny.ingest validate: step-failed"
    assert (message["From"], message["To"]) == ("x@y.org", "a@b.org, c@d.org")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content().replace("\r\n", "\n").strip() == NOTICE.text
    assert "\N{SNOWMAN}" in message.get_content()
    assert taken.logins == [f"\0ada\0{PASSWORD}"], "this machine's own server may have it in the open"


def test_without_a_user_nobody_logs_in(server):
    taken = server()
    mail.send(f"smtp://127.0.0.1:{taken.port}?to=a@b.org", "subject", "text", 5)
    assert "AUTH" not in taken.commands
    assert taken.mails[0]["From"] == "a@b.org"


def test_tls_is_taken_where_it_is_offered(server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    taken = server(certificate=certificate)
    mail.send(address(taken.port), "subject", "text", 10)
    assert taken.encrypted
    assert taken.commands == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]


def test_a_certificate_that_nobody_signed_gets_no_password(server, certificate):
    taken = server(certificate=certificate)
    with pytest.raises(mail.NotSent, match="SSLCertVerificationError"):
        mail.send(address(taken.port), "subject", "text", 10)
    assert taken.logins == taken.mails == []


def test_a_password_does_not_go_over_an_open_line(server, monkeypatch):
    taken = server()
    monkeypatch.setattr(mail, "_LOOPBACK", ())
    with pytest.raises(mail.NotSent, match="offers no TLS"):
        mail.send(address(taken.port), "subject", "text", 10)
    assert taken.logins == taken.mails == []


@pytest.mark.parametrize("refuse", ["EHLO", "AUTH", "MAIL", "RCPT", "DATA"])
def test_a_server_that_says_no_fails_nothing_and_its_words_are_not_repeated(server, monkeypatch, logged, refuse):
    taken = server(refuse=refuse)
    monkeypatch.setenv("SSL_SMTP_URL", address(taken.port))
    assert notify.send(NOTICE) is False
    assert "the notice was not mailed: the mail server did not take it: SMTP" in logged.text
    for word in (PASSWORD, "p%40ss", "ada:"):
        assert word not in logged.text


def test_a_server_that_does_not_answer_is_not_waited_for(server, monkeypatch, logged):
    monkeypatch.setattr(notify, "_MAIL_SECONDS", 0.3)
    monkeypatch.setenv("SSL_SMTP_URL", address(server(silent=True).port))
    assert notify.send(NOTICE) is False
    assert "the notice was not mailed" in logged.text


BAD = [
    f"smtp://ada:{'secret'}@127.0.0.1:1?to=a@b.org",
    "smtp://ada:secret@nobody.invalid?to=a@b.org",
    "smtp://ada:secret@host:99999?to=a@b.org",
    "smtp://ada:secret@host:secret?to=a@b.org",
    "smtp://[::secret?to=a@b.org",
    "http://ada:secret@host?to=a@b.org",
    "secret",
    "smtp:secret",
    "smtp://ada:secret@host",
    "smtp://ada:secret@host?to=",
    "smtp://ada:secret@host?to=secret",
    "smtp://ada:secret@host?to=a@b.org%0d%0aBcc:secret@c.org",
    "smtp://ada:secret@host?to=a@b.org&from=x@y.org%0aBcc:secret@c.org",
]


@pytest.mark.parametrize("url", BAD)
def test_an_address_that_does_not_work_fails_no_task_and_shows_in_no_log(monkeypatch, logged, url):
    monkeypatch.setattr(notify, "_MAIL_SECONDS", 2.0)
    monkeypatch.setenv("SSL_SMTP_URL", url)
    assert notify.send(NOTICE) is False
    assert "the notice was not mailed" in logged.text
    assert "secret" not in logged.text
    assert "secret" not in "".join(str(r.exc_info) for r in logged.records)


def test_a_subject_is_one_line(server):
    taken = server()
    mail.send(f"smtp://127.0.0.1:{taken.port}?to=a@b.org", "one\r\nBcc: e@f.org", "text", 5)
    assert taken.mails[0]["Subject"] == "one Bcc: e@f.org"
    assert taken.mails[0]["Bcc"] is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://host?to=a@b.org", ("host", 25, False, ("a@b.org",), "a@b.org", "", "")),
        ("smtps://u@x.org:p@host?to=a@b.org", ("host", 465, True, ("a@b.org",), "u@x.org", "u@x.org", "p")),
        ("smtp://u:p@host:587?to=a@b.org,%20c@d.org&to=e@f.org&from=g@h.org",
         ("host", 587, False, ("a@b.org", "c@d.org", "e@f.org"), "g@h.org", "u", "p")),
    ],
)  # fmt: skip
def test_what_an_address_says(url, expected):
    parsed = mail.parse(url)
    assert (parsed.host, parsed.port, parsed.tls, parsed.to, parsed.sender, parsed.user, parsed.password) == expected
    assert "p@" not in repr(parsed)
    assert "password" not in repr(parsed)


def test_jobs_never_see_the_address(monkeypatch):
    monkeypatch.setenv("SSL_SMTP_URL", address(587))
    public, secret = Settings().job_environment()
    assert PASSWORD not in str(public) + str(secret) + repr(Settings())
    assert "SSL_SMTP_URL" not in {**public, **secret}
