"""What all tests share: nothing leaves the machine, nothing touches the user's platform home."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import Ref, RunContext
from ssl_core.step import StepContext
from ssl_core.store import Store

# Two environments, one command: `pytest` runs what the one that it runs in can do. Airflow's holds no machine learning.
_HERE = Path(__file__).parent
_LIGHT = ("config", "dags", "test_pipeline.py")
collect_ignore = [] if find_spec("airflow") else ["dags"]
if not find_spec("torch"):
    collect_ignore += [
        path.name for path in _HERE.iterdir() if path.name not in (*_LIGHT, "conftest.py", "__init__.py")
    ]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SSL_") and name not in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Platform settings with a home of this test's own."""
    return Settings(home=tmp_path / "home")


@pytest.fixture
def make_project() -> Callable[..., ProjectConfig]:
    """``make_project(data={"source": ...}, pretrain={...})``: a valid project with what is given changed."""

    def make(**sections: Any) -> ProjectConfig:
        return ProjectConfig.model_validate({"name": "tiny", "data": {"source": "sample://digits"}, **sections})

    return make


@pytest.fixture
def make_context(tmp_path: Path, settings: Settings) -> Callable[..., StepContext]:
    """``make_context(project, step="pretrain", inputs={...})``: a step context on this test's own store."""

    def make(
        project: ProjectConfig,
        *,
        step: str = "ingest",
        key: str = "k",
        inputs: dict[str, Ref] | None = None,
        **more: Any,
    ) -> StepContext:
        store = Store(settings.store_url, settings.cache)
        out = tmp_path / "out" / step / key
        out.mkdir(parents=True, exist_ok=True)
        return StepContext(
            project=project,
            settings=settings,
            inputs=inputs or {},
            run=RunContext(run_id="test"),
            key=key,
            out=out,
            store=store,
            checkpoints=store.checkpoints(project.name, step, key),
            **more,
        )

    return make
