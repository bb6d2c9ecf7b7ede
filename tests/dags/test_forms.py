from __future__ import annotations

import json
import typing

import jsonschema
import pytest
import yaml
from airflow.sdk.exceptions import ParamValidationError
from pydantic import BaseModel

from ssl_core.config.load import load_project
from ssl_core.config.project import ImageProject
from ssl_core.errors import UserError
from ssl_dags.forms import form, overrides
from tests.dags.conftest import REPOSITORY

ALL = ("ingest", "pretrain", "finetune", "monitor", "rollback", "fire-drill")
TEMPLATES = ("ingest", "pretrain", "finetune", "monitor", "fire-drill")
PROJECTS = sorted((REPOSITORY / "projects").glob("*.yaml"))
# Where half of it, one more, or 16 is no other value that the rules allow.
SPECIAL = {"data.labels": "labels.csv", "pretrain.budget": "90s", "promotion.margin": "0.5", "monitor.min_auc": 0.6}
everywhere = pytest.mark.parametrize("template", TEMPLATES)
and_to_roll_back = pytest.mark.parametrize("template", ALL)


@pytest.fixture
def project(make_project):
    return make_project()


def values(project, template) -> dict:
    """What the browser sends when nothing was changed: the form's values, once through JSON."""
    return json.loads(json.dumps({key: param.value for key, param in form(project, template).items()}))


def field_of(key: str):
    """The schema's field of a dotted key."""
    model: type[BaseModel] = ImageProject
    *sections, leaf = key.split(".")
    for name in sections:
        model = typing.cast(type[BaseModel], model.model_fields[name].annotation)
    return model.model_fields[leaf]


def keys(project, template) -> list[str]:
    return [key for key in form(project, template) if "." in key]


def asked(project, template, **changes) -> dict:
    """The overrides of a form in which these fields were changed."""
    return overrides(
        values(project, template) | {k.replace("__", "."): v for k, v in changes.items()}, project, template
    )


# ---- what it shows


@and_to_roll_back
@pytest.mark.parametrize("file", PROJECTS, ids=lambda file: file.stem)
def test_every_default_is_valid_by_its_own_rules(file, template):
    """Airflow refuses a DAG whose defaults are not, and then nobody can trigger it."""
    project = load_project(file)
    fields = form(project, template)
    for key, param in fields.items():
        jsonschema.Draft202012Validator.check_schema(param.schema)
        assert param.resolve() == param.value, key
    assert len(fields) > (2 if template == "rollback" else 5)


@everywhere
def test_titles_descriptions_and_limits_come_from_the_schema(project, template):
    limits = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
    seen = 0
    for key in keys(project, template):
        param, field = form(project, template)[key], field_of(key)
        words = key.split(".", 1)[1].replace(".", " / ").replace("_", " ")
        assert param.schema["title"] == words[0].upper() + words[1:]
        assert param.schema["description_md"] == field.description
        for rule in field.metadata:
            for name, keyword in limits.items():
                if hasattr(rule, name):
                    assert param.schema[keyword] == getattr(rule, name), key
                    seen += 1
    assert seen > 3


@everywhere
def test_all_plain_fields_are_there_and_no_lists(project, template):
    shown = set(keys(project, template))
    expected = {
        "ingest": {"data.source", "data.labels", "data.max_pixels", "data.split.train", "validation.max_age_days"},
        "pretrain": {"pretrain.epochs", "pretrain.when", "objective.temperature", "objective.augment.flip", "encoder.blocks"},
        "finetune": {"task.labels", "task.spread_labels", "evaluate.probe", "promotion.approval", "continual.when", "continual.replay"},
        "monitor": {"monitor.min_samples", "monitor.false_alarms", "monitor.predictions"},
        "fire-drill": {"monitor.false_alarms", "promotion.margin"},
    }[template]  # fmt: skip
    assert expected <= shown
    assert not shown & {
        "data.classes", "validation.expectations", "encoder.widths", "evaluate.label_budgets", "objective.augment.crop_scale",
        "task.name", "objective.name", "encoder.arch",
    }  # fmt: skip


@everywhere
def test_the_form_starts_with_what_stands_in_the_project(make_project, template):
    project = make_project(
        data={"source": "sample://animals", "max_pixels": 77, "channels": 3},
        pretrain={"epochs": 7, "threads": 4, "when": "always"},
        task={"labels": 40, "method": "linear"},
        promotion={"margin": 0.125},
        monitor={"min_samples": 60},
    )
    expected = {
        "ingest": {"data.source": "sample://animals", "data.max_pixels": 77, "data.channels": "3", "data.image_size": "auto"},
        "pretrain": {"pretrain.epochs": 7, "pretrain.threads": "4", "pretrain.when": "always"},
        "finetune": {"task.labels": "40", "task.method": "linear", "promotion.margin": "0.125"},
        "monitor": {"monitor.min_samples": 60},
        "fire-drill": {"monitor.min_samples": 60, "promotion.margin": "0.125"},
    }[template]  # fmt: skip
    found = values(project, template)
    assert {key: found[key] for key in expected} == expected


@everywhere
def test_every_field_but_the_first_ones_waits_in_a_named_section(project, template):
    fields = form(project, template)
    for key in keys(project, template):
        section = fields[key].schema.get("section")
        first = (field_of(key).json_schema_extra or {}).get("form") == "first"
        assert (section is None) == first, key
        if section:
            assert section.startswith(f"{key.partition('.')[0]}: ")
    assert any("section" in fields[key].schema for key in keys(project, template))
    assert any("section" not in fields[key].schema for key in keys(project, template))


def test_choices_are_choices(project):
    fields = form(project, "pretrain") | form(project, "finetune") | form(project, "ingest")
    assert fields["pretrain.when"].schema["enum"] == ["first", "always", "manual", "cron"]
    assert fields["promotion.approval"].schema["enum"] == ["auto", "human"]
    assert fields["data.channels"].schema["enum"] == ["auto", "1", "3"]
    assert fields["objective.augment.flip"].schema["type"] == "boolean"
    assert fields["validation.max_age_days"].schema["type"] == ["number", "null"]


def test_each_template_asks_for_the_references_it_needs(project):
    asks = {t: {"dataset", "encoder_version", "to", "reason"} & set(form(project, t)) for t in ALL}
    assert asks == {
        "ingest": set(),
        "pretrain": {"dataset"},
        "finetune": {"dataset", "encoder_version"},
        "monitor": {"dataset"},
        "rollback": {"to", "reason"},
        "fire-drill": {"dataset"},
    }


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("to", [None, "1", "12"], ["", "0", "latest", "1; rm"]),
        ("dataset", ["latest", "v3", "digits@v3", "0a1b2c"], ["", "v3; rm -rf /", "../x", "a b"]),
        ("encoder_version", [None, "1", "12"], ["", "0", "01", "-1", "latest", "1.5"]),
    ],
)
def test_references_are_held_to_their_pattern(project, field, good, bad):
    fields = form(project, "rollback" if field == "to" else "finetune")
    for value in good:
        assert fields[field].resolve(value) == value
    for value in bad:
        with pytest.raises(ParamValidationError):
            fields[field].resolve(value)


# ---- what comes back


@and_to_roll_back
@pytest.mark.parametrize("file", PROJECTS, ids=lambda file: file.stem)
def test_an_unchanged_form_changes_nothing(file, template):
    project = load_project(file)
    assert overrides(values(project, template), project, template) == {}


@everywhere
def test_a_trigger_without_a_form_changes_nothing(project, template):
    assert overrides({}, project, template) == {}


@everywhere
def test_each_changed_field_is_exactly_that_key(write_project, template):
    """Every field, one after the other, to another value that its own rules allow."""
    path = write_project()
    project = load_project(path)
    together = {"pretrain.when", "data.split.train", "data.split.val", "data.split.test", "data.split.vault"}
    changed = 0
    for key in set(keys(project, template)) - together:
        value = SPECIAL.get(key) or another(form(project, template)[key])
        changes = overrides(values(project, template) | {key: value}, project, template)
        assert list(changes) == [key]
        found: typing.Any = load_project(path, changes, given_by="trigger form")
        for part in key.split("."):
            found = getattr(found, part)
        if key not in ("data.source", "data.labels"):  # a relative path is taken from the file's folder
            assert str(found) == str(value), key
        changed += 1
    assert changed > 3


def another(param) -> typing.Any:
    schema, value = param.schema, param.value
    if "enum" in schema:
        return next(word for word in schema["enum"] if word != value)
    if schema["type"] == "boolean":
        return not value
    if isinstance(value, (int, float)):
        other = value / 2 if schema["type"] != "integer" else value + 1
        return param.resolve(other if other != value else 0.25)
    if "number" in schema["type"] or "pattern" in schema:
        return "16" if "pattern" in schema else 2.5
    return "sample://animals"


@pytest.mark.parametrize(
    ("template", "key", "text", "value"),
    [
        ("finetune", "task.labels", "250", 250),
        ("pretrain", "pretrain.threads", "2", 2),
        ("ingest", "data.channels", "1", 1),
        ("ingest", "data.image_size", "32", 32),
        ("finetune", "promotion.margin", "0.05", 0.05),
    ],
)
def test_a_number_or_a_word_comes_back_as_what_it_is(write_project, template, key, text, value):
    path = write_project()
    project = load_project(path)
    changes = overrides(values(project, template) | {key: text}, project, template)
    assert changes == {key: value}
    assert type(changes[key]) is type(value)
    section, leaf = key.split(".")
    numbered = load_project(path, changes)
    assert getattr(getattr(numbered, section), leaf) == value
    # and from the number back to the word
    word = values(project, template)[key]
    assert overrides(values(numbered, template) | {key: word}, numbered, template) == {key: word}
    assert load_project(path, {key: word}) == project


def test_text_of_digits_stays_text(make_project):
    """A folder may be called 2024."""
    assert asked(make_project(), "ingest", data__source="2024") == {"data.source": "2024"}


@everywhere
def test_an_unknown_field_names_the_one_that_was_meant(project, template):
    key = {"ingest": "data.source", "pretrain": "pretrain.epochs", "finetune": "task.labels"}.get(
        template, "monitor.min_samples"
    )
    with pytest.raises(UserError) as error:
        overrides({key + "s": 3}, project, template)
    assert f"did you mean `{key}`" in str(error.value)
    assert f"trigger form: {key}s" in str(error.value)
    assert "overrides" in error.value.next_step


def test_another_templates_field_is_unknown_here(project):
    with pytest.raises(UserError, match=r"task\.labels"):
        overrides({"task.labels": "5"}, project, "pretrain")


@pytest.mark.parametrize("given", [{"pretrain.seed": 1}, {"pretrain": {"seed": 1}}])
@everywhere
def test_free_overrides_are_nested_or_dotted(project, template, given):
    assert overrides({"overrides": given}, project, template) == {"pretrain.seed": 1}


def test_free_overrides_deep_down(project):
    given = {
        "objective": {"augment": {"crop_scale": [0.3, 1], "flip": True}, "temperature": 0.1},
        "data.split.train": 0.6,
    }
    assert overrides({"overrides": given}, project, "pretrain") == {
        "objective.augment.crop_scale": [0.3, 1],
        "objective.augment.flip": True,
        "objective.temperature": 0.1,
        "data.split.train": 0.6,
    }


@pytest.mark.parametrize("nothing", [{}, None])
def test_no_free_overrides(project, nothing):
    assert overrides({"overrides": nothing}, project, "pretrain") == {}


def test_free_overrides_win_over_the_form(project):
    conf = values(project, "pretrain") | {"pretrain.epochs": 5, "overrides": {"pretrain": {"epochs": 6}}}
    assert overrides(conf, project, "pretrain") == {"pretrain.epochs": 6}


# ---- what is refused

NAN = float("nan")
BAD = [
    ("pretrain", "pretrain.epochs", -1),
    ("pretrain", "pretrain.epochs", 10**30),
    ("pretrain", "pretrain.epochs", 1.5),
    ("pretrain", "pretrain.epochs", NAN),
    ("pretrain", "pretrain.epochs", "many"),
    ("pretrain", "pretrain.epochs", None),
    ("pretrain", "pretrain.epochs", [1]),
    ("pretrain", "pretrain.learning_rate", NAN),
    ("pretrain", "pretrain.learning_rate", float("inf")),
    ("pretrain", "pretrain.learning_rate", 0),
    ("pretrain", "pretrain.learning_rate", {"a": 1}),
    ("pretrain", "pretrain.threads", "0"),
    ("pretrain", "pretrain.threads", "9" * 5000),
    ("pretrain", "pretrain.threads", "²"),
    ("pretrain", "pretrain.threads", "two"),
    ("pretrain", "pretrain.threads", "-2"),
    ("pretrain", "pretrain.when", "never"),
    ("pretrain", "objective.augment.flip", "perhaps"),
    ("pretrain", "objective.augment.rotate", 181),
    ("finetune", "task.labels", "some"),
    ("finetune", "task.label_smoothing", 1),
    ("ingest", "data.channels", "2"),
    ("ingest", "data.source", ""),
    ("ingest", "data.source", "ftp://host/x"),
    ("ingest", "data.image_size", "7"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "key", "value"), BAD, ids=lambda value: repr(value)[:30])
def test_a_bad_value_is_refused_by_the_schema_too(write_project, template, key, value):
    path = write_project()
    project = load_project(path)
    # Whatever a form lets through (NaN, for one); the answer names key and form, not the file.
    with pytest.raises(UserError) as error:
        load_project(path, overrides({key: value}, project, template), given_by="trigger form")
    assert key in str(error.value)
    assert "trigger form" in str(error.value)
    assert str(path) not in str(error.value), "the file is not at fault"


def test_the_form_itself_refuses_most_of_that(project):
    refused = []
    for template, key, value in BAD:
        try:
            form(project, template)[key].resolve(value)
        except ParamValidationError:
            refused.append((key, value))
    assert len(refused) >= len(BAD) - 8
    assert ("pretrain.epochs", -1) in refused
    assert ("pretrain.learning_rate", 0) in refused
    assert ("task.labels", "some") in refused


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({"pretrain": {"epoch": 1}}, "pretrain.epoch", "did you mean `epochs`"),
        ({"pretrian": {"epochs": 1}}, "pretrian", "did you mean `pretrain`"),
        ({"pretrain": 5}, "pretrain", "got 5"),
        ({"pretrain.epochs.x": 5}, "pretrain.epochs.x", "not a section"),
        ({"": 5}, "", "unknown key"),
        ({"objective": {"augment": {"crop_scale": [0.5]}}}, "objective.augment.crop_scale", "equired"),
        ({"validation": {"min_rows": NAN}}, "validation.min_rows", "trigger form"),
    ],
    ids=["key", "section", "no-section", "below-a-value", "no-key", "list", "nan"],
)
def test_free_overrides_are_checked_against_the_whole_schema(write_project, given, key, said):
    path = write_project(pretrain={"epochs": 3})
    changes = overrides({"overrides": given}, load_project(path), "finetune")
    with pytest.raises(UserError) as error:
        load_project(path, changes, given_by="trigger form")
    assert key in str(error.value)
    assert said in str(error.value)
    assert "trigger form" in str(error.value)


def test_a_project_file_can_say_what_the_form_says(write_project):
    """The round trip of a whole form: written as YAML and read again, it is the same project."""
    path = write_project()
    project = load_project(path)
    changes = asked(project, "pretrain", pretrain__epochs=3, pretrain__threads="1", objective__augment__flip=True)
    assert load_project(path, yaml.safe_load(yaml.safe_dump(changes))) == load_project(path, changes)
