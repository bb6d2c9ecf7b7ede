"""What steps return, as their jobs would write it."""

from __future__ import annotations

from typing import Any

from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef, Ref, StepResult, StepStatus, Verdict
from ssl_core.pipeline import get_step

_LONG = "f" * 64


def reference(artifact: str, *, version: str = "3", labelled: int = 100) -> Ref:
    """The reference that a step makes for ``artifact``, of project `tiny`."""
    if artifact in ("candidate", "dataset"):
        published = artifact == "dataset"
        return DatasetRef(
            kind="dataset" if published else "candidate",
            name="tiny",
            tag="tiny@v1" if published else None,
            revision="a" * 40,
            path="tiny/data",
            md5=f"{'b' * 32}.dir",
            remote="/remote",
            sha256=_LONG,
            producer="ingest/k",
            rows=1797,
            labelled=labelled,
            classes=10,
        )
    if artifact.startswith("registered_"):
        encoder = artifact == "registered_encoder"
        return ModelRef(
            kind="registered-encoder" if encoder else "registered-model",
            name="tiny-encoder" if encoder else "tiny",
            version=version,
            model_id="m-1",
            run_id="r-1",
            uri=f"tiny/{artifact}/k/out",
            sha256=_LONG,
            producer=f"{artifact}/k",
        )
    return ArtifactRef(kind=artifact, uri=f"tiny/{artifact}/k/out", sha256=_LONG, producer=f"{artifact}/k")


def result(step: str, template: str = "", **changes: Any) -> StepResult:
    """A step that went well. ``template``: what ``resolve`` picks for a run of it, beside the configuration."""
    outputs = {name: reference(name) for name in get_step(step).outputs}
    if step == "resolve" and template in ("pretrain", "finetune", "monitor", "fire-drill"):
        outputs["dataset"] = reference("dataset")
    if step == "resolve" and template == "finetune":
        outputs["registered_encoder"] = reference("registered_encoder")
    good: dict[str, Any] = {
        "step": step,
        "key": "k",
        "status": StepStatus.DONE,
        "outputs": outputs,
        "links": {"MLflow run": f"http://mlflow/{step}", "Report": f"http://report/{step}"},
        "summary": f"{step} did well",
        "verdict": Verdict.PROMOTE if step == "gate" else None,
    }
    return StepResult(**(good | changes))


def before(dag: Any, step: str, **changed: StepResult) -> dict[str, Any]:
    """The XCom of all tasks before ``step`` in its DAG; ``changed`` by step, with `_` for `-`."""
    given = {name.replace("_", "-"): value for name, value in changed.items()}
    template = dag.dag_id.partition(".")[2]
    tasks = dag.task_dict[step].get_flat_relative_ids(upstream=True) - {"approve"}
    return {t: (given.get(t) or result(t, template)).model_dump(mode="json") for t in tasks}
