"""Where samples come from: files on this machine or in S3, in the layouts that people already have, or a bundled sample."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ssl_core.config.project import ProjectConfig
from ssl_core.data.layout import LABELS_FILE, Item, Refused, check_classes
from ssl_core.step import Progress

__all__ = ["LABELS_FILE", "Item", "Refused", "Source", "open_source"]


class Source(Protocol):
    """What ``ingest`` reads."""

    def __len__(self) -> int: ...
    def items(self) -> Iterator[Item]:
        """Everything that may be a sample, in the order of the files' names."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the content may have changed; made without reading any content."""
        ...

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        """Brings what lies elsewhere onto this machine, so that reading it is quick; returns how many files that were.

        What is here is not fetched again. Raises ``TryAgain`` where told to stop; what has arrived stays.
        """
        ...


def open_source(project: ProjectConfig, cache: Path | None = None) -> Source:
    """The source of a project on images; ``cache`` is where downloads are kept (default: the settings').

    Raises ``UserError`` where it is missing, empty or wrongly labelled.
    """
    source = project.data.source
    if source.startswith("sample://"):
        return SampleSource(source.removeprefix("sample://"), project, cache)
    from ssl_core.data.files import open_files
    from ssl_core.data.image_source import RULES, ImageSource

    return ImageSource(project, open_files(source, RULES, cache))


class SampleSource:
    """A sample that comes with the platform; loaded when its items are asked for."""

    def __init__(self, name: str, project: ProjectConfig, cache: Path | None) -> None:
        from ssl_core.data.samples import sample_version

        self._name = name
        self._project = project
        self._cache = cache
        self._version = sample_version(name, project.modality)  # an unknown name is an error here

    @cached_property
    def _items(self) -> list[Item]:
        from ssl_core.data.samples import sample_items

        config = self._project.data
        items = sorted(sample_items(self._name, self._cache, config.label_type), key=lambda item: item.name)
        if config.label_type == "class":
            check_classes({item.label: item.name for item in items if item.label is not None}, self._project)
        return items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[Item]:
        return iter(self._items)

    def fingerprint(self) -> str:
        return f"sample:{self._name}:{self._version}"

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        """A sample that must be downloaded is, when its items are asked for."""
        return 0
