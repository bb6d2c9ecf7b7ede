import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ssl_core.cli import main
from ssl_core.cli.gc import cache_overflow, stale_work
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import RunContext, StepSpec
from ssl_core.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_HOME", str(tmp_path / "home"))

    def run(*arguments: str):
        return CliRunner().invoke(main, list(arguments))

    return run


def test_help_is_light_and_lists_every_command():
    code = (
        "import sys; from click.testing import CliRunner; from ssl_core.cli import main;"
        "r = CliRunner().invoke(main, ['--help']); assert r.exit_code == 0, r.output;"
        "assert all(w in r.output for w in ('run', 'report', 'init', 'lint', 'schema', 'step', 'promote', 'gc', 'mlflow'));"
        "bad = {'torch', 'mlflow', 'pandas', 'numpy', 'great_expectations', 'dvc', 'sklearn'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sigterm_outside_of_a_step_is_try_again_and_the_handler_goes_back(monkeypatch):
    @click.command()
    def told_to_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # the handler runs before this is over
        raise AssertionError("went on after SIGTERM")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "get_command", lambda ctx, name: told_to_stop)
    result = CliRunner().invoke(main, ["told"])
    assert result.exit_code == 75
    assert "try again: stopped by SIGTERM" in result.output
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_command_can_be_loaded():
    for name in main.list_commands(None):
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0, name


def test_shipped_projects_are_valid(call):
    result = call("lint", *(str(p) for p in sorted((ROOT / "projects").glob("*.yaml"))))
    assert result.exit_code == 0, result.output
    assert result.output.count(": ok") >= 2


def test_lint_reports_all_files_and_exits_2(call, tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\ndata: {sorce: x}\n")
    (tmp_path / "b.yaml").write_text("name: b\ndata: {source: x}\n")
    (tmp_path / "c.yaml").write_text("name: b\ndata: {source: x}\n")
    result = call("lint", "a.yaml", "b.yaml", "c.yaml")
    assert result.exit_code == 2
    assert "did you mean `source`?" in result.output
    assert "b.yaml: ok" in result.output
    assert "is taken by b.yaml" in result.output
    assert "Traceback" not in result.output


def test_lint_knows_great_expectations(call, tmp_path):
    good = "{type: expect_column_values_to_be_between, kwargs: {column: width, min_value: 8}}"
    misspelt = "{type: expect_column_values_to_be_betwen, kwargs: {column: width}}"
    argument = "{type: expect_column_values_to_be_between, kwargs: {colum: width}}"
    text = "name: a\ndata: {source: x}\nvalidation:\n  expectations:\n"
    (tmp_path / "a.yaml").write_text(text + "".join(f"    - {e}\n" for e in (good, misspelt, argument)))
    (tmp_path / "b.yaml").write_text(text.replace("name: a", "name: b") + f"    - {good}\n")
    result = call("lint", "a.yaml", "b.yaml")
    assert result.exit_code == 2
    assert "a.yaml: validation.expectations[1].type: " in result.output
    assert "did you mean `expect_column_values_to_be_between`?" in result.output
    assert "a.yaml: validation.expectations[2].kwargs: " in result.output
    assert "expectations[0]" not in result.output
    assert "b.yaml: ok" in result.output


def test_lint_is_quick_where_there_is_nothing_to_ask_great_expectations(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ssl_core.validation.gx_runner", None)  # an import would fail
    (tmp_path / "a.yaml").write_text("name: a\ndata: {source: x}\n")
    result = call("lint", "a.yaml")
    assert (result.exit_code, result.output) == (0, "a.yaml: ok\n")


def test_schema_is_json_schema(call):
    schema = json.loads(call("schema").output)
    projects = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in schema["anyOf"]]
    assert [project["title"] for project in projects] == ["ImageProject", "TextProject"]
    assert all(project["properties"]["name"]["pattern"] for project in projects)


def test_generated_docs_are_up_to_date():
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], check=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is not set"),
        ("nojson", "not a step spec: Invalid JSON"),
        ("{}", "not a step spec: step: Field required; "),
        ("@/missing/spec.json", "cannot be read"),
    ],
)
def test_a_bad_spec_exits_2(call, monkeypatch, spec, message):
    monkeypatch.setenv("SSL_STEP_SPEC", spec)
    result = call("step", "ingest")
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("spec", [None, "nojson"])
def test_an_unknown_step_is_named_before_its_spec(call, monkeypatch, spec):
    if spec is not None:
        monkeypatch.setenv("SSL_STEP_SPEC", spec)
    result = call("step", "ingst")
    assert result.exit_code == 2
    assert "no step called 'ingst', did you mean `ingest`? (there: resolve, ingest, validate" in result.output
    assert "SSL_STEP_SPEC" not in result.output


def test_a_spec_for_another_step_is_refused(call, monkeypatch):
    project = ProjectConfig.model_validate({"name": "x", "data": {"source": "sample://digits"}})
    spec = StepSpec(step="ingest", project=project.model_dump(mode="json"), run=RunContext(run_id="r"))
    monkeypatch.setenv("SSL_STEP_SPEC", spec.model_dump_json())
    result = call("step", "publish")
    assert result.exit_code == 2
    assert "'ingest', not 'publish'" in result.output


def test_a_bad_setting_is_named(call, monkeypatch):
    monkeypatch.setenv("SSL_MLFLOW_PORT", "many")
    result = call("lint")
    assert result.exit_code == 2
    assert "SSL_MLFLOW_PORT" in result.output


def test_an_unreachable_mlflow_exits_75(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "x.yaml").write_text("name: x\ndata: {source: 'sample://digits'}\n")
    result = call("run", "x.yaml")
    assert result.exit_code == 75, result.output
    assert "127.0.0.1:9" in result.output
    assert "Traceback" not in result.output


def age(path: Path, days: float) -> None:
    for part in [path, *path.rglob("*")]:
        stat = part.stat()
        os.utime(part, (stat.st_atime - days * 86_400, stat.st_mtime - days * 86_400))


def test_gc_takes_old_unfinished_work_and_never_what_was_committed(tmp_path):
    store = Store((tmp_path / "store").as_uri(), tmp_path / "cache")
    for folder in (
        "p/pretrain/a/checkpoints/1",
        "p/pretrain/b/out",
        "p/pretrain/c/out",
        "p/pretrain/d/checkpoints/1",
        ".scratch/x",
    ):
        path = Path(store.root) / folder
        path.mkdir(parents=True)
        (path / "f").write_text("x" * 10)
    (Path(store.root) / "p/pretrain/c/result.json").write_text("{}")
    age(Path(store.root), 30)
    (Path(store.root) / "p/pretrain/d/checkpoints/1/f").touch()
    found = {Path(item.path).relative_to(store.root).as_posix() for item in stale_work(store, 7)}
    assert found == {"p/pretrain/a/checkpoints", "p/pretrain/b/out", ".scratch/x"}


def test_the_cache_is_trimmed_from_its_oldest_files(tmp_path):
    settings = Settings(home=tmp_path, cache_limit_gb=25e-9)
    settings.cache.mkdir(parents=True)
    for number in range(4):
        (settings.cache / str(number)).write_text("x" * 10)
        age(settings.cache / str(number), 10 - number)
    assert [Path(item.path).name for item in cache_overflow(settings)] == ["0", "1"]


def test_a_hard_linked_file_counts_once_and_goes_under_all_its_names(tmp_path):
    settings = Settings(home=tmp_path, cache_limit_gb=15e-9)
    (settings.cache / "datasets").mkdir(parents=True)
    (settings.cache / "object").write_text("x" * 10)
    (settings.cache / "datasets" / "link").hardlink_to(settings.cache / "object")
    assert list(cache_overflow(settings)) == []
    found = list(cache_overflow(settings.model_copy(update={"cache_limit_gb": 5e-9})))
    assert {Path(item.path).name for item in found} == {"object", "link"}
    assert sum(item.bytes for item in found) == 10


def test_gc_removes_only_when_told(call, tmp_path):
    old = tmp_path / "home" / "store" / ".scratch" / "x"
    old.mkdir(parents=True)
    (old / "f").write_text("x")
    age(tmp_path / "home", 30)
    result = call("gc")
    assert result.exit_code == 0, result.output
    assert "could be removed" in result.output
    assert old.exists()
    assert call("gc", "--apply").exit_code == 0
    assert not old.exists()
