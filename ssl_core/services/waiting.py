"""The Airflow task that waits for a person, answered from the command line: a run that waits for what was decided is a run too long."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote

from ssl_core.config.settings import Settings
from ssl_core.errors import StepError
from ssl_core.services import airflow

_TASK = "approve"


class Api(Protocol):
    """What is asked of ``services.api.AirflowApi``."""

    def get(self, path: str, **query: Any) -> Any: ...
    def patch(self, path: str, body: Any) -> Any: ...


def answer_local(settings: Settings, project: str, digest: str, option: str, comment: str) -> list[str]:
    """``answer`` where this platform home's own Airflow runs. What goes wrong is no matter: the task finds what was decided in the end."""
    if airflow.daemon(settings, "api-server").record() is None:
        return []
    try:
        return answer(airflow.api(settings), project, digest, option, comment)
    except StepError:
        return []


def answer(api: Api, project: str, digest: str, option: str, comment: str) -> list[str]:
    """Gives ``option`` (Promote or Decline) to each waiting task that shows the gate report ``digest``; returns the runs."""
    dag_id = f"{project}.finetune"
    path = f"dags/{quote(dag_id, safe='')}/dagRuns"
    found = api.get(f"{path}/~/hitlDetails", task_id=_TASK, response_received="false", limit=100)
    runs: list[str] = []
    for detail in found["hitl_details"]:
        if f"--approve {digest[:12]}`" not in (detail.get("body") or ""):
            continue
        run_id = str(detail["task_instance"]["dag_run_id"])
        body = {"chosen_options": [option], "params_input": {"comment": comment or None}}
        api.patch(f"{path}/{quote(run_id, safe='')}/taskInstances/{_TASK}/-1/hitlDetails", body)
        runs.append(run_id)
    return runs
