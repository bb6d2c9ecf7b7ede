"""What is frozen, which encoder is reused, and which dataset and encoder a DAG run gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings, usable_cpus
from ssl_core.contracts import ModelRef, RunRequest, StepResult
from ssl_core.data import repository
from ssl_core.data.repository import DataRepository
from ssl_core.errors import UserError
from ssl_core.registry import resolve, versions
from ssl_core.registry.resolve import find_encoder, freeze, reusable_encoder
from tests.data.remotes import dataset_folder, quick_dvc
from tests.registry.conftest import World


def test_nothing_registered_nothing_reused(world: World) -> None:
    result = world.step("resolve", resolve.run, {})
    assert set(result.outputs) == {"config"}
    frozen = ProjectConfig.model_validate(json.loads(world.store.fetch(result.outputs["config"]).read_text()))
    assert isinstance(frozen.pretrain.threads, int)
    assert freeze(frozen) == frozen


def test_an_encoder_of_this_recipe_is_reused_on_any_machine(world: World) -> None:
    registered = world.register_encoder().outputs["registered_encoder"]
    result = world.step("resolve", resolve.run, {})
    assert result.outputs["registered_encoder"] == registered
    assert "tiny-encoder version 1 is reused" in result.summary
    other_machine = world.project.model_copy(
        update={"pretrain": world.project.pretrain.model_copy(update={"threads": 64})}
    )
    assert reusable_encoder(world.client, world.store, other_machine) == registered


def test_when_decides(world: World, make_project: Callable[..., ProjectConfig]) -> None:
    world.register_encoder()

    def reused(**pretrain: object) -> ModelRef | None:
        return reusable_encoder(
            world.client,
            world.store,
            make_project(encoder={"widths": [8]}, evaluate={"bootstrap": 500}, pretrain=pretrain),
        )

    assert reused() is not None
    assert reused(when="always") is None
    assert reused(epochs=7) is None, "another recipe is trained"
    assert reused(epochs=7, when="manual") is not None, "unless training was not asked for"


def test_the_champion_comes_first_then_the_newest(world: World) -> None:
    world.register_encoder("e1", dataset=1)
    world.register_encoder("e2", dataset=2)
    recipe = versions.encoder_recipe(world.project)
    assert find_encoder(world.client, world.store, "tiny", recipe=recipe).version == "2"
    world.client.set_registered_model_alias("tiny-encoder", "champion", "1")
    assert find_encoder(world.client, world.store, "tiny", recipe=recipe).version == "1"
    assert find_encoder(world.client, world.store, "tiny", version="2").version == "2"
    with pytest.raises(UserError, match="no usable version 9"):
        find_encoder(world.client, world.store, "tiny", version="9")


def test_an_encoder_whose_weights_are_gone_is_trained_again(world: World) -> None:
    world.register_encoder()
    world.store.remove("tiny/pretrain/e1")
    assert reusable_encoder(world.client, world.store, world.project) is None


# ---- for a DAG run


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data repository with tiny@v1 (100 rows), tiny@v2 (200 rows) and a candidate that was never published."""
    folder = tmp_path_factory.mktemp("data")
    made = DataRepository(Settings(home=folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "dvc", quick_dvc)
        for number in (1, 2, 3):
            shards = [bytes([n]) * 10 for n in range(number)]
            content = dataset_folder(folder / "work", shards, rows=100 * number)
            candidate = made.commit_candidate("tiny", content, "ingest/k", parent=made.latest("tiny"))
            if number < 3:
                made.publish(candidate)
    return folder / "data.git"


@pytest.fixture
def data(world: World, published: Path) -> DataRepository:
    """The world's data repository: ``published``."""
    world.settings = world.settings.model_copy(update={"data_repo": str(published)})
    return DataRepository(world.settings)


@pytest.mark.parametrize("template", ["monitor", "fire-drill"])
def test_the_monitor_and_the_drill_read_a_dataset_and_no_encoder(
    world: World, data: DataRepository, template: str
) -> None:
    world.register_encoder()
    assert set(ask(world, template).outputs) == {"config", "dataset"}
    assert ask(world, template, dataset="v1").outputs["dataset"].tag == "tiny@v1"


def ask(world: World, template: str, project: ProjectConfig | None = None, **request: Any) -> StepResult:
    asked = RunRequest(template=template, **request)
    return world.step("resolve", resolve.run, {}, project=project, request=asked)


def changed(world: World, **pretrain: Any) -> ProjectConfig:
    """The world's project with another ``pretrain`` section."""
    sections = world.project.model_dump(mode="json")
    sections["pretrain"] |= pretrain
    if pretrain.get("when") == "cron":
        sections["schedule"]["pretrain"] = "@weekly"
    return ProjectConfig.model_validate(sections)


@pytest.mark.parametrize("template", ["ingest", "rollback"])
def test_what_needs_neither_repository_nor_registry_asks_none(
    make_context: Callable[..., Any], world: World, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    def never(*_arguments: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(resolve, "connect", never)
    monkeypatch.setattr(resolve, "DataRepository", never)
    made = resolve.run(make_context(world.project, step="resolve", request=RunRequest(template=template)))
    assert set(made.outputs) == {"config"}
    with pytest.raises(AssertionError, match="asked"):
        resolve.run(make_context(world.project, step="resolve", request=RunRequest(template="pretrain")))


def test_pretrain_gets_the_newest_dataset_and_no_encoder_before_there_is_one(
    world: World, data: DataRepository
) -> None:
    result = ask(world, "pretrain")
    assert set(result.outputs) == {"config", "dataset"}
    assert result.outputs["dataset"] == data.latest("tiny")
    assert "tiny@v2: 200 samples, 1 labelled" in result.summary


@pytest.mark.parametrize(
    ("when", "epochs", "reused"),
    [
        ("first", None, True),
        ("first", 7, False),  # another recipe
        ("always", None, False),
        ("manual", None, False),  # this DAG runs because somebody asked for it
        ("cron", None, False),
    ],
)
def test_pretrain_when(world: World, data: DataRepository, when: str, epochs: int | None, reused: bool) -> None:
    registered = world.register_encoder().outputs["registered_encoder"]
    result = ask(world, "pretrain", changed(world, when=when, **({"epochs": epochs} if epochs else {})))
    assert result.outputs.get("registered_encoder") == (registered if reused else None)
    assert ("version 1 is reused (pretrain.when: first)" in result.summary) is reused
    assert result.outputs["dataset"] == data.latest("tiny")


@pytest.mark.parametrize("when", ["manual", "cron"])
def test_outside_of_airflow_manual_and_cron_reuse_what_is_there(world: World, when: str) -> None:
    registered = world.register_encoder().outputs["registered_encoder"]
    result = world.step("resolve", resolve.run, {}, project=changed(world, when=when, epochs=7))
    assert result.outputs["registered_encoder"] == registered


def test_finetune_takes_the_chosen_encoder_then_the_one_that_woke_it_then_champion_then_newest(
    world: World, data: DataRepository
) -> None:
    for number in (1, 2, 3):
        world.register_encoder(f"e{number}", dataset=number)

    def version(**request: str) -> str:
        result = ask(world, "finetune", **request)
        ref = result.outputs["registered_encoder"]
        assert isinstance(ref, ModelRef)
        assert f"tiny-encoder version {ref.version} is used" in result.summary
        return ref.version

    assert version() == "3", "the newest"
    world.client.set_registered_model_alias("tiny-encoder", "champion", "1")
    assert version() == "1", "the champion"
    assert version(woken_by="2") == "2", "what woke the run"
    assert version(woken_by="2", encoder_version="3") == "3", "what a person chose"
    assert version(woken_by="9") == "1", "what woke the run is gone"
    world.store.remove("tiny/pretrain/e2")
    assert version(woken_by="2") == "1", "its weights are gone"


def test_finetune_takes_an_encoder_of_any_recipe(world: World, data: DataRepository) -> None:
    registered = world.register_encoder().outputs["registered_encoder"]
    for when in ("first", "always"):
        assert ask(world, "finetune", changed(world, when=when, epochs=7)).outputs["registered_encoder"] == registered


def test_finetune_without_an_encoder_says_what_comes_first(world: World, data: DataRepository) -> None:
    with pytest.raises(UserError, match="no registered encoder of tiny yet") as caught:
        ask(world, "finetune")
    assert (caught.value.place, caught.value.next_step) == ("tiny-encoder", "trigger tiny.pretrain first")
    with pytest.raises(UserError, match="no registered encoder of tiny yet"):
        ask(world, "finetune", woken_by="1")


@pytest.mark.parametrize("version", ["9", "x", "-1", "1; drop"])
def test_a_chosen_encoder_that_cannot_be_had_is_an_error(world: World, data: DataRepository, version: str) -> None:
    world.register_encoder()
    with pytest.raises(UserError, match="no usable version") as caught:
        ask(world, "finetune", encoder_version=version)
    assert caught.value.place == "encoder_version"
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("dataset", "rows"), [("latest", 200), ("v1", 100), ("tiny@v1", 100), ("v2", 200), ("commit of v1", 100)]
)
def test_a_version_of_the_dataset(world: World, data: DataRepository, dataset: str, rows: int) -> None:
    if dataset == "commit of v1":
        dataset = data.versions("tiny")[0].revision
    ref = ask(world, "pretrain", dataset=dataset).outputs["dataset"]
    assert (ref, ref.rows) == (data.versions("tiny")[rows // 100 - 1], rows)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("v3", "dataset tiny has no version v3; known: tiny@v1, tiny@v2"),
        ("other@v1", "no version other@v1"),
        ("deadbeef", "no version deadbeef"),
        ("", "'' is not a dataset revision"),
        ("--help", "no version --help"),
        ("v1 v2", "is not a dataset revision"),
        ("candidate", "is a candidate that was never published"),
    ],
)
def test_a_dataset_that_cannot_be_had_is_an_error(world: World, data: DataRepository, dataset: str, says: str) -> None:
    asked = data.candidates()[0].commit if dataset == "candidate" else dataset
    for template in ("pretrain", "finetune"):
        with pytest.raises(UserError, match=says) as caught:
            ask(world, template, dataset=asked)
        assert caught.value.next_step


def test_without_any_dataset_the_next_step_makes_one(world: World) -> None:
    with pytest.raises(UserError, match="known: none yet") as caught:
        ask(world, "pretrain")
    assert "make the first one" in caught.value.next_step


@pytest.mark.parametrize(
    ("text", "most"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10_000), ("", 10_000)]
)
def test_a_containers_quota_counts(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert 1 <= usable_cpus(tmp_path) <= most


@pytest.mark.parametrize(("quota", "most"), [("150000", 2), ("50000", 1), ("-1", 10_000)])
def test_so_it_does_in_the_first_kind_of_cgroup(tmp_path: Path, quota: str, most: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert 1 <= usable_cpus(tmp_path) <= most
