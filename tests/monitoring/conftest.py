from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.monitoring import watch
from tests.monitoring.world import World
from tests.registry.conftest import empty_database, settings

__all__ = ["empty_database", "settings"]


@pytest.fixture
def bare(
    settings: Settings, make_project: Callable[..., ProjectConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    """A dataset, and no champion."""
    monkeypatch.setattr(watch, "RESAMPLES", 120)
    project = make_project(
        data={"source": "sample://digits", "image_size": 8},
        pretrain={"threads": 1, "device": "cpu", "precision": "float32"},
    )
    return World(settings, project, tmp_path)


@pytest.fixture
def world(bare: World) -> World:
    bare.crown()
    return bare
