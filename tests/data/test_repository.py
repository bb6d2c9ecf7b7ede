"""The data repository: versions in Git, content in a DVC remote, one writer, nothing half-published.

Tests whose subject is Git run with a quick stand-in for the dvc command; the others run DVC itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data import repository as module
from ssl_core.data.reader import fetch, is_stored
from ssl_core.data.repository import DataRepository
from ssl_core.errors import TryAgain, UserError
from tests.data.remotes import dataset_folder, quick_dvc

OLD, MORE = bytes(200_000), os.urandom(1000) * 150


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dvc", quick_dvc)


@pytest.fixture
def repository(settings: Settings, quick: None) -> DataRepository:
    return DataRepository(settings)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*shards: bytes, **info: object) -> Path:
        return dataset_folder(tmp_path / "work", list(shards), **info)

    return make


def _grow(repository: DataRepository, folder: Path, name: str = "tiny") -> DatasetRef:
    return repository.commit_candidate(name, folder, "ingest/k", parent=repository.latest(name))


def _git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


# ---- with DVC itself


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[set[str]]]:
    """tiny@v1 with one shard, tiny@v2 with that shard and another; and what the remote held after each."""
    root = tmp_path_factory.mktemp("grown folder")  # with a space: paths are configuration values too
    settings = Settings(home=root / "home")
    repository = DataRepository(settings)
    held = []
    for shards in ([OLD], [OLD, MORE]):
        repository.publish(_grow(repository, dataset_folder(root / "work", shards)))
        held.append(
            {
                f"{p}:{p.stat().st_ino}:{p.stat().st_mtime_ns}"
                for p in Path(settings.dvc_remote_url).rglob("*")
                if p.is_file()
            }
        )
    return settings, held


def test_versions_are_read_back_by_content_address(grown: tuple[Settings, list[set[str]]], tmp_path: Path) -> None:
    settings = grown[0]
    elsewhere = Settings(home=tmp_path, data_repo=settings.data_repo_url, dvc_remote=settings.dvc_remote_url)
    first, second = DataRepository(elsewhere).versions("tiny")
    assert (first.tag, second.tag, first.kind) == ("tiny@v1", "tiny@v2", "dataset")
    assert first.md5.endswith(".dir")
    # The old version can be read although a newer one exists.
    assert {p.name: p.read_bytes() for p in fetch(first, elsewhere).glob("data-*")} == {"data-00000.parquet": OLD}
    assert {p.name: p.read_bytes() for p in fetch(second, elsewhere).glob("data-*")} == {
        "data-00000.parquet": OLD,
        "data-00001.parquet": MORE,
    }


def test_growth_stores_only_what_is_new(grown: tuple[Settings, list[set[str]]]) -> None:
    before, after = grown[1]
    assert before < after  # what was there was neither written again nor removed
    new = [Path(entry.split(":")[0]) for entry in after - before]
    assert len(new) == 3  # the new shard, dataset.json, the folder's listing
    assert sum(path.stat().st_size for path in new) < len(MORE) + 2000


def test_dvc_itself_reads_a_version(grown: tuple[Settings, list[set[str]]], tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    _git("clone", "--quiet", grown[0].data_repo_url, str(clone), cwd=tmp_path)
    _git("checkout", "--quiet", "tiny@v1", cwd=clone)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet", "tiny/data.dvc"], cwd=clone, check=True)
    assert (clone / "tiny/data/data-00000.parquet").read_bytes() == OLD
    assert sorted(p.name for p in (clone / "tiny/data").iterdir()) == ["data-00000.parquet", "dataset.json"]


def test_the_local_cache_needs_no_download(grown: tuple[Settings, list[set[str]]], tmp_path: Path) -> None:
    settings = grown[0]
    version = DataRepository(settings).resolve("tiny", "v2").model_copy(update={"remote": str(tmp_path / "gone")})
    assert (fetch(version, settings) / "data-00001.parquet").read_bytes() == MORE


def test_unchanged_content_makes_no_version(grown: tuple[Settings, list[set[str]]], tmp_path: Path) -> None:
    settings = grown[0]
    repository = DataRepository(settings)
    before = _git("for-each-ref", cwd=Path(settings.data_repo_url))
    latest = repository.latest("tiny")
    candidate = _grow(repository, dataset_folder(tmp_path / "same", [OLD, MORE]))
    assert (candidate.kind, candidate.tag) == ("candidate", None)
    assert repository.is_publishable(candidate)
    assert repository.publish(candidate) == latest
    assert _git("for-each-ref", cwd=Path(settings.data_repo_url)) == before


_WRITER = """
import sys, time
from pathlib import Path
from ssl_core.config.settings import Settings
from ssl_core.data import repository as module
from ssl_core.data.repository import DataRepository
from tests.data.remotes import dataset_folder
home, number, pause_after, dvc = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], module.dvc
def paused(command, *arguments, **options):
    answer = dvc(command, *arguments, **options)
    if command == pause_after:
        print("paused", flush=True)
        time.sleep(600)
    return answer
module.dvc = paused
repository = DataRepository(Settings(home=home))
folder = dataset_folder(home / f"work-{number}", [bytes([number]) * 200_000])
with repository.lock():
    latest = repository.latest("tiny")
    print(repository.publish(repository.commit_candidate("tiny", folder, "ingest/k", parent=latest)).tag, flush=True)
"""


def _start_writer(home: Path, number: int, pause_after: str = "") -> subprocess.Popen[str]:
    """A process that publishes; after the DVC command ``pause_after`` it says ``paused`` and goes no further."""
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(home), str(number), pause_after], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], start_new_session=True,
    )  # fmt: skip


def test_two_writers_at_once_go_one_after_the_other(settings: Settings) -> None:
    writers = [_start_writer(settings.root, number) for number in (1, 2)]
    said = [writer.communicate(timeout=120) for writer in writers]
    assert sorted(out.strip() for out, _ in said) == ["tiny@v1", "tiny@v2"], said
    first, second = DataRepository(settings).versions("tiny")
    assert is_stored(first, settings)
    assert is_stored(second, settings)
    assert not any((settings.root / "scratch").rglob("clone"))


@pytest.mark.parametrize(
    ("command", "left"),
    [
        pytest.param("add", "scratch/data-repository/*/clone/tiny/data.dvc", marks=pytest.mark.e2e),
        ("push", "dvc-remote/files/md5/*/*.dir"),  # all content is pushed, no commit made
    ],
)
def test_a_killed_writer_leaves_the_repository_usable(settings: Settings, command: str, left: str) -> None:
    writer = _start_writer(settings.root, 1, pause_after=command)
    assert writer.stdout is not None
    assert select.select([writer.stdout], [], [], 90)[0], "never got there"
    assert writer.stdout.readline() == "paused\n"
    assert list(settings.root.glob(left))
    os.killpg(writer.pid, signal.SIGKILL)
    writer.communicate()
    repository = DataRepository(settings)
    assert repository.versions("tiny") == []
    finished = _start_writer(settings.root, 1)
    assert finished.communicate(timeout=90)[0].strip() == "tiny@v1"
    (version,) = repository.versions("tiny")
    assert (fetch(version, settings) / "data-00000.parquet").read_bytes() == b"\1" * 200_000
    assert not any((settings.root / "scratch").rglob("clone"))


_FULL = """
import resource, signal, sys
from pathlib import Path
from ssl_core.config.settings import Settings
from ssl_core.data.repository import DataRepository
from ssl_core.errors import TryAgain
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    DataRepository(Settings(home=Path(sys.argv[1]))).commit_candidate("tiny", Path(sys.argv[2]), "ingest/k", parent=None)
except TryAgain as error:
    print(error)
"""


def test_a_full_disk_publishes_nothing(settings: Settings, folder: Callable[..., Path]) -> None:
    # A limit on the size of files makes each large write fail half-way, as a full disk does.
    work = folder(os.urandom(4_000_000))
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(settings.root), str(work)], capture_output=True, text=True, check=True
    )
    assert "no space left while writing data; nothing was published" in done.stdout, done
    repository = DataRepository(settings)
    assert repository.versions("tiny") == repository.candidates() == []
    version = repository.publish(_grow(repository, work))
    assert (fetch(version, settings) / "data-00000.parquet").read_bytes() == (work / "data-00000.parquet").read_bytes()


# ---- Git and the lock


def test_nothing_exists_before_the_first_write(repository: DataRepository, settings: Settings) -> None:
    assert repository.versions("tiny") == repository.candidates() == []
    assert repository.latest("tiny") is None
    assert not settings.root.exists()
    with pytest.raises(UserError, match="none yet"):
        repository.resolve("tiny", "latest")


def test_a_reference_is_rebuilt_from_git(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path]
) -> None:
    published = repository.publish(_grow(repository, folder(OLD, rows=7, labelled=3, classes=["x", "y", "z"])))
    assert repository.versions("tiny") == [published]
    assert (published.rows, published.labelled, published.classes, published.producer) == (7, 3, 3, "ingest/k")
    assert published.remote == str(settings.root / "dvc-remote")
    assert published.path == "tiny/data"


def test_resolve_takes_names_and_commits(repository: DataRepository, folder: Callable[..., Path]) -> None:
    first = repository.publish(_grow(repository, folder(OLD)))
    other = repository.publish(_grow(repository, folder(MORE), name="other"))
    second = repository.publish(_grow(repository, folder(OLD, MORE)))
    candidate = _grow(repository, folder(OLD, MORE, OLD))
    assert (
        repository.resolve("tiny", "latest")
        == repository.resolve("tiny", "v2")
        == repository.resolve("tiny", "tiny@v2")
        == second
    )
    assert repository.resolve("tiny", first.revision) == repository.resolve("tiny", first.revision[:9]) == first
    assert repository.resolve("tiny", other.revision) == first  # what tiny was when other was published
    assert repository.resolve("tiny", candidate.revision) == candidate


@pytest.mark.parametrize(
    "revision",
    [
        "v9",
        "v0",
        "v01",
        "tiny@v9",
        "other@v1",
        "--help",
        "-v1",
        "main",
        "HEAD",
        "deadbeef",
        "v1~1",
        "v1 ",
        "a/b",
        "",
        "v1\n",
        "ｖ1",
    ],
)
def test_unknown_and_hostile_revisions_are_refused(
    repository: DataRepository, folder: Callable[..., Path], revision: str
) -> None:
    repository.publish(_grow(repository, folder(OLD)))
    with pytest.raises(UserError) as error:
        repository.resolve("tiny", revision)
    assert "tiny@v1" in str(error.value) or "is not a dataset revision" in str(error.value)


@pytest.mark.parametrize("name", ["--upload-pack=x", "../tiny", "Tiny", "a b", "", "a\n"])
def test_hostile_names_are_refused(repository: DataRepository, folder: Callable[..., Path], name: str) -> None:
    for call in (
        lambda: repository.versions(name),
        lambda: repository.resolve(name),
        lambda: _grow(repository, folder(OLD), name=name),
    ):
        with pytest.raises(UserError):
            call()


@pytest.mark.parametrize("url", ["--upload-pack=touch /tmp/x", "-x"])
def test_a_repository_url_never_becomes_an_option(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="Git URL"):
        DataRepository(Settings(home=tmp_path, data_repo=url))


def test_credentials_are_neither_recorded_nor_shown(tmp_path: Path, quick: None, folder: Callable[..., Path]) -> None:
    # Settings refuse such addresses; a copy with one still does not leak it.
    settings = Settings(home=tmp_path)
    with pytest.raises(UserError, match="SSL_DVC_REMOTE"):
        DataRepository(settings.model_copy(update={"dvc_remote": "https://me:secret@example.invalid/x"}))
    unreachable = DataRepository(settings.model_copy(update={"data_repo": "https://me:secret@127.0.0.1:1/x.git"}))
    with pytest.raises(TryAgain) as error:
        unreachable.versions("tiny")
    assert "secret" not in str(error.value)
    assert "SSL_DATA_REPO" in str(error.value)


def test_main_has_one_commit_per_version_and_one_tag(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path]
) -> None:
    for shards in ([OLD], [OLD, MORE]):
        repository.publish(_grow(repository, folder(*shards)))
    bare = Path(settings.data_repo_url)
    assert _git("log", "--format=%s", "main", cwd=bare).splitlines() == [
        "tiny@v2: 2 samples (+1), 1 labelled", "tiny@v1: 1 samples, 1 labelled", "Set up the data repository",
    ]  # fmt: skip
    assert _git("diff", "--name-only", "tiny@v1", "tiny@v2", cwd=bare).split() == ["tiny/data.dvc", "tiny/version.json"]
    assert _git("cat-file", "-t", "tiny@v2", cwd=bare).strip() == "tag"  # annotated
    assert repository.candidates() == []  # both branches are gone


def test_versions_are_ordered_by_number(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path]
) -> None:
    repository.publish(_grow(repository, folder(OLD)))
    for number in (10, 2, 9):
        _git("tag", f"tiny@v{number}", "main", cwd=Path(settings.data_repo_url))
    _git("tag", "tiny@v3-draft", "main", cwd=Path(settings.data_repo_url))  # by hand, not a version
    assert [v.tag for v in repository.versions("tiny")] == ["tiny@v1", "tiny@v2", "tiny@v9", "tiny@v10"]
    assert repository.publish(_grow(repository, folder(MORE))).tag == "tiny@v11"


def test_a_candidate_of_an_older_version_is_refused(repository: DataRepository, folder: Callable[..., Path]) -> None:
    first = _grow(repository, folder(OLD))
    second = _grow(repository, folder(MORE))
    assert {c.md5 for c in repository.candidates()} == {first.md5, second.md5}
    published = repository.publish(second)
    assert not repository.is_publishable(first)
    with pytest.raises(TryAgain, match="tiny@v1 is the newest version") as error:
        repository.publish(first)
    assert "ingest again" in error.value.next_step
    with pytest.raises(TryAgain, match="grew from none"):
        repository.commit_candidate("tiny", folder(OLD), "ingest/k", parent=None)
    # Ingested again, the same content is a fit candidate.
    again = repository.commit_candidate("tiny", folder(OLD), "ingest/k", parent=published)
    assert repository.is_publishable(first)
    assert repository.publish(again).tag == "tiny@v2"


def test_publishing_twice_is_harmless(repository: DataRepository, folder: Callable[..., Path]) -> None:
    candidate = _grow(repository, folder(OLD))
    assert repository.publish(candidate) == repository.publish(candidate)
    assert len(repository.versions("tiny")) == 1


def test_ingesting_again_brings_back_what_the_remote_lost(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path]
) -> None:
    version = repository.publish(_grow(repository, folder(OLD)))
    (lost,) = [p for p in Path(version.remote).rglob("*") if p.is_file() and p.stat().st_size == len(OLD)]
    lost.unlink()
    assert not is_stored(version, settings)
    stale, fresh = lost.with_name(".a.tmp"), lost.with_name(".b.tmp")
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    assert repository.publish(_grow(repository, folder(OLD))) == version
    assert is_stored(version, settings)
    assert not stale.exists()
    assert fresh.exists()


def test_a_dropped_candidate_cannot_be_published(repository: DataRepository, folder: Callable[..., Path]) -> None:
    candidate = _grow(repository, folder(OLD))
    (found,) = repository.candidates()
    assert (found.name, found.md5, found.commit) == ("tiny", candidate.md5, candidate.revision)
    assert 0 <= found.age_days < 0.01
    repository.drop_candidate(found)
    repository.drop_candidate(found)
    assert repository.candidates() == []
    assert not repository.is_publishable(candidate)
    with pytest.raises(TryAgain, match="is gone"):
        repository.publish(candidate)


def test_a_faster_writer_elsewhere_is_not_overwritten(
    tmp_path: Path, quick: None, folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"data_repo": str(tmp_path / "data.git"), "dvc_remote": str(tmp_path / "remote")}
    here, there = (DataRepository(Settings(home=tmp_path / home, **shared)) for home in ("here", "there"))
    candidate = _grow(here, folder(OLD))
    other = _grow(there, folder(MORE), name="other")
    push = DataRepository._push
    overtaken = []

    def late(self: DataRepository, clone: Path, *refspecs: str) -> None:
        if self is here and not overtaken:
            overtaken.append(there.publish(other))
        push(self, clone, *refspecs)

    monkeypatch.setattr(DataRepository, "_push", late)
    assert here.publish(candidate).tag == "tiny@v1"
    assert overtaken[0].tag == "other@v1"
    for name in ("tiny", "other"):
        assert len(here.versions(name)) == 1
    assert set(_git("ls-tree", "--name-only", "main", cwd=tmp_path / "data.git").split()) >= {"tiny", "other"}


def test_a_refused_push_publishes_neither_branch_nor_tag(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path]
) -> None:
    candidate = _grow(repository, folder(OLD))
    hook = Path(settings.data_repo_url) / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ncase $1 in refs/tags/*) echo protected >&2; exit 1;; esac\n")
    hook.chmod(0o755)
    before = _git("for-each-ref", cwd=Path(settings.data_repo_url))
    with pytest.raises(TryAgain, match="git push failed"):
        repository.publish(candidate)
    assert _git("for-each-ref", cwd=Path(settings.data_repo_url)) == before
    hook.unlink()
    assert repository.publish(candidate).tag == "tiny@v1"


def test_a_remote_repository_is_read_through_a_mirror(
    tmp_path: Path, quick: None, folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "hosted.git"
    _git("init", "--quiet", "--bare", "--initial-branch=main", str(bare), cwd=tmp_path)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{bare}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://git.invalid/data.git")
    where = {"data_repo": "https://git.invalid/data.git", "dvc_remote": str(tmp_path / "remote")}
    writer, reader = (DataRepository(Settings(home=tmp_path / home, **where)) for home in ("writer", "reader"))
    assert reader.versions("tiny") == []
    first = writer.publish(_grow(writer, folder(OLD)))
    assert reader.versions("tiny") == [first]
    candidate = _grow(writer, folder(OLD, MORE))
    assert reader.is_publishable(candidate)
    reader.drop_candidate(reader.candidates()[0])
    assert writer.candidates() == []
    assert reader.resolve("tiny", first.revision[:8]) == first


def test_the_callers_git_environment_does_not_interfere(
    repository: DataRepository, folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text(
        "[commit]\n\tgpgsign = true\n[core]\n\thooksPath = /nowhere\n\tautocrlf = true\n[user]\n\tuseConfigOnly = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert repository.publish(_grow(repository, folder(OLD))).tag == "tiny@v1"


def test_a_damaged_record_is_named(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path], tmp_path: Path
) -> None:
    repository.publish(_grow(repository, folder(OLD)))
    clone = tmp_path / "clone"
    _git("clone", "--quiet", settings.data_repo_url, str(clone), cwd=tmp_path)
    (clone / "tiny/version.json").write_text("{")
    _git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-am", "by hand", cwd=clone)
    _git("tag", "tiny@v2", cwd=clone)  # a lightweight tag: read as well
    _git("push", "--quiet", "--tags", cwd=clone)
    with pytest.raises(UserError, match="cannot be read"):
        repository.versions("tiny")


def test_reading_versions_is_quick_and_needs_no_dvc(
    repository: DataRepository, settings: Settings, folder: Callable[..., Path]
) -> None:
    repository.publish(_grow(repository, folder(OLD)))
    code = (
        "import sys; from pathlib import Path; from ssl_core.config.settings import Settings\n"
        "from ssl_core.data.repository import DataRepository\n"
        f"assert DataRepository(Settings(home=Path({str(settings.root)!r}))).latest('tiny').tag == 'tiny@v1'\n"
        "assert not {'dvc', 'pandas', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class _Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str = "") -> Iterator[object]:
        yield None

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_lock_waits_says_so_and_names_the_holder(settings: Settings) -> None:
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path; from ssl_core.config.settings import Settings\n"
            "from ssl_core.data.repository import DataRepository\n"
            f"with DataRepository(Settings(home=Path({str(settings.root)!r}))).lock(): print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    notes = _Notes()
    waiting = DataRepository(settings, notes)
    with pytest.raises(TryAgain, match=f"process {holder.pid} on "), waiting.lock(timeout=0.3):
        pass
    assert len(notes.notes) == 1
    assert str(holder.pid) in notes.notes[0]
    holder.send_signal(signal.SIGKILL)  # the kernel releases what a killed process held
    holder.communicate()
    with waiting.lock(timeout=5), waiting.lock(timeout=0):
        pass


def test_an_interrupt_releases_the_lock(settings: Settings) -> None:
    with pytest.raises(KeyboardInterrupt), DataRepository(settings).lock():
        raise KeyboardInterrupt
    with DataRepository(settings).lock(timeout=0):
        pass
