"""Secrets do not belong into a project file: it is committed, shown in forms, stored with every run and copied into images.

What looks like one is refused with its key and the place where it belongs. The value is never repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Location = tuple[str | int, ...]

_ENVIRONMENT = "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
# What a value looks like -> what it is, and where it belongs.
_VALUES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "an AWS access key id", _ENVIRONMENT),
    (re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY"), "a private key", "a file outside the project"),
    (
        re.compile(r"[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature)=", re.IGNORECASE),
        "a presigned address, which lets anyone in,",
        f"nowhere: write the plain s3:// address and put credentials into {_ENVIRONMENT}",
    ),
    (
        # user:password@ in any address; in a web address or s3:// what stands before the @ lets one in as well.
        re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@|\b(?:https?|s3)://[^/\s@]+@", re.IGNORECASE),
        "an address with a user or password",
        f"{_ENVIRONMENT}, or Git's credential helper",
    ),
    (
        re.compile(
            r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22}|glpat-[\w-]{20}|xox[abeoprs]-[\w-]{10}|hf_[A-Za-z0-9]{30})"
        ),
        "an access token",
        "the environment of the platform",
    ),
)
# A key that says so itself. Words that machine learning uses for other things (pad_token, cls_token) are not among them.
_KEYS = re.compile(
    r"(?:^|[_-])(?:secret|password|passwd|passphrase|credentials?|api[_-]?key|private[_-]?key|access[_-]?key(?:[_-]?id)?"
    r"|secret[_-]?key|(?:access|auth|bearer|refresh|session|api|security)[_-]?token)$",
    re.IGNORECASE,
)
_ENVIRONMENT_TOKEN = re.compile(r"[A-Z0-9_]*TOKEN")


def find_secrets(data: Any, at: Location = ()) -> Iterator[tuple[Location, str]]:
    """Each key whose value looks like a secret, with a message that says what it is and where it belongs."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if _says_secret(str(key)) and isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                yield (*at, str(key)), f"a secret does not belong into a project file; put it into {_ENVIRONMENT}"
                continue
            yield from find_secrets(str(key), (*at, "(a key)"))
            yield from find_secrets(value, (*at, str(key)))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from find_secrets(value, (*at, index))
    elif isinstance(data, str) and (message := _says(data)):
        yield at, message


def secret_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a file, counted from 1, that hold what looks like a secret: a comment is as public as a value."""
    for number, line in enumerate(text.splitlines(), start=1):
        if message := _says(line):
            yield number, message


def _says_secret(key: str) -> bool:
    return bool(_KEYS.search(key) or _ENVIRONMENT_TOKEN.fullmatch(key))


def _says(text: str) -> str:
    for pattern, what, where in _VALUES:
        if pattern.search(text):
            return f"{what} does not belong into a project file; it belongs into {where}".replace(
                "into nowhere", "nowhere"
            )
    return ""
