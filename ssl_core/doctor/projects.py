"""Project files: do they load, is their data there, and where do their steps run."""

from __future__ import annotations

from pathlib import Path

from ssl_core.config.load import find_project, load_project
from ssl_core.config.project import ProjectConfig
from ssl_core.config.runner import Containers, containers, runner_kind
from ssl_core.config.settings import Settings
from ssl_core.doctor.finding import Finding, Once, failed, ok, skipped, warning, worst
from ssl_core.errors import StepError, UserError


class Projects:
    """The project that was named, or all of the projects folder; read once, when the first check asks."""

    def __init__(self, settings: Settings, name: str | None) -> None:
        self.name = name
        self._settings = settings
        self._read = Once(self._load)

    @property
    def good(self) -> list[ProjectConfig]:
        return self._read()[0]

    @property
    def broken(self) -> list[UserError]:
        return self._read()[1]

    def sources(self) -> dict[str, str]:
        """Project name to the address of its data."""
        return {project.name: project.data.source for project in self.good}

    def containers(self) -> list[Containers]:
        """How containers are made, each way once; empty where every step is a local process."""
        found: list[Containers] = []
        for project in self.good:
            if runner_kind(project.runner, self._settings) == "docker":
                options = containers(project.runner, self._settings)
                if options not in found:
                    found.append(options)
        return found

    def _load(self) -> tuple[list[ProjectConfig], list[UserError]]:
        good: list[ProjectConfig] = []
        broken: list[UserError] = []
        names: dict[str, Path] = {}
        try:
            folder = self._settings.projects_dir
            files = [find_project(self.name, folder)] if self.name else sorted(folder.glob("*.y*ml"))
        except UserError as error:
            return good, [error]
        for file in files:
            try:
                project = load_project(file)
                if project.name in names:
                    raise UserError(
                        f"the name {project.name!r} is taken by {names[project.name]}",
                        place=str(file),
                        next_step="rename one",
                    )
            except UserError as error:
                broken.append(error)
                continue
            names[project.name] = file
            good.append(project)
        return good, broken


def files_load(settings: Settings, projects: Projects) -> Finding:
    problems = [
        failed(f"{error.place}: {error.cause}" if error.place else error.cause, error.next_step or "ssl-core lint")
        for error in projects.broken
    ]
    if not problems and not projects.good:
        return warning(
            f"there is no project file in {settings.projects_dir}",
            "ssl-core init NAME --data PATH, or set SSL_PROJECTS_DIR",
        )
    return worst(problems, f"{len(projects.good)} of {settings.projects_dir if not projects.name else 'one'} load: "
                 + ", ".join(project.name for project in projects.good))  # fmt: skip


def sources_there(settings: Settings, projects: Projects) -> Finding:
    """Of all projects: is the folder there; of the one that was named: is there something to ingest, by its own rules."""
    if not projects.good:
        return skipped("no project file that loads")
    if projects.name:
        return _listed(settings, projects.good[0])
    problems, found = [], []
    for project in projects.good:
        source = project.data.source
        if "://" in source:
            found.append(f"{project.name} {source}")
        elif not Path(source).is_dir():
            problems.append(
                failed(
                    f"{project.name}: no such folder {source}",
                    f"correct data.source in the project file of {project.name}",
                )
            )
        else:
            found.append(f"{project.name} {source}")
    return worst(problems, ", ".join(found))


def _listed(settings: Settings, project: ProjectConfig) -> Finding:
    from ssl_core.data.sources import open_source

    source = project.data.source
    if source.startswith("s3://"):
        return skipped(f"{source}: see `s3 rights`")
    try:
        count = len(open_source(project, settings.cache)) if not source.startswith("sample://") else 0
        if source.startswith("sample://"):
            open_source(project, settings.cache)
    except StepError as error:
        return failed(
            f"{error.place}: {error.cause}" if error.place else error.cause,
            error.next_step or "correct data.source in the project file",
        )
    return ok(f"{source}: {count} files" if count else source)
