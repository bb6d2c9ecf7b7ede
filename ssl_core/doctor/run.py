"""Runs checks at the same time and hands over what they find in their order, each within its own time."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil

from ssl_core.config.settings import Settings
from ssl_core.data.git import redact
from ssl_core.doctor.finding import Answer, Check, Finding, failed, of_error
from ssl_core.doctor.machine import missing_folders
from ssl_core.errors import StepError

_SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE|API_?KEY|FERNET|WEBHOOK", re.IGNORECASE)
_SHORTEST_SECRET = 4  # a shorter one would black out half of every sentence
_LONGEST_TEXT = 600


class Examination:
    """One look at everything. ``late`` says after the last answer whether a check was given up, and may still hang."""

    def __init__(self, checks: Sequence[Check], settings: Settings) -> None:
        self._checks = checks
        self._settings = settings
        self.late = False

    def answers(self) -> Iterator[Answer]:
        """In the order of the checks, as soon as each is known. Ends within the longest of their times."""
        hide = _Hide(self._settings)
        made = missing_folders(self._settings.root)  # by checks that try a storage, several at the same moment
        began = time.monotonic()
        looks = [_Look(check, self._settings) for check in self._checks]
        for look in looks:
            look.start()
        for check, look in zip(self._checks, looks, strict=True):
            look.ended.wait(max(0.0, began + check.seconds - time.monotonic()))
            finding, seconds = look.finding, look.seconds
            if finding is None:
                self.late = True
                finding, seconds = failed(f"no answer within {check.seconds:g} s", check.unanswered), check.seconds
            yield Answer(
                check.name,
                finding.status,
                hide(finding.found),
                hide(finding.cause),
                hide(finding.mend),
                round(seconds, 2),
            )
        for folder in made:
            with suppress(OSError):  # not there, or no longer empty
                folder.rmdir()


class _Look(threading.Thread):
    """A daemon: one that hangs in a system call is left behind rather than waited for."""

    def __init__(self, check: Check, settings: Settings) -> None:
        super().__init__(name=f"doctor: {check.name}", daemon=True)
        self._check, self._settings = check, settings
        self.finding: Finding | None = None
        self.seconds = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        finding = look_safely(self._check, self._settings)
        self.seconds = time.monotonic() - began
        self.finding = finding
        self.ended.set()


def look_safely(check: Check, settings: Settings) -> Finding:
    """What the check finds; whatever it raises is a finding as well."""
    try:
        return check.look(settings)
    except StepError as error:
        return of_error(error)
    except ImportError as error:
        return failed(f"{error.name or error} cannot be imported: {error}", "make setup")
    except (Exception, SystemExit) as error:
        return failed(
            f"this check itself failed: {type(error).__name__}: {error}",
            "please report this line; what it was to check is not known",
        )


def end_children() -> None:
    """Ends what checks that were given up left running; called where this process is about to end itself."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue


def _with_password(url: str) -> list[str]:
    """An address and the password in it, as it stands there and as it is meant."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        password = ""
    return [url, password, unquote(password)]


class _Hide:
    """Takes out of a text what must not be shown: values of secret variables, the platform's own secrets, addresses' users."""

    def __init__(self, settings: Settings) -> None:
        values = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
        values.append(settings.webhook_url.get_secret_value())
        values += _with_password(settings.smtp_url.get_secret_value())
        for file in ("passwords.json", "secrets.json"):
            values += _values(settings, file)
        self._values = sorted(
            {v for v in values if len(v) >= _SHORTEST_SECRET and not _is_path(v)}, key=len, reverse=True
        )

    def __call__(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, "***")
        text = redact(text)
        return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def _is_path(value: str) -> bool:
    """Variables such as AWS_WEB_IDENTITY_TOKEN_FILE hold the place of a secret, which may be shown."""
    return value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111


def _values(settings: Settings, file: str) -> list[str]:
    try:
        content: Any = json.loads((settings.root / "airflow" / file).read_text())
        return [str(value) for value in content.values()]
    except (OSError, ValueError, AttributeError):
        return []
