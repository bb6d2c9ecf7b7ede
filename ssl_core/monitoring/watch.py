"""One window against the reference: tests on embeddings, columns, the champion's answers, and what kind of change they show."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ssl_core.config.monitor import MonitorConfig
from ssl_core.contracts import DatasetRef
from ssl_core.data import reader
from ssl_core.data.dataset import INFO_FILE, manifest_schema
from ssl_core.data.origin import source_names
from ssl_core.data.table import LabelType, SampleTable
from ssl_core.data.windows import ReferenceRows, Window, old_windows, reference_of, version_number
from ssl_core.errors import StepError
from ssl_core.evaluation.metrics import HEADLINES
from ssl_core.monitoring import document as doc
from ssl_core.monitoring import evidence, feed, mix
from ssl_core.monitoring.alarm import is_alarm
from ssl_core.monitoring.calibrate import (
    FOR_THE_SPREAD,
    RESAMPLES,
    Replay,
    Thresholds,
    needed_windows,
    replay,
    resample,
    set_thresholds,
)
from ssl_core.monitoring.columns import Column, compare_columns
from ssl_core.monitoring.detect import Found, choose_sizes, compare, one_thread
from ssl_core.monitoring.prediction_log import LogWindow, read_log
from ssl_core.monitoring.record import Records, WindowRecord, counts, held_back, restless
from ssl_core.monitoring.seen import Champion, Seen
from ssl_core.monitoring.triage import FEWEST_LABELS, Evidence, triage
from ssl_core.monitoring.two_sample import kernel_scale, subsample
from ssl_core.step import StepContext

if TYPE_CHECKING:
    import pandas as pd

ANSWERED = 4000
"""Samples a side that the champion is asked about: more would take long, and tell no more of a distribution."""
_MOST_SOURCES = 50
_MOST_LOST = 5
_LOGGED = timedelta(days=30)
_ENOUGH = 1.959964
"""Normal quantile of a 95% interval."""


@dataclass(frozen=True)
class _Answers:
    """The champion's answers on some rows of a side, ascending."""

    rows: np.ndarray
    scores: np.ndarray


class Watch:
    """Judges windows of one dataset version against one reference."""

    def __init__(
        self, ctx: StepContext, dataset: DatasetRef, champion: Champion, table: SampleTable, records: Records
    ) -> None:
        self._ctx, self._dataset, self._champion, self._records = ctx, dataset, champion, records
        self._config: MonitorConfig = ctx.project.monitor
        self._table, self._manifest = table, table.manifest
        self._seen = Seen(ctx, dataset, champion, table)
        self._reference: ReferenceRows = reference_of(table.manifest, champion.version)

    def judge(self, window: Window, *, last: bool) -> WindowRecord:
        """One window. Only of the ``last`` one a retraining may come: what was before it has passed."""
        config = self._config
        past = [one for one in self._records.of(self._champion.model.version) if one.number < window.number]
        unusable, share = self._unusable(window, past)
        rows = self._manifest.iloc[window.rows]
        report = unjudged(self._ctx, self._dataset, self._champion, doc.Window(
            name=window.name, rows=len(rows), labelled=int(rows["label"].notna().sum()), sources=feed.source_counts(rows)
        ), "").model_copy(update={"reference": doc.Reference(rows=len(self._reference.rows), what=self._reference.what)})  # fmt: skip
        score: float | None = None
        if not len(self._reference.rows):
            gone = [f"nothing is left of the data up to v{self._champion.version}, which the champion knows"]
            finding = triage(Evidence(samples=len(rows), exceeded=None, schema=gone), config)
            report = report.model_copy(update={"finding": finding})
        elif len(rows) < config.min_samples:
            finding = triage(Evidence(samples=len(rows), exceeded=None, quarantined=share), config)
            report = report.model_copy(update={"finding": finding})
        elif unknown := self._seen.unknown_classes():
            lost = [f"the class {name} is gone, which the champion knows" for name in doc.first(unknown, _MOST_LOST)]
            report = report.model_copy(
                update={"finding": triage(Evidence(len(rows), exceeded=None, schema=lost), config)}
            )
        else:
            found, score = self._look(window, share)
            report = report.model_copy(update=found)
        kind = report.finding.kind
        judged = score is not None and kind != "data-bug"
        exceeded = [(one.score or 0) > 1 for one in past if counts(one)] + ([(score or 0) > 1] if judged else [])
        alarm = judged and is_alarm(exceeded, config.alarm_windows, config.windows)
        wanted = last and alarm and report.finding.action == "finetune"
        held = held_back(self._records.all(), config) if wanted else ""
        history = [
            doc.PastWindow(window=one.report.window.name, score=one.score, exceeded=(one.score or 0) > 1, alarm=one.report.alarm, kind=one.report.finding.kind)
            for one in past
        ] + [doc.PastWindow(window=window.name, score=score, exceeded=(score or 0) > 1, alarm=alarm, kind=kind)]  # fmt: skip
        report = report.model_copy(update={
            "alarm": alarm, "retrain": wanted and not held, "held_back": held, "history": doc.last(history, doc.MOST_HISTORY),
        })  # fmt: skip
        return WindowRecord(
            run_id=self._ctx.run.run_id, number=window.number, score=score, unusable=unusable, report=report
        )

    def _look(self, window: Window, unusable: float) -> tuple[dict[str, object], float | None]:
        """What there is to say about a window of enough samples, as fields of the report; and its score."""
        config, seed = self._config, window.number
        reference, new = self._seen.embeddings(self._reference.rows), self._seen.embeddings(window.rows)
        with one_thread():
            tests = self._test(reference, new, window)
        columns = self._columns(window)
        # Of the reference always the same samples: they are asked once, whatever the number of windows.
        before, now = self._ask(self._reference.rows, 0), self._ask(window.rows, seed)
        one_class = self._table.label_type == "class" and bool(self._table.classes)
        sides = (
            self._side(self._reference.rows, reference, before, one_class),
            self._side(window.rows, new, now, one_class),
        )
        predictions = self._predictions(before, now) if one_class else None
        shift = mix.estimate(before.scores, now.scores, sides[0].labels) if one_class else None
        performance = self._performance(window, now)
        served = self._served() if one_class and config.predictions else None
        if served is not None and len(served) >= config.min_samples:
            columns = [*columns, self._served_column(before, served)]
            performance = performance or self._served_performance(served)
        nearness = evidence.novelty(reference, new, seed)
        shown = self._embedding_tests(tests)
        seen = evidence.gather(
            sides[0], sides[1], config, embedding=shown, columns=columns, predictions=predictions, performance=performance,
            nearness=nearness, shift=shift, quarantined=unusable, seed=seed,
        )  # fmt: skip
        finding = triage(seen, config)
        if served is not None and (notes := served.notes()):
            finding = finding.model_copy(update={"reasons": doc.first([*finding.reasons, *notes], doc.MOST_REASONS)})
        fields: dict[str, object] = {
            "embedding": shown, "predictions": predictions, "performance": performance, "novelty": nearness, "finding": finding,
            "columns": [doc.ColumnDrift(name=c.name, kind=c.kind, psi=c.psi, statistic=c.statistic, p=c.p_value, q=min(1.0, c.q_value), drifted=c.drifted) for c in doc.first(columns, doc.MOST_COLUMNS)],
            "map": evidence.flatten(reference, new, seed),
        }  # fmt: skip
        if finding.kind == "prior-shift" and shift is not None:
            fields["recalibration"] = mix.recalibration(shift, now.scores, self._table.classes)
        if tests is None:
            return fields, None
        found, limits, _ = tests
        fields["rule"] = _rule(config, limits)
        return fields, limits.score(found.auc.effect, found.mmd.effect)

    def _side(self, rows: np.ndarray, embeddings: np.ndarray, asked: _Answers, one_class: bool) -> evidence.Side:
        """Those of a side's rows that the champion was asked about."""
        return evidence.Side(
            embeddings[np.searchsorted(rows, asked.rows)], self._manifest.iloc[asked.rows],
            asked.scores if one_class else None, self._table.labels[asked.rows] if one_class else None,
        )  # fmt: skip

    def _test(self, reference: np.ndarray, new: np.ndarray, window: Window) -> tuple[Found, Thresholds, int] | None:
        """The two-sample tests, their thresholds and the number of draws; None where the samples are too few or no numbers."""
        sizes = choose_sizes(len(reference), len(new), self._config.subsample)
        if sizes is None or not (np.isfinite(reference).all() and np.isfinite(new).all()):
            return None
        scale = kernel_scale(reference)
        old = self._replay(reference, scale, sizes.m)
        if old is not None:
            sizes = old.sizes
        count = RESAMPLES if old is None else FOR_THE_SPREAD
        groups = self._manifest["group"].to_numpy()[self._reference.rows]
        resampled = self._seen.kept(
            ["resampled", asdict(sizes), count], self._seen.ids(self._reference.rows), count,
            lambda: resample(reference, groups, sizes, scale, count=count),
        )  # fmt: skip
        limits = set_thresholds(resampled, sizes, len(reference), self._config, None if old is None else old.values)
        return compare(reference, new, sizes, scale, seed=window.number), limits, sizes.draws

    def _replay(self, reference: np.ndarray, scale: float, m: int) -> Replay | None:
        """The project's own stable history, where it is long enough."""
        needed = needed_windows(self._config)
        if self._champion.version < needed:
            return None
        known = restless(self._records.all(), self._config.windows)
        old = [
            one
            for one in old_windows(self._manifest, self._champion.version, self._champion.encoder_version)
            if one.number not in known and len(one.rows) >= self._config.min_samples
        ]
        if len(old) < needed:
            return None
        return replay(
            reference, self._manifest["first_version"].to_numpy()[self._reference.rows],
            {one.number: self._seen.embeddings(one.rows) for one in old}, m, self._config.subsample, scale,
            fewest=self._config.min_samples, needed=needed,
        )  # fmt: skip

    def _embedding_tests(self, tests: tuple[Found, Thresholds, int] | None) -> doc.EmbeddingTests | None:
        if tests is None:
            return None
        found, limits, draws = tests
        return doc.EmbeddingTests(
            auc=found.auc.effect, auc_p=found.auc.p_value, auc_threshold=limits.auc, mmd=found.mmd.effect, mmd_p=found.mmd.p_value,
            mmd_threshold=limits.mmd, draws=draws, exceeded=limits.score(found.auc.effect, found.mmd.effect) > 1,
        )  # fmt: skip

    def _columns(self, window: Window) -> list[Column]:
        """The manifest's measures, the mix of labels and of sources."""
        kinds = {
            field.name: "number" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else "category"
            for field in manifest_schema(self._ctx.project.modality)
            if field.name not in feed.NOT_MEASURES
        }
        kinds["label"] = "number" if self._table.label_type == "number" else "category"
        sides = [
            _with_sources(self._manifest.iloc[rows], kinds["label"]) for rows in (self._reference.rows, window.rows)
        ]
        there = [set(side["source"]) for side in sides]
        # Names that are new each time, such as a folder a day, say nothing.
        if there[0] & there[1] and max(map(len, there)) <= _MOST_SOURCES:
            kinds["source"] = "category"
        return compare_columns(sides[0], sides[1], kinds, known_only=("label",))

    def _ask(self, rows: np.ndarray, seed: int) -> _Answers:
        """A sample of the rows; and, beside it, as many of those that have a label."""
        chosen = rows[subsample(len(rows), max(ANSWERED, self._config.min_samples), seed)]
        return _Answers(chosen, np.asarray(self._seen.scores(chosen)))

    def _predictions(self, reference: _Answers, window: _Answers) -> doc.Predictions:
        import pandas as pd

        names = self._table.classes
        frames = [pd.DataFrame({"answer": one.scores.argmax(axis=1).astype(str)}) for one in (reference, window)]
        [column] = compare_columns(frames[0], frames[1], {"answer": "category"})
        shares = [
            np.bincount(one.scores.argmax(axis=1), minlength=len(names)) / len(one.rows) for one in (reference, window)
        ]
        order = np.argsort(-shares[0], kind="stable")
        confidence = [min(1.0, float(one.scores.max(axis=1).mean())) for one in (reference, window)]
        return doc.Predictions(
            psi=column.psi, q=min(1.0, column.q_value), confidence_reference=confidence[0], confidence_window=confidence[1],
            classes=[doc.ClassShare(name=names[k], reference=float(shares[0][k]), window=float(shares[1][k])) for k in order[: doc.MOST_CLASSES]],
        )  # fmt: skip

    def _served(self) -> LogWindow:
        """What the champion answered where it is served, since it was registered, at most a month ago."""
        config, entry = self._config, self._champion.entry
        assert config.predictions is not None
        registered = datetime.fromtimestamp((entry.creation_timestamp or 0) / 1000, UTC)
        return read_log(
            config.predictions, self._table.classes, version=self._champion.model.version,
            since=max(registered, datetime.now(UTC) - _LOGGED), cache=self._ctx.settings.cache, progress=self._ctx.progress,
        )  # fmt: skip

    def _served_column(self, reference: _Answers, served: LogWindow) -> Column:
        import pandas as pd

        frames = [
            pd.DataFrame({"served answers": some.astype(str)})
            for some in (reference.scores.argmax(axis=1), served.labels)
        ]
        [column] = compare_columns(frames[0], frames[1], {"served answers": "category"})
        return column

    def _served_performance(self, served: LogWindow) -> doc.Performance | None:
        """By what turned out to be right, where that was logged and the window itself has no labels."""
        known = served.truth >= 0
        before = self._seen.quality_on_record()
        if known.sum() < FEWEST_LABELS or before is None:
            return None
        return _performance((served.labels == served.truth)[known].astype(np.float64), before, self._table.label_type)

    def _performance(self, window: Window, answers: _Answers) -> doc.Performance | None:
        """The champion on the window's labels, beside what it reached on its own test samples; None without labels."""
        known = self._manifest["label"].notna().to_numpy()
        labelled = window.rows[known[window.rows]]
        before = self._seen.quality_on_record()
        if not len(labelled) or before is None:
            return None
        asked = labelled[subsample(len(labelled), ANSWERED, window.number)]
        # Mostly these are answered already.
        scores = (
            answers.scores[np.searchsorted(answers.rows, asked)]
            if np.isin(asked, answers.rows).all()
            else self._seen.scores(asked)
        )
        return _performance(self._seen.quality(asked, scores), before, self._table.label_type)

    def _unusable(self, window: Window, past: list[WindowRecord]) -> tuple[int | None, float]:
        """Files that the source held and nobody could use, in all; and those that came with this window, as a share of its files.

        Only of the newest version is it known: the count is the whole source's.
        """
        latest = version_number(self._dataset.tag or "") == window.number
        if not latest:
            return None, 0.0
        total = self._quarantined(self._dataset)
        if total == 0:
            return 0, 0.0
        if window.number == self._champion.version + 1:
            then = self._champion.entry.tags.get("ssl.dataset_md5", "")
            try:
                before = self._quarantined(self._dataset.model_copy(update={"md5": then})) if then else total
            except StepError:  # the champion's dataset was removed since: then it is not known
                before = total
        else:
            known = next((one.unusable for one in past if one.number == window.number - 1), None)
            before = total if known is None else known
        more = max(0, total - before)
        return total, more / (more + len(window.rows)) if more else 0.0

    def _quarantined(self, dataset: DatasetRef) -> int:
        return int(
            json.loads(reader.fetch_file(dataset, self._ctx.settings, INFO_FILE).read_bytes()).get("quarantined", 0)
        )


def _performance(now: np.ndarray, before: np.ndarray, label_type: LabelType) -> doc.Performance:
    low, high = difference_interval(now, before)
    return doc.Performance(
        n=len(now), metric=HEADLINES[label_type], quality=float(now.mean()), reference_quality=float(before.mean()),
        difference=float(now.mean() - before.mean()), low=low, high=high,
    )  # fmt: skip


def difference_interval(window: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """95% interval of the difference of two means of values in [0, 1], of independent samples.

    Agresti and Caffo 2000, "Simple and Effective Confidence Intervals for Proportions and Differences of Proportions": one success and
    one failure more on each side, then the normal one. So no interval is a point where all answers are right.
    """
    sides = [np.append(np.asarray(side, dtype=np.float64), [0.0, 1.0]) for side in (window, reference)]
    middle = float(sides[0].mean() - sides[1].mean())
    half = _ENOUGH * float(np.sqrt(sum(side.var() / len(side) for side in sides)))
    return max(-1.0, middle - half), min(1.0, middle + half)


def _with_sources(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    found = rows.assign(source=source_names(rows))
    return found.assign(label=found["label"].astype("float64")) if label == "number" else found


def _rule(config: MonitorConfig, limits: Thresholds | None = None) -> doc.Rule:
    return doc.Rule(
        k=config.alarm_windows, m=config.windows, false_alarms=config.false_alarms,
        calibrated_by=limits.by if limits else "resampling", windows_used=limits.windows if limits else 0,
    )  # fmt: skip


def unjudged(
    ctx: StepContext, dataset: DatasetRef, champion: Champion | None, window: doc.Window, reason: str
) -> doc.DriftReport:
    """A report that says why there is nothing to say."""
    return doc.DriftReport(
        project=ctx.project.name, champion_version=champion.model.version if champion else "", encoder_version=champion.encoder.version if champion else "",
        dataset=dataset.tag or dataset.revision, at=datetime.now(UTC).isoformat(timespec="seconds"), window=window, reference=doc.Reference(rows=0),
        rule=_rule(ctx.project.monitor), finding=doc.Finding(kind="cannot-tell", reasons=[reason] if reason else []),
    )  # fmt: skip
