"""The DAG bundle whose files are the projects.

For each ``projects/NAME.yaml`` there is one small DAG file ``NAME.yaml.py``: a new project appears at the next refresh, and
a broken one shows as an import error of its own file and hides no other (one loader for all would lose all).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

from airflow.dag_processing.bundles.base import BaseDagBundle

from ssl_core.config.settings import Settings

log = logging.getLogger(__name__)

_PATTERN = "*.y*ml"
_MOST_CHARACTERS = 1_000_000
_TEXT = '''"""Airflow DAGs of one project; written by ssl_dags.bundle, gone when its project file is gone."""

from ssl_dags.templates import render

globals().update(render({path!r}))

# The project file, as it was when this file was written:
{comment}
'''


class ProjectsBundle(BaseDagBundle):
    """One DAG file per project file of ``SSL_PROJECTS_DIR``, below ``<SSL_HOME>/airflow/projects``."""

    supports_versioning = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        settings = Settings()
        self._projects = settings.projects_dir
        self._folder = settings.root / "airflow" / "projects"

    @property
    def path(self) -> Path:
        return self._folder

    def initialize(self) -> None:
        # A worker that has never seen the DAG processor's disk writes the files for itself.
        if not self._folder.exists():
            self.refresh()
        super().initialize()

    def get_current_version(self) -> None:
        return None

    def refresh(self) -> None:
        """Writes what is new or changed, each file in one piece, and removes what has no project file any more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = {f"{file.name}.py": dag_file(file) for file in sorted(self._projects.glob(_PATTERN)) if file.is_file()}
        for name, text in wanted.items():
            target = self._folder / name
            if _content(target) == text:
                continue
            temporary = self._folder / f".{uuid4().hex}"  # another process or thread may be at the same file
            temporary.write_text(text, encoding="utf-8")
            try:
                temporary.replace(target)
            except OSError as error:  # a name too long for this disk: the other projects are still served
                temporary.unlink()
                log.error("no DAGs for %s: %s", name, error.strerror)
        for stale in self._folder.glob("*.py"):
            if stale.name not in wanted:
                stale.unlink(missing_ok=True)


def _content(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:  # not there yet, or just gone
        return None


def dag_file(project_file: Path) -> str:
    """The DAG file of a project file. It shows the project in the UI's Code tab, and changes whenever the project does."""
    try:
        # Comments only, whatever the file holds: no line of it is ever Python.
        with project_file.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_CHARACTERS)  # a larger file is no project file, and rendering says so
        lines = text.replace("\0", "\N{REPLACEMENT CHARACTER}").splitlines()  # NUL may not even be in a comment
    except OSError as error:
        lines = [f"cannot be read: {error.strerror}"]
    return _TEXT.format(path=str(project_file), comment="\n".join(f"#   {line}".rstrip() for line in lines))
