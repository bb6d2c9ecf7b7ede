"""``ssl-core gc``: what may go, listed first and removed only when told."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ssl_core.cli.common import load_settings
from ssl_core.config.settings import Settings
from ssl_core.store import Store

_DAY = 86_400.0


@dataclass(frozen=True)
class Removable:
    """One thing that may go."""

    what: str
    path: str
    bytes: int
    age_days: float


@click.command()
@click.option("--apply", is_flag=True, help="Remove what is listed. Without it nothing is touched.")
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    help="Leave what is younger, in days.",
)
def gc(apply: bool, days: float) -> None:
    """List (or with --apply remove) checkpoints of interrupted steps, unfinished work, the monitor's embeddings, cached files above
    the limit (datasets, tokens, embeddings, downloaded checkpoints) and dataset candidates that were never published.

    Committed step outputs, published dataset versions and whatever the ledger or a registry alias names stay.
    """
    settings = load_settings()
    store = Store(settings.store_url, settings.cache)
    total = 0
    for item in [*stale_work(store, days), *abandoned(settings.cache, days), *cache_overflow(settings)]:
        total += item.bytes
        click.echo(f"{item.what:28} {item.bytes / 1e6:10.1f} MB  {item.age_days:6.1f} days  {item.path}")
        if apply:
            _unlink(Path(item.path))
    total += _candidates(settings, days, apply)
    verb = "removed" if apply else "could be removed (ssl-core gc --apply)"
    click.echo(f"{total / 1e6:.1f} MB {verb}")


def stale_work(store: Store, days: float, now: float | None = None) -> Iterator[Removable]:
    """Checkpoints and uncommitted outputs in a local store that nobody has touched for ``days``.

    A committed step keeps its outputs: the ledger, the aliases and the cache of steps all refer to committed ones.
    """
    if not store.is_local:
        return
    now = now or time.time()
    root = Path(store.root)
    for folder in sorted(root.glob(".scratch/*")):
        yield from _if_old(folder, "unfinished work", days, now)
    for folder in sorted(root.glob("*/*/*/checkpoints")):
        yield from _if_old(folder, "checkpoints", days, now)
    for folder in sorted(root.glob("*/kept/*")):  # made again where they are asked for
        yield from _if_old(folder, "the monitor's embeddings", days, now)
    for folder in sorted(root.glob("*/*/*/out")):
        if not (folder.parent / "result.json").exists():
            yield from _if_old(folder, "uncommitted output", days, now)


def abandoned(cache: Path, days: float, now: float | None = None) -> Iterator[Removable]:
    """What processes that were killed left half-made in the cache, and nobody has touched for ``days``: downloads, tokens, datasets.

    Whoever makes something there makes it under a name that begins with a dot, or in ``scratch``.
    """
    now = now or time.time()
    for path in sorted([*cache.rglob(".*"), *cache.glob("scratch/*")]):
        if not _is_half_made(path.parent.relative_to(cache)):  # else it goes with its folder
            yield from _if_old(path, "unfinished work", days, now)


def cache_overflow(settings: Settings) -> Iterator[Removable]:
    """The least recently used cache files above the size limit; all of them can be fetched or made again: datasets and what was
    decoded or tokenized of them, embeddings, samples, downloaded checkpoints, copies from S3.

    What is being made right now is none of them; see ``abandoned``. The spool of a source has no name and goes with its process.
    A dataset folder's files are hard links to the cached objects: one file, counted once, removed under all its names.
    """
    names: dict[int, list[Path]] = defaultdict(list)
    for path in settings.cache.rglob("*") if settings.cache.exists() else ():
        place = path.relative_to(settings.cache)
        if (
            path.is_file()
            and not path.is_symlink()
            and place.parts[0] != "locks"
            and not _is_half_made(place)
            and not path.name.endswith("-journal")  # SQLite's: it goes with its database, and protects it until then
        ):
            names[path.stat().st_ino].append(path)
    files = [(paths[0].stat(), paths) for paths in names.values()]
    total = sum(stat.st_size for stat, _ in files)
    for stat, paths in sorted(files, key=lambda pair: max(pair[0].st_atime, pair[0].st_mtime)):
        if total <= settings.cache_limit_gb * 1e9:
            return
        total -= stat.st_size
        for number, path in enumerate(paths):
            size = stat.st_size if number == 0 else 0
            yield Removable("cache above the limit", str(path), size, (time.time() - stat.st_mtime) / _DAY)


def _is_half_made(place: Path) -> bool:
    """Whether a path below the cache belongs to something that is being made, or was when its process was killed."""
    return (place.parts[:1] == ("scratch",) and len(place.parts) > 1) or any(part[0] == "." for part in place.parts)


def _if_old(path: Path, what: str, days: float, now: float) -> Iterator[Removable]:
    """A file, or a folder with all that is in it."""
    try:
        found = [p.stat() for p in path.rglob("*") if p.is_file()]
        own = path.stat()
    except FileNotFoundError:  # it was finished meanwhile
        return
    age = (now - max(status.st_mtime for status in [*found, own])) / _DAY
    if age >= days:
        size = sum(status.st_size for status in found) if path.is_dir() else own.st_size
        yield Removable(what, str(path), size, age)


def _unlink(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _candidates(settings: Settings, days: float, apply: bool) -> int:
    from ssl_core.data.repository import DataRepository

    if not settings.data_repo and not (settings.root / "data.git").exists():
        return 0
    repository = DataRepository(settings)
    for candidate in repository.candidates():
        if candidate.age_days < days:
            continue
        click.echo(
            f"{'unpublished candidate':28} {'':>13}  {candidate.age_days:6.1f} days  {candidate.name} {candidate.md5}"
        )
        if apply:
            repository.drop_candidate(candidate)
    return 0
