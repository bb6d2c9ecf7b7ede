"""Step ``fire-drill``: do the guards still catch what they are there for? Faults are planted under throw-away names, and must be found.

Planted are, from the champion itself and real samples: a challenger whose answers are shuffled over the samples, a stale one, a copy
of the champion, a better one (a gate that turns down everything guards nothing), a ledger with a changed entry, windows from one
corner of the known world, and one that is like the reference. The gate and the monitor judge them by the project's own rules;
nothing of the project's is changed, and what was planted is removed in the end.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.contracts import ArtifactRef, DatasetRef, GateReport, ModelRef, StepResult, StepStatus, Verdict
from ssl_core.data.table import SampleTable
from ssl_core.data.windows import Window, reference_of, version_number
from ssl_core.errors import CheckFailed
from ssl_core.evaluation.predictions import Predictions, make_predictions, write_predictions
from ssl_core.monitoring.monitor import find_champion, read_table
from ssl_core.monitoring.record import Records
from ssl_core.monitoring.seen import Champion, Seen, require_artifacts
from ssl_core.monitoring.watch import Watch
from ssl_core.registry import gate, versions
from ssl_core.registry.answers import PREDICTIONS_FILE, answers
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.ledger import Ledger
from ssl_core.step import NoTracker, Output, StepContext, StepOutput
from ssl_core.store import path_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

SPOILED = 0.2
"""Share of the champion's answers that are made wrong, for a challenger that is surely better."""
CORNER = 0.3
"""Share of the reference that makes a window: those nearest to one sample, or drawn at random."""


@dataclass(frozen=True)
class Drill:
    """One planted fault and what came of it."""

    planted: str
    expected: str
    found: str
    passed: bool


def run(ctx: StepContext) -> StepOutput:
    """Writes ``drill.json`` and ``drill.md``. Raises ``CheckFailed`` with both where a guard missed something."""
    dataset: DatasetRef = ctx.input("dataset")
    champion = find_champion(ctx, dataset)
    table = read_table(ctx, dataset)
    if champion is None or isinstance(table, list):
        reason = f"the dataset cannot be read: {table[0]}" if isinstance(table, list) else "there is no champion yet"
        return _output(ctx, [], f"no drill: {reason}")
    require_artifacts(ctx, champion.model, champion.encoder)
    name = f"{ctx.project.name}-drill-{uuid.uuid4().hex[:8]}"
    # The vault is not worn out by drills; and answers that are spoiled are calibrated better than good ones may be.
    promotion = ctx.project.promotion.model_copy(
        update={"approval": "auto", "vault": False, "max_calibration_loss": 1.0}
    )
    project = ctx.project.model_copy(update={"name": name, "promotion": promotion})
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        planted = _Planted(replace(ctx, project=project, tracker=NoTracker()), client, champion)
        try:
            done = [*planted.challengers(), planted.ledger()]
            ctx.progress.note(f"{len(done)} planted challengers and entries judged")
            done += windows(replace(ctx, tracker=NoTracker()), name, dataset, champion, table)
        finally:
            planted.remove()
    missed = [one for one in done if not one.passed]
    words = f"{len(done)} faults and controls planted, " + (
        f"{len(missed)} MISSED: {', '.join(one.planted for one in missed)}" if missed else "every guard did its work"
    )
    output = _output(ctx, done, words)
    if missed:
        raise CheckFailed(
            words,
            place=f"{ctx.project.name}: fire-drill",
            next_step="promote nothing before the guard works again: the report says what was expected and what came",
            output=output,
        )
    return output


class _Planted:
    """A registered model, a ledger and evaluations of a name that is thrown away."""

    def __init__(self, ctx: StepContext, client: MlflowClient, champion: Champion) -> None:
        self._ctx, self._client, self._champion = ctx, client, champion
        self._name = ctx.project.name
        self._answers = answers(ctx, champion.model)

    def challengers(self) -> list[Drill]:
        """The gate on planted challengers of a champion that is the project's own, spoiled."""
        known = self._champion.entry.tags.get("ssl.dataset", "")
        dataset: DatasetRef = self._ctx.input("dataset")
        random = np.random.default_rng(0)
        good = self._answers
        self._client.create_registered_model(self._name, tags={"ssl.project": self._name})
        same = self._champion.model
        other = self._other_weights()
        self._register(same, spoil(good, SPOILED, random), dataset=known)
        self._client.set_registered_model_alias(self._name, versions.CHAMPION, "1")
        shuffled = make_predictions(
            good.sample_ids, good.labels, random.permutation(good.scores), good.classes, good.split,
            label_type=good.label_type, targets=good.targets, spread=good.spread,
        )  # fmt: skip
        drills = [
            self._drill("a challenger whose answers are shuffled", "not promoted", other, shuffled),
            self._drill("a copy of the champion", "rejected", same, good),
            self._drill("a better challenger", "not rejected", other, good),
        ]
        number = version_number(dataset.tag or "") or 0
        self._client.set_model_version_tag(self._name, "1", "ssl.dataset", f"{dataset.name}@v{number + 1}")
        drills.append(self._drill("a stale challenger", "rejected", other, good))
        return drills

    def ledger(self) -> Drill:
        """A ledger whose first entry was changed after the second was written."""
        ledger = Ledger(self._ctx.store, self._name)
        for number in (1, 2):
            ledger.append(lambda _, number=number: {
                "action": "REJECTED", "model_version": str(number), "encoder_version": "", "dataset": f"drill@v{number}", "recipe": "drill",
                "verdict": Verdict.REJECT, "reasons": ["planted"], "report_digest": "0" * 64, "user": self._ctx.run.user, "run": self._ctx.run,
            })  # type: ignore[misc]  # fmt: skip
        first = f"ledger/{self._name}/{1:08d}.json"
        raw = self._ctx.store.read(first) or b""
        self._ctx.store.write(first, raw.replace(b'"planted"', b'"changed"'))
        try:
            ledger.entries()
            found = "not noticed"
        except CheckFailed as error:
            found = error.cause
        return Drill("a changed entry in the ledger", "noticed", found, found != "not noticed")

    def remove(self) -> None:
        """Everything under the throw-away name."""
        from mlflow.exceptions import MlflowException

        for root in (self._name, f"ledger/{self._name}", f"monitor/{self._name}"):
            self._ctx.store.remove(root)
        try:
            self._client.delete_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _drill(self, planted: str, expected: str, weights: ModelRef, predictions: Predictions) -> Drill:
        dataset: DatasetRef = self._ctx.input("dataset")
        challenger, evaluation = self._register(weights, predictions, dataset=dataset.tag or "")
        inputs = {**self._ctx.inputs, "registered_model": challenger, "evaluation": evaluation}
        with self._ctx.store.scratch() as out:
            gate.run(replace(self._ctx, inputs=inputs, out=out))
            report = GateReport.model_validate_json((out / "gate.json").read_bytes())
        # Of a small test set the gate may say that a person has to look.
        right = {
            "not promoted": report.verdict is not Verdict.PROMOTE, "rejected": report.verdict is Verdict.REJECT,
            "not rejected": report.verdict is not Verdict.REJECT,
        }  # fmt: skip
        return Drill(planted, expected, f"{report.verdict.value}: {report.reasons[0]}", right[expected])

    def _register(self, weights: ModelRef, predictions: Predictions, *, dataset: str) -> tuple[ModelRef, ArtifactRef]:
        """A version with these weights and this evaluation, in all else as the champion was registered."""
        key = uuid.uuid4().hex
        evaluation = self._publish("evaluate", key, lambda out: write_predictions(out / PREDICTIONS_FILE, predictions))
        tags = self._champion.entry.tags | {
            "ssl.project": self._name, "ssl.golden": "passed", "ssl.dataset": dataset, "ssl.recipe": f"drill-{key}", "ssl.uri": weights.uri, "ssl.sha256": weights.sha256,
            "ssl.evaluation_uri": evaluation.uri, "ssl.evaluation_sha256": evaluation.sha256, "ssl.evaluation_producer": evaluation.producer,
        }  # fmt: skip
        entry = self._champion.entry
        made = self._client.create_model_version(
            self._name,
            str(entry.source),
            run_id=entry.run_id,
            model_id=entry.tags.get("ssl.model_id") or None,
            tags=tags,
        )
        return versions.to_ref(made), evaluation

    def _other_weights(self) -> ModelRef:
        """The champion's folder, in weight files with other bytes and the same numbers: no copy, as far as digests tell."""
        from safetensors.numpy import load_file, save_file

        source = self._ctx.store.fetch(self._champion.model)

        def write(out: Path) -> None:
            shutil.copytree(source, out, dirs_exist_ok=True)
            for path in out.rglob("*.safetensors"):
                tensors = load_file(path)
                path.unlink()
                save_file(tensors, path, metadata={"format": "pt", "drill": self._name})

        ref = self._publish("finetune", uuid.uuid4().hex, write)
        return self._champion.model.model_copy(update={"uri": ref.uri, "sha256": ref.sha256, "name": self._name})

    def _publish(self, step: str, key: str, write: Callable[[Path], None]) -> ArtifactRef:
        """What ``write`` puts into a folder, in the store."""
        store = self._ctx.store
        with store.scratch() as scratch:
            out = scratch / "out"
            (out / "planted").mkdir(parents=True)
            write(out / "planted")
            uri = f"{store.folder(self._name, step, key)}/out/planted"
            ref = ArtifactRef(kind="planted", uri=uri, sha256=path_sha256(out / "planted"), producer=f"{step}/{key}")
            result = StepResult(step=step, key=key, status=StepStatus.DONE, outputs={"planted": ref})
            store.publish(self._name, result, out)
        return ref


def spoil(predictions: Predictions, share: float, random: np.random.Generator) -> Predictions:
    """The same answers, but for a share of the samples, which get those of other samples."""
    chosen = random.permutation(len(predictions.scores))[: round(share * len(predictions.scores))]
    scores = predictions.scores.copy()
    scores[chosen] = np.roll(scores[chosen], 1, axis=0)[:, ::-1]
    return replace(predictions, scores=scores)


def windows(ctx: StepContext, name: str, dataset: DatasetRef, champion: Champion, table: SampleTable) -> list[Drill]:
    """The monitor on windows that are made of reference samples: from one corner of them, and from all of them."""
    config = ctx.project.monitor
    reference = reference_of(table.manifest, champion.version).rows
    size = round(CORNER * len(reference))
    if size < config.min_samples or len(reference) - size < config.min_samples:
        few = f"{len(reference)} reference samples are too few for windows of {config.min_samples}"
        return [Drill("drifted and quiet windows", "alarm, no alarm", f"not planted: {few}", True)]
    embedded = Seen(ctx, dataset, champion, table).embeddings(reference)
    spread = np.maximum(embedded.std(axis=0), 1e-6)
    away = np.square((embedded - embedded[0]) / spread).sum(axis=1)
    corner = reference[np.sort(np.argsort(away, kind="stable")[:size])]
    times = config.alarm_windows  # as often as an alarm takes: thresholds that are far too low would make one of either
    draws = [np.random.default_rng(number).permutation(len(reference))[:size] for number in range(times)]
    anywhere = [reference[np.sort(draw)] for draw in draws]
    drifted = _judged(ctx, f"{name}/corner", dataset, champion, table, [corner] * times)
    quiet = _judged(ctx, f"{name}/anywhere", dataset, champion, table, anywhere)
    return [
        Drill(f"{config.alarm_windows} windows from one corner of the known world", "alarm", drifted, drifted.startswith("alarm")),
        Drill("windows like the reference", "no alarm", quiet, quiet.startswith("no alarm")),
    ]  # fmt: skip


def _judged(
    ctx: StepContext, name: str, dataset: DatasetRef, champion: Champion, table: SampleTable, arriving: list[np.ndarray]
) -> str:
    """What the monitor says in the end when the samples at these rows arrive as windows, one after the other."""
    records = Records(ctx.store, name)
    for number, rows in enumerate(arriving, start=champion.version + 1):
        manifest = table.manifest.copy()
        first_version = manifest["first_version"].to_numpy().copy()
        first_version[rows] = champion.version + 1  # what arrives is no part of the reference
        manifest["first_version"] = first_version
        planted = SampleTable(manifest, list(table.classes), table.label_type)
        window = Window(f"v{number}", number, rows)
        watch = Watch(ctx, dataset, champion, planted, records)
        record = records.add(champion.model.version, window, watch.judge(window, last=False))
    report = record.report
    score = "not judged" if record.score is None else f"score {record.score:.2f}"
    return f"{'alarm' if report.alarm else 'no alarm'}: {report.finding.kind}, {score}"


def _output(ctx: StepContext, done: list[Drill], words: str) -> StepOutput:
    document = {
        "schema_version": 1,
        "project": ctx.project.name,
        "words": words,
        "drills": [asdict(one) for one in done],
    }
    (ctx.out / "drill.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = [f"| {one.planted} | {one.expected} | {one.found} | {'ok' if one.passed else 'MISSED'} |" for one in done]
    lines = [f"# Fire drill: {words}", "", "| planted | expected | what came | |", "|---|---|---|---|", *rows]
    report = ctx.out / "drill.md"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    link = ctx.tracker.artifact(report)
    missed = sum(not one.passed for one in done)
    ctx.tracker.metrics({"planted": float(len(done)), "missed": float(missed)})
    return StepOutput(
        outputs={"drill": Output("drill-report", "drill.json")}, metrics={"planted": float(len(done)), "missed": float(missed)},
        links={"Fire drill": link} if link else {}, summary=words, news=bool(done),
        alert=f"fire-drill: {words}" if missed else "",
    )  # fmt: skip
