"""The step publish: only what passed, only what is there, and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import ArtifactRef, DatasetRef
from ssl_core.data import publish
from ssl_core.data import repository as module
from ssl_core.data.repository import DataRepository
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import NoTracker, StepContext
from ssl_core.store import path_sha256
from tests.data.remotes import dataset_folder, object_path, quick_dvc


@pytest.fixture
def make_step(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    make_project: Callable[..., ProjectConfig], make_context: Callable[..., StepContext],
) -> Callable[..., StepContext]:  # fmt: skip
    """A publish step for a candidate with so many shards; ``passed`` is what the validation report says."""
    monkeypatch.setattr(module, "dvc", quick_dvc)
    repository = DataRepository(settings)

    def make(shards: int = 1, **report: Any) -> StepContext:
        folder = dataset_folder(tmp_path / "work", [bytes([n]) * 1000 for n in range(shards)], rows=shards * 1000)
        candidate = repository.commit_candidate("tiny", folder, "ingest/k", parent=repository.latest("tiny"))
        uri = "tiny/validate/k/out/validation"
        path = Path(settings.store_url.removeprefix("file://")) / uri
        path.mkdir(parents=True, exist_ok=True)
        (path / "validation.json").write_text(json.dumps({"passed": True, "dataset": {"md5": candidate.md5}} | report))
        validation = ArtifactRef(kind="validation", uri=uri, sha256=path_sha256(path), producer="validate/k")
        return make_context(
            make_project(),
            step="publish",
            inputs={"candidate": candidate, "validation": validation},
            tracker=NoTracker(),
        )

    return make


def test_each_change_is_a_version(make_step: Callable[..., StepContext], settings: Settings) -> None:
    ctx = make_step(1)
    first = publish.run(ctx)
    assert first.news
    assert first.summary == "tiny@v1: 1,000 samples, the first version; 1 labelled, 2 classes"
    assert isinstance(ctx.tracker, NoTracker)
    assert ctx.tracker.logged_tags["dataset.version"] == "tiny@v1"
    second = publish.run(make_step(2))
    assert second.summary.startswith("tiny@v2: 2,000 samples, +1,000 since tiny@v1;")
    assert second.outputs["dataset"] == DataRepository(settings).latest("tiny")
    assert second.metrics["rows"] == 2000
    assert second.news


def test_running_again_gives_the_same_version(make_step: Callable[..., StepContext], settings: Settings) -> None:
    ctx = make_step(1)
    first, again = publish.run(ctx), publish.run(ctx)
    assert first.outputs == again.outputs
    assert (first.news, again.news) == (True, False), "nobody wakes up for a version that was there"
    assert "unchanged" in again.summary
    assert len(DataRepository(settings).versions("tiny")) == 1


def test_a_second_try_tells_what_the_first_one_could_not(make_step: Callable[..., StepContext]) -> None:
    ctx = make_step(1)
    publish.run(ctx)  # cut off after the tag: Airflow never saw its end
    ctx.run = ctx.run.model_copy(update={"try_number": 2})
    assert publish.run(ctx).news, "or nobody would ever wake up for this version"


@pytest.mark.parametrize(
    ("report", "says"),
    [
        ({"passed": False}, "did not pass"),
        ({"passed": "true"}, "did not pass"),
        ({"dataset": {"md5": "other.dir"}}, "other content"),
        ({"dataset": {}}, "not a validation report"),
    ],
)
def test_only_this_candidates_passed_report_counts(
    make_step: Callable[..., StepContext], settings: Settings, report: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        publish.run(make_step(1, **report))
    assert DataRepository(settings).versions("tiny") == []


def test_content_that_went_missing_is_never_tagged(make_step: Callable[..., StepContext], settings: Settings) -> None:
    ctx = make_step(2)
    candidate = ctx.input("candidate")
    assert isinstance(candidate, DatasetRef)
    listing = json.loads(object_path(candidate.remote, candidate.md5).read_bytes())
    lost = object_path(candidate.remote, listing[0]["md5"])
    lost.rename(lost.with_suffix(".moved"))
    with pytest.raises(TryAgain, match="missing") as error:
        publish.run(ctx)
    assert error.value.place == str(lost)
    assert DataRepository(settings).versions("tiny") == []
    lost.with_suffix(".moved").rename(lost)
    assert publish.run(ctx).outputs["dataset"] == DataRepository(settings).latest("tiny")
