"""Step ``monitor``: what arrived since the champion's data, is it what the champion knows? Its exit code is 0 whatever it finds.

Each dataset version after the champion's is a window, judged once and in order: tests on embeddings, columns, the champion's
answers and, where there are labels, how good they are; from these the kind of change and what helps against it. Only an alarm
that fine-tuning helps against, and that no cool-down or cap holds back, is news: it wakes ``finetune``.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ssl_core.contracts import DatasetRef
from ssl_core.data import reader
from ssl_core.data.dataset import (
    INFO_FILE,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    DatasetInfo,
    manifest_schema,
    read_manifest_file,
)
from ssl_core.data.table import SampleTable
from ssl_core.data.windows import new_windows, version_number
from ssl_core.modalities import noun
from ssl_core.monitoring import document as doc
from ssl_core.monitoring.record import Records
from ssl_core.monitoring.report import JSON_FILE, write
from ssl_core.monitoring.seen import Champion, require_artifacts
from ssl_core.monitoring.triage import Evidence, triage
from ssl_core.monitoring.watch import Watch, unjudged
from ssl_core.registry import versions
from ssl_core.registry.answers import encoder_of, registered
from ssl_core.registry.client import connect, mlflow_errors
from ssl_core.registry.gate import current_champion
from ssl_core.registry.ledger import Ledger
from ssl_core.step import Output, StepContext, StepOutput


def run(ctx: StepContext) -> StepOutput:
    """Judges all windows that are not on record yet; writes ``drift.json``, ``.html`` and ``.png`` of the last one.

    Raises:
        UserError: the champion's files, or its version in MLflow, are gone.
        TryAgain: MLflow or the storage cannot be reached.
    """
    dataset: DatasetRef = ctx.input("dataset")
    champion = find_champion(ctx, dataset)
    if champion is None:
        reason = "there is no champion yet: nothing to compare with"
        return _publish(ctx, unjudged(ctx, dataset, None, doc.Window(name=_name(dataset), rows=dataset.rows), reason))
    require_artifacts(ctx, champion.model, champion.encoder)
    table = read_table(ctx, dataset)
    if isinstance(table, list):  # not on record: with a release that knows the schema it is judged
        window = doc.Window(name=_name(dataset), rows=dataset.rows)
        finding = triage(Evidence(samples=0, exceeded=None, schema=table), ctx.project.monitor)
        report = unjudged(ctx, dataset, champion, window, "").model_copy(update={"finding": finding})
        return _publish(ctx, report, is_new=True)
    first_versions = table.manifest["first_version"]
    latest = version_number(dataset.tag or "") or (int(first_versions.max()) if len(table) else 0)
    windows = new_windows(table.manifest, champion.version, latest)
    if not windows:
        reason = f"nothing arrived since v{champion.version}, which the champion was trained on"
        return _publish(ctx, unjudged(ctx, dataset, champion, doc.Window(name=_name(dataset), rows=0), reason))
    records = Records(ctx.store, ctx.project.name)
    known = {one.number for one in records.of(champion.model.version)}
    watch = Watch(ctx, dataset, champion, table, records)
    for one in windows:
        if one.number not in known:
            records.add(champion.model.version, one, watch.judge(one, last=one is windows[-1]))
    there = records.of(champion.model.version)
    now = next(one for one in there if one.number == windows[-1].number)
    # Another try of the run that found it must not lose the alarm; another run must not raise it again.
    made = _publish(ctx, now.report, is_new=now.run_id == ctx.run.run_id)
    # Of several windows that were judged in this run, an earlier one may be what somebody has to be told of.
    alerts = [_alert(one.report) for one in there if one.run_id == ctx.run.run_id]
    made.alert = made.alert or next(filter(None, reversed(alerts)), "")
    return made


def find_champion(ctx: StepContext, dataset: DatasetRef) -> Champion | None:
    """The project's champion; None where there is none yet. ``UserError`` where the registry lost it or its encoder."""
    with mlflow_errors(ctx.settings):
        client = connect(ctx.settings)
        number = current_champion(client, ctx.project.name, Ledger(ctx.store, ctx.project.name).entries())
        if number is None:
            return None
        entry = registered(ctx, number)
        encoder = encoder_of(ctx, entry)
        source = versions.get_version(client, encoder.name, encoder.version)
    known = version_number(entry.tags.get("ssl.dataset", "")) or _version_by_content(ctx, dataset, entry.tags)
    seen = version_number(source.tags.get("ssl.dataset", "")) if source is not None else None
    return Champion(versions.to_ref(entry), encoder, known, min(known, seen or known), entry)


def _version_by_content(ctx: StepContext, dataset: DatasetRef, tags: dict[str, str]) -> int:
    """The newest version in a dataset that was trained on before it was published: it was a candidate then."""
    then = dataset.model_copy(update={"md5": tags.get("ssl.dataset_md5", dataset.md5), "tag": None})
    manifest = reader.read_manifest(then, ctx.settings)
    return int(manifest["first_version"].max()) if len(manifest) else 0


def read_table(ctx: StepContext, dataset: DatasetRef) -> SampleTable | list[str]:
    """The rows of a dataset version; or how its schema differs from what this release reads, in words."""
    info_file = reader.fetch_file(dataset, ctx.settings, INFO_FILE)
    found = json.loads(info_file.read_bytes())
    written = found.get("schema_version") if isinstance(found, dict) else None
    if written != SCHEMA_VERSION:
        return [f"dataset.json has the schema {written}, this release reads {SCHEMA_VERSION}"]
    try:
        info = DatasetInfo.model_validate(found)
    except ValidationError as error:
        return [f"dataset.json: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
    manifest_file = reader.fetch_file(dataset, ctx.settings, MANIFEST_FILE)
    differences = _schema_differences(manifest_schema(ctx.project.modality), pq.read_schema(manifest_file))
    return differences or SampleTable(read_manifest_file(manifest_file), list(info.classes), info.label_type)


def _schema_differences(known: pa.Schema, found: pa.Schema) -> list[str]:
    words = [f"the column {name} is missing" for name in known.names if name not in found.names]
    words += [f"the column {name} is new" for name in found.names if name not in known.names]
    both = [name for name in known.names if name in found.names]
    return words + [
        f"the column {name} holds {found.field(name).type} and used to hold {known.field(name).type}"
        for name in both
        if found.field(name).type != known.field(name).type
    ]


def _name(dataset: DatasetRef) -> str:
    return (dataset.tag or dataset.revision).rpartition("@")[2]


def _publish(ctx: StepContext, report: doc.DriftReport, *, is_new: bool = False) -> StepOutput:
    """Writes the report in all its forms."""
    write(report, ctx.out)
    links = {}
    for path in sorted(ctx.out.iterdir()):
        link = ctx.tracker.artifact(path)
        if link and path.suffix == ".html":
            links["Drift report"] = link
    metrics = {"samples": float(report.window.rows), "alarm": float(report.alarm)}
    if report.embedding is not None:
        metrics |= {"drift_auc": report.embedding.auc, "drift_mmd": report.embedding.mmd}
    if report.performance is not None:
        metrics["window_quality"] = report.performance.quality
    ctx.tracker.metrics(metrics)
    ctx.tracker.tags({"ssl.drift": report.finding.kind, "ssl.window": report.window.name})
    return StepOutput(
        outputs={"drift": Output("drift-report", JSON_FILE)}, metrics=metrics, links=links,
        summary=_summary(ctx, report), news=report.retrain and is_new, alert=_alert(report),  # told once, as long as it lasts
    )  # fmt: skip


def _summary(ctx: StepContext, report: doc.DriftReport) -> str:
    words = report.finding.kind.replace("-", " ")
    lines = [
        f"{report.window.name}, {report.window.rows:,} {noun(ctx.project.modality)}: {words}"
        + (" (alarm)" if report.alarm else "")
    ]
    lines += report.finding.reasons[:3]
    if report.retrain:
        lines.append("fine-tuning again is called for")
    elif report.held_back:
        lines.append(f"no retraining: {report.held_back}")
    return "\n".join(lines)


def _alert(report: doc.DriftReport) -> str:
    """What a person has to be told of: broken data at once, anything else where it is an alarm."""
    finding = report.finding
    if report.held_back.startswith("cap"):
        return f"drift: {report.held_back}"
    if finding.kind == "data-bug" or (report.alarm and finding.who == "person"):
        return f"{finding.kind}: {report.window.name}: {'; '.join(finding.reasons[:2])}"
    return ""
