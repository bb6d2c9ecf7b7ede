"""git and DVC as the data repository runs them: what went wrong is said, what is secret is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_core.data.git import GitError, dvc, git, local_git_path, recorded_remote, redact
from ssl_core.errors import TryAgain, UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fatal: https://me:secret@host/x.git: no", "fatal: https://host/x.git: no"),
        ("https://token@host/x and ssh://git@host/y", "https://host/x and ssh://host/y"),
        ("https://host/a@b", "https://host/a@b"),
        ("git@host:x.git", "git@host:x.git"),
    ],
)
def test_credentials_are_cut_out_of_urls(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_git_says_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(GitError, match="not a git repository"):
        git("status", cwd=tmp_path)
    with pytest.raises(GitError, match="does not exist"):
        git("status", cwd=tmp_path / "gone")


def test_a_machine_without_git_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not installed"):
        git("status", cwd=tmp_path)


def test_dvc_says_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working directory')")
    with pytest.raises(TryAgain, match="not inside of a DVC repository") as error:
        dvc("push", cwd=tmp_path, site=tmp_path / "site", place="https://me:secret@host/remote")
    assert error.value.place == "https://host/remote"
    assert "SSL_DVC_REMOTE" in error.value.next_step


def test_local_repositories_are_told_from_remote_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_git_path("data.git") == tmp_path / "data.git"
    assert local_git_path("./a:b.git") == tmp_path / "a:b.git"
    assert local_git_path("file:///srv/a%20b.git") == Path("/srv/a b.git")
    for url in ("git@host:data.git", "host:data.git", "ssh://host/data.git", "https://host/data.git"):
        assert local_git_path(url) is None


def test_a_remote_is_recorded_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recorded_remote("remote") == str(tmp_path / "remote")
    assert recorded_remote("file:///srv/a%20b") == "/srv/a b"
    assert recorded_remote("s3://bucket/dvc/") == "s3://bucket/dvc"
    for url in ("https://me:secret@host/x", 'a"b'):
        with pytest.raises(UserError) as error:
            recorded_remote(url)
        assert error.value.place == "SSL_DVC_REMOTE"
