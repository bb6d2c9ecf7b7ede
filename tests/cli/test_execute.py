import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from ssl_core.cli.execute import execute
from ssl_core.contracts import Approval, ArtifactRef, RunContext, RunRequest, StepSpec, StepStatus, Verdict
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.pipeline import Step
from ssl_core.step import NoTracker, Output, StepContext, StepOutput
from ssl_core.store import Store, path_sha256

calls: list[str] = []
outside = {"fingerprint": "a", "holds": True}


def make(ctx: StepContext) -> StepOutput:
    calls.append("make")
    (ctx.out / "made").mkdir()
    (ctx.out / "made" / "x.txt").write_text(str(ctx.project.pretrain.epochs))
    return StepOutput({"thing": Output("thing", "made")}, metrics={"a": 1.0}, summary="made")


def judge(ctx: StepContext) -> StepOutput:
    assert ctx.request == RunRequest(template="finetune", dataset="v3")
    assert ctx.approval == Approval(answer="decline", user="ada")
    assert (ctx.rollback_to, ctx.reason) == ("3", "it is slow")
    return StepOutput(news=False, verdict=Verdict.REJECT, alert="data-bug: look")


def refuse(ctx: StepContext) -> StepOutput:
    calls.append("refuse")
    (ctx.out / "report.html").write_text("why")
    raise CheckFailed("bad", output=StepOutput({"thing": Output("report", "report.html")}, summary="it is bad"))


def crash(ctx: StepContext) -> StepOutput:
    (ctx.out / "half").write_text("half")
    raise RuntimeError("a defect")


def wait(ctx: StepContext) -> StepOutput:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    time.sleep(30)
    return StepOutput()


def wait_and_save(ctx: StepContext) -> StepOutput:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    assert ctx.stop.wait(10)
    calls.append("saved")
    raise TryAgain("stopped at step 7")


def ignore_stop(ctx: StepContext) -> StepOutput:
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    time.sleep(30)
    return StepOutput()


def fingerprint(project: object) -> str:
    return outside["fingerprint"]


def holds(result: object, settings: object) -> bool:
    return outside["holds"]


@contextmanager
def no_run(*_arguments):
    yield NoTracker()


def frozen(settings, project) -> ArtifactRef:
    """The configuration as resolve leaves it in the store."""
    store, uri = store_of(settings), "tiny/resolve/k/out/config.json"
    store.write(uri, json.dumps(project).encode())
    return ArtifactRef(kind="config", uri=uri, sha256=path_sha256(Path(store.path(uri))), producer="resolve/k")


@pytest.fixture
def do(settings, make_project, monkeypatch):
    """``do(function, **step fields)``: executes a step of this file."""
    calls.clear()
    outside.update(fingerprint="a", holds=True)
    monkeypatch.setattr("ssl_core.registry.tracking.open_run", no_run)

    def run(function, epochs=1, by_reference=False, **fields):
        row = Step(
            "thing-maker",
            "x",
            f"{__name__}:{function.__name__}",
            "Makes a thing.",
            outputs=("thing",),
            config=("name", "pretrain"),
            **fields,
        )
        monkeypatch.setattr("ssl_core.cli.execute.get_step", lambda name, modality: row)
        project = make_project(pretrain={"epochs": epochs}).model_dump(mode="json")
        given = {"config": frozen(settings, project)} if by_reference else {"project": project}
        return execute(StepSpec(step="thing-maker", run=RunContext(run_id="r"), **given), settings)

    return run


def store_of(settings) -> Store:
    return Store(settings.store_url, settings.cache)


def test_a_step_is_done_once(do, settings):
    first, second = do(make), do(make)
    assert calls == ["make"]
    assert (first.cached, second.cached) == (False, True)
    assert second.outputs == first.outputs
    assert (store_of(settings).fetch(first.outputs["thing"]) / "x.txt").read_text() == "1"


def test_another_configuration_or_outside_world_is_another_step(do):
    do(make)
    do(make, epochs=2)
    do(make, fingerprint=f"{__name__}:fingerprint")
    outside["fingerprint"] = "b"
    do(make, fingerprint=f"{__name__}:fingerprint")
    assert len(calls) == 4


def test_a_record_that_no_longer_holds_outside_is_done_again(do):
    do(make, verify=f"{__name__}:holds")
    outside["holds"] = False
    do(make, verify=f"{__name__}:holds")
    assert len(calls) == 2


def test_an_uncached_step_is_always_done(do):
    do(make, cached=False)
    do(make, cached=False)
    assert len(calls) == 2


def test_a_failed_check_leaves_its_report_and_is_tried_afresh(do, settings):
    for _ in range(2):
        with pytest.raises(CheckFailed) as caught:
            do(refuse)
    assert calls == ["refuse", "refuse"]
    result = caught.value.result
    assert result.status is StepStatus.CHECK_FAILED
    assert store_of(settings).fetch(result.outputs["thing"]).read_text() == "why"


def test_a_defect_leaves_nothing(do, settings):
    with pytest.raises(RuntimeError):
        do(crash)
    store = Path(store_of(settings).root)
    assert not list(store.rglob("result.json"))
    assert not list(store.rglob("half"))


def test_sigterm_ends_a_plain_step_at_once(do):
    start = time.monotonic()
    with pytest.raises(TryAgain, match="SIGTERM"):
        do(wait)
    assert time.monotonic() - start < 5


def test_sigterm_asks_a_resumable_step_first(do):
    with pytest.raises(TryAgain, match="step 7"):
        do(wait_and_save, resumable=True)
    assert calls == ["saved"]


def test_a_resumable_step_that_does_not_answer_is_ended(do):
    start = time.monotonic()
    with pytest.raises(TryAgain, match="SIGTERM"):
        do(ignore_stop, resumable=True)
    assert 2.5 < time.monotonic() - start < 60


def test_signal_handlers_are_put_back(do):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    do(make)
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]


def test_missing_inputs_and_unknown_steps_are_named(settings, make_project):
    project = make_project().model_dump(mode="json")
    with pytest.raises(UserError, match="no step called 'nope'"):
        execute(StepSpec(step="nope", project=project, run=RunContext(run_id="r")), settings)
    with pytest.raises(UserError, match="pretrain needs dataset"):
        execute(StepSpec(step="pretrain", project=project, run=RunContext(run_id="r")), settings)


def test_the_frozen_configuration_is_the_configuration(do, settings):
    whole, named = do(make, epochs=3), do(make, epochs=3, by_reference=True)
    assert named.cached, "the same configuration is the same key, however it was given"
    assert named.outputs == whole.outputs
    assert do(make, epochs=4, by_reference=True).key != whole.key
    assert (store_of(settings).fetch(named.outputs["thing"]) / "x.txt").read_text() == "3"


def test_a_frozen_configuration_that_is_gone_changed_or_broken(settings, make_project):
    project = make_project().model_dump(mode="json")
    ref = frozen(settings, project)
    spec = StepSpec(step="ingest", config=ref, run=RunContext(run_id="r"))
    frozen(settings, project | {"owner": "somebody else"})
    with pytest.raises(TryAgain, match="differs from its digest"):
        execute(spec, settings)
    store_of(settings).remove(ref.uri)
    with pytest.raises(TryAgain, match="missing from the store"):
        execute(spec, settings)
    broken = StepSpec(step="ingest", config=frozen(settings, {"name": "tiny"}), run=RunContext(run_id="r"))
    with pytest.raises(UserError, match="the run's frozen configuration: data: is required"):
        execute(broken, settings)


def test_a_spec_has_one_configuration(settings, make_project):
    project = make_project().model_dump(mode="json")
    run = RunContext(run_id="r")
    for given in ({}, {"project": {}}, {"project": project, "config": frozen(settings, project)}):
        with pytest.raises(ValidationError, match="give either project or config"):
            StepSpec(step="ingest", run=run, **given)
    with pytest.raises(ValidationError, match="template"):
        RunRequest(template="resolve")


def test_what_is_asked_reaches_the_step_and_what_it_says_the_result(do, settings, make_project):
    assert do(make).news is True
    assert do(make).verdict is None
    row = Step("thing-maker", "x", f"{__name__}:judge", "Judges.", config=("name",))
    spec = StepSpec(
        step="thing-maker",
        project=make_project().model_dump(mode="json"),
        run=RunContext(run_id="r7"),
        request=RunRequest(template="finetune", dataset="v3"),
        approval=Approval(answer="decline", user="ada"),
        rollback_to="3",
        reason="it is slow",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_core.cli.execute.get_step", lambda name, modality: row)
        result = execute(spec, settings)
    assert (result.news, result.verdict, result.alert, result.run_id) == (False, Verdict.REJECT, "data-bug: look", "r7")
    kept = store_of(settings).result("tiny", "thing-maker", result.key)
    assert kept == result, "and the record of it"
