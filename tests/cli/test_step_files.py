"""Steps from result files to result files: what they read, what they leave, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ssl_core.cli import main, step_files
from ssl_core.config.load import load_project
from ssl_core.config.settings import Settings
from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef, Ref, StepResult, StepSpec, StepStatus
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.pipeline import get_step, walk_for
from ssl_core.step import NoProgress
from ssl_core.store import Store, path_sha256

STEPS = walk_for("image")


def dataset(labelled: int = 60) -> DatasetRef:
    return DatasetRef(
        kind="dataset", name="tiny", tag="tiny@v1", revision="r", path="tiny/data", md5="m.dir", remote="/remote",
        sha256="d", producer="publish/k", rows=90, labelled=labelled, classes=3,
    )  # fmt: skip


def encoder(version: str = "1") -> ModelRef:
    return ModelRef(
        kind="registered-encoder", name="tiny-encoder", version=version, model_id="m", run_id="r",
        uri="tiny/pretrain/k/out/encoder", sha256=f"e{version}", producer="pretrain/k",
    )  # fmt: skip


class Bench:
    """A folder of results, a project file, and an executor that notes what it is asked for."""

    def __init__(self, tmp_path: Path, settings: Settings) -> None:
        self.settings = settings
        self.results = tmp_path / "results"
        self.project = tmp_path / "tiny.yaml"
        self.project.write_text("name: tiny\ndata: {source: sample://digits}\n")
        self.specs: list[StepSpec] = []
        self.reusable: ModelRef | None = None
        self.fails: Exception | None = None
        self.cached = False
        self.labelled = 60

    def execute(self, spec: StepSpec, settings: Settings, progress: object) -> StepResult:
        if self.fails:
            raise self.fails
        self.specs.append(spec)
        outputs: dict[str, Ref] = {name: self.artifact(spec.step, name) for name in get_step(spec.step).outputs}
        if "dataset" in outputs:
            outputs["dataset"] = dataset(self.labelled)
        if "registered_encoder" in outputs:
            outputs["registered_encoder"] = encoder()
        return StepResult(
            step=spec.step, key="k", status=StepStatus.DONE, outputs=outputs, cached=self.cached, run_id=spec.run.run_id
        )

    def artifact(self, step: str, name: str) -> ArtifactRef:
        uri = f"tiny/{step}/k/out/{name}.json"
        store = Store(self.settings.store_url, self.settings.cache)
        config = load_project(self.project).model_dump(mode="json")
        store.write(uri, json.dumps(config).encode())
        sha256 = path_sha256(Path(store.path(uri)))
        return ArtifactRef(kind=name, uri=uri, sha256=sha256, producer=f"{step}/k")

    def do(self, name: str, **changes: Any) -> StepResult:
        given = {"project": self.project, "results": self.results, "settings": self.settings} | changes
        return step_files.step_from_files(name, progress=NoProgress(), **given)

    def up_to(self, last: str) -> None:
        for step in STEPS:
            self.do(step.name)
            if step.name == last:
                return

    def read(self, name: str) -> StepResult:
        return StepResult.model_validate_json((self.results / f"{name}.json").read_bytes())


@pytest.fixture
def bench(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path, settings)
    monkeypatch.setattr(step_files, "execute", made.execute)
    monkeypatch.setattr("ssl_core.registry.server.ensure_server", lambda settings, note: "")
    monkeypatch.setattr("ssl_core.registry.client.connect", lambda settings: None)
    monkeypatch.setattr("ssl_core.registry.client.mlflow_errors", lambda settings: nullcontext())
    monkeypatch.setattr("ssl_core.registry.resolve.reusable_encoder", lambda client, store, project: made.reusable)
    return made


def test_the_whole_table_from_file_to_file(bench: Bench) -> None:
    bench.up_to("gate")
    assert [spec.step for spec in bench.specs] == [step.name for step in STEPS][:-1]
    first, *others = bench.specs
    assert first.project["name"] == "tiny"
    config = bench.read("resolve").outputs["config"]
    for spec in others:
        assert (spec.project, spec.config) == ({}, config)
        assert set(spec.inputs) == set(get_step(spec.step, "image").inputs)
    assert {spec.run.run_id for spec in bench.specs} == {bench.read("resolve").run_id}, "one walk, one id"
    assert {spec.run.orchestrator for spec in bench.specs} == {"dvc"}
    assert sorted(p.stem for p in bench.results.iterdir()) == sorted(spec.step for spec in bench.specs)


def test_a_result_says_the_same_whether_it_was_done_now_or_before(bench: Bench) -> None:
    bench.up_to("ingest")
    fresh = (bench.results / "ingest.json").read_bytes()
    bench.cached = True
    bench.do("ingest")
    assert (bench.results / "ingest.json").read_bytes() == fresh


def test_a_reused_encoder_is_handed_on_in_place_of_a_new_one(bench: Bench) -> None:
    bench.reusable = encoder("7")
    bench.up_to("gate")
    for name in ("pretrain", "register-encoder"):
        left = bench.read(name)
        assert left.status is StepStatus.SKIPPED
        assert left.outputs == {"registered_encoder": encoder("7")}
        assert left.summary == "skipped: the registered encoder of this recipe is reused"
        assert left.run_id == bench.read("resolve").run_id
    assert "pretrain" not in [spec.step for spec in bench.specs]
    assert bench.specs[-1].step == "gate"
    assert bench.specs[-1].inputs["registered_encoder"] == encoder("7")


def test_pretrain_is_decided_when_it_is_its_turn(bench: Bench) -> None:
    """DVC does not run resolve again where only data changed: what was registered since must count."""
    bench.up_to("gate")
    bench.reusable = encoder()
    bench.do("pretrain")
    assert bench.read("pretrain").status is StepStatus.SKIPPED
    bench.reusable = None  # removed from the registry
    bench.do("pretrain")
    assert bench.read("pretrain").status is StepStatus.DONE


def test_without_labels_the_rest_is_skipped(bench: Bench) -> None:
    bench.labelled = 0
    bench.up_to("gate")
    assert bench.specs[-1].step == "register-encoder"
    for name in ("finetune", "evaluate", "register", "gate"):
        assert bench.read(name).status is StepStatus.SKIPPED
        assert bench.read(name).outputs == {}
        assert "no labels yet" in bench.read(name).summary
    bench.labelled = 60
    bench.do("publish")
    with pytest.raises(UserError, match=r"evaluate needs model.*\n  next: run finetune \(dvc repro finetune\)"):
        bench.do("evaluate")


def test_an_earlier_result_that_is_missing_names_its_step(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"resolve\.json: the result of resolve is not there\n  next: run resolve"):
        bench.do("ingest")
    bench.up_to("ingest")
    with pytest.raises(UserError, match=r"validate\.json: the result of validate is not there\n  next: run validate"):
        bench.do("publish")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(b"\xff\x00"),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes((path.parent / "resolve.json").read_bytes()),
        lambda path: path.write_text('{"step": "ingest", "key": "k", "status": "done"}'),
        lambda path: path.write_text('{"step": "ingest", "key": "k", "status": "well"}'),
    ],
    ids=["empty", "bytes", "half", "list", "another step's", "no outputs", "status"],
)
def test_a_damaged_result_is_named(bench: Bench, damage: Callable[[Path], object]) -> None:
    bench.up_to("ingest")
    damage(bench.results / "ingest.json")
    with pytest.raises(UserError, match=r"ingest\.json: is not a (step )?result.*\n  next: remove it and run ingest"):
        bench.do("validate")


@pytest.mark.parametrize("text", ["", '{"step": "resolve", "key": "k", "status": "skipped"}'])
def test_a_damaged_result_of_resolve_is_named_and_replaced(bench: Bench, text: str) -> None:
    bench.up_to("ingest")
    (bench.results / "resolve.json").write_text(text)
    with pytest.raises(UserError, match=r"resolve\.json: .*\n  next: remove it and run resolve"):
        bench.do("ingest")
    bench.up_to("ingest")


def test_results_of_another_project_are_refused(bench: Bench, tmp_path: Path) -> None:
    bench.up_to("ingest")
    other = tmp_path / "other.yaml"
    other.write_text("name: other\ndata: {source: sample://digits}\n")
    for name in ("resolve", "ingest"):
        with pytest.raises(UserError, match="holds the results of tiny, not of other"):
            bench.do(name, project=other)
    assert bench.read("resolve").outputs, "and nothing of them is touched"


def test_results_of_another_store_are_refused_until_resolve_runs_there(bench: Bench, tmp_path: Path) -> None:
    bench.up_to("ingest")
    bench.settings = Settings(home=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"of another store than file://.*elsewhere/store\n  next: set SSL_HOME"):
        bench.do("ingest")
    assert (bench.results / "ingest.json").exists()
    bench.up_to("ingest")


def test_a_failed_check_leaves_its_report_and_stops_what_comes_after(bench: Bench) -> None:
    bench.up_to("ingest")
    report = StepResult(step="validate", key="k", status=StepStatus.CHECK_FAILED, summary="too few rows")
    bench.fails = CheckFailed("bad")
    bench.fails.result = report
    with pytest.raises(CheckFailed):
        bench.do("validate")
    assert bench.read("validate") == report
    bench.fails = None
    with pytest.raises(UserError, match=r"validate\.json: validate did not pass its check\n  next: read its summary"):
        bench.do("publish")


@pytest.mark.parametrize("name", ["resolve", "validate"])
def test_a_step_that_fails_leaves_no_result_of_before(bench: Bench, name: str) -> None:
    bench.up_to("validate")
    bench.fails = TryAgain("MLflow cannot be reached")
    with pytest.raises(TryAgain):
        bench.do(name)
    assert not (bench.results / f"{name}.json").exists()
    assert not list(bench.results.glob("*.tmp"))


def test_a_folder_that_is_a_file_is_named(bench: Bench) -> None:
    bench.results.write_text("")
    for name in ("resolve", "ingest"):
        with pytest.raises(UserError, match=r"results/resolve\.json: cannot be (written|read): Not a directory"):
            bench.do(name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resolve", "--project", "tiny.yaml"], "--project FILE and --results DIR go together"),
        (["resolve", "--results", "r"], "--project FILE and --results DIR go together"),
        (["resolve", "--project", "", "--results", "r"], "go together"),
        (["resolve", "--project", "none.yaml", "--results", "r"], "none.yaml: no such project file"),
        (["resolv", "--project", "tiny.yaml", "--results", "r"], "no step called 'resolv', did you mean `resolve`?"),
        (["ingest", "--project", "tiny.yaml", "--results", "r"], "r/resolve.json: the result of resolve is not there"),
        (["ingest"], "SSL_STEP_SPEC: is not set"),
    ],
)
def test_the_command_says_what_is_wrong(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(bench.project.parent)
    done = CliRunner().invoke(main, ["step", *arguments])
    assert (done.exit_code, says in done.output.replace("\n", " ")) == (2, True), done.output


def test_the_command_writes_the_result_and_a_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.project.parent)
    monkeypatch.setenv("SSL_HOME", str(bench.settings.home))
    done = CliRunner().invoke(main, ["step", "resolve", "--project", "tiny.yaml", "--results", "deep/er"])
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert "resolve: done" in done.stderr
    assert StepResult.model_validate_json(Path("deep/er/resolve.json").read_bytes()).step == "resolve"
