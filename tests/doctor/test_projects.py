"""Project files and where their data is."""

from __future__ import annotations

import pytest
from PIL import Image

from ssl_core.config.settings import Settings
from ssl_core.doctor.projects import Projects, files_load, sources_there


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "projects").mkdir()
    (tmp_path / "photos").mkdir()
    return tmp_path


def look(folder, name=None, **more):
    settings = Settings(home=folder / "home", projects_dir=folder / "projects", **more)
    known = Projects(settings, name)
    return files_load(settings, known), sources_there(settings, known), known


def write(folder, name: str, more: str) -> None:
    (folder / "projects" / f"{name}.yaml").write_text(f"name: {name}\n{more}")


def test_files_that_load_and_sources_that_are_there(folder):
    write(folder, "digits", "data: {source: 'sample://digits'}")
    write(folder, "pets", "data: {source: ../photos}")
    write(folder, "far", "data: {source: 's3://bucket/far'}")
    files, sources, known = look(folder)
    assert (files.status, sources.status) == ("ok", "ok")
    assert known.sources()["far"] == "s3://bucket/far"


def test_a_broken_file_is_told_with_its_line_and_hides_no_other(folder):
    write(folder, "digits", "data: {source: 'sample://digits'}")
    write(folder, "pets", "data: {source: ../photos}\npretrain: {epocs: 3}")
    files, _, known = look(folder)
    assert files.status == "failed"
    assert "pets.yaml:3" in files.cause
    assert "did you mean `epochs`" in files.cause
    assert "ssl-core lint" in files.mend
    assert [project.name for project in known.good] == ["digits"]


def test_no_projects_and_no_such_project(folder):
    files, sources, _ = look(folder)
    assert (files.status, sources.status) == ("warning", "skipped")
    files, _, _ = look(folder, "nobody")
    assert files.status == "failed"


def test_a_source_that_is_not_there(folder):
    write(folder, "pets", "data: {source: ../gone}")
    _, sources, _ = look(folder)
    assert sources.status == "failed"
    assert "gone" in sources.cause
    assert "data.source" in sources.mend


def test_the_named_project_is_listed_by_its_own_rules(folder):
    write(folder, "pets", "data: {source: ../photos}")
    _, empty, _ = look(folder, "pets")
    assert empty.status == "failed"
    Image.new("L", (8, 8)).save(folder / "photos" / "1.png")
    _, found, _ = look(folder, "pets")
    assert found.status == "ok"
    assert "1 files" in found.found or "1 file" in found.found


def test_ways_to_make_containers(folder):
    write(folder, "a", "data: {source: 'sample://digits'}")
    write(folder, "b", "data: {source: 'sample://digits'}\nrunner: docker")
    write(folder, "c", "data: {source: 'sample://digits'}\nrunner: {kind: docker, memory: 4g}")
    assert len(look(folder)[2].containers()) == 2
    assert len(look(folder, "b")[2].containers()) == 1
    assert len(look(folder, "a")[2].containers()) == 0
    assert len(look(folder, runner="docker")[2].containers()) == 2
