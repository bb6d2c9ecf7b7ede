"""MLflow runs: one run a step, with everything that makes lineage one click.

Metrics are buffered and sent in batches (one request a metric costs 30 ms each). A step that is tried again under the
same key goes on in the same run, so that its curves continue.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, ModelRef, Ref, RunContext
from ssl_core.errors import StepError, TryAgain, UserError
from ssl_core.pipeline import Step, source_digest
from ssl_core.registry.client import connect, mlflow_errors, run_link

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

_BUFFERED = 500
_FLUSH_SECONDS = 5.0
_LONGEST_PAUSE = 60.0
_BATCH_METRICS = 1000  # MLflow's limits per request
_BATCH_OTHERS = 100
_VALUE_CHARACTERS = 5000
_GOES_ON = ("RUNNING", "FAILED", "KILLED")


class MlflowTracker:
    """``step.Tracker`` on an MLflow run. A flush that fails keeps what it could not send; ``close`` raises ``TryAgain``."""

    def __init__(self, client: MlflowClient, settings: Settings, run: Run) -> None:
        self._client = client
        self._settings = settings
        self._experiment_id = str(run.info.experiment_id)
        self._known_params = dict(run.data.params)
        self._buffer: list[Metric] = []
        self._pause = _FLUSH_SECONDS
        self._flush_at = time.monotonic() + self._pause
        self._away = False
        self.run_id = str(run.info.run_id)
        self.url = run_link(settings, self._experiment_id, self.run_id)

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; nested mappings become dotted names. MLflow never changes one, so known ones are left out."""
        from mlflow.entities import Param

        flat = {k: str(v)[:_VALUE_CHARACTERS] for k, v in _flatten(values).items() if k not in self._known_params}
        fresh = [Param(k, v) for k, v in flat.items()]
        with mlflow_errors(self._settings):
            for start in range(0, len(fresh), _BATCH_OTHERS):
                self._client.log_batch(self.run_id, params=fresh[start : start + _BATCH_OTHERS])
        self._known_params |= flat

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Buffers metrics; they are sent when there are many, every few seconds, and at the end."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [Metric(name, float(value), now, step) for name, value in values.items()]
        if len(self._buffer) < _BUFFERED and time.monotonic() < self._flush_at:
            return
        if len(self._buffer) >= _BUFFERED and time.monotonic() < self._flush_at and self._pause > _FLUSH_SECONDS:
            return  # the server was away a moment ago: training must not stand still at every step
        try:
            self.flush()
        except TryAgain as error:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self.warn(f"{error.cause}; metrics are kept until it answers again")
        else:
            self._pause = _FLUSH_SECONDS
        self._flush_at = time.monotonic() + self._pause

    def flush(self) -> None:
        """Sends what is buffered; ``TryAgain`` where the server does not answer, and nothing is lost."""
        with mlflow_errors(self._settings):
            while self._buffer:
                self._client.log_batch(self.run_id, metrics=self._buffer[:_BATCH_METRICS])
                del self._buffer[:_BATCH_METRICS]
                self._away = False

    def warn(self, text: str) -> None:
        """Logs ``text``, once an outage: until MLflow has taken something again, the rest is known."""
        if not self._away:
            log.warning(text)
        self._away = True

    def tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)[:_VALUE_CHARACTERS]) for name, value in values.items()]
        with mlflow_errors(self._settings):
            for start in range(0, len(tags), _BATCH_OTHERS):
                self._client.log_batch(self.run_id, tags=tags[start : start + _BATCH_OTHERS])

    def dataset(self, ref: DatasetRef, context: str) -> None:
        """Logs the dataset version as an input of the run; its digest is the DVC md5 (MLflow allows 36 characters)."""
        from mlflow.entities import DatasetInput, InputTag

        tags = [
            InputTag("mlflow.data.context", context),
            InputTag("dvc.revision", ref.revision),
            InputTag("ssl.tag", ref.tag or "candidate"),
        ]
        with mlflow_errors(self._settings):
            self._client.log_inputs(self.run_id, [DatasetInput(dataset_entity(ref), tags)])

    def artifact(self, path: Path, folder: str = "") -> str:
        with mlflow_errors(self._settings):
            if path.is_dir():
                folder = f"{folder}/{path.name}".lstrip("/")
                self._client.log_artifacts(self.run_id, str(path), folder)
                return run_link(self._settings, self._experiment_id, self.run_id, folder)
            self._client.log_artifact(self.run_id, str(path), folder or None)
        return run_link(self._settings, self._experiment_id, self.run_id, f"{folder}/{path.name}".lstrip("/"))

    def text(self, text: str, path: str) -> str:
        """Logs ``text`` as the artifact ``path``; returns a browser link."""
        with mlflow_errors(self._settings):
            self._client.log_text(self.run_id, text, path)
        return run_link(self._settings, self._experiment_id, self.run_id, path)

    def close(self, status: str) -> None:
        self.flush()
        with mlflow_errors(self._settings):
            self._client.set_terminated(self.run_id, status)


def dataset_entity(ref: DatasetRef) -> Any:
    """The ``mlflow.entities.Dataset`` of a dataset version: where DVC keeps it, and its md5 as the digest.

    Raises ``ValueError`` for an md5 that MLflow's 36 characters cannot hold, instead of cutting it short.
    """
    from mlflow.entities import Dataset

    if len(ref.md5) > 36:
        raise ValueError(f"not a DVC md5: {ref.md5}")
    source = {"path": ref.path, "revision": ref.revision, "md5": ref.md5, "remote": ref.remote}
    return Dataset(
        name=ref.tag or f"{ref.name}@candidate", digest=ref.md5, source_type="dvc", source=json.dumps(source)
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def git_commit(folder: Path) -> str:
    """The commit of the repository that ``folder`` lies in; empty where there is none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def lineage_tags(
    project: ProjectConfig, step: Step, key: str, run: RunContext, inputs: Mapping[str, Ref]
) -> dict[str, str]:
    """Where a step's run comes from, as MLflow tags."""
    tags = {
        "ssl.project": project.name, "ssl.step": step.name, "ssl.key": key, "ssl.code": source_digest(),
        "ssl.run_id": run.run_id, "ssl.orchestrator": run.orchestrator, "ssl.user": run.user, "ssl.try": str(run.try_number),
        "mlflow.user": run.user, "mlflow.source.name": f"ssl-core step {step.name}", "mlflow.source.type": "JOB",
    }  # fmt: skip
    optional = {"ssl.dag_id": run.dag_id, "ssl.task_id": run.task_id, "ssl.run_url": run.url}
    tags |= {name: value for name, value in optional.items() if value}
    for name, ref in inputs.items():
        tags[f"ssl.input.{name}"] = ref.sha256
        if isinstance(ref, DatasetRef):
            tags |= {"ssl.dataset": ref.tag or f"{ref.name}@candidate", "ssl.dataset_md5": ref.md5}
        elif isinstance(ref, ModelRef):
            tags[f"ssl.{name}"] = f"{ref.name}/{ref.version}"
    return tags


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # somebody else made it between the two calls
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted",
            place=f"experiment {experiment.experiment_id}",
            next_step=f"mlflow experiments restore --experiment-id {experiment.experiment_id}, or mlflow gc to remove it for good",
        )
    return str(experiment.experiment_id)


def _open(client: MlflowClient, project: ProjectConfig, step: Step, key: str, tags: dict[str, str]) -> tuple[Run, bool]:
    """The unfinished run of this key, or a new one; and whether it is new."""
    experiment_id = _experiment(client, project.name)
    wanted = f"tags.`ssl.key` = '{key}' and tags.`ssl.step` = '{step.name}'"
    for found in client.search_runs([experiment_id], wanted, max_results=10, order_by=["attributes.start_time DESC"]):
        if found.info.status in _GOES_ON:
            client.update_run(found.info.run_id, status="RUNNING")
            return found, False
    dataset = tags.get("ssl.dataset", "")
    name = f"{step.name} {dataset}".strip()
    return client.create_run(experiment_id, run_name=name, tags=tags), True


@contextmanager
def open_run(
    settings: Settings, project: ProjectConfig, step: Step, key: str, run: RunContext, inputs: Mapping[str, Ref]
) -> Iterator[MlflowTracker]:
    """The MLflow run of one step: experiment = project, tags = lineage, ``config.yaml`` = the resolved configuration.

    Ends FINISHED, or FAILED (KILLED on Ctrl-C) with the reason in the tag ``ssl.error``. A run of the same key that did
    not finish is taken up again. Raises ``TryAgain`` where the server cannot be reached.
    """
    with mlflow_errors(settings):
        client = connect(settings)
        tags = lineage_tags(project, step, key, run, inputs)
        if commit := git_commit(settings.projects_dir):
            tags |= {"ssl.git_commit": commit, "mlflow.source.git.commit": commit}
        mlflow_run, is_new = _open(client, project, step, key, tags)
        tracker = MlflowTracker(client, settings, mlflow_run)
        if is_new:
            tracker.text(yaml.safe_dump(project.model_dump(mode="json"), sort_keys=False), "config.yaml")
            tracker.text(json.dumps({n: r.model_dump(mode="json") for n, r in inputs.items()}, indent=1), "inputs.json")
            for ref in inputs.values():
                if isinstance(ref, DatasetRef):
                    tracker.dataset(ref, step.name)
        else:
            tracker.tags(tags | {"ssl.error": "", "ssl.exit_code": ""})
    try:
        yield tracker
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        _close_quietly(tracker, status, error)
        raise
    tracker.close("FINISHED")


def _reason(error: BaseException) -> str:
    # Only our own messages are known to hold no data and no secret; of others one line is enough to find the log.
    return str(error) if isinstance(error, StepError) else f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _close_quietly(tracker: MlflowTracker, status: str, reason: BaseException) -> None:
    """Ends the run of a step that failed. The step's own error stays the one that is seen, and is not said twice."""
    tags = {"ssl.error": _reason(reason), "ssl.exit_code": str(getattr(reason, "exit_code", 1))}
    for end in (lambda: tracker.tags(tags), lambda: tracker.close(status)):
        try:
            end()
        except TryAgain as error:
            if not (isinstance(reason, TryAgain) and reason.place == error.place):
                tracker.warn(f"{error.cause}; the step's run stays open there until the step is done again")
            return
        except Exception as error:
            log.warning(
                "could not close the MLflow run: %s", (str(error) or type(error).__name__).splitlines()[0][:200]
            )
