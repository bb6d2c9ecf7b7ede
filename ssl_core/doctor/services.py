"""Airflow and MLflow: reachable, healthy, of the right version; and the clock, by what they say the time is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib import metadata
from urllib.parse import urlsplit

from ssl_core.config.settings import Settings
from ssl_core.doctor import s3
from ssl_core.doctor.finding import Finding, failed, ok, skipped, warning
from ssl_core.doctor.http import NoAnswer, ask
from ssl_core.registry.server import log_path, server_status
from ssl_core.services import airflow as airflow_service
from ssl_core.services.environment import AIRFLOW_VERSION

_REFUSED_SKEW = 15 * 60  # S3 refuses a signature that is older
_TOLERATED_SKEW = 30.0
_COARSE = 2.0  # the header counts whole seconds, and servers make it anew once a second
# What a job that is a local process has of its surroundings; the rest is settings.job_environment().
_SURROUNDINGS = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "LD_LIBRARY_PATH",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


def airflow(settings: Settings) -> Finding:
    """The local Airflow's four processes, and its version."""
    port = airflow_service.running_port(settings)
    if port is None:
        return warning("it does not run: no UI, no schedules", "ssl-core up")
    if port != settings.airflow_port:
        return failed(
            f"this home's Airflow runs on port {port}, not {settings.airflow_port}",
            f"export SSL_AIRFLOW_PORT={port}, or ssl-core down first",
        )
    components = airflow_service.status(settings)
    if ended := [c.name for c in components if c.pid is None]:
        return failed(f"{', '.join(ended)} ended", f"ssl-core logs {ended[0]}, then ssl-core up: it starts what died")
    if silent := [c.name for c in components if not c.healthy]:
        return failed(
            f"{', '.join(silent)}: no heartbeat since the start", f"wait half a minute; then ssl-core logs {silent[0]}"
        )
    return _airflow_version(settings.local_airflow_url, len(components))


def _airflow_version(url: str, processes: int) -> Finding:
    try:
        version = str(json.loads(ask(f"{url}/api/v2/version").body)["version"])
    except NoAnswer as error:
        return failed(f"{url}: {error}", "ssl-core logs api-server")
    except (ValueError, KeyError, TypeError):
        return failed(f"something else than Airflow answers at {url}", "check SSL_AIRFLOW_PORT")
    if version != AIRFLOW_VERSION:
        return failed(
            f"Airflow {version} runs, {AIRFLOW_VERSION} is needed", "ssl-core down, make setup, then ssl-core up"
        )
    return ok(f"{version} at {url}, {processes} processes healthy")


def mlflow(settings: Settings) -> Finding:
    """Whether the tracking server answers, and whether server and client are of one version."""
    url = settings.tracking_url.rstrip("/")
    if settings.mlflow_tracking_uri:
        if urlsplit(url).scheme not in ("http", "https"):
            kind = url.partition(":")[0]
            return warning(f"{kind}: is no server: no pages, and nothing for containers", "unset MLFLOW_TRACKING_URI")
        return _mlflow_version(
            url, "set MLFLOW_TRACKING_URI to a server that answers, or unset it: a local one is started"
        )
    state = server_status(settings)
    if not state.running:
        return warning("it does not run; ssl-core run and ssl-core up start it", "ssl-core mlflow start")
    if state.port != settings.mlflow_port:
        return failed(
            f"this home's MLflow runs on port {state.port}, not {settings.mlflow_port}",
            f"export SSL_MLFLOW_PORT={state.port}, or ssl-core mlflow stop first",
        )
    return _mlflow_version(url, f"see {log_path(settings)}; ssl-core mlflow stop, then ssl-core mlflow start")


def _mlflow_version(url: str, mend: str) -> Finding:
    try:
        reply = ask(f"{url}/version")
    except NoAnswer as error:
        return failed(f"{url}: {error}", mend)
    if reply.status in (401, 403):
        return failed(
            f"{url} refuses (HTTP {reply.status})",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; add this host to the server's --allowed-hosts",
        )
    server, client = reply.body.strip(), metadata.version("mlflow")
    if reply.status != 200 or not re.fullmatch(r"\d+\.\d+\.\S{1,20}", server):
        what = (
            f"answers HTTP {reply.status}"
            if reply.status >= 500
            else f"is something else than MLflow (HTTP {reply.status})"
        )
        return failed(f"{url} {what}", mend)
    if server != client:
        find = failed if server.split(".")[0] != client.split(".")[0] else warning
        return find(f"the server is MLflow {server}, this client {client}", f"install mlflow=={client} on the server")
    return ok(f"{server} at {url}")


def answers(settings: Settings) -> bool:
    """Whether an MLflow server answers: what needs one is not tried without."""
    try:
        return ask(f"{settings.tracking_url.rstrip('/')}/version").status == 200
    except NoAnswer:
        return False


def artifacts_from_here(settings: Settings, seconds: float = 15.0) -> Finding:
    """Writes, reads and deletes an artifact the way a local step would: with the jobs' Python, in their environment."""
    if not answers(settings):
        return skipped("needs an MLflow server that answers")
    public, secret = settings.job_environment()
    environment = {name: os.environ[name] for name in _SURROUNDINGS if name in os.environ} | public | secret
    command = [settings.job_interpreter, "-m", "ssl_core.doctor.inside", "--seconds", str(seconds), "artifacts"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + 1,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return failed(f"no answer within {seconds:g} s", "ssl-core mlflow status; is its artifact storage up?")
    except OSError as error:
        return failed(f"{settings.job_interpreter}: {error.strerror}", "unset SSL_JOB_PYTHON")
    try:
        return Finding(**json.loads(done.stdout.splitlines()[-1])["findings"]["artifacts"])
    except (ValueError, KeyError, IndexError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return failed(f"{settings.job_interpreter} ended with {done.returncode}: {last}", "make setup")


def clock(settings: Settings, addresses: Callable[[], list[str]], now: Callable[[], float] = time.time) -> Finding:
    """This machine's time against the Date of the first of S3's and MLflow's addresses that answers."""
    for url in addresses():
        began = now()
        try:
            stamp = ask(url).headers.get("date")
            there = parsedate_to_datetime(stamp or "").timestamp()
        except (NoAnswer, ValueError, TypeError):
            continue
        here = (began + now()) / 2
        skew = here - there
        skew = 0.0 if abs(skew) <= _COARSE else skew
        said = (
            f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {urlsplit(url).netloc}"
            if skew
            else f"as at {urlsplit(url).netloc}"
        )
        mend = "sudo timedatectl set-ntp true, on whichever of the two is wrong"
        if abs(skew) >= _REFUSED_SKEW:
            return failed(f"this clock is {said}; S3 refuses more than 15 minutes", mend)
        if abs(skew) > _TOLERATED_SKEW:
            return warning(f"this clock is {said}", mend)
        return ok(said)
    return skipped("neither an S3 endpoint nor MLflow answers")


def clocks(settings: Settings, in_s3: bool) -> list[str]:
    """Addresses whose servers say what time it is."""
    found = []
    if in_s3:
        with suppress(Exception):  # an address that is none, a profile that is not there: `s3 rights` says so
            found.append(s3.endpoint())
    if settings.tracking_url.startswith("http"):
        found.append(f"{settings.tracking_url.rstrip('/')}/health")
    return found
