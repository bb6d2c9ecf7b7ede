"""A place of its own for Airflow, projects as files, and programs that pass for a training environment."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DAG

    from ssl_dags.bundle import ProjectsBundle

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "dags"))

# Airflow reads its environment when it is imported: no test may see the user's Airflow.
_HOME = Path(tempfile.mkdtemp(prefix="ssl-test-airflow-"))
for _name in [name for name in os.environ if name.startswith(("AIRFLOW", "_AIRFLOW"))]:
    del os.environ[_name]
os.environ |= {
    "AIRFLOW_HOME": str(_HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(_HOME),
    "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACKS": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME / 'airflow.db'}",
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
        [{"name": "projects", "classpath": "ssl_dags.bundle.ProjectsBundle", "kwargs": {}}]
    ),
}


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The projects folder of the platform settings, empty."""
    folder = tmp_path / "projects"
    folder.mkdir()
    monkeypatch.setenv("SSL_PROJECTS_DIR", str(folder))
    monkeypatch.setenv("SSL_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def write_project(projects: Path) -> Callable[..., Path]:
    """``write_project("tiny", pretrain={...})``: a project file with what is given changed."""

    def write(name: str = "tiny", **sections: Any) -> Path:
        path = projects / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "data": {"source": "sample://digits"}, **sections}))
        return path

    return write


@pytest.fixture
def make_dag(write_project: Callable[..., Path]) -> Callable[..., DAG]:
    """``make_dag("pretrain", schedule={...})``: the DAG ``tiny.pretrain`` of a project file with what is given changed."""
    from ssl_dags.templates import render

    def make(template: str, **sections: Any) -> DAG:
        return render(str(write_project("tiny", **sections)))[f"tiny.{template}"]

    return make


@pytest.fixture
def bundle(projects: Path) -> ProjectsBundle:
    """The bundle over ``projects``."""
    from ssl_dags.bundle import ProjectsBundle

    return ProjectsBundle(name="projects")


@pytest.fixture
def load(bundle: ProjectsBundle) -> Callable[[], DagBag]:
    """``load()``: what Airflow's DAG processor makes of the projects as they are now."""
    from airflow.dag_processing.dagbag import DagBag

    def load() -> DagBag:
        bundle.refresh()
        return DagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)

    return load


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """``program(source)``: a file that can be called as the training environment's Python and runs ``source`` instead."""

    def write(source: str) -> str:
        script = tmp_path / "job.py"
        script.write_text(source, encoding="utf-8")
        started_by = tmp_path / "python"  # a path to Python may be longer than a script's first line can be
        started_by.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n')
        started_by.chmod(0o755)
        return str(started_by)

    return write


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's database with the pools that the DAGs name."""
    from airflow.models.pool import Pool
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session

    initdb()
    with create_session() as session:
        for name in ("gpu", "data-repo"):
            Pool.create_or_update_pool(name, 1, name, include_deferred=False, session=session)
