from __future__ import annotations

import ast
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssl_dags.templates import TEMPLATES

# Each would end a string or a line, or be no text at all.
HOSTILE = {
    "triple quotes": b"name: x\ndescription: \"\"\"\nimport os\n'''\nimport os\n",
    "backslashes": b"name: x\ndescription: \\\nimport os \\\n\\",
    "carriage return": b"name: x\rimport os\r\nimport os",
    "form feed": b"name: x\fimport os\x0bimport os\x1cimport os",
    "unicode line ends": "name: x\u2028import os\u2029import os\x85import os".encode(),
    "NUL": b"name: x\0\nimport os\0",
    "not UTF-8": b"name: \xff\xfe\n\x80import os\n",
    "half a character": b"name: x\n\xe2\x80",
    "coding line": b"# -*- coding: utf-7 -*-\n+AGkAbQBwAG8AcgB0ACAAbwBz-\n",
    "byte order mark": b"\xef\xbb\xbfname: x\n",
    "format": b"{path} {comment!r} %s {}\n",
    "nothing": b"",
}


def files(bundle) -> set[str]:
    return {path.name for path in bundle.path.iterdir()}


def test_a_new_project_appears_an_edit_changes_it_and_a_deleted_one_goes(bundle, write_project):
    write_project("one")
    bundle.refresh()
    assert files(bundle) == {"one.yaml.py"}

    path = write_project("two", description="first words")
    bundle.refresh()
    assert files(bundle) == {"one.yaml.py", "two.yaml.py"}
    before = (bundle.path / "two.yaml.py").read_text()
    assert "first words" in before

    write_project("two", description="other words")
    bundle.refresh()
    after = (bundle.path / "two.yaml.py").read_text()
    assert "other words" in after
    assert "first words" not in after

    path.unlink()
    bundle.refresh()
    assert files(bundle) == {"one.yaml.py"}


def test_a_file_without_news_is_not_written_again(bundle, write_project):
    """Airflow parses a DAG file again when its time changes."""
    write_project("one")
    bundle.refresh()
    (stub,) = bundle.path.iterdir()
    before = stub.stat()
    bundle.refresh()
    assert (stub.stat().st_ino, stub.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_first_use_in_a_worker_writes_the_files(bundle, write_project):
    write_project("one")
    bundle.initialize()
    assert files(bundle) == {"one.yaml.py"}


def test_without_a_projects_folder_there_are_no_files(bundle, projects):
    projects.rmdir()
    bundle.refresh()
    assert files(bundle) == set()


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_project_file_is_never_python(bundle, projects, content):
    path = projects / "x.yaml"
    path.write_bytes(content)
    bundle.refresh()
    (stub,) = bundle.path.iterdir()
    docstring, imported, call = ast.parse(stub.read_bytes()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert ast.unparse(imported) == "from ssl_dags.templates import render"
    assert ast.unparse(call) == f"globals().update(render({str(path)!r}))"


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_project_is_an_error_of_its_own_file(load, projects, write_project, content):
    (projects / "x.yaml").write_bytes(content)
    write_project("good")
    bag = load()
    assert set(bag.import_errors) == {"x.yaml.py"}
    assert str(projects / "x.yaml") in bag.import_errors["x.yaml.py"]
    assert set(bag.dags) == {f"good.{template}" for template in TEMPLATES}


@pytest.mark.parametrize(
    "name", ["two words.yaml", "a.b.c.yaml", 'it\'s "quoted".yml', "back\\slash.yaml", "{path}.yaml", "ünï\u2028.yaml"]
)
def test_a_project_file_may_be_called_anything(load, projects, write_project, name):
    write_project("tiny").rename(projects / name)
    bag = load()
    assert bag.import_errors == {}
    assert len(bag.dags) == len(TEMPLATES)


def test_only_project_files_count(bundle, projects, write_project):
    write_project("one")
    (projects / "notes.md").write_text("name: x")
    (projects / "folder.yaml").mkdir()
    bundle.refresh()
    assert files(bundle) == {"one.yaml.py"}


def test_two_at_once_agree(bundle, write_project, projects):
    """The DAG processor and a worker, or two threads of one."""
    for round_ in range(5):
        for n in range(20):
            write_project(f"p{n}", description=f"round {round_}")
        workers = 4
        start = threading.Barrier(workers)

        def refresh(start=start):
            start.wait()
            bundle.refresh()

        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(refresh) for _ in range(workers)]:
                done.result()
        assert files(bundle) == {f"p{n}.yaml.py" for n in range(20)}
        assert all(f"round {round_}" in path.read_text() for path in bundle.path.iterdir())


def test_a_link_to_nothing_is_no_project(bundle, projects, write_project):
    write_project("one")
    (projects / "gone.yaml").symlink_to(projects / "nowhere")
    bundle.refresh()
    assert files(bundle) == {"one.yaml.py"}


def test_a_crash_leaves_no_half_written_dag_file(bundle, load, write_project, monkeypatch):
    write_project("one")
    with monkeypatch.context() as crash:
        crash.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bundle.refresh()
    assert not any(name.endswith(".py") for name in files(bundle))
    bag = load()
    assert bag.import_errors == {}
    assert len(bag.dags) == len(TEMPLATES)


def test_a_file_name_that_no_disk_takes_hides_no_other(bundle, write_project, projects):
    (projects / ("x" * 250 + ".yaml")).write_text("name: long\n")  # with .py behind it, over 255 bytes
    write_project("short")
    bundle.refresh()
    assert {path.name for path in bundle.path.iterdir()} == {"short.yaml.py"}
