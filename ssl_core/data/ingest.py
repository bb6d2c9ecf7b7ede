"""The step ``ingest``: from a source to an untagged candidate in the data repository.

The source is read twice: once to decode, measure and compare every sample, once to write the content in the dataset's
order. In between only measures and small traces are kept, about a kilobyte a sample, so memory does not follow the
size of the content. What cannot be used is listed with its reason; nothing is committed unless everything went well.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.config.data import DataConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, StepResult
from ssl_core.data import dataset, duplicates, splits
from ssl_core.data.kinds import BadSample, Decoded, Kind
from ssl_core.data.sources import Item, Refused
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.modalities import noun, part
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.store import storage_errors

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 64
_THREADS = min(4, os.cpu_count() or 1)
_SHOWN = 10


@dataclass(slots=True)
class _Sample:
    """One usable sample, without its content."""

    item: Item
    position: int  # among the source's items, and in the array of traces
    digest: bytes  # of the item's bytes, to notice a file that changes between the two readings
    sample_id: str
    measures: Mapping[str, Any]
    label: str | None


@dataclass(frozen=True)
class _Problem:
    file: str
    reason: str


def fingerprint(project: ProjectConfig) -> str:
    """Changes whenever the source may have changed; reads no sample."""
    kind: Kind = part(project.modality, "kind")
    return kind.open(project, None).fingerprint()


def run(ctx: StepContext) -> StepOutput:
    """Reads the source and commits a candidate.

    Raises ``UserError`` for a missing, empty or wrongly labelled source, ``CheckFailed`` (with the list of files) where more than
    ``data.max_quarantined`` cannot be used, ``TryAgain`` where storage fails, files change underneath, or the process is stopped.
    """
    from ssl_core.data.reader import read_manifest
    from ssl_core.data.repository import DataRepository

    started = time.monotonic()
    project, config = ctx.project, ctx.project.data
    kind: Kind = part(project.modality, "kind")
    source = kind.open(project, ctx.settings.cache)
    source.sync(ctx.progress, ctx.stop)
    repository = DataRepository(ctx.settings, ctx.progress)
    latest = repository.latest(project.name)
    before = read_manifest(latest, ctx.settings) if latest else None

    traces = np.empty((len(source), *kind.trace_shape), dtype=kind.trace_type)
    found, quarantined = _read(ctx, kind, source.items(), len(source), traces)
    samples, conflicts = _drop_copies(found, before)
    report = _write_report(ctx, config, len(source), quarantined, conflicts)
    _judge(ctx, len(source), samples, quarantined, report)

    pairs = _pairs(kind, found, samples, traces, project)
    manifest = _manifest(samples, pairs, config, before, _number(latest) + 1)
    by_id = {sample.sample_id: sample for sample in samples}
    ordered = [by_id[sample_id] for sample_id in manifest["sample_id"]]
    with ctx.store.scratch() as scratch, storage_errors(str(scratch)):
        with ctx.progress.bar("write shards", len(ordered), noun(project.modality)) as bar:

            def next_row() -> None:
                _check_stop(ctx.stop)
                bar.advance()

            info = dataset.write_dataset(
                scratch / "data",
                manifest,
                lambda row: kind.stored(_read_again(ordered[row])),
                name=project.name,
                modality=project.modality,
                classes=_classes(config, samples),
                label_type=config.label_type,
                quarantined=len(quarantined),
                duplicates=len(found) - len(samples),
                on_row=next_row,
            )
        candidate = repository.commit_candidate(project.name, scratch / "data", f"ingest/{ctx.key}", parent=latest)
    report.outputs["candidate"] = candidate
    report.metrics |= {
        "rows": info.rows,
        "labelled": info.labelled,
        "classes": len(info.classes),
        "duplicates": info.duplicates,
        "near_duplicate_groups": info.near_duplicate_groups,
        "quarantined": info.quarantined,
        "seconds": round(time.monotonic() - started, 3),
    }
    added = int((~manifest["sample_id"].isin(before["sample_id"])).sum()) if before is not None else len(manifest)
    report.summary = _summary(info, noun(project.modality), latest, added) + report.summary
    return report


def still_there(result: StepResult, settings: Settings) -> bool:
    """Whether the candidate that ``result`` names can still be published, and its content is in the DVC remote."""
    from ssl_core.data.reader import is_stored
    from ssl_core.data.repository import DataRepository

    candidate = result.outputs.get("candidate")
    return (
        isinstance(candidate, DatasetRef)
        and is_stored(candidate, settings)
        and DataRepository(settings).is_publishable(candidate)
    )


# ---- reading


def _read(
    ctx: StepContext, kind: Kind, items: Iterator[Item], count: int, traces: np.ndarray
) -> tuple[list[_Sample], list[_Problem]]:
    """Decodes all items on a few threads, a bounded number at a time, in order. Fills ``traces``."""
    samples: list[_Sample] = []
    problems: list[_Problem] = []
    numbered = enumerate(items)
    abandoned = threading.Event()  # after Ctrl-C, the threads end with the sample at hand
    pending: deque[Future[list[_Sample | _Problem]]] = deque()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ingest")
    try:
        with ctx.progress.bar(f"read {noun(kind.name)}", count, noun(kind.name)) as bar:
            while True:
                while len(pending) < 2 * _THREADS and (chunk := list(islice(numbered, _CHUNK))):
                    pending.append(pool.submit(_decode_chunk, kind, chunk, ctx.project, traces, (ctx.stop, abandoned)))
                if not pending:
                    return samples, problems
                outcome = pending.popleft().result()
                for one in outcome:
                    if isinstance(one, _Sample):
                        samples.append(one)
                    else:
                        problems.append(one)
                bar.advance(len(outcome), quarantined=len(problems))
    finally:
        abandoned.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(
    kind: Kind,
    chunk: Sequence[tuple[int, Item]],
    project: ProjectConfig,
    traces: np.ndarray,
    stops: tuple[threading.Event, ...],
) -> list[_Sample | _Problem]:
    outcome: list[_Sample | _Problem] = []
    for position, item in chunk:
        _check_stop(*stops)
        try:
            data = item.read()
            decoded: Decoded = kind.decode(data, project)
        except (Refused, BadSample) as error:
            outcome.append(_Problem(item.name, str(error)))
            continue
        traces[position] = decoded.trace
        outcome.append(_Sample(item, position, _digest(data), decoded.sample_id, decoded.measures, item.label))
    return outcome


def _read_again(sample: _Sample) -> bytes:
    try:
        data = sample.item.read()
    except Refused as error:
        raise _changed(sample) from error
    if _digest(data) != sample.digest:
        raise _changed(sample)
    return data


def _changed(sample: _Sample) -> TryAgain:
    return TryAgain(
        "the file changed while it was being ingested; nothing was committed",
        place=sample.item.name,
        next_step="run ingest again once the source is at rest",
    )


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _check_stop(*stops: threading.Event) -> None:
    if any(stop.is_set() for stop in stops):
        raise TryAgain("told to stop; nothing was committed", next_step="run ingest again")


# ---- from files to rows


def _drop_copies(found: list[_Sample], before: pd.DataFrame | None) -> tuple[list[_Sample], list[_Problem]]:
    """One sample for each content: the copy that the last version knew, or else the first by name."""
    names = dict(zip(before["sample_id"], before["source"], strict=True)) if before is not None else {}
    copies: dict[str, list[_Sample]] = {}
    for sample in found:
        copies.setdefault(sample.sample_id, []).append(sample)
    kept: list[_Sample] = []
    conflicts: list[_Problem] = []
    for sample_id, group in copies.items():
        chosen = next((sample for sample in group if sample.item.name == names.get(sample_id)), group[0])
        labels = sorted({sample.label for sample in group if sample.label is not None})
        chosen.label = labels[0] if len(labels) == 1 else None
        if len(labels) > 1:
            listed = ", ".join(f"{sample.item.name} is {sample.label!r}" for sample in group[:_SHOWN])
            conflicts.append(
                _Problem(chosen.item.name, f"copies of one sample have different labels, kept without label: {listed}")
            )
        kept.append(chosen)
    return kept, conflicts


def _classes(config: DataConfig, samples: list[_Sample]) -> list[str]:
    """As configured, or else the labels found, sorted."""
    if config.classes:
        return list(config.classes)
    labels = {sample.label for sample in samples if sample.label is not None}
    if config.label_type == "number":
        return []
    return sorted(labels if config.label_type == "class" else {name for label in labels for name in json.loads(label)})


def _pairs(
    kind: Kind, found: list[_Sample], samples: list[_Sample], traces: np.ndarray, project: ProjectConfig
) -> np.ndarray:
    """Pairs ``(P, 2)`` of ``samples`` that must stay on one side: near-duplicates, and parts of one document.

    A part that is a copy of another document's, and was dropped for it, ties the two documents together: hence ``found``.
    """
    numbers = {sample.sample_id: number for number, sample in enumerate(samples)}
    parts: dict[str, list[int]] = {}
    for sample in found:
        if sample.item.document:
            parts.setdefault(sample.item.document, []).append(numbers[sample.sample_id])
    pairs = [np.empty((0, 2), dtype=np.int64)]
    pairs += [np.stack([together[:-1], together[1:]], axis=1) for together in parts.values() if len(together) > 1]
    if project.data.near_duplicates:
        pairs.append(kind.near_duplicates(traces[[sample.position for sample in samples]], project))
    return np.concatenate(pairs)


def _manifest(
    samples: list[_Sample], pairs: np.ndarray, config: DataConfig, before: pd.DataFrame | None, version: int
) -> pd.DataFrame:
    """The rows of the new version in their order; what the last version knew keeps its group, arrival and first version."""
    import pandas as pd

    known: dict[str, Any] = {str(row.sample_id): row for row in before.itertuples()} if before is not None else {}
    now = pd.Timestamp(datetime.now(UTC)).as_unit("us")
    groups = duplicates.assign_groups(
        [sample.sample_id for sample in samples],
        pairs,
        {key: (row.first_version, row.group) for key, row in known.items()},
    )
    rows = [
        {
            "sample_id": sample.sample_id,
            "split": splits.side(group, config.split),
            "group": group,
            "label": sample.label,
            "source": sample.item.name,
            "arrived_at": known[sample.sample_id].arrived_at if sample.sample_id in known else now,
            "first_version": known[sample.sample_id].first_version if sample.sample_id in known else version,
            **sample.measures,
        }
        for sample, group in zip(samples, groups, strict=True)
    ]
    frame = pd.DataFrame(rows)
    frame["label"] = frame["label"].astype(object)
    return frame.sort_values(["first_version", "sample_id"], ignore_index=True)


def _number(ref: DatasetRef | None) -> int:
    return int(ref.tag.rsplit("@v", 1)[1]) if ref and ref.tag else 0


# ---- reports


def _write_report(
    ctx: StepContext, config: DataConfig, files: int, quarantined: list[_Problem], conflicts: list[_Problem]
) -> StepOutput:
    """``quarantine/quarantine.json`` and ``.csv`` in the step's output."""
    folder = ctx.out / "quarantine"
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        listing = {
            "files": files,
            "limit": config.max_quarantined,
            "quarantined": [{"file": p.file, "reason": p.reason} for p in quarantined],
            "conflicting_labels": [{"file": p.file, "reason": p.reason} for p in conflicts],
        }
        (folder / "quarantine.json").write_text(
            json.dumps(listing, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        with (folder / "quarantine.csv").open("w", newline="", encoding="utf-8") as text:
            csv.writer(text).writerows([("file", "reason"), *((p.file, p.reason) for p in [*quarantined, *conflicts])])
    link = ctx.tracker.artifact(folder / "quarantine.csv", "ingest") if quarantined or conflicts else ""
    what = noun(ctx.project.modality)
    summary = _listing(what, "could not be used", quarantined, _SHOWN)
    summary += _listing(what, "had copies with different labels", conflicts, _SHOWN // 2)
    return StepOutput(
        outputs={"quarantine": Output("report", "quarantine")},
        links={"Quarantine list": link} if link else {},
        summary=summary,
    )


def _judge(
    ctx: StepContext, files: int, samples: list[_Sample], quarantined: list[_Problem], report: StepOutput
) -> None:
    project = ctx.project
    limit = project.data.max_quarantined
    if len(quarantined) > limit * files:
        report.metrics |= {"quarantined": len(quarantined), "rows": len(samples)}
        there = ctx.store.path(f"{ctx.store.folder(project.name, 'ingest', ctx.key)}/out/quarantine/quarantine.csv")
        link = report.links.get("Quarantine list")
        raise CheckFailed(
            f"{len(quarantined)} of {files} {noun(project.modality)} could not be used, more than data.max_quarantined ({limit:.1%}); "
            "nothing was committed, the last published version stays in use",
            place=project.data.source,
            next_step=f"mend or remove those listed in {there}, or raise data.max_quarantined"
            + (f"\n  the list in MLflow: {link}" if link else ""),
            output=report,
        )
    if not samples:
        first = "; ".join(f"{p.file}: {p.reason}" for p in quarantined[:3])
        raise UserError(
            f"none of the {files} {noun(project.modality)} in {project.data.source} can be used ({first})",
            place="data.source",
            next_step=f"point data.source at {noun(project.modality)}",
        )
    labels = {sample.label for sample in samples if sample.label is not None}
    if len(labels) == 1 and project.data.label_type == "class":
        raise UserError(
            f"of the {noun(project.modality)} that can be used, all with a label are {labels.pop()!r}: there is nothing to tell apart",
            place="data.labels",
            next_step="mend those of the other classes, or label more",
        )


def _listing(noun: str, what: str, problems: list[_Problem], shown: int) -> str:
    """A short Markdown list; the whole one is in the report."""
    if not problems:
        return ""
    lines = [f"- `{_cut(p.file, 80)}`: {_cut(p.reason, 120)}" for p in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"- and {len(problems) - shown} more, see quarantine.csv")
    count = f"{len(problems):,} {noun if len(problems) > 1 else noun[:-1]}"
    return f"\n{count} {what}:\n\n" + "\n".join(lines) + "\n"


def _cut(text: str, size: int) -> str:
    """At most ``size`` bytes: a step's summary has a limit."""
    flat = " ".join(text.replace("`", "'").split())
    return flat if len(flat.encode()) <= size else flat.encode()[: size - 3].decode(errors="ignore") + "…"


def _summary(info: dataset.DatasetInfo, noun: str, latest: DatasetRef | None, added: int) -> str:
    labels = "numbers as labels" if info.label_type == "number" else f"{len(info.classes)} classes"
    lines = [
        f"**{info.rows:,} {noun}**, {info.labelled:,} labelled, {labels}; "
        + (f"{added:,} new since {latest.tag}" if latest else "the first version")
        + f". Exact copies dropped: {info.duplicates:,}, near-duplicate groups: {info.near_duplicate_groups:,}, quarantined: {info.quarantined:,}.",
        "",
        f"| split | {noun} | labelled |",
        "|---|---:|---:|",
        *(f"| {split} | {counts.rows:,} | {counts.labelled:,} |" for split, counts in info.counts.items()),
    ]
    return "\n".join(lines) + "\n"
