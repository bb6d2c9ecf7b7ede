"""The data repository: a bare Git repository whose commits name content in a DVC remote.

Each dataset has a folder of its own, so that two datasets never touch the same file::

    <name>/data.dvc      DVC's pointer to the content: the md5 of the folder
    <name>/version.json  counts, digest, remote and producer: a version is read from Git alone, without DVC

``main`` holds the published versions, each with an annotated tag ``<name>@vN``. A candidate lies on the branch
``candidate/<name>/<md5>`` until it is published or collected. Everything is written in a temporary clone and arrives
by one atomic push, so an interrupted writer leaves nothing behind that a reader could see.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_core.config.project import NAME_PATTERN
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data.git import GitError, dvc, git, local_git_path, recorded_remote, redact
from ssl_core.data.lock import file_lock
from ssl_core.data.reader import is_stored
from ssl_core.data.records import RECORD_FILES, describe, parse_records, pointer_md5, to_ref
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import NoProgress, Progress
from ssl_core.store import storage_errors

REVISION_PATTERN = r"^(latest|[\w.@-]+)$"

_MAIN = "refs/heads/main"
_CANDIDATES = "refs/heads/candidate"
_PUSH_ATTEMPTS = 5
_LOCK_TIMEOUT = 1800.0
_STALE_UPLOAD_SECONDS = 3600.0
_OVERTAKEN = ("non-fast-forward", "fetch first", "already exists", "cannot lock ref", "does not exist")
_SETUP = {
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "",
    "README.md": "# Data repository\n\nWritten by ssl-core. One folder per dataset, one tag `<dataset>@vN` per version.\n"
    "To look at a version: `git checkout <dataset>@vN && dvc pull <dataset>/data.dvc`.\n",
}


@dataclass(frozen=True)
class Candidate:
    """A dataset candidate that was never published."""

    name: str
    md5: str
    commit: str
    age_days: float


class DataRepository:
    """The data repository that ``settings`` name. Nothing is created before the first write."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self._progress = progress or NoProgress()
        self._home = settings.root
        self._cache = settings.cache
        self._settings = settings
        self._local = local_git_path(settings.data_repo_url)
        self._url = settings.data_repo_url if self._local is None else str(self._local)
        self._remote = recorded_remote(settings.dvc_remote_url)
        self._mirror = self._home / "data-mirror.git"
        self._scratch = self._home / "scratch" / "data-repository"
        self._depth = 0

    # ---- reading: Git only

    def versions(self, name: str) -> list[DatasetRef]:
        """The published versions of a dataset, oldest first."""
        _check_name(name)
        folder = self._readable()
        if folder is None:
            return []
        listing = self._git(
            "for-each-ref",
            "--format=%(refname:strip=2) %(objectname) %(*objectname)",
            f"refs/tags/{name}@v*",
            cwd=folder,
        )
        tags: dict[int, tuple[str, str]] = {}
        for line in listing.splitlines():
            tag, *objects = line.split()
            number = re.fullmatch(rf"{re.escape(name)}@v([1-9]\d*)", tag)
            if number:
                tags[int(number[1])] = (tag, objects[-1])  # a tag's own object first, the commit it names last
        ordered = [tags[number] for number in sorted(tags)]
        records = self._records(name, [commit for _, commit in ordered])
        return [to_ref(name, commit, record, tag) for (tag, commit), record in zip(ordered, records, strict=True)]

    def latest(self, name: str) -> DatasetRef | None:
        """The newest published version, or None."""
        return next(reversed(self.versions(name)), None)

    def resolve(self, name: str, revision: str = "latest") -> DatasetRef:
        """The version that ``revision`` names: ``latest``, ``v3``, ``digits@v3``, or a commit. Raises ``UserError``."""
        if not re.fullmatch(REVISION_PATTERN, revision, re.ASCII):
            raise UserError(
                f"{revision!r} is not a dataset revision",
                place="revision",
                next_step="use latest, a version such as v3, or a commit",
            )
        versions = self.versions(name)
        if revision == "latest" and versions:
            return versions[-1]
        for version in versions:
            if revision in (version.tag, (version.tag or "").partition("@")[2]) or revision == version.revision:
                return version
        found = self._at_commit(name, revision)
        if found is not None:  # published content is that version, wherever on main the commit lies
            return next((v for v in reversed(versions) if v.md5 == found.md5), found)
        known = ", ".join(v.tag or "" for v in versions[-10:]) or "none yet"
        raise UserError(
            f"dataset {name} has no version {revision}; known: {known}",
            place=redact(self._url),
            next_step="choose a known version"
            if versions
            else f"make the first one: ssl-core run projects/{name}.yaml",
        )

    def is_publishable(self, candidate: DatasetRef) -> bool:
        """Whether ``publish`` would take it: it equals the newest version, or is there and grew from the newest version."""
        latest = self.latest(candidate.name)
        if latest is not None and latest.md5 == candidate.md5:
            return True
        branch = self._branch(candidate)
        return branch is not None and branch[1]["parent"] == (latest.tag if latest else None)

    def candidates(self) -> list[Candidate]:
        """Candidates that were never published, oldest first."""
        folder = self._readable()
        if folder is None:
            return []
        listing = self._git(
            "for-each-ref", "--sort=committerdate", "--format=%(refname:strip=3) %(objectname) %(committerdate:unix)",
            f"{_CANDIDATES}/", cwd=folder,
        )  # fmt: skip
        found = []
        for line in listing.splitlines():
            path, commit, made = line.split()
            name, _, md5 = path.partition("/")
            found.append(Candidate(name, md5, commit, max(0.0, time.time() - int(made)) / 86_400))
        return found

    # ---- writing: one at a time

    @contextmanager
    def lock(self, timeout: float = _LOCK_TIMEOUT) -> Iterator[None]:
        """Makes this process the only writer of its platform home; re-entrant on this object.

        Raises ``TryAgain`` naming the holder after ``timeout`` seconds. Writers on other machines, which this lock does
        not see, are caught by the atomic push.
        """
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        path = self._home / "data-repository.lock"
        with file_lock(path, timeout=timeout, note=self._progress.note, purpose="the data repository"):
            shutil.rmtree(self._scratch, ignore_errors=True)  # what a killed writer left: nobody else may write now
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0

    def commit_candidate(self, name: str, folder: Path, producer: str, *, parent: DatasetRef | None) -> DatasetRef:
        """Stores a dataset folder as a candidate: content to the DVC remote first, then one commit on a branch of its own.

        ``parent`` is the version that the folder grew from (None: the first). The folder's files become read-only: they
        are linked, not copied, where the disk allows it. Content equal to the newest version makes no commit.

        Raises ``TryAgain`` where another version was published meanwhile, or storage fails.
        """
        _check_name(name)
        record = describe(folder) | {
            "remote": self._remote,
            "producer": producer,
            "parent": parent.tag if parent else None,
        }
        with self.lock(), storage_errors(str(self._scratch)):
            latest = self.latest(name)
            _check_parent(name, record["parent"], latest)
            with self._clone() as clone:
                site = clone.with_name("dvc-site")
                base = self._set_up(clone)
                _link_tree(folder, clone / name / "data")
                dvc("add", f"{name}/data", cwd=clone, site=site, place=str(self._cache))
                md5 = pointer_md5((clone / name / "data.dvc").read_text())
                same = latest if latest is not None and latest.md5 == md5 else None
                if same is None or not is_stored(same, self._settings):  # what the remote lost is brought back
                    self._sweep_uploads()
                    dvc("push", f"{name}/data.dvc", cwd=clone, site=site, place=self._remote)
                if same is not None:
                    return same.model_copy(update={"kind": "candidate", "tag": None})
                (clone / name / "version.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
                commit = self._commit(
                    clone, name, f"{name}: candidate of {record['rows']} samples\n\nMade by {producer}"
                )
                # Forced: the same content may have grown from another version before.
                self._push(clone, *([f"{base}:{_MAIN}"] if base else []), f"+{commit}:{_CANDIDATES}/{name}/{md5}")
            return to_ref(name, commit, record | {"md5": md5}, None)

    def publish(self, candidate: DatasetRef) -> DatasetRef:
        """Makes a candidate the next version: one commit on ``main`` and one tag, pushed together, and its branch removed.

        Content equal to the newest version returns that version, so publishing twice is harmless. Raises ``TryAgain``
        where the candidate is gone, did not grow from the newest version, or storage fails.
        """
        name = candidate.name
        _check_name(name)
        with self.lock(), storage_errors(str(self._scratch)):
            for _ in range(_PUSH_ATTEMPTS):
                latest = self.latest(name)
                if latest is not None and latest.md5 == candidate.md5:
                    return latest
                branch = self._branch(candidate)
                if branch is None:
                    raise TryAgain(
                        f"the candidate {candidate.md5} of {name} is gone",
                        place=redact(self._url),
                        next_step="run ingest again",
                    )
                made, record = branch
                _check_parent(name, record["parent"], latest)
                tag = f"{name}@v{_number(latest) + 1}"
                with self._clone() as clone:
                    self._git("checkout", "--quiet", made.commit, "--", name, cwd=clone)
                    growth = f" ({record['rows'] - latest.rows:+,})" if latest else ""
                    message = f"{tag}: {record['rows']:,} samples{growth}, {record['labelled']:,} labelled"
                    commit = self._commit(clone, name, f"{message}\n\nMade by {record['producer']}")
                    self._git("tag", "--annotate", "-m", message, tag, cwd=clone)
                    try:
                        self._push(clone, f"{commit}:{_MAIN}", f"refs/tags/{tag}", f":{_CANDIDATES}/{name}/{made.md5}")
                    except _Overtaken:
                        continue  # by a writer on another machine: look again at what is there now
                return to_ref(name, commit, record, tag)
        raise TryAgain(
            f"overtaken by other writers {_PUSH_ATTEMPTS} times", place=redact(self._url), next_step="run again"
        )

    def drop_candidate(self, candidate: Candidate) -> None:
        """Removes an unpublished candidate's branch; one that is gone already is fine. Its content stays in the DVC remote."""
        with self.lock():
            folder = self._readable()
            if folder is not None and any(
                (c.name, c.commit) == (candidate.name, candidate.commit) for c in self.candidates()
            ):
                self._git(
                    "push", "--quiet", "--", self._url, f":{_CANDIDATES}/{candidate.name}/{candidate.md5}", cwd=folder
                )

    # ---- inside: Git

    def _git(self, *arguments: str, cwd: Path, stdin: str | None = None) -> str:
        try:
            return git(*arguments, cwd=cwd, stdin=stdin)
        except GitError as error:
            kind = _Overtaken if arguments[0] == "push" and any(sign in str(error) for sign in _OVERTAKEN) else TryAgain
            raise kind(
                f"git {arguments[0]} failed: {error}",
                place=redact(self._url),
                next_step="check that the data repository (SSL_DATA_REPO) can be reached and written, then run again",
            ) from error

    def _readable(self) -> Path | None:
        """A local repository that holds all branches and tags: the repository itself, or a mirror of a remote one."""
        if self._local is not None:
            return self._local if (self._local / "HEAD").exists() else None
        mirror = self._mirror
        lock = self._home / "data-mirror.lock"
        with file_lock(lock, timeout=_LOCK_TIMEOUT, note=self._progress.note, purpose="the data repository's mirror"):
            self._create_bare(mirror)
            self._git(
                "fetch",
                "--quiet",
                "--prune",
                "--",
                self._url,
                "+refs/heads/*:refs/heads/*",
                "+refs/tags/*:refs/tags/*",
                cwd=mirror,
            )
        return mirror

    def _create_bare(self, folder: Path) -> None:
        if not (folder / "HEAD").exists():
            with storage_errors(str(folder)):
                folder.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet", "--bare", "--initial-branch=main", cwd=folder)

    @contextmanager
    def _clone(self) -> Iterator[Path]:
        """A fresh clone, ``main`` checked out, that is gone afterwards."""
        if self._local is not None:
            self._create_bare(self._local)
        clone = self._scratch / uuid.uuid4().hex / "clone"
        clone.mkdir(parents=True)
        try:
            self._git("init", "--quiet", "--initial-branch=main", cwd=clone)
            self._git("remote", "add", "--", "origin", self._url, cwd=clone)
            self._git("fetch", "--quiet", "--no-tags", "origin", cwd=clone)
            if self._git("for-each-ref", "refs/remotes/origin/main", cwd=clone):
                self._git("reset", "--quiet", "--hard", "refs/remotes/origin/main", cwd=clone)
            yield clone
        finally:
            shutil.rmtree(clone.parent, ignore_errors=True)

    def _set_up(self, clone: Path) -> str | None:
        """Makes the clone a DVC repository with this remote; returns the commit that ``main`` needs for it, if any."""
        config = (
            "[core]\n    analytics = false\n    check_update = false\n    remote = storage\n"
            f'[\'remote "storage"\']\n    url = "{self._remote}"\n'
        )
        wanted = {".dvc/config": config} | {path: text for path, text in _SETUP.items() if not (clone / path).exists()}
        for path, text in wanted.items():
            (clone / path).parent.mkdir(exist_ok=True)
            (clone / path).write_text(text)
        # DVC's cache has the layout of the reader's: what is added here needs no download later. Never committed.
        local = f'[cache]\n    dir = "{self._cache}"\n    type = "hardlink,copy"\n'
        (clone / ".dvc/config.local").write_text(local)
        if self._git("status", "--porcelain", cwd=clone):
            return self._commit(clone, ".", "Set up the data repository")
        return None

    def _sweep_uploads(self) -> None:
        """Removes what killed uploads left in a local remote; one that is younger may still be going on elsewhere."""
        if "://" not in self._remote:
            for path in Path(self._remote).glob("files/md5/*/.*.tmp"):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _STALE_UPLOAD_SECONDS:
                        path.unlink()

    def _commit(self, clone: Path, path: str, message: str) -> str:
        self._git("add", "--", path, cwd=clone)
        self._git("commit", "--quiet", "--allow-empty", "-m", message, cwd=clone)
        return self._git("rev-parse", "HEAD", cwd=clone).strip()

    def _push(self, clone: Path, *refspecs: str) -> None:
        self._git("push", "--quiet", "--atomic", "origin", *refspecs, cwd=clone)

    # ---- inside: records

    def _branch(self, candidate: DatasetRef) -> tuple[Candidate, dict[str, Any]] | None:
        """The branch that holds the candidate's content, with its record."""
        for found in self.candidates():
            if (found.name, found.md5) == (candidate.name, candidate.md5):
                return found, self._records(found.name, [found.commit])[0] or {}
        return None

    def _at_commit(self, name: str, revision: str) -> DatasetRef | None:
        folder = self._local or self._mirror
        if not re.fullmatch(r"[0-9a-f]{7,40}", revision) or not (folder / "HEAD").exists():
            return None
        try:
            commit = git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", cwd=folder
            ).strip()
        except GitError:
            return None
        record = self._records(name, [commit])[0]
        return to_ref(name, commit, record, None) if record else None

    def _records(self, name: str, commits: list[str]) -> list[dict[str, Any] | None]:
        paths = [f"{commit}:{name}/{file}" for commit in commits for file in RECORD_FILES]
        answer = self._git(
            "cat-file", "--batch", cwd=self._local or self._mirror, stdin="".join(f"{path}\n" for path in paths)
        )
        return parse_records(answer, paths, place=redact(self._url))


class _Overtaken(TryAgain):
    """Another writer pushed first."""


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            f"{name!r} is not a dataset name", place="name", next_step="use lower-case letters, digits and dashes"
        )


def _check_parent(name: str, parent: str | None, latest: DatasetRef | None) -> None:
    if parent != (latest.tag if latest else None):
        raise TryAgain(
            f"{latest.tag if latest else 'no version'} is the newest version of {name} now, but this one grew from {parent or 'none'}",
            place=name,
            next_step="run ingest again: it starts from the newest version",
        )


def _number(version: DatasetRef | None) -> int:
    return int((version.tag or "").rpartition("@v")[2]) if version else 0


def _link_tree(source: Path, target: Path) -> None:
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(path, copy)
