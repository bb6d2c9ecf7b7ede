"""What gc knows of the caches that text brought, and of what killed processes left half-made in any of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ssl_core.cli import main
from ssl_core.cli.gc import abandoned, cache_overflow, stale_work
from ssl_core.config.settings import Settings
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.pretrained import _kept
from ssl_core.data.text.spool import Spool
from ssl_core.data.text.tokens import open_tokens
from ssl_core.data.text.training import train
from ssl_core.step import NoProgress
from ssl_core.store import Store
from tests.data.text.corpora import PROSE, make_version

CACHED = [
    "tokens/0f/ids.bin",
    "embeddings/0f.npy",
    "pretrained/minilm-0f/model.safetensors",
    "downloads/a.whl",
    "samples/reviews-1.jsonl",
    "decoded/0f/pixels.bin",
    "datasets/0f/data-00000.parquet",
    "artifacts/0f/model/model.safetensors",
    "s3/0f/00/0f",
]
HALF_MADE = {
    "tokens/.0f.part": "ids.bin",
    "pretrained/.minilm-0f.1234": "model.safetensors",
    "embeddings/.0f.npy.1234.npy": "",
    "scratch/17-1234": "data/.hidden",
    "datasets/.0f.1234": "data-00000.parquet",
}


@pytest.fixture
def call(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``call("--apply", SSL_CACHE_LIMIT_GB="1e-9")``: the command on this test's own home."""
    monkeypatch.setenv("SSL_HOME", str(settings.home))

    def run(*arguments: str, **variables: str) -> Result:
        result = CliRunner().invoke(main, ["gc", *arguments], env=variables)
        assert result.exit_code == 0, result.output
        return result

    return run


def put(cache: Path, name: str, days: float = 0) -> Path:
    """A file of ten bytes that was used so many days ago."""
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 10)
    age(path, days)
    return path


def age(path: Path, days: float) -> None:
    for part in [*path.rglob("*"), path]:
        seconds = part.stat().st_mtime - days * 86_400
        os.utime(part, (seconds, seconds))


def half_made(cache: Path, days: float) -> None:
    for place, file in HALF_MADE.items():
        put(cache, f"{place}/{file}" if file else place)
        age(cache / place, days)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---- above the limit


def test_every_cache_is_trimmed_the_least_used_first(settings: Settings) -> None:
    for days, name in enumerate(reversed(CACHED)):
        put(settings.cache, name, days)
    kept = settings.model_copy(update={"cache_limit_gb": 35e-9})
    found = [Path(item.path).relative_to(settings.cache).as_posix() for item in cache_overflow(kept)]
    assert found == CACHED[:-3]
    assert list(cache_overflow(settings)) == []


def test_what_is_being_made_is_not_trimmed_and_locks_stay(call: Callable[..., Result], settings: Settings) -> None:
    half_made(settings.cache, days=0)
    lock = put(settings.cache, "locks/0f", 100)
    done = put(settings.cache, CACHED[0])
    call("--apply", SSL_CACHE_LIMIT_GB="1e-9")
    assert not done.exists()
    assert lock.exists()
    assert len(left(settings.cache)) == 1 + len(HALF_MADE)


def test_tokens_that_were_removed_are_made_again(
    call: Callable[..., Result], settings: Settings, tmp_path: Path
) -> None:
    ref = make_version(tmp_path, PROSE * 5)
    tokenizer = train(PROSE, TokenizerConfig(size=300))

    def tokenize() -> list[int]:
        return np.asarray(open_tokens(ref, settings, tokenizer, progress=NoProgress()).ids).tolist()

    before = tokenize()
    for removed in ("ids.bin", "offsets.bin", "units.jsonl"):
        for path in (settings.cache / "tokens").glob(f"*/{removed}"):
            path.unlink()
        assert tokenize() == before
    call("--apply", SSL_CACHE_LIMIT_GB="1e-9")
    assert [path for path in left(settings.cache) if "locks" not in path.parts] == []
    assert tokenize() == before


def test_a_checkpoint_that_was_removed_in_part_is_fetched_again(
    call: Callable[..., Result], settings: Settings
) -> None:
    fetched = []

    def fill(folder: Path) -> None:
        fetched.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * 100)

    folder = _kept(settings, "tiny", fill)
    assert _kept(settings, "tiny", fill) == folder
    assert len(fetched) == 1
    age(folder / "config.json", 10)
    size = sum(path.stat().st_size for path in left(folder))
    call("--apply", SSL_CACHE_LIMIT_GB=f"{(size - 1) / 1e9:.12f}")
    assert not (folder / "config.json").exists()
    assert (folder / "model.safetensors").exists()
    _kept(settings, "tiny", fill)
    assert len(fetched) == 2
    assert (folder / "config.json").exists()


def test_a_spool_in_use_is_not_seen_and_goes_on(call: Callable[..., Result], settings: Settings) -> None:
    spool = Spool(settings.cache)
    spool.add(["one"], 100, "auto")
    spool.finish()
    result = call("--apply", "--older-than", "0", SSL_CACHE_LIMIT_GB="1e-9")
    assert "spool" not in result.output
    assert spool.read(0) == b"one"


# ---- left half-made


def test_what_killed_processes_left_is_listed_once_it_is_old(settings: Settings) -> None:
    half_made(settings.cache, days=10)
    for name in CACHED:
        put(settings.cache, name, 10)
    found = {Path(item.path).relative_to(settings.cache).as_posix(): item for item in abandoned(settings.cache, 7)}
    assert set(found) == set(HALF_MADE)
    assert all(item.bytes == 10 and 9.9 < item.age_days < 10.1 for item in found.values())
    (settings.cache / "tokens/.0f.part/ids.bin").touch()
    assert len(list(abandoned(settings.cache, 7))) == len(HALF_MADE) - 1, "somebody goes on with it"
    assert list(abandoned(settings.cache, 11)) == []
    assert list(abandoned(settings.cache / "none", 7)) == []


def test_it_is_removed_only_when_told(call: Callable[..., Result], settings: Settings) -> None:
    half_made(settings.cache, days=10)
    cached = put(settings.cache, CACHED[0], 10)
    result = call()
    assert result.output.count("unfinished work") == len(HALF_MADE)
    assert len(left(settings.cache)) == 1 + len(HALF_MADE)
    call("--apply", "--older-than", "30")
    assert len(left(settings.cache)) == 1 + len(HALF_MADE)
    call("--apply")
    assert left(settings.cache) == [cached]
    assert not (settings.cache / "tokens/.0f.part").exists()


def test_a_download_that_is_killed_is_found(settings: Settings) -> None:
    code = (
        "import os, signal, sys; from ssl_core.config.settings import Settings; from ssl_core.data.text import pretrained\n"
        "def fill(folder):\n"
        "    (folder / 'model.safetensors').write_bytes(b'x' * 1000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pretrained._kept(Settings(home=sys.argv[1]), 'tiny', fill)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(settings.home)], check=False).returncode == -9
    (item,) = abandoned(settings.cache, 0)
    assert Path(item.path).parent == settings.cache / "pretrained"
    assert item.bytes == 1000


def test_what_the_monitor_keeps_in_the_store_goes_when_nobody_made_it_lately(settings: Settings) -> None:
    store = Store(settings.store_url, settings.cache)
    old, new = (put(Path(store.root), f"digits/kept/{origin}/0f.npy", days) for origin, days in (("a", 8), ("b", 1)))
    age(old.parent, 8)
    assert [item.path for item in stale_work(store, 7)] == [str(old.parent)]
    assert new.exists()
