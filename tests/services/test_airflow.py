"""Starting, watching and stopping Airflow's processes, with a stand-in for Airflow that is up in a moment."""

from __future__ import annotations

import http.server
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from ssl_core.cli.main import main
from ssl_core.config.settings import Settings
from ssl_core.daemon import free_port, wait_ended
from ssl_core.errors import TryAgain, UserError
from ssl_core.services import airflow, orphans
from ssl_core.services.environment import AIRFLOW_VERSION, environment, password, password_file

REPOSITORY = Path(__file__).parents[2]


def make_venv(folder: Path, *, python: str = "3.11", version: str = AIRFLOW_VERSION) -> Path:
    """What looks like Airflow's environment from outside."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    fake = Path(__file__).parent / "fake_airflow.py"
    for name, line in (("python", f"echo {python} {version}"), ("airflow", f'exec "{sys.executable}" "{fake}" "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    return folder


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        monkeypatch.delenv(name)
    settings = Settings(
        home=tmp_path / "a home",
        airflow_port=free_port(20_000 + os.getpid() % 20_000),
        airflow_venv=make_venv(tmp_path / "airflow venv"),
        projects_dir=tmp_path / "projects",
    )
    yield settings
    airflow.stop(settings)
    assert orphans.marked(settings.root) == []


@pytest.fixture
def foreign() -> Iterator[int]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield httpd.server_address[1]
    httpd.shutdown()


def pids(settings: Settings) -> dict[str, int | None]:
    return {component.name: component.pid for component in airflow.status(settings)}


def calls(settings: Settings) -> list[str]:
    return (settings.root / "airflow" / "calls").read_text().splitlines()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_started_in_order_healthy_with_pools_kept_and_stopped(local: Settings) -> None:
    assert airflow.start(local) == list(airflow.COMPONENTS)
    airflow.wait_healthy(local)
    started = calls(local)
    assert started[0] == "db migrate"
    assert sorted(started[1:]) == [
        "api-server",
        "dag-processor",
        "scheduler --skip-serve-logs",
        "triggerer --skip-serve-logs",
    ]
    assert all(component.healthy for component in airflow.status(local))
    pools = [json.loads(line) for line in (local.root / "airflow" / "pools.jsonl").read_text().splitlines()]
    assert {pool["name"]: pool["slots"] for pool in pools} == {"gpu": 1, "data-repo": 1}

    before = pids(local)
    assert airflow.start(local) == []
    airflow.wait_healthy(local)
    assert pids(local) == before
    assert len(calls(local)) == len(started), "no second migration, no second process"
    assert len((local.root / "airflow" / "pools.jsonl").read_text().splitlines()) == 2

    until(lambda: len(orphans.marked(local.root)) == 6)  # four processes, a worker and its job
    everything = orphans.marked(local.root)
    assert airflow.stop(local) == 4
    assert wait_ended(everything, 0) == []
    assert airflow.stop(local) == 0


def test_only_what_died_is_started_again_and_its_orphans_end_first(local: Settings) -> None:
    airflow.start(local)
    airflow.wait_healthy(local)
    before = pids(local)
    assert before["scheduler"]
    scheduler = psutil.Process(before["scheduler"])
    until(lambda: len(scheduler.children(recursive=True)) == 2)
    worker = scheduler.children()[0]
    scheduler.send_signal(signal.SIGKILL)
    until(lambda: pids(local)["scheduler"] is None)
    assert wait_ended([worker], 0) == [worker], "it is left behind"

    notes: list[str] = []
    assert airflow.start(local, notes.append) == ["scheduler"]
    airflow.wait_healthy(local)
    assert wait_ended([worker], 0) == []
    assert any("scheduler had ended" in note for note in notes)
    after = pids(local)
    assert after.pop("scheduler") != before.pop("scheduler")
    assert after == before


def test_two_starters_at_once_start_one_of_each(local: Settings) -> None:
    script = "from ssl_core.config.settings import Settings; from ssl_core.services import airflow; print(*airflow.start(Settings()))"
    variables = {
        "SSL_HOME": str(local.home),
        "SSL_AIRFLOW_PORT": str(local.airflow_port),
        "SSL_AIRFLOW_VENV": str(local.airflow_venv),
        "SSL_PROJECTS_DIR": str(local.projects_dir),
    }
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = "".join(starter.communicate(timeout=60)[0] for starter in starters).split()
    assert sorted(said) == sorted(airflow.COMPONENTS)
    assert calls(local).count("db migrate") == 1
    airflow.wait_healthy(local)


def test_what_dies_while_starting_is_named_with_its_last_words(local: Settings) -> None:
    (local.root / "airflow").mkdir(parents=True)
    (local.root / "airflow" / "break-triggerer").touch()
    airflow.start(local)
    with pytest.raises(TryAgain, match=r"triggerer ended: OperationalError: no such table") as caught:
        airflow.wait_healthy(local)
    assert caught.value.place.endswith("triggerer.log")
    assert "ssl-core logs triggerer" in caught.value.next_step


def test_an_old_heartbeat_is_no_health(local: Settings) -> None:
    """A process that was restarted finds the heartbeat of the one before it, which Airflow takes for healthy."""
    (local.root / "airflow").mkdir(parents=True)
    (local.root / "airflow" / "stale").write_text("2020-01-01T00:00:00+00:00")
    airflow.start(local)
    with pytest.raises(TryAgain, match="did not become healthy within 1 s"):
        airflow.wait_healthy(local, timeout=1)
    states = {component.name: component.state for component in airflow.status(local)}
    assert states == {
        "api-server": "healthy",
        "scheduler": "no heartbeat yet",
        "dag-processor": "no heartbeat yet",
        "triggerer": "no heartbeat yet",
    }


def test_a_database_that_cannot_be_prepared_starts_nothing(local: Settings) -> None:
    (local.root / "airflow").mkdir(parents=True)
    (local.root / "airflow" / "break-db").touch()
    with pytest.raises(TryAgain, match="could not be prepared: OperationalError") as caught:
        airflow.start(local)
    assert caught.value.place.endswith("migrate.log")
    assert set(pids(local).values()) == {None}
    (local.root / "airflow" / "break-db").unlink()
    assert len(airflow.start(local)) == 4


def test_a_taken_port_names_a_free_one(local: Settings, foreign: int) -> None:
    with pytest.raises(UserError, match=f"port {foreign} is taken by another program") as caught:
        airflow.start(local.model_copy(update={"airflow_port": foreign}))
    assert caught.value.place == "SSL_AIRFLOW_PORT"
    assert "export SSL_AIRFLOW_PORT=" in caught.value.next_step
    assert not (local.root / "airflow" / "calls").exists(), "nothing was started"


def test_another_port_while_it_runs_is_refused(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    airflow.start(local)
    airflow.wait_healthy(local)
    monkeypatch.setenv("SSL_HOME", str(local.home))
    monkeypatch.setenv("SSL_AIRFLOW_PORT", "1234")
    found = CliRunner().invoke(main, ["status"])
    assert found.exit_code == 1
    assert f"export SSL_AIRFLOW_PORT={local.airflow_port}" in found.output
    with pytest.raises(UserError, match=f"runs on port {local.airflow_port}, not 1234") as caught:
        airflow.start(local.model_copy(update={"airflow_port": 1234}))
    assert f"export SSL_AIRFLOW_PORT={local.airflow_port}" in caught.value.next_step


def test_one_port_for_both_servers_is_refused(local: Settings) -> None:
    with pytest.raises(UserError, match="cannot both have port"):
        airflow.start(local.model_copy(update={"mlflow_port": local.airflow_port}))


def test_changed_settings_are_said_but_nothing_is_restarted(local: Settings) -> None:
    airflow.start(local)
    before = pids(local)
    notes: list[str] = []
    assert airflow.start(local.model_copy(update={"store": "s3://bucket/store"}), notes.append) == []
    assert pids(local) == before
    assert any("settings have changed" in note for note in notes)


@pytest.mark.parametrize(
    ("python", "version", "words"),
    [
        ("3.11", "2.10.5", "holds Airflow 2.10.5 on Python 3.11"),
        ("3.14", AIRFLOW_VERSION, "on Python 3.14"),
        ("", "", "is not installed"),
    ],
)
def test_the_wrong_airflow_or_python_is_named(
    local: Settings, tmp_path: Path, python: str, version: str, words: str
) -> None:
    other = make_venv(tmp_path / "other", python=python, version=version)
    with pytest.raises(UserError, match=words) as caught:
        airflow.start(local.model_copy(update={"airflow_venv": other}))
    assert "make setup" in caught.value.next_step


def test_a_missing_environment_leads_to_make_setup(local: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing or broken") as caught:
        airflow.start(local.model_copy(update={"airflow_venv": tmp_path / "none"}))
    assert caught.value.next_step == "make setup"
    assert caught.value.place == str(tmp_path / "none")


def test_the_locked_airflow_is_the_one_that_is_asked_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"apache-airflow=={AIRFLOW_VERSION}" in project["optional-dependencies"]["airflow"]
    locked = (REPOSITORY / "requirements" / "airflow.txt").read_text().splitlines()
    assert f"apache-airflow-core=={AIRFLOW_VERSION}" in locked
    heavy = ("torch", "mlflow", "dvc", "great-expectations", "pandas", "transformers")
    assert not [line for line in locked if line.split("==")[0] in heavy]


def test_a_process_without_the_marker_or_above_us_is_spared(local: Settings) -> None:
    mine = {**os.environ, orphans.MARKER: str(local.root)}
    with (
        subprocess.Popen(["sleep", "60"], env={**os.environ, orphans.MARKER: f"{local.root}-2"}) as other,
        subprocess.Popen(["sleep", "60"], env=mine) as kept,
    ):
        script = (
            "from pathlib import Path; from ssl_core.services import orphans\n"
            f"print(*(p.pid for p in orphans.marked(Path({str(local.root)!r}))))"
        )
        # This `down` and the shell above it carry the marker themselves, as those of a job would.
        shell = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$S"; true'], env={**mine, "S": script}, capture_output=True, text=True, check=True)  # fmt: skip
        assert shell.stdout.split() == [str(kept.pid)]
        assert orphans.marked(local.root, but=[kept.pid]) == []
        assert airflow.stop(local, keep=(kept.pid,)) == 0
        assert kept.poll() is None
        assert airflow.stop(local) == 1
        assert kept.poll() is not None
        assert other.poll() is None
        other.kill()


def test_a_home_reached_through_a_link_is_the_same(local: Settings, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(local.root)
    airflow.start(local)
    until(
        lambda: len(orphans.marked(tmp_path / "link")) >= 4
    )  # one that is just being started has no environment to read yet
    assert airflow.stop(local.model_copy(update={"home": tmp_path / "link"})) >= 4


def test_secrets_are_made_once_for_the_owner_only(local: Settings) -> None:
    first = environment(local)
    home = local.root / "airflow"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for name in ("passwords.json", "secrets.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert sorted(home.glob(".*")) == []
    assert len(password(local)) >= 20
    assert password_file(local) == home / "passwords.json"
    secret = password(local)
    assert environment(local) == first
    assert password(local) == secret
    assert set(first.secret) == {
        "AIRFLOW__CORE__FERNET_KEY",
        "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRFLOW__API__SECRET_KEY",
    }
    assert not set(first.secret.values()) & set(first.public.values())


def test_the_environment_is_explicit_absolute_and_on_loopback(
    local: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "PYTHONPATH": "/elsewhere",
        "AIRFLOW_HOME": "/elsewhere",
        "AIRFLOW_CONFIG": "/elsewhere/a.cfg",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    settings = local.model_copy(
        update={"projects_dir": Path("mine"), "dvc_remote": "remote", "data_repo": "git@host:x.git"}
    )
    made = environment(settings)
    full = made.full()
    home = local.root / "airflow"
    assert full["AIRFLOW_HOME"] == str(home)
    assert full["AIRFLOW_CONFIG"] == str(home / "airflow.cfg")
    assert full["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert full["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"http://127.0.0.1:{local.airflow_port}/execution/"
    assert full["SSL_PROJECTS_DIR"] == str(tmp_path / "mine")
    assert full["SSL_DVC_REMOTE"] == str(tmp_path / "remote")
    assert full["SSL_DATA_REPO"] == "git@host:x.git"
    assert full["SSL_PLATFORM_ID"] == str(local.root)
    assert full["SSL_JOB_PYTHON"] == sys.executable
    assert full["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert "SSL_STORE" not in full
    assert full["PATH"].startswith(f"{local.airflow_venv}/bin:")
    assert full["PYTHONPATH"] == str(REPOSITORY / "dags")
    assert full["no_proxy"].startswith("example.org,127.0.0.1")
    assert full["AWS_SECRET_ACCESS_KEY"] == "hush"
    assert "hush" not in made.public.values()
    [bundle] = json.loads(full["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    assert bundle["classpath"] == "ssl_dags.bundle.ProjectsBundle"


def test_what_the_user_set_for_airflow_wins(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "2")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://somewhere")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY_CMD", "cat key")
    full = environment(local).full()
    assert full["AIRFLOW__CORE__PARALLELISM"] == "2"
    assert full["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "postgresql://somewhere"
    assert "AIRFLOW__CORE__FERNET_KEY" not in full, "Airflow asks the command only where there is no plain value"
    monkeypatch.setenv("AIRFLOW__API__PORT", "9999")
    with pytest.raises(UserError, match="looks for Airflow on port") as caught:
        environment(local)
    assert "SSL_AIRFLOW_PORT=9999" in caught.value.next_step


def test_the_users_own_local_settings_are_kept(local: Settings) -> None:
    environment(local)
    file = local.root / "airflow" / "config" / "airflow_local_settings.py"
    compile(file.read_text(), str(file), "exec")
    file.write_text("# mine\n")
    environment(local)
    assert file.read_text() == "# mine\n"


def test_status_and_logs_say_what_is_there(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_HOME", str(local.home))
    monkeypatch.setenv("SSL_AIRFLOW_PORT", str(local.airflow_port))
    monkeypatch.setenv("SSL_MLFLOW_PORT", str(free_port(local.airflow_port)))
    run = CliRunner().invoke
    nothing = run(main, ["status"])
    assert (nothing.exit_code, nothing.output.count("not running")) == (1, 5)
    assert "next: ssl-core up" in nothing.output
    assert "nothing was running" in run(main, ["down"]).output

    airflow.start(local)
    airflow.wait_healthy(local)
    found = run(main, ["status", "--json"])
    assert found.exit_code == 1, "MLflow does not run"
    document = json.loads(found.output)
    assert {part["healthy"] for part in document["airflow"]["components"].values()} == {True}
    assert password(local) not in found.output

    log = airflow.daemon(local, "scheduler").log
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert run(main, ["logs", "scheduler", "-n", "2"]).output == "line 98\nline 99\n"
    assert "scheduler      | line 99" in run(main, ["logs"]).output
    wrong = run(main, ["logs", "schedular"])
    assert wrong.exit_code == 2
    assert "did you mean `scheduler`" in wrong.output
    assert "stopped" in run(main, ["down"]).output


def test_logs_follows_across_a_rotation(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_HOME", str(local.home))
    log = airflow.daemon(local, "scheduler").log
    log.parent.mkdir(parents=True)
    log.write_text("old\n")
    command = [sys.executable, "-u", "-m", "ssl_core.cli", "logs", "scheduler", "-f"]
    ctrl_c = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell's background ignores it, and so would a child
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ, preexec_fn=ctrl_c) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "old\n"
        with log.open("a") as file:
            file.write("new\nhalf a li")
        assert follower.stdout.readline() == "new\n"
        log.rename(log.with_suffix(".log.1"))
        log.write_text("after\n")
        assert follower.stdout.readline() == "after\n"
        follower.send_signal(signal.SIGINT)
        try:
            assert follower.wait(10) == 130
        finally:
            follower.kill()
