"""What Airflow's processes get: their environment, the secrets that they share, and the check of their Python."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

import ssl_core
from ssl_core.config.settings import Settings, expand
from ssl_core.errors import UserError
from ssl_core.services.orphans import MARKER, marker

AIRFLOW_VERSION = "3.3.2"
USER = "admin"
_PYTHONS = ("3.11", "3.12")
_REPOSITORY = Path(ssl_core.__file__).resolve().parent.parent
_LOOPBACK = "127.0.0.1,localhost,::1"
# Of the surroundings of `ssl-core`: they belong to its own Python, or to another Airflow.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "AIRFLOW_HOME", "AIRFLOW_CONFIG")

_CHATTY = (
    "http.access",
    "airflow.models.dag",
    "airflow.serialization.definitions.dag",
    "airflow.dag_processing.dagbag.BundleDagBag",
    "airflow.dag_processing.manager.DagFileProcessorManager",
)
_LOCAL_SETTINGS = '''"""Written by `ssl-core up`; Airflow imports it. Without this line it is yours."""

import logging as _logging

# The API server reads the log of a running task from disk, then asks a log server that does not exist here, and wrote a
# traceback each time that a browser looks. (A level would not do: Airflow resets it when it configures logging.)
_logging.getLogger("airflow.utils.log.file_task_handler").addFilter(
    lambda record: record.getMessage() != "Could not read served logs"
)
'''


def airflow_home(settings: Settings) -> Path:
    """Where Airflow keeps its database, logs and secrets."""
    return settings.root / "airflow"


def password_file(settings: Settings) -> Path:
    """The file with the password of ``USER``; readable by its owner only."""
    set_by_user = os.environ.get("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE")
    return Path(set_by_user) if set_by_user else airflow_home(settings) / "passwords.json"


def password(settings: Settings) -> str:
    """The password of ``USER``; empty where there is none yet, or Airflow was given another way to sign in."""
    try:
        return str(json.loads(password_file(settings).read_text())[USER])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check_environment(settings: Settings) -> Path:
    """The folder of Airflow's programs; ``UserError`` where it is missing or holds another Airflow or Python."""
    venv = settings.airflow_environment
    python = venv / "bin" / "python"
    mend = f"make setup (after removing {venv})" if venv.exists() else "make setup"
    if not python.is_file() or not os.access(python, os.X_OK):
        raise UserError("Airflow's environment is missing or broken", place=str(venv), next_step=mend)
    ask = "import sys, importlib.metadata as m; print('%d.%d' % sys.version_info[:2], m.version('apache-airflow-core'))"
    try:
        answer = subprocess.run(
            [str(python), "-I", "-c", ask], capture_output=True, text=True, timeout=60, check=False
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        answer = []
    if len(answer) != 2:
        raise UserError("Airflow is not installed in its environment", place=str(venv), next_step=mend)
    found_python, found_airflow = answer
    if found_python not in _PYTHONS or found_airflow != AIRFLOW_VERSION:
        raise UserError(
            f"it holds Airflow {found_airflow} on Python {found_python}; "
            f"Airflow {AIRFLOW_VERSION} on Python {' or '.join(_PYTHONS)} is needed",
            place=str(venv),
            next_step=mend,
        )
    return venv / "bin"


@dataclass(frozen=True)
class Environment:
    """``public`` is what we set and may show; ``secret`` what the processes share and nobody else may see."""

    public: dict[str, str]
    secret: dict[str, str]

    def full(self) -> dict[str, str]:
        """With all that is inherited. What a user has set for Airflow wins over what we set."""
        inherited = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        return {**inherited, **self.public, **self.secret}


def environment(settings: Settings) -> Environment:
    """The environment of all four processes; makes the home, the password and the shared secrets on first use.

    Raises ``UserError`` where the home cannot be written, or the user's Airflow settings contradict ours.
    """
    home = airflow_home(settings)
    port = os.environ.get("AIRFLOW__API__PORT")
    if port and port != str(settings.airflow_port):
        raise UserError(
            f"is {port}, but the platform looks for Airflow on port {settings.airflow_port}",
            place="AIRFLOW__API__PORT",
            next_step=f"export SSL_AIRFLOW_PORT={port} instead",
        )
    shared = _prepare_home(home)
    defaults = _airflow_defaults(settings)
    public = {k: v for k, v in defaults.items() if not _set_by_user(k)} | _platform(settings)
    return Environment(public, {k: v for k, v in shared.items() if not _set_by_user(k)})


def _set_by_user(name: str) -> bool:
    # Airflow takes a value from a command or a secrets backend as well, but only where the plain variable is not set.
    return any(f"{name}{suffix}" in os.environ for suffix in ("", "_CMD", "_SECRET"))


def _platform(settings: Settings) -> dict[str, str]:
    """Where the platform's things are, absolute: these processes work in another folder than the user."""
    no_proxy = ",".join(part for part in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), _LOOPBACK) if part)
    found = {
        MARKER: marker(settings.root),
        "SSL_HOME": str(settings.root),
        "SSL_PROJECTS_DIR": str(expand(settings.projects_dir)),
        "SSL_AIRFLOW_PORT": str(settings.airflow_port),
        "SSL_AIRFLOW_URL": settings.browser_airflow_url,
        "SSL_JOB_PYTHON": settings.job_interpreter,
        "MLFLOW_TRACKING_URI": settings.tracking_url,
        "AIRFLOW_HOME": str(airflow_home(settings)),
        "AIRFLOW_CONFIG": str(airflow_home(settings) / "airflow.cfg"),
        "PYTHONPATH": str(_REPOSITORY / "dags"),
        "PATH": f"{settings.airflow_environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        # Airflow renames its processes; without this, over their environment as well, and the marker were lost.
        "SPT_NOENV": "1",
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
    }
    if settings.store:
        found["SSL_STORE"] = settings.store
    if settings.cache_dir:
        found["SSL_CACHE_DIR"] = str(settings.cache_dir)
    for name, value in (("SSL_DATA_REPO", settings.data_repo), ("SSL_DVC_REMOTE", settings.dvc_remote)):
        if value:
            found[name] = value if ":" in value else str(expand(value))
    return found


def _airflow_defaults(settings: Settings) -> dict[str, str]:
    url = settings.local_airflow_url
    bundles = [{"name": "projects", "classpath": "ssl_dags.bundle.ProjectsBundle", "kwargs": {}}]
    sections: dict[str, dict[str, object]] = {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": 4,
            "load_examples": False,
            "dags_folder": _REPOSITORY / "dags",
            "plugins_folder": _REPOSITORY / "dags" / "plugins",
            "dags_are_paused_at_creation": False,
            "dagbag_import_error_tracebacks": False,
            "min_serialized_dag_update_interval": 5,
            "execution_api_server_url": f"{url}/execution/",
            "hostname_callable": "ssl_core.services.hostname.loopback",
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": password_file(settings),
        },
        # SQLite lets one write at a time: on a busy machine the next waits its turn rather than fail after five seconds.
        "database": {"sql_alchemy_conn": f"sqlite:///{airflow_home(settings) / 'airflow.db'}?timeout=60"},
        "api": {"host": "127.0.0.1", "port": settings.airflow_port, "base_url": settings.browser_airflow_url, "workers": 1},
        # After a quick restart the last scheduler still counts as alive for half a minute: its tasks are looked for again soon,
        # not after Airflow's five minutes.
        "scheduler": {"scheduler_idle_sleep_time": 0.2, "orphaned_tasks_check_interval": 10},
        "dag_processor": {
            "dag_bundle_config_list": json.dumps(bundles),
            "refresh_interval": 10,
            "min_file_process_interval": 15,
            "parsing_processes": 1,
            "print_stats_interval": 0,
        },
        # On a busy machine, or while the API server starts again, a task waits for it rather than failing.
        "workers": {"execution_api_timeout": 60, "execution_api_retries": 10, "execution_api_retry_wait_max": 15},
        "logging": {
            "colored_console_log": False,
            # A line for each request of an open browser tab, and several for each DAG file whenever it is looked at.
            "namespace_levels": " ".join(f"{name}=WARNING" for name in _CHATTY),
        },
    }  # fmt: skip
    return {f"AIRFLOW__{s.upper()}__{k.upper()}": str(v) for s, keys in sections.items() for k, v in keys.items()}


def _prepare_home(home: Path) -> dict[str, str]:
    """Makes the folder and what belongs into it before the first start; returns the shared secrets."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)  # database, logs and the configuration file that Airflow writes may hold secrets
        _write_once(home / "passwords.json", {USER: secrets.token_urlsafe(18)})
        file = home / "secrets.json"
        _write_once(
            file,
            {
                "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
                "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
            },
        )
        _write_local_settings(home / "config" / "airflow_local_settings.py")
        content: dict[str, str] = json.loads(file.read_text())
    except OSError as error:
        raise UserError(
            f"cannot write here: {error.strerror}", place=str(home), next_step="set SSL_HOME to a writable folder"
        ) from error
    except ValueError as error:
        raise UserError(
            "is damaged", place=str(home / "secrets.json"), next_step="remove it: Airflow's users then sign in again"
        ) from error
    return content


def _write_local_settings(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    ours = _LOCAL_SETTINGS.splitlines()[0]
    if not file.exists() or file.read_text().startswith(ours):
        file.write_text(_LOCAL_SETTINGS)


def _write_once(file: Path, content: dict[str, str]) -> None:
    """Never readable by others, not even for a moment; and two starters at once agree on one content."""
    if file.exists():
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump(content, out)
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
