"""Which files a source has, wherever they lie. What they mean is for ``image_source`` and ``text.source`` to say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ssl_core.config.settings import Settings
from ssl_core.data.layout import Table
from ssl_core.step import Progress


@dataclass(frozen=True)
class Rules:
    """Which of the files in a source are meant."""

    noun: str
    """What they hold, in the plural: ``images``."""
    wanted: Callable[[str], bool]
    """Whether a file may be one, by its name."""
    most_bytes: int | None
    """A larger file is refused; None where files are read as a stream."""
    one_file: bool = False
    """Whether the source may be a single file."""
    endings: tuple[str, ...] = ()
    """What their names end with, to tell people; empty where that is not what decides."""

    @property
    def next_step(self) -> str:
        """What to do where there is none."""
        endings = f" ({', '.join(self.endings)})" if self.endings else ""
        return f"put {self.noun.removesuffix('s')} files{endings} there, directly or in one folder per class"


class Files(Protocol):
    """A folder, or one file, listed once when opened. Nothing outside of it is ever read.

    A name is the path below ``root`` as the storage gives it; ``layout.display_name`` makes it text.
    """

    root: str
    separator: str
    """Between the folders of a name."""
    is_one: bool
    """Whether the source is one file and not a folder."""

    @property
    def names(self) -> list[str]:
        """The files that are meant, in the order of their names' bytes, with those that will be refused."""
        ...

    @property
    def ignored(self) -> int:
        """How many other files lie there, hidden ones not counted."""
        ...

    def is_other(self, name: str) -> bool:
        """Whether there is such a file, and it is not one of those that are meant."""
        ...

    def size(self, name: str) -> int:
        """In bytes, as listed."""
        ...

    def table(self, key: str, asked: str | None, default: str = "") -> Table | None:
        """The file that the configuration's ``key`` names, else the one called ``default`` there, if any; it is not one of ``names``.

        Raises ``UserError`` where ``asked`` is not there.
        """
        ...

    def require_some(self) -> None:
        """Raises ``UserError`` where no file is left."""
        ...

    def fingerprint(self, tables: Sequence[Table | None] = ()) -> str:
        """Changes whenever the content of the files or tables may have changed; made without reading any."""
        ...

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        """Brings what lies elsewhere onto this machine; how many files that were. Raises ``TryAgain`` where told to stop."""
        ...

    def read(self, name: str) -> bytes:
        """The content. Raises ``Refused`` where it must not or cannot be read. Safe to call from any thread."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The content as a stream; ``sync`` came before. Raises as ``read`` does."""
        ...

    def is_unchanged(self, name: str) -> bool:
        """Whether the file that ``open`` opens is still as it was when listed."""
        ...


def open_files(source: str, rules: Rules, cache: Path | None) -> Files:
    """The files of ``data.source``; ``cache`` is where downloads are kept (default: the settings').

    Raises ``UserError`` or ``TryAgain`` where it is missing or cannot be listed.
    """
    if source.startswith("s3://"):
        from ssl_core.data.s3_files import S3Files

        return S3Files(source, rules, cache or Settings().cache)
    from ssl_core.data.folder_files import FolderFiles

    return FolderFiles(source, rules)
