from __future__ import annotations

import time
from datetime import timedelta

import pendulum
import pytest
import yaml
from airflow.sdk import Asset
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction

from ssl_core.config.load import load_project
from ssl_core.pipeline import get_step, steps_for
from tests.dags.conftest import REPOSITORY

STEPS = steps_for("image")

TEMPLATES = ("ingest", "pretrain", "finetune", "monitor", "rollback", "fire-drill")
SHIPPED = sorted((REPOSITORY / "projects").glob("*.yaml"))
# A mapping in a mapping in a mapping, each twice: 2 ** 40 nodes, if somebody counted them all.
BOMB = "name: bomb\ndata: {source: sample://digits}\nx0: &x0 {a: 1}\n" + "".join(
    f"x{n}: &x{n} {{a: *x{n - 1}, b: *x{n - 1}}}\n" for n in range(1, 41)
)


def names(assets) -> list[str]:
    return [asset.name for asset in assets]


# ---- the shipped projects


@pytest.fixture
def shipped(projects, load):
    for file in SHIPPED:
        (projects / file.name).write_bytes(file.read_bytes())
    return load()


def test_the_shipped_projects_have_all_dags_and_no_errors(shipped):
    assert shipped.import_errors == {}
    assert set(shipped.dags) == {f"{file.stem}.{template}" for file in SHIPPED for template in TEMPLATES}
    assert SHIPPED


def test_they_survive_the_way_into_the_database_and_back(shipped):
    for dag_id, dag in shipped.dags.items():
        document = DagSerialization.serialize_dag(dag)
        back = DagSerialization.deserialize_dag(document)
        assert back.dag_id == dag_id
        assert set(back.task_dict) == set(dag.task_dict)
        assert back.task_dict["resolve"].downstream_task_ids == dag.task_dict["resolve"].downstream_task_ids
        # The scheduler writes a DAG anew when its serialised form differs: it must not differ by itself.
        assert DagSerialization.serialize_dag(dag) == document


# ---- broken ones


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: bad\ndata:\n  sorce: /data\n", [":3: data.sorce: unknown key", "did you mean `source`"]),
        ("name: bad\ndata: {source: sample://digits}\npretrain:\n  epochs: -1\n", [":4: pretrain.epochs: ", "got -1"]),
        ("name: bad\ndata: {source: sample://digits}\nname: worse\n", [":3: name: the key stands twice"]),
        ("name: bad\ndata: [\n", [":3", "not valid YAML"]),
        ("name: Bad Name\ndata: {source: sample://digits}\n", [":1: name: "]),
        ("name: bad\ndata: {source: sample://digits}\nschedule: {ingest: sometimes}\n", [":3: schedule.ingest: ", "cron"]),
        ("", ["empty"]),
        (BOMB, ["aliases that multiply"]),
        ("x: &x [*x]\n", ["x"]),
    ],
    ids=["key", "value", "twice", "yaml", "name", "cron", "empty", "bomb", "endless"],
)  # fmt: skip
def test_a_broken_project_is_an_import_error_and_hides_no_other(load, projects, write_project, text, said):
    (projects / "bad.yaml").write_text(text)
    write_project("good")
    bag = load()
    (error,) = bag.import_errors.values()
    assert set(bag.import_errors) == {"bad.yaml.py"}
    assert str(projects / "bad.yaml") in error
    for words in said:
        assert words in error
    assert set(bag.dags) == {f"good.{template}" for template in TEMPLATES}


def test_the_second_file_of_a_name_is_an_error_naming_the_first(load, projects, write_project):
    write_project("tiny").rename(projects / "a.yaml")
    write_project("tiny", description="the other").rename(projects / "b.yaml")
    bag = load()
    assert set(bag.import_errors) == {"b.yaml.py"}
    assert "'tiny' is taken by a.yaml" in bag.import_errors["b.yaml.py"]
    assert len(bag.dags) == len(TEMPLATES)
    assert "the other" not in bag.dags["tiny.ingest"].doc_md


# ---- in a task's process


def test_a_run_in_progress_goes_on_without_its_project_file(monkeypatch, projects, write_project):
    """Airflow parses the DAG file once more for each task; the file may have been broken or removed meanwhile."""
    from ssl_dags.templates import render

    path = write_project("tiny")
    whole = render(str(path))["tiny.finetune"]
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "tiny.finetune")
    renamed = path.read_text().replace("name: tiny", "name: other")
    for break_it in (lambda: path.write_text("name: [\n"), lambda: path.write_text(renamed), path.unlink):
        break_it()
        dags = render(str(path))
        assert set(dags) == {"tiny.finetune"}
        found = dags["tiny.finetune"]
        assert {t: found.task_dict[t].upstream_task_ids for t in found.task_dict} == {
            t: whole.task_dict[t].upstream_task_ids for t in whole.task_dict
        }
        assert {t.task_id: names(t.outlets) for t in found.tasks} == {t.task_id: names(t.outlets) for t in whole.tasks}


def test_a_task_process_builds_its_own_dag_only(monkeypatch, write_project):
    from ssl_dags.templates import render

    path = write_project("tiny")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "tiny.ingest")
    assert set(render(str(path))) == {"tiny.ingest"}


# ---- structure


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_dag_says_what_it_is_and_whose(make_dag, projects, template):
    dag = make_dag(template, owner="Vision team", description="Handwritten digits", tags=["handwriting"])
    assert dag.dag_id == f"tiny.{template}"
    assert dag.tags == {"ssl", template, "tiny", "handwriting"}
    assert dag.description == "Handwritten digits"
    for words in ("Handwritten digits", "Vision team", str(projects / "tiny.yaml"), "resolve"):
        assert words in dag.doc_md
    for task in dag.tasks:
        assert task.owner == "Vision team"
        assert task.task_id == "approve" or get_step(task.task_id).about in task.doc_md
        assert f"| `{task.task_id}` |" in dag.doc_md


@pytest.mark.parametrize("template", TEMPLATES)
def test_without_an_owner_the_page_says_which_key_names_one(make_dag, template):
    dag = make_dag(template)
    assert {task.owner for task in dag.tasks} == {"ssl"}
    assert "key `owner`" in dag.doc_md


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_run_at_a_time_and_no_catching_up(make_dag, template):
    dag = make_dag(template, schedule={"ingest": "@daily", "finetune": "@daily"})
    assert dag.max_active_runs == 1
    assert dag.catchup is False


@pytest.mark.parametrize("template", TEMPLATES)
def test_retries_and_time_outs_are_the_projects_limits(make_dag, template):
    dag = make_dag(template, limits={"retries": 4, "retry_seconds": 7, "step_hours": 1.5, "run_hours": 9})
    assert dag.dagrun_timeout == timedelta(hours=9 + (72 if template == "finetune" else 0)), "and the wait for a person"
    for task in dag.tasks:
        assert task.retries == 4
        assert task.retry_delay == timedelta(seconds=7)
        assert task.retry_exponential_backoff == 2.0
        assert task.max_retry_delay == timedelta(minutes=30)
        assert task.execution_timeout == timedelta(minutes=90)


def test_limits_left_out_are_the_schemas(make_dag, write_project):
    limits = load_project(write_project()).limits
    dag = make_dag("ingest")
    assert dag.dagrun_timeout == timedelta(hours=limits.run_hours)
    assert {task.retries for task in dag.tasks} == {limits.retries}


@pytest.mark.parametrize("template", TEMPLATES)
def test_failures_are_told_of(make_dag, template):
    from ssl_dags import notify

    dag = make_dag(template)
    assert dag.on_failure_callback in (notify.run_failed, [notify.run_failed])
    for task in dag.tasks:
        assert list(task.on_failure_callback) == [notify.step_failed]
        assert list(task.on_success_callback) == list(task.on_skipped_callback) == [notify.step_fine]


@pytest.mark.parametrize("template", TEMPLATES)
def test_steps_wait_in_the_pool_of_what_they_must_not_share(make_dag, template):
    pools = {task.task_id: task.pool for task in make_dag(template).tasks}
    assert pools.pop("resolve") == "default_pool"
    assert pools.pop("approve", "default_pool") == "default_pool"
    assert pools == {step.name: step.pool or "default_pool" for step in STEPS if step.template == template}


def test_pools_of_today(make_dag):
    """So that the test above is not the table compared with itself."""
    pools = {task.task_id: task.pool for template in TEMPLATES for task in make_dag(template).tasks}
    assert {name for name, pool in pools.items() if pool == "gpu"} == {"pretrain", "finetune", "evaluate"}
    assert {name for name, pool in pools.items() if pool == "data-repo"} == {"ingest", "publish"}


# ---- what wakes what


def test_the_asset_graph_leads_from_data_to_model(make_dag):
    outlets = {task.task_id: names(task.outlets) for t in TEMPLATES for task in make_dag(t).tasks}
    assert {task: assets for task, assets in outlets.items() if assets} == {
        "publish": ["tiny/dataset"],
        "register-encoder": ["tiny/encoder"],
        "promote": ["tiny/model"],
        "monitor": ["tiny/drift"],
    }
    assert woken_by(make_dag("ingest")) == set()
    assert woken_by(make_dag("pretrain")) == {"tiny/dataset"}
    assert woken_by(make_dag("finetune")) == {"tiny/encoder", "tiny/drift"}
    assert woken_by(make_dag("monitor")) == {"tiny/dataset"}
    assert woken_by(make_dag("rollback")) == woken_by(make_dag("fire-drill")) == set()


def test_either_of_two_assets_wakes_a_finetune(make_dag):
    """Airflow takes a list of assets for all of them."""
    assert in_the_scheduler(make_dag("finetune")).asset_condition.agg_func is any


def in_the_scheduler(dag):
    """The timetable, as the scheduler reads it from the database."""
    return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).timetable


def woken_by(dag) -> set[str]:
    return {key.name for key, _ in in_the_scheduler(dag).asset_condition.iter_assets()}


def next_tick(dag) -> str | None:
    """When the scheduler would start it by itself, counted from Tuesday, 3 June 2025; in UTC."""
    since = TimeRestriction(earliest=pendulum.datetime(2025, 6, 3), latest=None, catchup=True)
    info = in_the_scheduler(dag).next_dagrun_info(last_automated_data_interval=None, restriction=since)
    return info and info.run_after.in_timezone("UTC").format("YYYY-MM-DD HH:mm")


@pytest.mark.parametrize(
    ("when", "asset"), [("first", {"tiny/dataset"}), ("always", {"tiny/dataset"}), ("manual", set()), ("cron", set())]
)
def test_a_dataset_wakes_pretraining_only_where_the_project_says_so(make_dag, when, asset):
    sections = {"schedule": {"pretrain": "@weekly"}} if when == "cron" else {}
    dag = make_dag("pretrain", pretrain={"when": when}, **sections)
    assert woken_by(dag) == asset
    assert next_tick(dag) == ("2025-06-08 00:00" if when == "cron" else None)


@pytest.mark.parametrize("template", [t for t in TEMPLATES if t != "rollback"])
def test_a_cron_ticks_in_the_projects_time_zone(make_dag, template):
    more = {"pretrain": {"when": "cron"}} if template == "pretrain" else {}
    dag = make_dag(template, schedule={template.replace("-", "_"): "15 3 * * 1", "timezone": "Europe/Berlin"}, **more)
    assert next_tick(dag) == "2025-06-09 01:15"  # Monday, 3:15 in summer


def test_a_cron_is_utc_unless_said_otherwise(make_dag):
    assert next_tick(make_dag("ingest", schedule={"ingest": "15 3 * * 1"})) == "2025-06-09 03:15"


def test_finetune_has_a_floor_beside_the_encoder(make_dag):
    dag = make_dag("finetune", schedule={"finetune": "@monthly", "timezone": "Asia/Tokyo"})
    assert next_tick(dag) == "2025-06-30 15:00"
    assert woken_by(dag) == {"tiny/encoder", "tiny/drift"}


@pytest.mark.parametrize("template", ["ingest", "pretrain", "fire-drill"])
def test_a_cron_alone_is_not_woken_by_assets(make_dag, template):
    more = {"pretrain": {"when": "cron"}} if template == "pretrain" else {}
    assert woken_by(make_dag(template, schedule={template.replace("-", "_"): "@daily"}, **more)) == set()


@pytest.mark.parametrize("template", ["ingest", "rollback", "fire-drill"])
def test_without_a_schedule_only_people_start_it(make_dag, template):
    dag = make_dag(template)
    assert next_tick(dag) is None
    assert woken_by(dag) == set()


@pytest.mark.parametrize(
    ("template", "sections", "words"),
    [
        ("ingest", {}, "by hand"),
        ("ingest", {"schedule": {"ingest": "@daily"}}, "by its cron `@daily` (UTC) or by hand"),
        ("pretrain", {}, "when `tiny/dataset` has a new version or by hand"),
        ("pretrain", {"pretrain": {"when": "manual"}}, "by hand"),
        ("finetune", {"schedule": {"finetune": "@daily"}}, "when `tiny/encoder` has a new version or `tiny/drift` tells of drift or by its cron `@daily` (UTC) or by hand"),
        ("monitor", {"schedule": {"monitor": "@daily"}}, "when `tiny/dataset` has a new version or by its cron `@daily` (UTC) or by hand"),
        ("rollback", {}, "by hand"),
        ("fire-drill", {"schedule": {"fire_drill": "@weekly"}}, "by its cron `@weekly` (UTC) or by hand"),
    ],
)  # fmt: skip
def test_the_page_says_what_starts_it(make_dag, template, sections, words):
    assert f"**Starts**: {words}." in make_dag(template, **sections).doc_md


def test_assets_are_called_by_name(make_dag):
    (asset,) = make_dag("ingest").task_dict["publish"].outlets
    assert isinstance(asset, Asset)
    assert (asset.name, asset.uri) == ("tiny/dataset", "ssl://tiny/dataset")


# ---- many


def test_fifty_projects_are_parsed_in_a_moment(projects, load):
    project = yaml.safe_load((REPOSITORY / "projects" / "digits.yaml").read_text())
    for n in range(50):
        (projects / f"p{n}.yaml").write_text(yaml.safe_dump({**project, "name": f"p{n}"}))
    took = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        bag = load()
        took.append(time.process_time() - cpu)
        print(f"50 projects: {time.perf_counter() - wall:.2f} s, {took[-1]:.2f} s of CPU")
        assert bag.import_errors == {}
        assert len(bag.dags) == 50 * len(TEMPLATES)
        if took[-1] < 3:
            break
    assert min(took) < 3
