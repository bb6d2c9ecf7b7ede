from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.tools.platform import Platform


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One real Airflow and MLflow for all tests of the session; each test has projects of its own."""
    platform = Platform(tmp_path_factory.mktemp("airflow"))
    try:
        platform.cli("up")
        yield platform
    finally:
        platform.cli("down")


@pytest.fixture(scope="session")
def shapes(airflow: Platform) -> str:
    """A project that was ingested by a trigger and went the rest of the way by asset events alone, to a champion."""
    airflow.show("shapes")
    airflow.chain("shapes")
    airflow.champion("shapes")
    return "shapes"
