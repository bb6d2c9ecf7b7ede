"""Where things are kept: the store, the DVC remote, the data repository and its lock, rights in S3."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ssl_core.config.settings import Settings
from ssl_core.data.git import GitError, git, local_git_path, recorded_remote, redact
from ssl_core.doctor import s3
from ssl_core.doctor.finding import Finding, failed, of_error, ok, skipped, warning, worst
from ssl_core.doctor.machine import missing_folders
from ssl_core.errors import StepError
from ssl_core.s3 import explain
from ssl_core.store import Store

_GIT_SECONDS = 10
_STALE_LOCK_SECONDS = 6 * 3600.0
_SETTING = {"store": "SSL_STORE", "DVC remote": "SSL_DVC_REMOTE"}


# ---- write, read, delete


def store(settings: Settings) -> Finding:
    """Write, read and delete, and that a second exclusive create is refused: the ledger's lock."""

    def try_it(store: Store, name: str) -> Finding:
        if not store.create(name, b"first"):
            return failed(
                f"{store.url}: a new object is said to exist already", "use a storage with If-None-Match, or a disk"
            )
        if store.create(name, b"second") or store.read(name) != b"first":
            return failed(
                f"{store.url} takes a second exclusive create: two promotions at once would both win",
                "use an S3 server that knows If-None-Match, or a disk for SSL_STORE",
            )
        store.write(name, b"third")
        if store.read(name) != b"third":
            return failed(
                f"{store.url} does not return what was written", "see to the storage: it may be full or damaged"
            )
        store.remove(name)
        if store.read(name) is not None:
            return failed(f"{store.url}: what was deleted is still there", "see to the storage")
        return ok(f"{store.url}: written, read, deleted; a second create is refused")

    return _tried("store", settings.store_url, settings, try_it)


def dvc_remote(settings: Settings) -> Finding:
    """Write, read and delete where DVC keeps content."""

    def try_it(store: Store, name: str) -> Finding:
        store.write(name, b"doctor")
        if store.read(name) != b"doctor":
            return failed(
                f"{store.url} does not return what was written", "see to the storage: it may be full or damaged"
            )
        store.remove(name)
        return ok(f"{store.url}: written, read, deleted")

    return _tried("DVC remote", recorded_remote(settings.dvc_remote_url), settings, try_it)


def _tried(use: str, url: str, settings: Settings, try_it: Callable[[Store, str], Finding]) -> Finding:
    """Nothing is left behind, neither an object nor a folder that was not there before."""
    place = s3.Place("", url, True)
    # In a few seconds, where the patience of what follows is a minute.
    if url.startswith("s3://") and (found := s3.examine(place)) is not None:
        return found
    opened = Store(url, settings.cache)
    name = f".ssl-core-doctor-{uuid.uuid4().hex}"
    missing = missing_folders(Path(opened.root)) if opened.is_local else []
    try:
        return try_it(opened, name)
    except (StepError, OSError) as error:
        return _why(use, url, error)
    finally:
        with suppress(Exception):
            opened.remove(name)
        for folder in missing:
            with suppress(OSError):  # not empty: somebody else has begun to use it
                folder.rmdir()


def _why(use: str, url: str, error: Exception) -> Finding:
    setting = _SETTING[use]
    link: BaseException | None = error
    while link is not None:
        if (
            isinstance(link, OSError)
            and link.filename2 is not None
            and link.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
        ):
            return failed(
                f"{url}: this file system has no hard links, which exclusive creation needs",
                f"set {setting} to another disk",
            )
        if isinstance(link, OSError) and link.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and link.filename:
            return failed(
                f"{url}: not writable: {link.strerror}", f"chown or chmod it, or set {setting} to another place"
            )
        link = link.__cause__ or link.__context__
    if url.startswith("s3://") and (known := explain(error.__cause__ or error, url)) is not None:
        return failed(f"{url}: {known.cause}", known.next_step)
    if isinstance(error, StepError):
        found = of_error(error)
        return failed(found.cause, f"{found.mend or 'see to the storage'} ({setting})")
    return failed(f"{url}: {error}", f"see to the storage ({setting})")


# ---- S3


def s3_rights(settings: Settings, sources: Callable[[], dict[str, str]]) -> Finding:
    """The rights on each bucket that is used; ``sources`` gives the data sources of projects, name to address."""
    places = s3.platform_places(settings)
    places += [s3.Place(f"data of {name}", url, False) for name, url in sources().items() if url.startswith("s3://")]
    if not places:
        return skipped("nothing is kept in S3")
    with ThreadPoolExecutor(len(places)) as pool:
        problems = [found for found in pool.map(s3.examine, places) if found is not None]
    # Without the server or the key, each place has the same fault: said once.
    causes = {problem.cause.partition(": ")[2]: problem for problem in reversed(problems)}
    if len(places) > 1 and len(problems) == len(places) and len(causes) == 1:
        cause, problem = causes.popitem()
        return failed(cause, problem.mend)
    said = ", ".join(map(str, places))
    return worst(problems, f"{said}: list, get" + (", put, delete" if any(p.write for p in places) else ""))


# ---- the data repository


def data_repository(settings: Settings) -> Finding:
    """Whether it can be read: a folder of this machine, or a Git URL."""
    url = settings.data_repo_url
    local = local_git_path(url)
    shown = redact(url)
    if local is None:
        return _remote_repository(url, shown)
    if not (local / "HEAD").exists():
        if local.exists() and any(local.iterdir()):
            return failed(f"{local} is no bare Git repository", "set SSL_DATA_REPO to one, or to an empty folder")
        return ok(f"{local}: made on first use")
    if not os.access(local / "refs", os.W_OK):
        return failed(f"{local} is not writable", f"chown -R $USER {local}, or set SSL_DATA_REPO")
    try:
        tags = git("for-each-ref", "--format=%(refname:strip=2)", "refs/tags/*@v*", cwd=local).split()
    except GitError as error:
        mend = (
            f"git config --global --add safe.directory {local}"
            if "dubious ownership" in str(error)
            else "set SSL_DATA_REPO"
        )
        return failed(f"{local}: {str(error).splitlines()[0]}", mend)
    return ok(
        f"{local}: {', '.join(tags[-5:]) or 'no version yet'}"
        + (f" and {len(tags) - 5} earlier" if len(tags) > 5 else "")
    )


def _remote_repository(url: str, shown: str) -> Finding:
    environment = os.environ | {
        "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=5"),
    }  # fmt: skip
    try:
        done = subprocess.run(
            ["git", "ls-remote", "--heads", "--tags", "--", url], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=_GIT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return failed(f"{shown}: no answer within {_GIT_SECONDS} s", "check SSL_DATA_REPO and the network")
    except FileNotFoundError:
        return skipped("needs git")
    if done.returncode == 0:
        return ok(f"{shown}: {len(done.stdout.splitlines())} branches and tags")
    said = redact(done.stderr.strip()).splitlines() or ["git ls-remote failed"]
    text = next((line for line in said if line.startswith(("fatal:", "ERROR:"))), said[-1])
    refused = any(
        sign in done.stderr for sign in ("Authentication failed", "could not read Username", "Permission denied")
    )
    mend = "set up Git's credential helper or an SSH key for it" if refused else "check SSL_DATA_REPO and the network"
    return failed(f"{shown}: {text}", mend)


def repository_lock(settings: Settings) -> Finding:
    """Who writes the data repository now, and since when."""
    path = settings.root / "data-repository.lock"
    try:
        # Shared, so that two doctors do not see each other; a writer that comes now looks again 0.1 s later.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ok("free: nothing was written yet")
    except PermissionError:
        return failed(f"{path} cannot be read", f"chown it: {path} belongs to another user")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ok("free")
    except BlockingIOError:
        holder = _holder(path)
        held = max(0.0, time.time() - os.fstat(descriptor).st_mtime)
    finally:
        os.close(descriptor)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - held))
    pid, host = holder.get("pid"), holder.get("host")
    who = f"process {pid} on {host}" if pid else "a process"
    gone = pid is not None and host == os.uname().nodename and not psutil.pid_exists(int(pid))
    if gone:
        return warning(
            f"held since {since} by a child of {who}, which has ended",
            f"look who has it open (lsof {path}) and end that process",
        )
    if held > _STALE_LOCK_SECONDS:
        return warning(
            f"held by {who} since {since}, {held / 3600:.0f} hours: it may hang",
            f"look at it (ps -fp {pid}); end it if it hangs: the kernel frees the lock, nothing half-written stays",
        )
    return warning(f"held by {who} since {since} ({held:.0f} s): an ingest or publish is going on", "wait for it")


def _holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
