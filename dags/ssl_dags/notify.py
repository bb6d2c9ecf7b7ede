"""Who is told when something went wrong: the log, and a webhook where one is set (``SSL_WEBHOOK_URL``).

Told are a failed step (validation among them), a run that timed out or is stuck, and a gate that did not promote. Slack,
Mattermost and the like take the message as it is: it has a ``text``.
"""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from airflow.sdk.log import redact

from ssl_core.config.settings import Settings

log = logging.getLogger("ssl_dags.notify")

_SECONDS = 5.0
_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Notice:
    """One message. ``event``: step-failed, run-failed or gate."""

    event: str
    project: str
    dag_id: str
    run_id: str
    task_id: str
    reason: str
    url: str

    @property
    def text(self) -> str:
        what = f"{self.dag_id} {self.task_id}".rstrip()
        return f"{what}: {self.event}: {self.reason}\n{self.url}".rstrip()[:_MOST_CHARACTERS]


def run_url(settings: Settings, dag_id: str, run_id: str, task_id: str = "") -> str:
    """The browser's address of a DAG run, or of one of its tasks; empty where Airflow's address is not known."""
    if not settings.airflow_url:
        return ""
    run = f"{settings.airflow_url.rstrip('/')}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
    return f"{run}/tasks/{quote(task_id, safe='')}" if task_id else run


def send(notice: Notice) -> bool:
    """Logs the notice and posts it to the webhook. What goes wrong with that is logged and never fails a task."""
    log.warning("notice: %s", notice.text)
    settings = Settings()
    url = settings.webhook_url.get_secret_value()
    if not url:
        return False
    if not _is_web(url):
        log.error("SSL_WEBHOOK_URL is no http or https address; nothing was sent")
        return False
    body = json.dumps(asdict(notice) | {"text": notice.text}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
            return 200 <= answer.status < 300
    except Exception as error:  # the address may hold a token: it is not repeated
        log.error("the webhook did not take the notice: %s", type(error).__name__)
        return False


def _is_web(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:  # no address at all
        return False


def step_failed(context: Mapping[str, Any]) -> None:
    """Airflow's ``on_failure_callback`` of a task: after its last try, in the worker."""
    ti = context["ti"]
    error = context.get("exception")
    reason = (str(error) or type(error).__name__) if error else "it was ended from outside"
    send(_notice("step-failed", ti.dag_id, ti.run_id, ti.task_id, reason))


def run_failed(context: Mapping[str, Any]) -> None:
    """Airflow's ``on_failure_callback`` of a DAG. A failed task has been told of already; a time-out or a deadlock has not."""
    reason = str(context.get("reason") or "")
    if reason == "task_failure":
        return
    dag_id = context["dag"].dag_id
    words = {"timed_out": "the run took longer than limits.run_hours", "all_tasks_deadlocked": "no task can go on"}
    send(_notice("run-failed", dag_id, str(context.get("run_id", "")), "", words.get(reason, reason)))


def gate_said(dag_id: str, run_id: str, task_id: str, summary: str) -> None:
    """The gate did not promote: somebody may want to look, or has to decide."""
    send(_notice("gate", dag_id, run_id, task_id, summary))


def _notice(event: str, dag_id: str, run_id: str, task_id: str, reason: str) -> Notice:
    url = run_url(Settings(), dag_id, run_id, task_id)
    # What Airflow masks in its logs does not go out through the webhook either.
    return Notice(event, dag_id.partition(".")[0], dag_id, run_id, task_id, str(redact(reason)), url)
