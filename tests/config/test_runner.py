from __future__ import annotations

import pytest

from ssl_core.config.load import load_project
from ssl_core.config.project import ProjectConfig
from ssl_core.config.runner import DEFAULT_IMAGE, RunnerConfig, containers, runner_kind, size_in_bytes
from ssl_core.config.settings import Settings
from ssl_core.errors import UserError
from ssl_core.pipeline import STEPS, get_step, recipe_digest

MINIMAL = {"name": "tiny", "data": {"source": "sample://digits"}}


def test_one_word_is_enough():
    project = ProjectConfig.model_validate(MINIMAL | {"runner": "docker"})
    assert project.runner == RunnerConfig(kind="docker")
    assert project == ProjectConfig.model_validate(project.model_dump(mode="json"))


def test_the_project_wins_over_the_settings_and_both_over_the_defaults(tmp_path):
    settings = Settings(home=tmp_path, runner="docker", docker_memory="4g", docker_cpus=2, docker_gpus=1)
    assert runner_kind(RunnerConfig(), settings) == "docker"
    assert runner_kind(RunnerConfig(kind="local"), settings) == "local"
    found = containers(RunnerConfig(memory="512m", gpus=0), settings)
    assert (found.memory, found.cpus, found.gpus) == (512 * 2**20, 2, 0)
    assert (found.image, found.network) == (DEFAULT_IMAGE, "host")
    assert containers(RunnerConfig(image="x:1"), settings).image == "x:1"


def test_shared_memory_follows_from_what_needs_it(tmp_path):
    settings = Settings(home=tmp_path)
    assert containers(RunnerConfig(), settings).shm == containers(RunnerConfig(gpus=1), settings).shm == 64 * 2**20
    assert containers(RunnerConfig(gpus=4), settings).shm == 64 * 2**20 + 4 * 2**30
    assert containers(RunnerConfig(gpus=4, shm="1g"), settings).shm == 2**30


@pytest.mark.parametrize(("text", "size"), [("512m", 512 * 2**20), ("1.5g", 3 * 2**29), ("8K", 8192), ("2T", 2**41)])
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize(
    ("runner", "key", "said"),
    [
        ("podman", "runner", "'local' or 'docker'"),
        ({"memory": "8"}, "runner.memory", "match"),
        ({"memory": "8 GB"}, "runner.memory", "match"),
        ({"gpus": -1}, "runner.gpus", "greater than or equal to 0"),
        ({"cpus": 0}, "runner.cpus", "greater than 0"),
        ({"imag": "x"}, "runner.imag", "did you mean `image`"),
        ({"environment": {"A B": "1"}}, "runner.environment", "no name of a variable"),
        ({"environment": {"SSL_STORE": "1"}}, "runner.environment", "platform setting"),
        (
            {"environment": {"MY_API_KEY": "wJalrXUtnFEMI"}},
            "runner.environment.MY_API_KEY",
            "take it out of the project file",
        ),
        (["docker"], "runner", "valid dictionary"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(tmp_path, runner, key, said):
    import yaml

    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | {"runner": runner}))
    with pytest.raises(UserError) as error:
        load_project(file)
    assert f"{key}" in str(error.value)
    assert said in str(error.value)
    assert "wJalrXUtnFEMI" not in str(error.value)


def test_where_a_step_runs_is_no_part_of_what_it_makes():
    """The same project in a process and in a container finds the same records and makes the same recipe."""
    plain = ProjectConfig.model_validate(MINIMAL)
    docker = ProjectConfig.model_validate(MINIMAL | {"runner": {"kind": "docker", "memory": "2g"}})
    for step in STEPS:
        if step.name != "resolve":
            assert not any(path == "*" or path.startswith("runner") for path in step.config)
            assert recipe_digest(plain, step.name) == recipe_digest(docker, step.name)
    assert get_step("resolve").cached is False
