"""From a version in the registry to its evaluation, as ``ssl-core report`` finds it."""

import json

import pytest
from click.testing import CliRunner

from ssl_core.cli.report import report
from ssl_core.errors import UserError
from ssl_core.registry import versions
from ssl_core.registry.evaluations import find_evaluation


def test_the_champions_evaluation_is_found_and_an_explicit_version_wins(world):
    first = world.register("a", 180)["registered_model"]
    second = world.register("b", 150)["registered_model"]
    with pytest.raises(UserError, match="no champion yet"):
        find_evaluation(world.settings, "tiny")
    versions.set_alias(world.client, "tiny", versions.CHAMPION, first.version)
    found = find_evaluation(world.settings, "tiny")
    assert (found.version, found.alias, found.dataset) == (first.version, "champion", "tiny@v1")
    assert json.loads((found.folder / "evaluation.json").read_text())["model"]["accuracy"] == 0.9
    other = find_evaluation(world.settings, "tiny", second.version)
    assert json.loads((other.folder / "evaluation.json").read_text())["model"]["accuracy"] == 0.75
    assert other.links["Model"].endswith(f"/models/tiny/versions/{second.version}?workflowType=machine_learning")
    for absent in ("99", "latest"):
        with pytest.raises(UserError, match=f"no version {absent}"):
            find_evaluation(world.settings, "tiny", absent)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"ssl.verdict": "REJECT", "ssl.action": "REJECTED"}, "rejected by the gate"),
        ({"ssl.verdict": "NEEDS_HUMAN"}, "waits for a person"),
        ({"ssl.verdict": "NEEDS_HUMAN", "ssl.action": "DECLINED", "ssl.decided_by": "ada"}, "declined by ada"),
        ({}, "the newest is version"),
    ],
)
def test_versions_without_a_champion_are_named_with_their_state(world, tags, said):
    version = world.register("a", 180)["registered_model"].version
    for name, value in tags.items():
        world.client.set_model_version_tag("tiny", version, name, value)
    with pytest.raises(UserError, match=f"no champion yet: .*{said}") as caught:
        find_evaluation(world.settings, "tiny")
    assert caught.value.next_step == f"ssl-core report tiny --version {version}"


def test_the_gates_own_verdict_is_understood(world):
    """The tags above are those that the gate and promote write."""
    inputs = world.register("a", 20)  # far below random init
    report, decided = world.gate(inputs)
    assert report.verdict == "REJECT"
    world.promote(decided)
    with pytest.raises(UserError, match="rejected by the gate"):
        find_evaluation(world.settings, "tiny")


def test_an_unknown_name_lists_what_there_is(world, tmp_path):
    (tmp_path / "projects").mkdir()
    (tmp_path / "projects" / "plants.yaml").write_text("name: plants\n")
    settings = world.settings.model_copy(update={"projects_dir": tmp_path / "projects"})
    with pytest.raises(UserError, match=r"neither a project nor .*; registered: none\)"):
        find_evaluation(settings, "tini")
    with pytest.raises(UserError, match="project 'plants' has no registered model yet") as caught:
        find_evaluation(settings, "plants")
    assert "ssl-core run plants" in caught.value.next_step
    world.register("a", 180)
    with pytest.raises(UserError, match=r"did you mean `tiny`\? \(projects in .*: plants; registered: tiny\)"):
        find_evaluation(settings, "tini")
    with pytest.raises(UserError, match="neither a project nor"):
        find_evaluation(settings, "it's")
    world.client.create_registered_model("lone-encoder", tags={"ssl.project": "lone"})
    with pytest.raises(UserError, match="project 'lone' has no registered model yet"):
        find_evaluation(settings, "lone")


def test_a_version_without_an_evaluation_says_so(world):
    version = world.register("a", 180)["registered_model"].version
    world.client.delete_model_version_tag("tiny", version, "ssl.evaluation_uri")
    with pytest.raises(UserError, match="no evaluation on record"):
        find_evaluation(world.settings, "tiny", version)


def test_the_command_prints_json_with_version_and_links(world, monkeypatch):
    from tests.evaluation.test_evaluate import REPORT

    version = world.register("a", 180)["registered_model"].version
    monkeypatch.setattr("ssl_core.cli.report.load_settings", lambda: world.settings)
    monkeypatch.setattr("ssl_core.evaluation.report.read_evaluation", lambda folder: REPORT)
    done = CliRunner().invoke(report, ["tiny", "--json", "--version", version], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert (document["version"], document["dataset"]) == (version, "tiny@v1")
    assert document["label_budgets"][0]["pretrained"]["mean"] == 0.9
    table = CliRunner().invoke(report, ["tiny", "--version", version], catch_exceptions=False).stdout
    assert f"tiny version {version}, data tiny@v1" in table
    assert "Model: " in table
