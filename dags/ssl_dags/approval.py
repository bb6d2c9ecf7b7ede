"""The task ``approve``: where the gate leaves it open, the run waits for a person; no worker and no pool slot waits with it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowSkipException

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import Approval, ArtifactRef, StepResult, Verdict
from ssl_dags.notify import nobody_answered
from ssl_dags.operator import PLACE

PROMOTE, DECLINE = "Promote", "Decline"
_COMMENT = "comment"
_ANSWERS = {PROMOTE: "approve", DECLINE: "decline"}


class GateApprovalOperator(HITLOperator):
    """Shows the gate's report and asks for Promote or Decline; skipped where the gate has decided.

    Returns an ``Approval``: the answer with who gave it, or ``expired`` after ``promotion.approval_hours``. There is no default answer,
    so that what nobody decided on is told from what somebody turned down.
    """

    ui_color = "#fbf3d9"

    def __init__(self, *, project: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = project

    @classmethod
    def of(cls, project: ProjectConfig, **kwargs: Any) -> GateApprovalOperator:
        """The task of a project's DAG."""
        # Airflow merges the DAG's parameters into what an operator is called with, so that these come from outside.
        return cls(
            project=project.name,
            subject=f"Promote the challenger of {project.name}?",
            options=[PROMOTE, DECLINE],
            params={
                _COMMENT: Param(None, type=["string", "null"], title="Comment", description_md="Goes into the ledger")
            },
            response_timeout=timedelta(hours=project.promotion.approval_hours),
            **kwargs,
        )

    def execute(self, context: Mapping[str, Any]) -> None:
        gate = self._asked(context)
        if gate.verdict is not Verdict.NEEDS_HUMAN:
            raise AirflowSkipException(f"nobody has to be asked, the gate said {gate.verdict}")
        if not gate.news:
            raise AirflowSkipException("nobody is asked twice: this was decided before")
        # The form may have changed for this run how long it waits.
        frozen = context["ti"].xcom_pull(task_ids="resolve", key=PLACE) or {}
        if hours := frozen.get("approval_hours"):
            self.response_timeout = timedelta(hours=hours)
        self.body = question(self.project, gate)
        for line in self.body.splitlines():
            self.log.info("%s", line)
        super().execute(context)

    @staticmethod
    def _asked(context: Mapping[str, Any]) -> StepResult:
        return StepResult.model_validate(context["ti"].xcom_pull(task_ids="gate"))

    def execute_complete(self, context: Mapping[str, Any], event: dict[str, Any]) -> dict[str, Any]:
        if event.get("error_type") == "timeout":
            ti = context["ti"]
            nobody_answered(
                ti.dag_id, ti.run_id, ti.task_id, self._asked(context).summary.partition("\n")[0].lstrip("# ")
            )
            return Approval(answer="expired").model_dump(mode="json")
        answer = super().execute_complete(context, event)
        chosen = answer["chosen_options"]
        if len(chosen) != 1:
            raise ValueError(f"one of {PROMOTE} and {DECLINE} is an answer, not {chosen}")
        user = answer.get("responded_by_user") or {}
        approval = Approval(
            answer=_ANSWERS[chosen[0]],
            user=str(user.get("name") or user.get("id") or "unknown"),
            comment=str((answer.get("params_input") or {}).get(_COMMENT) or "").strip(),
        )
        self.log.info("%s by %s %s", chosen[0], approval.user, approval.comment)
        return approval.model_dump(mode="json")


def question(project: str, gate: StepResult) -> str:
    """What the person reads: the gate's report, where all of it is, and how the command line answers the same."""
    parts = [gate.summary.strip(), *(f"[{title}]({url})" for title, url in gate.links.items())]
    report = gate.outputs.get("gate_report")
    if isinstance(report, ArtifactRef):
        digest = report.sha256[:12]
        parts.append(f"On the command line: `ssl-core promote {project} --approve {digest}`, or `--decline {digest}`.")
    return "\n\n".join(parts)
