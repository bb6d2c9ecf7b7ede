"""From registration to promotion, and every way in which it can go wrong in between."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from safetensors.torch import load_file, save_file

from ssl_core.contracts import Approval, RunContext, Verdict
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.registry import afresh, promote, register, versions
from ssl_core.registry.ledger import Ledger
from tests.registry.conftest import World, write_classifier

ASK_AFRESH = afresh.require_golden  # before a fixture replaces it


def ledger(world: World) -> Ledger:
    return Ledger(world.store, "tiny")


def test_first_champion_and_its_successor(world: World) -> None:
    first = world.register("a", right=150)
    assert world.aliases() == {"challenger": "1"}
    report, given = world.gate(first)
    assert report.verdict is Verdict.PROMOTE
    assert report.champion_version is None
    promoted = world.promote(given)
    assert "version 1 is the champion" in promoted.summary
    assert promoted.news
    assert world.aliases() == {"champion": "1"}
    assert world.aliases("tiny-encoder") == {"champion": "1"}

    report, given = world.gate(world.register("b", right=170, dataset=2))
    assert report.champion_version == "1"
    assert report.metrics["difference"] == pytest.approx(0.1)
    world.promote(given)
    assert world.aliases() == {"champion": "2", "previous": "1"}
    assert [(e.action, e.model_version, e.replaced_version) for e in ledger(world).entries()] == [
        ("PROMOTED", "1", None),
        ("PROMOTED", "2", "1"),
    ]
    tags = world.client.get_model_version("tiny", "2").tags
    assert tags["ssl.verdict"] == "PROMOTE"
    assert tags["ssl.ledger"] == "2"

    # The same data and recipe again: the same verdict, and nothing new.
    again, given = world.gate(world.register("c", right=200, dataset=2))
    assert again.verdict is Verdict.PROMOTE
    assert "already decided in ledger entry 2" in again.reasons[0]
    promoted = world.promote(given)
    assert "nothing new" in promoted.summary
    assert not promoted.news
    assert world.aliases()["champion"] == "2"
    assert len(ledger(world).entries()) == 2


def test_a_second_try_tells_what_the_first_one_could_not(world: World) -> None:
    _, given = world.gate(world.register("a", right=150))
    world.promote(given)  # cut off after the entry: Airflow never saw its end
    world.runs -= 1  # the same DAG run tries again
    again = world.promote(given)
    assert "nothing new" in again.summary
    assert again.news, "or nobody would ever wake up for this champion"


def test_a_worse_challenger_is_rejected_and_recorded(world: World) -> None:
    world.promote(world.gate(world.register("a", right=180))[1])
    report, given = world.gate(world.register("b", right=120, dataset=2))
    assert report.verdict is Verdict.REJECT
    rejected = world.promote(given)
    assert "was rejected" in rejected.summary
    assert not rejected.news, "the champion is the one of before"
    assert world.aliases() == {"champion": "1"}
    assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "REJECTED"]
    with pytest.raises(UserError, match="the gate rejected it"):
        promote.decide(world.settings, "tiny", given["gate_report"].sha256, "PROMOTED", RunContext(run_id="r"))


def test_not_above_random_init_is_no_champion(world: World) -> None:
    report, given = world.gate(world.register("a", right=40, random_right=90))
    assert report.verdict is Verdict.REJECT
    world.promote(given)
    assert world.aliases() == {}


def test_a_person_decides_by_digest(world: World, make_project: Callable[..., Any]) -> None:
    human = make_project(encoder={"widths": [8]}, promotion={"approval": "human"})
    report, given = world.gate(world.register("a", right=150), project=human)
    assert report.verdict is Verdict.NEEDS_HUMAN
    digest = given["gate_report"].sha256
    waiting = world.promote(given)
    assert not waiting.news
    summary = waiting.summary
    assert f"ssl-core promote tiny --approve {digest[:12]}" in summary
    assert ledger(world).entries() == []
    assert world.aliases() == {"challenger": "1"}
    with pytest.raises(UserError, match="no gate reports"):
        promote.decide(world.settings, "tiny", "0" * 12, "PROMOTED", RunContext(run_id="r"))
    with pytest.raises(UserError, match="not a digest"):
        promote.decide(world.settings, "tiny", "abc", "PROMOTED", RunContext(run_id="r"))
    outcome = promote.decide(world.settings, "tiny", digest[:12], "PROMOTED", RunContext(run_id="r", user="ada"))
    assert outcome.entry is not None
    assert (outcome.entry.user, outcome.entry.report_digest) == ("ada", digest)
    assert world.aliases() == {"champion": "1"}
    assert "nothing new" in promote.decide(world.settings, "tiny", digest[:12], "DECLINED", RunContext(run_id="r")).text


def test_the_command_decides(world: World, make_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from ssl_core.cli.promote import promote as command

    human = make_project(encoder={"widths": [8]}, promotion={"approval": "human"})
    _, given = world.gate(world.register("a", right=150), project=human)
    monkeypatch.setenv("SSL_HOME", str(world.settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.settings.mlflow_tracking_uri)
    for arguments in (["tiny"], ["tiny", "--approve", "a" * 8, "--decline", "a" * 8], ["tiny", "--approve", "0" * 64]):
        assert isinstance(CliRunner().invoke(command, arguments).exception, UserError)
    done = CliRunner().invoke(command, ["tiny", "--approve", given["gate_report"].sha256[:12].upper()])
    assert done.exit_code == 0
    assert "tiny version 1 is the champion (ledger entry 1)" in done.output
    assert world.aliases() == {"champion": "1"}


def test_declined_stays_declined(world: World, make_project: Callable[..., Any]) -> None:
    human = make_project(encoder={"widths": [8]}, promotion={"approval": "human"})
    inputs = world.register("a", right=150)
    _, given = world.gate(inputs, project=human)
    promote.decide(world.settings, "tiny", given["gate_report"].sha256, "DECLINED", RunContext(run_id="r"))
    assert world.aliases() == {}
    world.promote(world.gate(inputs)[1])
    assert [e.action for e in ledger(world).entries()] == ["DECLINED"]
    assert world.aliases() == {}


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_crash_between_the_alias_writes_is_mended(world: World, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    world.promote(world.gate(world.register("a", right=150))[1])
    inputs = world.register("b", right=180, dataset=2)
    _, given = world.gate(inputs)
    real, done = versions.set_alias, []

    def dying(*arguments: Any) -> bool:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(versions, "set_alias", dying)
        with pytest.raises(KeyboardInterrupt):
            world.promote(given)
    # Asked between crash and repair, the gate takes the ledger's champion, whatever the alias says.
    entries = ledger(world).entries()
    assert promote.current_champion(world.client, "tiny", entries) == ("2" if len(entries) == 2 else "1")
    world.promote(world.gate(inputs)[1])
    world.promote(world.gate(inputs)[1])
    assert world.aliases() | {"challenger": "2"} == {"champion": "2", "previous": "1", "challenger": "2"}
    assert len(ledger(world).entries()) == 2


def test_an_alias_moved_by_hand_is_put_back(world: World) -> None:
    inputs = world.register("a", right=150)
    world.promote(world.gate(inputs)[1])
    world.register("b", right=180, dataset=2)
    world.client.set_registered_model_alias("tiny", "champion", "2")
    result = world.promote(world.gate(inputs)[1])
    assert "tiny@champion is version 1 again, as the ledger says" in result.summary
    assert world.aliases()["champion"] == "1"


def test_two_promotions_at_once_make_one_champion(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = world.gate(world.register("a", right=150, dataset=1))
    _, two = world.gate(world.register("b", right=160, dataset=2))
    world.promote(two)
    with pytest.raises(CheckFailed, match="the champion is version 2, but the report compares with none"):
        world.promote(one)
    assert world.aliases()["champion"] == "2"
    assert len(ledger(world).entries()) == 1


def test_a_promotion_that_another_one_overtakes_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found the same champion; the other is done while this one loads its model."""
    world.champion("a", 150)
    _, one = world.gate(world.register("b", right=170, dataset=2))
    _, two = world.gate(world.register("c", right=180, dataset=3))

    def meanwhile(uri: str, golden: Path) -> float:
        if uri == "models:/tiny/2":
            monkeypatch.setattr(versions, "replay_golden", lambda uri, golden: 0.0)
            world.promote(two)
        return 0.0

    monkeypatch.setattr(versions, "replay_golden", meanwhile)
    with pytest.raises(CheckFailed, match="the champion is version 3, but the report compares with 1"):
        world.promote(one)
    assert world.aliases()["champion"] == "3"
    assert [(e.action, e.model_version) for e in ledger(world).entries()] == [("PROMOTED", "1"), ("PROMOTED", "3")]


def test_a_champion_that_fails_by_its_alias_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.promote(world.gate(world.register("a", right=150))[1])
    inputs = world.register("b", right=180, dataset=2)
    _, given = world.gate(inputs)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "replay_golden", lambda uri, golden: 0.5 if uri.endswith("@champion") else 0.0)
        with pytest.raises(CheckFailed, match="version 1 is the champion again"):
            world.promote(given)
    assert world.aliases() == {"champion": "1", "challenger": "2"}
    assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "PROMOTED", "ROLLED_BACK"]
    report, _ = world.gate(inputs)
    assert report.verdict is Verdict.REJECT
    assert "ROLLED_BACK" in report.reasons[0]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("fault", [TryAgain("the disk is full"), KeyboardInterrupt()], ids=["try-again", "crash"])
def test_a_champion_that_could_not_be_asked_is_asked_by_the_next_call(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: BaseException, broken: bool
) -> None:
    world.promote(world.gate(world.register("a", right=150))[1])
    inputs = world.register("b", right=180, dataset=2)
    _, given = world.gate(inputs)
    asked: list[str] = []

    def cut_off(uri: str, golden: Path) -> float:
        if uri.endswith("@champion"):
            raise fault
        return 0.0

    def replay(uri: str, golden: Path) -> float:
        asked.append(uri)
        return 0.5 if broken else 0.0

    with monkeypatch.context() as patch:
        patch.setattr(versions, "replay_golden", cut_off)
        with pytest.raises(type(fault)):
            world.promote(given)
    assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "PROMOTED"], "no word on the model"
    monkeypatch.setattr(versions, "replay_golden", replay)
    if broken:
        with pytest.raises(CheckFailed, match="version 1 is the champion again"):
            world.promote(world.gate(inputs)[1])
        assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "PROMOTED", "ROLLED_BACK"]
        assert world.aliases()["champion"] == "1"
    else:
        assert "version 2, promoted in ledger entry 2, now answered" in world.promote(world.gate(inputs)[1]).summary
        assert world.aliases() == {"champion": "2", "previous": "1"}
    assert asked == ["models:/tiny@champion"]
    world.promote(world.gate(inputs)[1])
    assert len(asked) == 1, "and is not asked for ever"


_FAILED = "The following failures occurred while downloading one or more artifacts from x:\n"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), TryAgain),
        (requests.ConnectionError("refused"), TryAgain),
        (MlflowException(_FAILED + "503 Server Error: Unavailable for url"), TryAgain),
        (MlflowException(_FAILED + "IncompleteRead(10 bytes read, 90 more expected)"), TryAgain),
        (MlflowException(_FAILED + "404 Client Error: NOT FOUND for url"), CheckFailed),
        (MlflowException("alias champion not found", RESOURCE_DOES_NOT_EXIST), CheckFailed),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), CheckFailed),
    ],
)
@pytest.mark.parametrize("place", ["download", "load"])
def test_only_the_models_own_faults_fail_it(
    place: str, fault: Exception, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise fault

    def wrap(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("while loading") from fault

    save_file({"pixels": torch.zeros(1, 1, 8, 8), "features": torch.zeros(1, 4)}, tmp_path / "golden.safetensors")
    if place == "download":
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fail)
    else:
        expected = TryAgain if getattr(fault, "errno", None) == errno.ENOSPC else CheckFailed
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda **options: options["dst_path"])
        assert mlflow.pyfunc.load_model  # MLflow imports it on first use, which would undo the patch
        monkeypatch.setattr(mlflow.pyfunc, "load_model", wrap)
    with pytest.raises(expected, match="while loading" if place == "load" else None):
        versions.replay_golden("models:/tiny@champion", tmp_path / "golden.safetensors")


def test_a_full_temporary_disk_is_not_the_models_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    save_file({"pixels": torch.zeros(1, 1, 8, 8), "features": torch.zeros(1, 4)}, tmp_path / "golden.safetensors")
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(TryAgain, match="no temporary folder"):
        versions.replay_golden("models:/tiny@champion", tmp_path / "golden.safetensors")


def test_the_champion_answers_by_its_alias(real_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the fresh process is one."""
    import mlflow

    asked: list[str] = []
    monkeypatch.setattr(
        afresh, "require_golden", lambda s, uri, golden: asked.append(uri) or ASK_AFRESH(s, uri, golden)
    )

    from ssl_core.serving.image_package import PACKAGE
    from tests.registry.conftest import golden_pixels

    inputs = real_world.register("a", right=150)
    real_world.promote(real_world.gate(inputs)[1])
    assert asked == ["models:/tiny@champion"]
    answer = mlflow.pyfunc.load_model("models:/tiny@champion").predict(PACKAGE.request({"pixels": golden_pixels(1)}))
    wanted = load_file(real_world.store.fetch(inputs["registered_model"]) / "golden.safetensors")["probabilities"]
    assert [list(row.values()) for row in answer["probabilities"]] == pytest.approx(wanted.double().numpy(), abs=1e-6)


def test_what_does_not_load_never_enters_the_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, given = world.gate(world.register("a", right=150))
    monkeypatch.setattr(versions, "replay_golden", lambda uri, golden: 1.0)
    with pytest.raises(CheckFailed, match="does not answer as the trained network did"):
        world.promote(given)
    assert ledger(world).entries() == []
    assert "champion" not in world.aliases()


def test_a_broken_ledger_stops_promotion(world: World) -> None:
    world.promote(world.gate(world.register("a", right=150))[1])
    world.promote(world.gate(world.register("b", right=170, dataset=2))[1])
    path = Path(world.store.path("ledger/tiny/00000001.json"))
    document = json.loads(path.read_text()) | {"user": "mallory"}
    path.chmod(0o644)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckFailed, match="broken at entry 1"):
        world.gate(world.register("c", right=180, dataset=3))


# ---- registration


def test_registered_versions_load_and_hold_their_lineage(real_world: World) -> None:
    import mlflow

    inputs = real_world.register("a", right=150)
    ref = inputs["registered_model"]
    version = real_world.client.get_model_version("tiny", "1")
    assert versions.to_ref(version) == ref
    assert real_world.store.fetch(ref).is_dir()
    assert version.tags["ssl.dataset"] == "tiny@v1"
    assert version.tags["ssl.encoder_version"] == "1"
    assert version.tags["ssl.evaluation_sha256"] == inputs["evaluation"].sha256
    assert "| 10 | 0.500 (0.400 to 0.600) | - | 0.800 (0.700 to 0.900) |" in version.description
    model = mlflow.pyfunc.load_model("models:/tiny@challenger")
    assert model.metadata.get_input_schema().input_names() == ["image"]
    requirements = Path(mlflow.artifacts.download_artifacts("models:/tiny/1/requirements.txt")).read_text()
    assert "torch==2" in requirements
    assert "+cpu" not in requirements
    run = real_world.client.get_run(ref.run_id)
    assert run.data.tags["ssl.dataset"] == "tiny@v1"
    assert "model_card.md" in [a.path for a in real_world.client.list_artifacts(ref.run_id)]


def test_swapped_weights_are_refused(real_world: World) -> None:
    inputs = real_world.model_inputs("a", right=150)

    def swapped(folder: Path) -> None:
        write_classifier(folder, real_world.project, seed=0)
        golden = load_file(folder / "golden.safetensors")
        write_classifier(folder, real_world.project, seed=1)
        save_file(golden, folder / "golden.safetensors")

    inputs["model"] = real_world.put("finetune", "swapped", "model", swapped)
    with pytest.raises(CheckFailed, match="does not answer as the trained network did"):
        real_world.step("register", register.register_model, inputs)
    assert real_world.versions() == []


def test_weights_changed_in_the_store_are_refused(world: World) -> None:
    inputs = world.model_inputs("a", right=150)
    head = Path(world.store.path(inputs["model"].uri)) / "head.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in load_file(head).items()}, head)
    with pytest.raises(TryAgain, match="differs from its digest"):
        world.step("register", register.register_model, inputs)
    assert world.versions() == []


def test_a_missing_golden_batch_is_refused(world: World) -> None:
    inputs = world.model_inputs("a", right=150)
    inputs["model"] = world.put(
        "finetune", "bare", "model", lambda f: (write_classifier(f, world.project), (f / "golden.safetensors").unlink())
    )
    with pytest.raises(CheckFailed, match="golden batch is missing"):
        world.step("register", register.register_model, inputs)


def test_a_crash_between_log_and_register_makes_one_version(real_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    inputs = real_world.model_inputs("a", right=150)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            real_world.step("register", register.register_model, inputs, key="same")
    assert real_world.versions() == []
    with monkeypatch.context() as patch:  # and a second crash, right after the version was made
        patch.setattr(versions, "to_ref", lambda version: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            real_world.step("register", register.register_model, inputs, key="same")
    assert len(real_world.versions()) == 1
    result = real_world.step("register", register.register_model, inputs, key="same")
    assert result.outputs["registered_model"].version == "1"
    assert len(real_world.versions()) == 1
    assert real_world.aliases() == {"challenger": "1"}


def test_still_registered(world: World) -> None:
    result = world.register_encoder()
    assert register.still_registered(result, world.settings)
    world.client.delete_model_version("tiny-encoder", "1")
    assert not register.still_registered(result, world.settings)


def test_a_name_that_belongs_to_something_else_is_refused(world: World) -> None:
    world.client.create_registered_model("tiny-encoder")
    with pytest.raises(UserError, match="belongs to something else"):
        world.register_encoder()


# ---- a person's answer, from Airflow


def open_question(world: World, make_project: Callable[..., Any], name: str = "a", **how: Any) -> tuple[Any, Any]:
    """A challenger that waits for a person: the gate's inputs, and what promote takes."""
    human = make_project(encoder={"widths": [8]}, promotion={"approval": "human"}, evaluate={"bootstrap": 500})
    inputs = world.register(name, right=150, **how)
    report, given = world.gate(inputs, project=human)
    assert report.verdict is Verdict.NEEDS_HUMAN
    return inputs, given


@pytest.mark.parametrize(
    ("approval", "action", "user", "words", "alias"),
    [
        (
            Approval(answer="approve", user="ada", comment="fine"),
            "PROMOTED",
            "ada",
            "is the champion: fine",
            "champion",
        ),
        (Approval(answer="decline", user="ada"), "DECLINED", "ada", "was declined by ada", None),
        (
            Approval(answer="decline", user="ada", comment="unfair"),
            "DECLINED",
            "ada",
            "was declined by ada: unfair",
            None,
        ),
        (Approval(answer="expired"), "EXPIRED", "nobody", "nobody decided in time", None),
    ],
)
def test_the_answer_is_recorded_everywhere(
    world: World,
    make_project: Callable[..., Any],
    approval: Approval,
    action: str,
    user: str,
    words: str,
    alias: str | None,
) -> None:
    _, given = open_question(world, make_project)
    result = world.promote(given, approval)
    assert words in result.summary
    assert result.news is (action == "PROMOTED")
    (entry,) = ledger(world).entries()
    assert (entry.action, entry.user, entry.report_digest) == (action, user, given["gate_report"].sha256)
    assert entry.reasons[0] == (f"ada: {approval.comment}" if approval.comment else entry.reasons[0])
    assert world.aliases() == ({alias: "1"} if alias else {})
    tags = world.client.get_model_version("tiny", "1").tags
    assert (tags["ssl.action"], tags["ssl.decided_by"], tags["ssl.ledger"]) == (action, user, "1")
    experiment = world.client.get_experiment_by_name("tiny").experiment_id
    (run,) = world.client.search_runs([experiment], "tags.`ssl.step` = 'promote'")
    assert run.data.tags["ssl.action"] == action
    assert words in run.data.tags["mlflow.note.content"]
    kept = mlflow.artifacts.load_text(
        f"runs:/{world.client.get_model_version('tiny', '1').run_id}/ledger/00000001.json"
    )
    assert kept.encode() == world.store.read("ledger/tiny/00000001.json"), "MLflow's copy of the entry"


def test_an_answer_to_what_the_gate_decided_changes_nothing(world: World) -> None:
    world.promote(world.gate(world.register("a", right=150))[1], Approval(answer="decline", user="ada"))
    assert world.aliases() == {"champion": "1"}, "nobody was asked"
    world.promote(world.gate(world.register("b", right=90, dataset=2))[1], Approval(answer="approve", user="ada"))
    assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "REJECTED"]


def test_the_command_line_was_faster_than_the_answer(world: World, make_project: Callable[..., Any]) -> None:
    _, given = open_question(world, make_project)
    promote.decide(world.settings, "tiny", given["gate_report"].sha256, "PROMOTED", RunContext(run_id="r", user="bob"))
    result = world.promote(given, Approval(answer="expired"))
    assert "nothing new to promote, ledger entry 1 (PROMOTED by bob)" in result.summary
    assert result.news, "this run has to tell of the champion that its report made"
    assert len(ledger(world).entries()) == 1


def test_what_expired_may_still_be_decided_by_a_person_but_by_no_run(
    world: World, make_project: Callable[..., Any]
) -> None:
    inputs, given = open_question(world, make_project)
    world.promote(given, Approval(answer="expired"))
    digest = given["gate_report"].sha256
    world.promote(world.gate(inputs)[1], Approval(answer="approve", user="ada"))
    assert [e.action for e in ledger(world).entries()] == ["EXPIRED"]
    done = promote.decide(
        world.settings, "tiny", digest, "PROMOTED", RunContext(run_id="r", user="bob"), "was on holiday"
    )
    assert "tiny version 1 is the champion: was on holiday (ledger entry 2)" in done.text
    assert world.aliases() == {"champion": "1"}
    assert "nothing new" in promote.decide(world.settings, "tiny", digest, "DECLINED", RunContext(run_id="r")).text


def test_an_approval_that_comes_after_another_champion_is_refused(
    world: World, make_project: Callable[..., Any]
) -> None:
    _, given = open_question(world, make_project)
    world.champion("b", 170, dataset=2)
    with pytest.raises(CheckFailed, match="the champion is version 2, but the report compares with none"):
        world.promote(given, Approval(answer="approve", user="ada"))
    world.promote(given, Approval(answer="decline", user="ada"))
    assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "DECLINED"]


# ---- MLflow away, artifacts gone, a ledger that was changed

_CALLS = (
    "get_model_version", "get_model_version_by_alias", "set_registered_model_alias", "delete_registered_model_alias",
    "set_model_version_tag", "log_text",
)  # fmt: skip


def test_mlflow_away_at_any_moment_costs_a_try_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nth request of each try is the one that fails, for n = 0, 1, 2, ...: each request of a promotion is once the last that got through."""
    from mlflow import MlflowClient

    world.champion("a", 150)
    _, given = world.gate(world.register("b", right=180, dataset=2))
    world.runs -= 1
    left = [0]

    def failing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise requests.ConnectionError("Connection refused")
            left[0] -= 1
            return method(*arguments, **options)

        return call

    tries, said = 0, set()
    with monkeypatch.context() as patch:
        for name in _CALLS:
            patch.setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))
        while True:
            left[0] = tries
            try:
                world.runs = 100  # one DAG run, which tries again
                result = world.promote(given)
                break
            except TryAgain as error:
                said.add(error.cause)
            tries += 1
    assert tries > 10
    assert all("MLflow cannot be reached" in cause for cause in said)
    assert result.news
    assert world.aliases() == {"champion": "2", "previous": "1"}
    assert [e.action for e in ledger(world).entries()] == ["PROMOTED", "PROMOTED"]
    assert world.client.get_model_version("tiny", "2").tags["ssl.ledger"] == "2"


def test_a_champion_whose_artifacts_were_deleted_stops_nobody(world: World) -> None:
    world.champion("a", 150)
    world.store.remove("tiny/finetune/a")
    world.store.remove("tiny/evaluate/a")
    report, given = world.gate(world.register("b", right=180, dataset=2))
    assert report.verdict is Verdict.NEEDS_HUMAN, "there is nothing to compare with"
    world.promote(given, Approval(answer="approve", user="ada"))
    assert world.aliases() == {"champion": "2", "previous": "1"}
    with pytest.raises(UserError, match="the weights of version 1 are not in the store any more"):
        world.roll_back()


def test_a_challenger_whose_artifacts_were_deleted_is_not_promoted(world: World) -> None:
    _, given = world.gate(world.register("a", right=150))
    world.store.remove("tiny/finetune/a")
    with pytest.raises(TryAgain, match="missing from the store"):
        world.promote(given)
    assert ledger(world).entries() == []
    assert "champion" not in world.aliases()


@pytest.mark.parametrize("fault", ["changed", "removed"])
def test_the_newest_entry_is_held_by_the_registry(world: World, fault: str) -> None:
    """No other entry has its digest."""
    world.champion("a", 150)
    world.champion("b", 170, dataset=2)
    _, given = world.gate(world.register("c", right=190, dataset=3))
    path = Path(world.store.path("ledger/tiny/00000002.json"))
    path.chmod(0o644)
    if fault == "changed":
        path.write_text(path.read_text().replace('"user": "tester"', '"user": "mallory"'))
    else:
        path.unlink()
    with pytest.raises(CheckFailed, match=r"chain is broken at entry 2: it (was changed|is missing)"):
        world.promote(given)
    with pytest.raises(CheckFailed, match="broken at entry 2"):
        world.roll_back()
    assert world.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}


# ---- asked afresh


@pytest.fixture
def with_difference(tmp_path: Path) -> Callable[[str], Callable[..., None]]:
    """``with_difference(code)``: ``afresh.require_golden`` whose fresh process runs ``code`` in place of the replay."""

    def prepare(code: str) -> Callable[..., None]:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(
            "import sys, types\n"
            "def patch():\n"
            "    from ssl_core.registry import client, versions\n"
            "    import os, signal\n"
            "    from ssl_core.errors import CheckFailed, TryAgain\n"
            f"    def replay(uri, golden):\n        {code}\n"
            "    versions.replay_golden = replay\n"
            "    client.connect = lambda settings: None\n"
            "patch()\n"
        )
        return lambda settings: ASK_AFRESH(settings, "models:/tiny@champion", tmp_path / "golden")

    return prepare


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("return 0.0", None, ""),
        ("return 0.5", CheckFailed, "does not answer as the trained network did"),
        ("raise TryAgain('the disk is full', place='here')", TryAgain, "here: the disk is full"),
        ("raise ZeroDivisionError", TryAgain, "ended with exit code 1: ZeroDivisionError"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", CheckFailed, "ended its process with signal 11"),
        ("os.kill(os.getpid(), signal.SIGKILL)", TryAgain, "was killed, perhaps out of memory"),
    ],
    ids=["well", "differs", "try again", "defect", "crash", "killed"],
)
def test_what_becomes_of_the_fresh_process_is_told_from_the_models_own_faults(
    settings: Any, with_difference: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    code: str, expected: type[Exception] | None, said: str,
) -> None:  # fmt: skip
    ask = with_difference(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    if expected is None:
        assert ask(settings) == 0.0
        return
    with pytest.raises(expected, match=said):
        ask(settings)
