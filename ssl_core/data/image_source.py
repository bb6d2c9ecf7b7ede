"""Images in files: one item a file, with labels from class folders or a ``labels.csv``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

from ssl_core.config.project import ProjectConfig
from ssl_core.data.files import Files, Rules
from ssl_core.data.layout import (
    LABELS_FILE,
    MAX_BYTES,
    Item,
    check_classes,
    csv_labels,
    display_name,
    folder_labels,
    is_sidecar,
)
from ssl_core.step import Progress

RULES = Rules("images", wanted=lambda name: not is_sidecar(name), most_bytes=MAX_BYTES)


class ImageSource:
    """See ``Source``. Raises ``UserError`` where the files are none or wrongly labelled."""

    def __init__(self, project: ProjectConfig, files: Files) -> None:
        self._files = files
        self._table = files.table("data.labels", project.data.labels, LABELS_FILE)
        files.require_some()
        if self._table is not None:
            self._labels, where = csv_labels(self._table, files.names, files.root, files.is_other)
        else:
            self._labels, where = folder_labels(files.names, files.root, files.separator)
        check_classes(where, project)

    def __len__(self) -> int:
        return len(self._files.names)

    def items(self) -> Iterator[Item]:
        for name in self._files.names:
            yield Item(display_name(name), self._labels.get(name), partial(self._files.read, name))

    def fingerprint(self) -> str:
        return self._files.fingerprint([self._table])

    def sync(self, progress: Progress, stop: threading.Event) -> int:
        return self._files.sync(progress, stop)
