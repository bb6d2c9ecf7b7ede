"""Bundled samples: real data that any fresh machine can get, read out of the packages that carry it at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_core.config.settings import Settings
from ssl_core.data.layout import Item
from ssl_core.data.samples import animals, digits, snippets
from ssl_core.data.samples.snippets import Review, reviews
from ssl_core.errors import UserError

__all__ = ["SAMPLES", "Review", "reviews", "sample_items", "sample_version"]


@dataclass(frozen=True)
class Sample:
    """One bundled sample."""

    modality: str
    version: Callable[[], str]
    items: Callable[..., list[Item]]
    """Called with the cache; for texts also with ``data.label_type``."""


SAMPLES = {
    "digits": Sample("image", digits.version, digits.items),
    "animals": Sample("image", animals.version, animals.items),
    "reviews": Sample("text", snippets.version, snippets.items),
}


def sample_items(name: str, cache: Path | None = None, label_type: str = "class") -> list[Item]:
    """The items of the sample called ``name``, in a fixed order.

    ``cache`` defaults to the settings' cache. Raises ``UserError`` for an unknown name, ``TryAgain`` where a download fails.
    """
    sample = _sample(name)
    cache = cache or Settings().cache
    return sample.items(cache, label_type) if sample.modality == "text" else sample.items(cache)


def sample_version(name: str, modality: str = "") -> str:
    """Changes when the sample's content may; reads nothing. Raises ``UserError`` for an unknown name, or one of another ``modality``."""
    sample = _sample(name)
    if modality and sample.modality != modality:
        raise UserError(
            f"sample://{name} is for projects on {sample.modality}s, and this one is on {modality}s",
            place="data.source",
            next_step=f"set modality: {sample.modality}, or use one of {_listed(modality)}",
        )
    return sample.version()


def _sample(name: str) -> Sample:
    if name not in SAMPLES:
        raise UserError(
            f"there is no sample called {name!r}",
            place="data.source",
            next_step=f"use one of {_listed()}",
        )
    return SAMPLES[name]


def _listed(modality: str = "") -> str:
    return ", ".join(f"sample://{name}" for name, sample in SAMPLES.items() if modality in ("", sample.modality))
