from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
from airflow.serialization.serialized_objects import DagSerialization

from ssl_dags.links import MlflowRunLink, ReportLink
from tests.dags.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("links", "run", "report"),
    [
        ({"MLflow run": "http://m/1", "Gate report": "http://r/1"}, "http://m/1", "http://r/1"),
        ({"Validation report": "http://r/1", "MLflow run": "http://m/1"}, "http://m/1", "http://r/1"),
        ({"Model version": "http://r/1", "Other": "http://r/2"}, "", "http://r/1"),
        ({"MLflow run": "http://m/1"}, "http://m/1", ""),
        ({}, "", ""),
    ],
)
def test_a_task_links_to_its_run_and_to_what_it_wrote(links, run, report):
    operator = SimpleNamespace(links=links)
    assert MlflowRunLink().get_link(operator, ti_key=None) == run
    assert ReportLink().get_link(operator, ti_key=None) == report


def test_a_task_that_never_ran_has_no_links(make_dag):
    operator = make_dag("ingest").task_dict["ingest"]
    assert {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links} == {
        "MLflow run": "",
        "Report": "",
    }


def test_the_server_finds_each_link_under_a_key_of_its_own(make_dag):
    """The API server has no ssl_dags: it reads the XCom that the worker wrote, by the key in the serialised DAG."""
    dag = make_dag("finetune")
    keys = {link.name: link.xcom_key for link in dag.task_dict["gate"].operator_extra_links}
    back = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    for task in back.task_dict.values():
        if task.task_id == "approve":  # no step, no links
            continue
        assert {link.name: link.xcom_key for link in task.operator_extra_links} == keys
    assert set(keys) == {"MLflow run", "Report"}
    assert len(set(keys.values())) == 2
    assert "return_value" not in keys.values()


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "http://127.0.0.1:5000/"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, "http://mlflow:5000/"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow:5000", "SSL_PUBLIC_MLFLOW_URL": "https://ml.example/"}, "https://ml.example/"),
    ],
)  # fmt: skip
def test_the_navigation_bar_leads_to_mlflow_as_a_browser_reaches_it(monkeypatch, environment, address):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("plugin", REPOSITORY / "dags" / "plugins" / "mlflow_link.py")
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    (view,) = plugin.MlflowLink.external_views
    assert view["href"].startswith(address)
    assert view["destination"] == "nav"
    assert "url_route" not in view, "a link, not a frame"
