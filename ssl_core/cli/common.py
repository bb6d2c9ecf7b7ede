"""What several commands share."""

from __future__ import annotations

import getpass
import re
import uuid
from datetime import UTC, datetime

from pydantic import ValidationError
from rich.console import Console

from ssl_core.config.project import NAME_PATTERN
from ssl_core.config.settings import Settings
from ssl_core.contracts import RunContext
from ssl_core.errors import UserError


def stderr_console() -> Console:
    """Where progress and notes go; standard output is for results."""
    return Console(stderr=True, highlight=False)


def load_settings() -> Settings:
    """The platform settings; a bad environment variable is the user's error, named."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"SSL_{'_'.join(str(p) for p in e['loc']).upper().removeprefix('SSL_')}: {e['msg']}" for e in error.errors()
        ]
        raise UserError("\n".join(lines), place="environment") from error


def project_name(text: str) -> str:
    """``text``, where it is a project's name; commands on what was registered need no project file."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise UserError(
            "is no project name", place=text, next_step="give the key `name` of the project file, such as digits"
        )
    return text


def new_run() -> RunContext:
    """A run context for work that a person starts here."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's uid without a name
        user = "unknown"
    return RunContext(run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}", user=user)
