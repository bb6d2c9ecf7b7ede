"""``python -m ssl_core.doctor.inside``: checks that only mean something where a step runs, one JSON document as answer.

The doctor runs it with the jobs' Python on this machine, and in the training image with the network, environment, user and
mounts of a job.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import urllib.parse
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ssl_core import __version__
from ssl_core.config.settings import Settings
from ssl_core.doctor.finding import Check, Finding, failed, ok
from ssl_core.errors import StepError

_TEXT = "written by ssl-core doctor"
# MLflow's own patience is minutes: a doctor says soon that something does not answer.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "6"}


def artifacts(settings: Settings) -> Finding:
    """Writes, reads and deletes an artifact of a run in an experiment of its own, through MLflow's client as a step does."""
    from ssl_core.registry.client import connect, mlflow_errors

    os.environ.update(_PATIENCE)
    client = connect(settings)
    with mlflow_errors(settings):
        experiment = client.create_experiment(f"ssl-core-doctor-{uuid.uuid4().hex[:12]}")
        try:
            return _round_trip(settings, client, experiment)
        finally:
            with suppress(Exception):  # what failed before is what is told
                client.delete_experiment(experiment)


def _round_trip(settings: Settings, client: object, experiment: str) -> Finding:
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    assert isinstance(client, mlflow.MlflowClient)
    run = client.create_run(experiment)
    where = str(run.info.artifact_uri)
    kind = urllib.parse.urlsplit(where).scheme or "file"
    through = "through the server" if kind == "mlflow-artifacts" else f"directly at {kind}://"
    mend = _MENDS.get(kind, "check that the artifact storage of the MLflow server is up, and its rights")
    try:
        client.log_text(run.info.run_id, _TEXT, "doctor.txt")
    except StepError:
        raise
    except Exception as error:
        return failed(f"an artifact cannot be written {through}: {_short(error)}", mend)
    try:
        if kind == "file" and not _server_has(settings, run.info.run_id):
            return failed(
                f"the server hands out a folder of its own machine ({where}): artifacts land here and nobody else sees them",
                _MENDS["file"],
            )
        with tempfile.TemporaryDirectory() as folder:
            read = Path(client.download_artifacts(run.info.run_id, "doctor.txt", folder)).read_text()
        if read != _TEXT:
            return failed(f"an artifact comes back different {through}", mend)
    except StepError:
        raise
    except Exception as error:
        return failed(f"an artifact cannot be read {through}: {_short(error)}", mend)
    finally:
        with suppress(Exception):
            get_artifact_repository(where).delete_artifacts("doctor.txt")
    if any(file.path == "doctor.txt" for file in client.list_artifacts(run.info.run_id)):
        return failed(f"an artifact cannot be deleted {through}", mend)
    client.delete_run(run.info.run_id)
    return ok(f"written, read, deleted {through} as user {os.getuid()}")


_MENDS = {
    "mlflow-artifacts": "see the server's log (ssl-core logs mlflow): its --artifacts-destination, and its rights there",
    "s3": "let the server pass artifacts on (--artifacts-destination instead of --default-artifact-root), "
    "or give jobs AWS_* and MLFLOW_S3_ENDPOINT_URL",
    "file": "start the server with --artifacts-destination, not --default-artifact-root: then artifacts go through it",
}


def _server_has(settings: Settings, run_id: str) -> bool:
    """Whether the server itself sees the artifact of a run whose folder it hands out."""
    from ssl_core.registry.client import get

    if not settings.tracking_url.startswith("http"):
        return True
    answer = get(f"{settings.tracking_url.rstrip('/')}/get-artifact?path=doctor.txt&run_uuid={run_id}")
    return answer is not None and answer[0] == 200


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _store(settings: Settings) -> Finding:
    from ssl_core.doctor.storage import store

    return store(settings)


def _dvc_remote(settings: Settings) -> Finding:
    from ssl_core.doctor.storage import dvc_remote

    return dvc_remote(settings)


CHECKS = {"artifacts": artifacts, "store": _store, "dvc-remote": _dvc_remote}


def look(names: list[str], seconds: float) -> dict[str, object]:
    """Versions and limits of this place, and what each check found."""
    from ssl_core.doctor.machine import memory_limit, shm_size
    from ssl_core.doctor.run import Examination

    settings = Settings()
    checks = [Check(name, CHECKS[name], seconds, "is it reachable from here?") for name in names]
    findings = {
        answer.name: asdict(Finding(answer.status, answer.found, answer.cause, answer.mend))
        for answer in Examination(checks, settings).answers()
    }
    return {
        "version": __version__, "python": ".".join(str(part) for part in sys.version_info[:3]), "user": os.getuid(),
        "shm": shm_size(), "memory": memory_limit(), "findings": findings,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ssl_core.doctor.inside")
    parser.add_argument("checks", nargs="+", choices=sorted(CHECKS))
    parser.add_argument("--seconds", type=float, default=15.0)
    arguments = parser.parse_args()
    # Whatever hangs, and even if nobody waits any more, this process ends.
    signal.setitimer(signal.ITIMER_REAL, arguments.seconds + 5)
    # Libraries print: the answer alone goes to standard output.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    document = json.dumps(look(arguments.checks, arguments.seconds))
    sys.stdout.flush()
    os.write(answer_to, f"{document}\n".encode())
    os._exit(0)  # without waiting for threads that still hang


if __name__ == "__main__":
    main()
