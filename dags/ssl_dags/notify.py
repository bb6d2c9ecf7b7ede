"""Who is told when something went wrong: the log, a webhook (``SSL_WEBHOOK_URL``) and people by mail (``SSL_SMTP_URL``).

Told are a failed step (validation among them), a run that timed out or is stuck, a gate that did not promote, and what a step that went
well has found: a data bug, new territory, a retraining that is held back. Once a cause, until it is fine again
(``incidents.py``). Slack, Mattermost and the like take the message as it is: it has a ``text``.
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
from ssl_core.contracts import StepResult, Verdict
from ssl_dags import incidents, mail

log = logging.getLogger("ssl_dags.notify")

_SECONDS = 5.0
_MAIL_SECONDS = 15.0
_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Notice:
    """One message. ``event``: step-failed, run-failed, gate, expired, finding, or fine-again for the end of one of these."""

    event: str
    project: str
    dag_id: str
    run_id: str
    task_id: str
    reason: str
    url: str

    @property
    def what(self) -> str:
        return f"{self.dag_id} {self.task_id}".rstrip()

    @property
    def text(self) -> str:
        return f"{self.what}: {self.event}: {self.reason}\n{self.url}".rstrip()[:_MOST_CHARACTERS]


def run_url(settings: Settings, dag_id: str, run_id: str, task_id: str = "") -> str:
    """The browser's address of a DAG run, or of one of its tasks; empty where Airflow's address is not known."""
    if not settings.airflow_url:
        return ""
    run = f"{settings.airflow_url.rstrip('/')}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
    return f"{run}/tasks/{quote(task_id, safe='')}" if task_id else run


def send(notice: Notice) -> bool:
    """Logs the notice, posts it to the webhook and mails it; whether anybody has it. What goes wrong is logged and fails no task."""
    log.warning("notice: %s", notice.text)
    settings = Settings()
    sent = [
        _post(settings.webhook_url.get_secret_value(), notice),
        _mail(settings.smtp_url.get_secret_value(), notice),
    ]
    return any(sent)


def _post(url: str, notice: Notice) -> bool:
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


def _mail(url: str, notice: Notice) -> bool:
    if not url:
        return False
    try:
        mail.send(url, f"[{notice.project}] {notice.what}: {notice.event}", notice.text, _MAIL_SECONDS)
    except mail.NotSent as error:
        log.error("the notice was not mailed: %s", error)
        return False
    except Exception as error:  # nothing of the address may show
        log.error("the notice was not mailed: %s", type(error).__name__)
        return False
    return True


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
    _tell("step-failed", ti.dag_id, ti.run_id, ti.task_id, reason)


def step_fine(context: Mapping[str, Any]) -> None:
    """Airflow's ``on_success_callback`` and ``on_skipped_callback`` of a task: what failed before does not any more."""
    ti = context["ti"]
    _fine("step-failed", ti.dag_id, ti.run_id, ti.task_id)
    if not context["task"].downstream_task_ids:  # the run has come to its end in time
        _fine("run-failed", ti.dag_id, ti.run_id, "")


def run_failed(context: Mapping[str, Any]) -> None:
    """Airflow's ``on_failure_callback`` of a DAG. A failed task has been told of already; a time-out or a deadlock has not."""
    reason = str(context.get("reason") or "")
    if reason == "task_failure":
        return
    dag_id = context["dag"].dag_id
    words = {"timed_out": "the run took longer than limits.run_hours", "all_tasks_deadlocked": "no task can go on"}
    _tell("run-failed", dag_id, str(context.get("run_id", "")), "", words.get(reason, reason))


def gate_said(dag_id: str, run_id: str, task_id: str, gate: StepResult) -> None:
    """The gate did not promote: somebody may want to look, or has to decide. A decision is asked for each time."""
    if gate.verdict is Verdict.PROMOTE:
        _fine("gate", dag_id, run_id, task_id)
    elif gate.verdict is Verdict.NEEDS_HUMAN:
        url = run_url(Settings(), dag_id, run_id, "approve")
        send(_notice("gate", dag_id, run_id, task_id, gate.summary, url and f"{url}/required_actions"))
    elif gate.verdict is Verdict.REJECT:
        _tell("gate", dag_id, run_id, task_id, gate.summary, cause="REJECT")


def nobody_answered(dag_id: str, run_id: str, task_id: str, question: str) -> None:
    """A challenger that nobody decided on in time is turned down."""
    send(_notice("expired", dag_id, run_id, task_id, f"nobody answered in time; turned down: {question}"))


def finding(dag_id: str, run_id: str, task_id: str, alert: str) -> None:
    """What a step that went well has found, ``cause: words``, or that it is fine again (empty)."""
    cause = alert.partition(":")[0].strip()
    _fine("finding", dag_id, run_id, task_id, but=cause)
    if alert:
        _tell("finding", dag_id, run_id, task_id, alert, cause=cause)


def _tell(event: str, dag_id: str, run_id: str, task_id: str, reason: str, *, cause: str = "") -> None:
    notice = _notice(event, dag_id, run_id, task_id, reason)
    if incidents.opened(dag_id, task_id, incidents.cause_of(event, cause or notice.reason), notice.reason):
        send(notice)
    else:
        log.warning("notice, told before: %s", notice.text)


def _fine(event: str, dag_id: str, run_id: str, task_id: str, *, but: str = "") -> None:
    kept = incidents.cause_of(event, but) if but else ""
    for incident in incidents.closed(dag_id, task_id, event, but=kept):
        count = incident.get("count", 1)
        times = "once" if count == 1 else f"{count} times"
        words = f"since {incident.get('since')}, {times}: {incident.get('reason')}"
        send(_notice("fine-again", dag_id, run_id, task_id, words))


def _notice(event: str, dag_id: str, run_id: str, task_id: str, reason: str, url: str = "") -> Notice:
    url = url or run_url(Settings(), dag_id, run_id, task_id)
    # What Airflow masks in its logs does not go out either.
    return Notice(event, dag_id.partition(".")[0], dag_id, run_id, task_id, str(redact(reason)), url)
