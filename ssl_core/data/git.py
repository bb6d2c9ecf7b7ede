"""Runs git and DVC for the data repository: argument lists, no prompts, no one's hooks, errors that name the cause."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ssl_core.config.settings import expand
from ssl_core.errors import TryAgain, UserError

# Whatever repository this process was started in (a git hook sets these) is not the data repository.
_FOREIGN = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
    "GIT_NAMESPACE",
)
_OPTIONS = (
    "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", "-c", "core.hooksPath=/dev/null",
    "-c", "core.autocrlf=false", "-c", "push.followTags=false", "-c", "advice.detachedHead=false", "-c", "gc.auto=0",
)  # fmt: skip
_FULL_DISK = ("No space left on device", "File too large", "Disk quota exceeded", "disk is full")


class GitError(Exception):
    """git ended with an error; the text is what it said, without credentials."""


def redact(text: str) -> str:
    """Leaves user names, passwords and tokens out of URLs."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def local_git_path(url: str) -> Path | None:
    """The folder of a local repository; None for a URL or git's ``host:path``."""
    if url.startswith("-"):
        raise UserError(f"{url!r} is not a Git URL", place="SSL_DATA_REPO", next_step="give a path or a URL")
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    if "://" in url or ":" in url.partition("/")[0]:
        return None
    return expand(url)


def recorded_remote(url: str) -> str:
    """A DVC remote as it is committed and read: an absolute path, or a URL without credentials."""
    if redact(url) != url:
        raise UserError(
            "holds credentials, which would be committed",
            place="SSL_DVC_REMOTE",
            next_step="give them in the environment (AWS_*)",
        )
    if '"' in url or "\n" in url:
        raise UserError(
            "quotes and line breaks cannot be recorded", place="SSL_DVC_REMOTE", next_step="choose another path"
        )
    if url.startswith("file://"):
        url = unquote(urlsplit(url).path)
    return url.rstrip("/") if "://" in url else str(expand(url))


def git(*arguments: str, cwd: Path, stdin: str | None = None) -> str:
    """Standard output of one git command. Raises ``GitError``."""
    environment = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    for role in ("AUTHOR", "COMMITTER"):
        environment.setdefault(f"GIT_{role}_NAME", "ssl-core")
        environment.setdefault(f"GIT_{role}_EMAIL", "ssl-core@localhost")
    try:
        done = subprocess.run(
            ["git", *_OPTIONS, *arguments], cwd=cwd, env=environment, input=stdin or "", capture_output=True, check=False,
            encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip
    except FileNotFoundError as error:
        if not cwd.exists():
            raise GitError(f"{cwd} does not exist") from error
        raise UserError(
            "git is not installed, and the data repository needs it", place="PATH", next_step="install git"
        ) from error
    if done.returncode:
        raise GitError(
            redact(done.stderr.strip() or done.stdout.strip() or f"git {arguments[0]} ended with {done.returncode}")
        )
    return done.stdout


def dvc(*arguments: str, cwd: Path, site: Path, place: str) -> None:
    """One DVC command of this interpreter's own environment.

    ``site`` holds what DVC remembers between commands; it defaults to a folder that all users of a machine share and
    that grows with every temporary clone. Raises ``TryAgain``: what is wrong then is the storage behind ``place``.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
    environment |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(site), "LC_ALL": "C", "NO_COLOR": "1"}
    # -P: the clone is the working directory, and nothing in it may be imported.
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    # Not with --quiet: that leaves out the reason as well.
    said = [
        line.strip()
        for line in redact(done.stderr + done.stdout).splitlines()
        if line.strip() and "dvc.org/support" not in line
    ]
    text = "\n  ".join([line for line in said if line.startswith("ERROR")] or said[-5:])
    if any(sign in "\n".join(said) for sign in _FULL_DISK):
        raise TryAgain(
            f"no space left while writing data; nothing was published\n  {text}",
            place=redact(place),
            next_step="free some space (ssl-core gc --apply) and run again",
        )
    raise TryAgain(
        f"dvc {arguments[0]} failed; nothing was published\n  {text}",
        place=redact(place),
        next_step="check that SSL_DVC_REMOTE can be reached and written, then run again",
    )
