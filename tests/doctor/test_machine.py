"""Settings, Python, packages, git, ports, disks, memory, addresses and files of secrets."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ssl_core import __version__
from ssl_core.config.settings import Settings
from ssl_core.doctor import machine

GIB = 2**30


# ---- settings


def test_a_misspelt_setting_is_named(settings, monkeypatch):
    assert machine.settings_read(settings).status == "ok"
    monkeypatch.setenv("SSL_DOCKER_IMGE", "x")
    monkeypatch.setenv("SSL_SOMETHING_OF_ANOTHER_PROGRAM", "x")
    monkeypatch.setenv("SSL_CERT_FILE", "/x")
    found = machine.settings_read(settings)
    assert found.status == "warning"
    assert "SSL_DOCKER_IMGE" in found.cause
    assert "SSL_DOCKER_IMAGE" in found.mend
    assert "ANOTHER" not in found.cause


# ---- Python, packages, git


def test_python(settings, monkeypatch, tmp_path):
    assert machine.python(settings).status == "ok"
    missing = machine.python(Settings(home=tmp_path, job_python=str(tmp_path / "python")))
    assert (missing.status, "SSL_JOB_PYTHON" in missing.mend) == ("failed", True)
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    old = machine.python(settings)
    assert old.status == "failed"
    assert "3.9.1" in old.cause
    assert "3.11 or 3.12" in old.cause


def test_packages_as_locked_are_fine_and_a_build_of_torch_does_not_matter(settings, monkeypatch):
    found = machine.packages(settings)
    assert found.status == "ok", found
    assert "mlflow" in found.found
    assert machine._public("2.13.0+cpu") == "2.13.0"


def test_a_package_that_differs_from_the_lock_is_named(settings, monkeypatch, tmp_path):
    lock = tmp_path / "training.txt"
    lock.write_text("click==0.0.1\nnot-there-at-all==1.0\nonly-elsewhere==1 ; sys_platform == 'win32'\n")
    monkeypatch.setattr(machine, "_LOCK", lock)
    found = machine.packages(settings)
    assert found.status == "warning"
    assert "click is" in found.cause
    assert "the lock says 0.0.1" in found.cause
    assert "not-there-at-all is missing" in found.cause
    assert "only-elsewhere" not in found.cause
    assert "make setup" in found.mend


def test_a_package_that_breaks_our_own_pins_is_a_failure(settings, monkeypatch):
    real = machine.metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda name: "1.30.0" if name == "mlflow" else real(name))
    found = machine.packages(settings)
    assert found.status == "failed"
    assert "mlflow is 1.30.0" in found.cause


def fake_airflow(tmp_path, core: str = "3.3.2", ours: str = __version__, provider: str = "4.6.1"):
    """An environment whose Python says what a test wants, the two questions told apart by their words."""
    program = tmp_path / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\ncase "$3" in *docker*) echo "{ours}"; echo "{provider}";; *) echo "3.11 {core}";; esac\n'
    )
    program.chmod(0o755)
    return Settings(home=tmp_path / "home", airflow_venv=tmp_path / "venv")


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, "ok", ""),
        ({"core": "3.2.0"}, "failed", "holds Airflow 3.2.0"),
        ({"ours": "0.0.1"}, "failed", "holds ssl-core 0.0.1"),
        ({"ours": "none"}, "failed", "does not hold ssl-core"),
        ({"provider": "none"}, "failed", "lacks Airflow's docker provider"),
    ],
)
def test_airflows_environment(given, status, words, tmp_path):
    found = machine.airflow_environment(fake_airflow(tmp_path, **given))
    assert found.status == status
    assert words in found.cause
    assert status == "ok" or "make setup" in found.mend


def test_without_airflows_environment_steps_run_all_the_same(tmp_path):
    found = machine.airflow_environment(Settings(home=tmp_path, airflow_venv=tmp_path / "none"))
    assert (found.status, "make setup" in found.mend) == ("warning", True)


@pytest.mark.parametrize(
    ("said", "status"), [("git version 2.39.5", "ok"), ("git version 2.20.1", "failed"), ("", "failed")]
)
def test_git(said, status, settings, monkeypatch, tmp_path):
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert machine.git(settings).status == status


def test_no_git(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine.git(settings)
    assert found.status == "failed"
    assert "install git" in found.mend


# ---- ports and addresses


def test_ports_are_free_or_taken_by_a_program_that_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        free = machine.free_port(port)
        settings = Settings(home=tmp_path, airflow_port=port, mlflow_port=free)
        taken.listen()
        found = machine.ports(settings)
        assert found.status == "failed"
        assert f"port {port} for Airflow is taken by" in found.cause
        assert f"process {os.getpid()}" in found.cause
        assert "export SSL_AIRFLOW_PORT=" in found.mend
        assert f"MLflow {free} free" in found.found
    assert machine.ports(settings).status == "ok"


def test_one_port_for_two_servers(tmp_path):
    assert machine.ports(Settings(home=tmp_path, airflow_port=5000)).status == "failed"


def test_ports_of_our_own_processes_are_fine(tmp_path, monkeypatch):
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        port = ours.getsockname()[1]
        monkeypatch.setattr(machine, "_our_pids", lambda settings: {os.getpid()})
        found = machine.ports(Settings(home=tmp_path, airflow_port=port, mlflow_port=machine.free_port(port)))
        assert found.status == "ok"
        assert f"Airflow {port} ours" in found.found


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", "ok"), ("0.0.0.0", "warning")])
def test_addresses_that_others_reach_are_told(address, status, settings, monkeypatch):
    code = f"import socket,sys; s=socket.socket(); s.bind(('{address}',0)); s.listen(); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().strip()
        monkeypatch.setattr(machine, "_our_pids", lambda settings: {process.pid})
        found = machine.listening(settings)
    finally:
        process.communicate()
    assert found.status == status
    assert f"{address}:{port}" in found.found + found.cause


def test_nothing_listens_where_nothing_runs(settings):
    assert machine.listening(settings).status == "skipped"


# ---- disks and memory


@pytest.mark.parametrize(
    ("free", "files", "status"), [(50, 0.5, "ok"), (3, 0.5, "warning"), (0.3, 0.5, "failed"), (50, 0.01, "warning")]
)
def test_disk_space(free, files, status, settings, monkeypatch):
    state = SimpleNamespace(f_bavail=free * GIB, f_frsize=1, f_files=1000, f_favail=1000 * files)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: state)
    found = machine.disk(settings)
    assert found.status == status
    assert status == "ok" or "ssl-core gc" in found.mend


def test_a_home_that_cannot_be_written(settings, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    found = machine.disk(settings)
    assert found.status == "failed"
    assert "SSL_HOME" in found.mend
    assert not settings.root.exists()  # looking makes nothing


def test_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "shm_size", lambda folder: 32 * 2**20)
    assert machine.shared_memory().status == "warning"
    monkeypatch.setattr(machine, "shm_size", lambda folder: None)
    assert machine.shared_memory().status == "warning"
    monkeypatch.setattr(machine, "shm_size", lambda folder: GIB)
    assert machine.shared_memory().status == "ok"


@pytest.mark.parametrize(("text", "limit"), [("1073741824", GIB), ("max", None), ("9223372036854771712", None)])
def test_a_containers_memory_limit(text, limit, tmp_path):
    (tmp_path / "memory.max").write_text(text)
    assert machine.memory_limit(tmp_path) == limit


def test_little_memory_is_a_warning(monkeypatch):
    assert machine.memory().status in ("ok", "warning")
    monkeypatch.setattr(machine, "memory_limit", lambda: GIB)
    assert machine.memory().status == "warning"


# ---- files of secrets


def test_a_passwords_file_that_others_may_read(settings):
    assert machine.secret_files(settings).status == "skipped"
    home = settings.root / "airflow"
    home.mkdir(parents=True)
    file = home / "passwords.json"
    file.write_text('{"admin": "xyzzy-plugh"}')
    file.chmod(0o644)
    found = machine.secret_files(settings)
    assert found.status == "failed"
    assert found.mend == f"chmod 600 {file}"
    assert "xyzzy" not in str(found)
    subprocess.run(found.mend.split(), check=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert machine.secret_files(settings).status == "ok"
    file.write_text("not json")
    assert "damaged" in machine.secret_files(settings).cause
