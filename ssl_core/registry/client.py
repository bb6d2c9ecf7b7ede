"""One way to MLflow: a quiet client, a quick look whether the server answers, and its errors as ours."""

from __future__ import annotations

import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ssl_core.config.settings import Settings
from ssl_core.errors import StepError, TryAgain, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ANSWER_SECONDS = 5.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Read by MLflow when it is imported and on each request. Patience is short: a dead server is reported, and the step
# is tried again as a whole, rather than hanging for minutes inside one request.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
}


def prepare_environment(settings: Settings) -> None:
    """Sets what MLflow reads from the environment, where the user has not; must run before ``import mlflow``."""
    for name, value in _CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if urlsplit(settings.tracking_url).hostname in _LOOPBACK:
        # A proxy must not be asked for this machine's own server.
        for name in ("no_proxy", "NO_PROXY"):
            known = [part for part in os.environ.get(name, "").split(",") if part]
            os.environ[name] = ",".join([*known, *(host for host in _LOOPBACK if host not in known)])


def get(url: str, timeout: float = _ANSWER_SECONDS) -> tuple[int, str] | None:
    """``(status, first 4 KB of the body)`` of a GET request, None where nothing answers in HTTP."""
    handlers = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOOPBACK else []
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(url, timeout=timeout) as answer:
            return answer.status, answer.read(4096).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, http.client.HTTPException):
        return None


def _unreachable(settings: Settings, detail: str = "") -> TryAgain:
    local = not settings.mlflow_tracking_uri
    mend = "start it with `ssl-core mlflow start`" if local else "check MLFLOW_TRACKING_URI and that the server is up"
    return TryAgain(
        "MLflow cannot be reached" + (f": {detail}" if detail else ""),
        place=settings.tracking_url,
        next_step=f"{mend}, then run the same command again",
    )


def check_reachable(settings: Settings) -> None:
    """Raises ``TryAgain`` within seconds where no MLflow server answers at the configured address."""
    url = settings.tracking_url
    if urlsplit(url).scheme not in ("http", "https"):
        return  # a database without a server, as tests use
    answer = get(f"{url.rstrip('/')}/health")
    if answer is None:
        raise _unreachable(settings)
    if answer[0] >= 500:
        raise _unreachable(settings, f"/health answered {answer[0]}")


@contextmanager
def mlflow_errors(settings: Settings) -> Iterator[None]:
    """Turns a lost connection into ``TryAgain`` and refused credentials into ``UserError``; the rest passes."""
    try:
        yield
    except StepError:
        raise
    except Exception as error:
        if (known := _as_step_error(error, settings)) is not None:
            raise known from error
        raise


# What urllib3 and requests write, the telling part first: a proxy's refused connection is the proxy's.
_CAUSES = (
    (r"ProxyError|Unable to connect to proxy", "the proxy does not answer"),
    (r"Connection refused|\[Errno 111\]", "connection refused"),
    (r"NameResolutionError|Name or service not known|nodename nor servname|in name resolution", "unknown host name"),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError", "its TLS certificate or handshake was refused"),
    (r"[Tt]imed? ?out", "timed out"),
    (r"unreachable|No route to host", "no route to the host"),
    (r"Connection aborted|Connection reset|RemoteDisconnected|Broken pipe|IncompleteRead|ChunkedEncoding", "the connection broke"),
)  # fmt: skip


def _in_words(text: str) -> str:
    """A lost connection in a few words; empty where the text says nothing that a person would know."""
    if status := re.search(r"too many (\d{3}) error responses", text):
        return f"HTTP {status[1]}"
    return next((words for pattern, words in _CAUSES if re.search(pattern, text)), "")


def _as_step_error(error: Exception, settings: Settings) -> StepError | None:
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, requests.exceptions.RequestException):
        return _unreachable(settings, _in_words(f"{type(error).__name__}: {error}"))
    elif isinstance(error, MlflowException):
        text = str(error)
        # mlflow.utils.rest_utils: no answer after all retries
        if "failed with exception" in text or "failed with timeout exception" in text:
            return _unreachable(settings, _in_words(text))
        status = error.get_http_status_code()
        for code in (401, 403, 429, 502, 503, 504):
            if f"error code {code}" in text:
                status = code
    else:
        return None
    if status in (429, 502, 503, 504):
        return _unreachable(settings, f"HTTP {status}")
    if status in (401, 403):
        return UserError(
            f"MLflow refused the request (HTTP {status})",
            place=settings.tracking_url,
            next_step="check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the server's --allowed-hosts",
        )
    return None


def connect(settings: Settings) -> MlflowClient:
    """A client of the configured server, which is known to answer; ``TryAgain`` where it does not."""
    prepare_environment(settings)
    check_reachable(settings)
    import mlflow

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # what a person reads is ours
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
    # Loading `models:/...` and logging a model go through the module's global address.
    # It writes the address to the environment too, where our own settings would take it for the user's choice.
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(settings.tracking_url)
    mlflow.set_registry_uri(settings.tracking_url)
    if chosen is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = chosen
    return mlflow.MlflowClient(tracking_uri=settings.tracking_url, registry_uri=settings.tracking_url)


# MLflow's pages open in their GenAI view, where a training run stands below "Evaluation runs", unless the address says
# which view is meant.
_VIEW = "?workflowType=machine_learning"


def run_link(settings: Settings, experiment_id: str, run_id: str, artifact: str = "") -> str:
    """The browser's address of a run, or of one of its artifacts."""
    base = f"{settings.browser_mlflow_url}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"{base}/artifacts/{artifact}{_VIEW}" if artifact else base + _VIEW


def version_link(settings: Settings, name: str, version: str) -> str:
    """The browser's address of a registered model version."""
    return f"{settings.browser_mlflow_url}/#/models/{name}/versions/{version}{_VIEW}"
