"""What every image owes, read from its Dockerfile; tests/e2e/test_images.py builds and runs them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
SERVICES = ("mlflow",)


def instructions(file: Path) -> list[str]:
    """``KEYWORD arguments``, one each, comments left out and continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def final_stage(file: Path) -> list[str]:
    found = instructions(file)
    last = max(i for i, line in enumerate(found) if line.startswith("FROM "))
    return found[last:]


def test_there_are_three() -> None:
    assert [file.name.partition(".")[0] for file in DOCKERFILES] == ["airflow", "mlflow", "training"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
class TestEachDockerfile:
    def test_any_engine_builds_it(self, file: Path) -> None:
        # A `# syntax=` line fetches a frontend from a registry; mounts and --chmod need BuildKit.
        assert "syntax=" not in file.read_text().splitlines()[0]
        assert not [line for line in instructions(file) if re.match(r"RUN --|COPY .*--(chmod|link)|ADD ", line)]

    def test_its_base_is_an_argument_with_a_pinned_default(self, file: Path) -> None:
        first = instructions(file)[0]
        assert re.fullmatch(r"ARG BASE_IMAGE=python:3\.11\.\d+-slim-bookworm", first), first
        bases = [line.split()[1] for line in instructions(file) if line.startswith("FROM ")]
        assert bases[0] == "${BUILD_IMAGE}"
        assert bases[-1] == "${BASE_IMAGE}"

    def test_it_installs_locked_packages_alone(self, file: Path) -> None:
        installs = re.findall(r"pip install [^&|;]*", "\n".join(instructions(file)))
        assert installs
        for install in installs:
            assert re.search(r" -r /requirements/\w+\.txt| --no-deps .*/dist/\*\.whl", install), install
        assert "--no-cache" in " ".join(installs)

    def test_it_ends_as_a_user_without_rights(self, file: Path) -> None:
        assert [line for line in final_stage(file) if line.startswith("USER ")] == ["USER 10001:10001"]

    def test_nothing_that_installs_is_in_the_image(self, file: Path) -> None:
        assert not [line for line in final_stage(file) if line.startswith("COPY ") and "/opt/build" in line]

    def test_it_is_labelled(self, file: Path) -> None:
        labels = " ".join(line for line in final_stage(file) if line.startswith("LABEL "))
        for name in ("title", "version", "revision", "licenses"):
            assert f"org.opencontainers.image.{name}=" in labels
        # Last, so that a new revision invalidates no layer.
        assert final_stage(file)[-1].startswith("LABEL ")

    def test_a_service_says_how_it_is(self, file: Path) -> None:
        has_check = any(line.startswith("HEALTHCHECK ") for line in final_stage(file))
        assert has_check == (file.name.partition(".")[0] in SERVICES)

    def test_an_ignored_rule_has_its_reason_above(self, file: Path) -> None:
        lines = file.read_text().splitlines()
        for before, line in pairwise(lines):
            if "hadolint ignore" in line:
                assert before.startswith("# ")


def test_all_install_with_the_same_tools_in_the_same_way() -> None:
    # The first stage's head is one text, so that the engine makes its layers once for all three.
    heads = {
        re.split(r"(?m)^COPY requirements/(?:job|airflow|mlflow)", f.read_text().partition("FROM ")[2])[0]
        for f in DOCKERFILES
    }
    assert len({head.partition("# cpu, cu130")[0] for head in heads}) == 1


def test_the_images_are_built_with_the_uv_of_make_setup() -> None:
    uv = re.search(r"^UV := (uv==\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert uv is not None
    assert uv[1] in (REPOSITORY / "requirements" / "build.txt").read_text().splitlines()


def packages(lock: str) -> dict[str, str]:
    lines = (REPOSITORY / "requirements" / f"{lock}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_a_job_sees_the_versions_of_the_training_environment_and_no_server() -> None:
    job, training = packages("job"), packages("training")
    assert job.items() < training.items()
    assert not {"mlflow", "flask", "gunicorn", "sqlalchemy", "docker", "pytest", "playwright", "mypy"} & set(job)
    assert {"mlflow-skinny", "torch", "dvc", "great-expectations"} <= set(job)


def test_the_mlflow_server_has_the_version_of_its_clients() -> None:
    assert packages("mlflow")["mlflow"] == packages("training")["mlflow"] == packages("job")["mlflow-skinny"]
    assert "torch" not in packages("mlflow")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda file: file.name)
def test_a_lock_names_no_index(lock: Path) -> None:
    assert not re.search(r"://|--index|--find-links|\+cpu", lock.read_text())


def test_only_what_is_needed_reaches_the_engine() -> None:
    rules = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {"docker", "requirements", "pyproject.toml", "README.md", "LICENSE", "ssl_core", "dags"}


def test_make_takes_the_version_from_the_project() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    said = subprocess.run(
        ["make", "-n", "-C", str(REPOSITORY), "images", "TORCH=cu130", "BASE_IMAGE=debian-python"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in ("training", "airflow", "mlflow"):
        assert f"-f docker/{name}.Dockerfile -t ssl-core-{name}:{version} --build-arg VERSION={version} " in said
    assert said.count("--build-arg BASE_IMAGE=debian-python") == 3
    assert "--build-arg TORCH=cu130" in said
