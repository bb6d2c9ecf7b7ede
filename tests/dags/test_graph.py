"""One order of steps, three ways to walk it: the table, the DAGs with the assets between them, and dvc.yaml."""

from __future__ import annotations

import pytest
from airflow.sdk import Asset

from ssl_core.pipeline import get_step, producer, steps_for, walk_for
from ssl_dags.templates import edges
from tests.dags.conftest import REPOSITORY
from tests.graphs import dvc_edges

STEPS = walk_for("image")
MODALITIES = ("image", "text")

TEMPLATES = ("ingest", "pretrain", "finetune", "monitor", "rollback", "fire-drill")
WALKED = ("ingest", "pretrain", "finetune")
Edges = set[tuple[str, str]]


def closure(found: Edges) -> Edges:
    """Who comes before whom, directly or not."""
    while True:
        more = {(a, d) for a, b in found for c, d in found if b == c} - found
        if not more:
            return found
        found = found | more


def table_edges(steps=STEPS) -> Edges:
    made_from = {(producer(artifact).name, step.name) for step in steps for artifact in step.inputs}
    return made_from | {("resolve", step.name) for step in steps if step.name != "resolve"}


def within(dag) -> Edges:
    """Between steps: the task that asks a person is none, and stands between gate and promote."""
    drawn = {(task.task_id, after) for task in dag.tasks for after in task.downstream_task_ids}
    if drawn & {("gate", "approve")}:
        drawn = drawn - {("gate", "approve"), ("approve", "promote")} | {("gate", "promote")}
    return drawn


def between(dags) -> Edges:
    """An asset leads from the task that announces it to the first steps of the DAG that it wakes."""
    makers = {asset.name: task.task_id for dag in dags for task in dag.tasks for asset in task.outlets}
    return {
        (makers[asset.name], first)
        for dag in dags
        for asset in ([dag.schedule] if isinstance(dag.schedule, Asset) else getattr(dag.schedule, "objects", []))
        if asset.name in makers
        for first in dag.task_dict["resolve"].downstream_task_ids
    }


@pytest.fixture
def dags(make_dag):
    """Those that lead from raw data to a champion."""
    return [make_dag(template) for template in WALKED]


@pytest.mark.parametrize("template", TEMPLATES)
def test_within_a_template_the_order_is_the_tables(make_dag, template):
    dag = make_dag(template)
    inside = {step.name for step in steps_for("image") if step.template == template} | {"resolve"}
    assert set(dag.task_dict) - {"approve"} == inside
    assert closure(within(dag)) == closure({(a, b) for a, b in table_edges(steps_for("image")) if {a, b} <= inside})


@pytest.mark.parametrize("template", TEMPLATES)
def test_resolve_is_the_one_beginning(make_dag, template):
    dag = make_dag(template)
    assert [task.task_id for task in dag.roots] == ["resolve"]
    assert len(dag.leaves) == 1


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_no_arrow_is_drawn_that_others_imply(template, modality):
    drawn = set(edges(template, modality))
    for edge in drawn:
        assert edge not in closure(drawn - {edge})


def test_the_order_of_today(make_dag):
    """So that the tests above are not two derivations with the same mistake."""
    orders = {t: [task.task_id for task in make_dag(t).topological_sort()] for t in TEMPLATES}
    assert orders == {
        "ingest": ["resolve", "ingest", "validate", "publish"],
        "pretrain": ["resolve", "pretrain", "register-encoder"],
        "finetune": ["resolve", "finetune", "evaluate", "register", "gate", "approve", "promote"],
        "monitor": ["resolve", "monitor"],
        "rollback": ["resolve", "rollback"],
        "fire-drill": ["resolve", "fire-drill"],
    }


def test_texts_are_tokenized_before_they_are_pretrained_on(make_dag):
    texts = {"modality": "text", "data": {"source": "sample://reviews"}}
    orders = {t: [task.task_id for task in make_dag(t, **texts).topological_sort()] for t in TEMPLATES}
    assert orders["pretrain"] == ["resolve", "tokenize", "pretrain", "register-encoder"]
    assert orders["finetune"] == ["resolve", "finetune", "evaluate", "register", "gate", "approve", "promote"]
    steps = steps_for("text")
    made_from = {(producer(artifact).name, step.name) for step in steps for artifact in step.inputs}
    assert closure(within(make_dag("pretrain", **texts))) >= {edge for edge in made_from if edge[0] == "tokenize"}


def test_dags_and_assets_together_are_the_table(dags):
    assert between(dags) == {("publish", "pretrain"), ("register-encoder", "finetune")}
    walked = set().union(*(within(dag) for dag in dags)) | between(dags)
    assert closure(walked) == closure(table_edges())


def test_drift_and_new_data_close_the_loop(make_dag):
    dags = [make_dag(template) for template in TEMPLATES]
    assert between(dags) == {
        ("publish", "pretrain"),
        ("register-encoder", "finetune"),
        ("publish", "monitor"),
        ("monitor", "finetune"),
    }


def test_what_a_step_takes_comes_from_before_it_or_from_resolve(make_dag):
    """A DAG run has nothing but what its own tasks made."""
    for dag in (make_dag(template) for template in TEMPLATES):
        for task in dag.tasks:
            if task.task_id == "approve":
                continue
            made = {
                name
                for up in task.get_flat_relatives(upstream=True)
                if up.task_id != "approve"
                for name in get_step(up.task_id).outputs
            }
            # resolve picks these for a whole run
            made |= {"dataset"} if dag.dag_id not in ("tiny.ingest", "tiny.rollback") else set()
            made |= {"registered_encoder"} if dag.dag_id in ("tiny.pretrain", "tiny.finetune") else set()
            assert set(get_step(task.task_id, "image").inputs) <= made, task.task_id


def test_dvc_walks_the_same_graph_up_to_the_gate(dags):
    walked = closure(set().union(*(within(dag) for dag in dags)) | between(dags))
    assert closure(dvc_edges(REPOSITORY / "dvc.yaml")) == {(a, b) for a, b in walked if b != "promote"}
