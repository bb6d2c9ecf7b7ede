"""The ``evaluate`` step: what the model predicts on the test split, and whether pretraining helped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.contracts import DatasetRef, ModelRef
from ssl_core.data.table import SampleTable
from ssl_core.errors import UserError
from ssl_core.evaluation.helped import Encoded, Task, did_it_help
from ssl_core.evaluation.metrics import Bootstrap, describe, label_spread
from ssl_core.evaluation.plots import plot_confusion, plot_embedding_map, plot_label_efficiency
from ssl_core.evaluation.predictions import Predictions, make_predictions, write_predictions
from ssl_core.evaluation.report import EVALUATION_FILE, markdown
from ssl_core.modalities import noun, part
from ssl_core.models.probes import unit
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.training.bench import Bench
from ssl_core.training.finetune import split_labels
from ssl_core.training.runtime import resolve_runtime

SCHEMA_VERSION = 1
PREDICTIONS_FILE = "predictions.parquet"
RANDOM_INIT_FILE = "predictions-random-init.parquet"
MAP_FILE = "embedding_map.json"
MAP_POINTS = 500
_TRACKED = ("balanced_accuracy", "macro_f1", "micro_f1", "ece", "mae", "rmse", "r2", "spearman")
_NO_BUDGETS = "label budgets are compared for data with one class a sample; here only the fine-tuned model and its twin from random weights are"
_TSNE_LEAST = 50  # fewer points than this have no neighbourhoods to keep


@dataclass(frozen=True)
class _Samples:
    """Positions in the table: ``train`` is the whole split, ``test`` its labelled samples."""

    train: np.ndarray
    test: np.ndarray


def run(ctx: StepContext) -> StepOutput:
    """Judges the fine-tuned model and the frozen encoder on the labelled samples of split test.

    Makes ``evaluation/``: ``evaluation.json``, the predictions of the model and of the same recipe from a random encoder,
    and three plots with their numbers. Raises ``UserError`` where split test has no label, or a budget is too small.
    """
    dataset: DatasetRef = ctx.input("dataset")
    bench: Bench = part(ctx.project.modality, "bench")(ctx, dataset, resolve_runtime(ctx.project.pretrain))
    model = bench.load(ctx.fetch("model"))
    samples = _Samples(bench.table.positions("train"), bench.table.positions("test", labelled=True))
    if len(samples.test) == 0:
        raise UserError(
            "no labelled sample in split test: there is nothing to judge by",
            place="data.labels",
            next_step="label more samples (about one in five falls into split test), then run again",
        )
    folder = ctx.out / "evaluation"
    folder.mkdir()

    pretrained, report = _compare(ctx, bench, samples)
    ctx.progress.note("fine-tuning the same recipe from a random encoder")
    labelled, unlabeled = split_labels(bench.table, ctx.project.task)
    baseline = bench.finetune(labelled, unlabeled, random=True, stop=ctx.stop, progress=ctx.progress).model
    predictions = {
        PREDICTIONS_FILE: _predict(bench, model, samples.test),
        RANDOM_INIT_FILE: _predict(bench, baseline, samples.test),
    }
    for name, one in predictions.items():
        write_predictions(folder / name, one)
    report = _document(ctx, predictions[PREDICTIONS_FILE], predictions[RANDOM_INIT_FILE]) | report
    (folder / EVALUATION_FILE).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _draw(folder, report, pretrained, bench.table, samples.test)
    return _conclude(ctx, folder, report)


def _compare(ctx: StepContext, bench: Bench, samples: _Samples) -> tuple[Encoded, dict[str, Any]]:
    """The frozen encoder against random encoders and classical baselines: its embeddings, and the report's half on label budgets."""
    config, table = ctx.project.evaluate, bench.table

    def encode(random: int | None) -> Encoded:
        return Encoded(bench.embed(samples.train, random), bench.embed(samples.test, random))

    pretrained = encode(None)
    if table.label_type != "class":
        return pretrained, {"label_budgets": [], "notes": [_NO_BUDGETS]}
    random_init = [encode(i) for i in range(config.random_encoders)]
    task = Task(table.labels[samples.train], table.labels[samples.test], len(table.classes))
    classical = bench.classical(samples.train, samples.test)
    budgets = len(config.budgets(task.classes)) + 1
    with ctx.progress.bar("did pretraining help?", total=3 * budgets, unit="comparisons") as bar:
        rows, notes = did_it_help(task, classical, random_init, pretrained, config, advance=bar.advance)
    for note in notes:
        ctx.progress.note(note)
    return pretrained, {"label_budgets": rows, "notes": notes}


def _predict(bench: Bench, model: Any, test: np.ndarray) -> Predictions:
    table = bench.table
    one_class = table.label_type == "class"
    return make_predictions(
        _ids(table, test), table.labels[test], bench.scores(model, test), table.classes, label_type=table.label_type,
        targets=None if one_class else table.targets[test],
        spread=label_spread(table.targets[table.positions("train", labelled=True)]) if table.label_type == "number" else None,
    )  # fmt: skip


def _ids(table: SampleTable, positions: np.ndarray) -> list[str]:
    return [str(i) for i in table.manifest["sample_id"].to_numpy()[positions]]


def _document(ctx: StepContext, model: Predictions, random_init: Predictions) -> dict[str, Any]:
    """The half of ``evaluation.json`` on the fine-tuned models, and what everything was made from."""
    project, config = ctx.project, ctx.project.evaluate
    dataset: DatasetRef = ctx.input("dataset")
    encoder: ModelRef = ctx.input("registered_encoder")
    boot = Bootstrap(1, len(model.labels), resamples=config.bootstrap, seed=config.seed)
    return {
        "schema_version": SCHEMA_VERSION,
        "project": project.name,
        "noun": noun(project.modality),
        "dataset": {"version": dataset.tag or dataset.revision, "revision": dataset.revision, "md5": dataset.md5},
        "encoder": {"name": encoder.name, "version": encoder.version, "sha256": encoder.sha256},
        "model_sha256": ctx.input("model").sha256,
        "test_set": {"split": model.split, "n": len(model.labels), "sha256": model.digest},
        "classes": list(model.classes),
        "probe": config.probe,
        "draws": config.draws,
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "random_encoders": config.random_encoders,
        "model": _describe(model, boot),
        "random_init_model": _describe(random_init, boot),
        "model_minus_random_init": boot.difference(model.quality[None], random_init.quality[None]).as_dict(),
    }


def _describe(model: Predictions, boot: Bootstrap) -> dict[str, Any]:
    return describe(model.scores, model.truth, boot.interval(model.quality[None]), model.label_type)


def _draw(folder: Path, report: dict[str, Any], pretrained: Encoded, table: SampleTable, test: np.ndarray) -> None:
    name, classes = report["project"], table.strata
    if table.label_type == "class":
        plot_label_efficiency(folder / "label_efficiency.png", report["label_budgets"], name)
        right = int(np.trace(np.asarray(report["model"]["confusion"])))
        title = f"{name}: {right:,} of {len(test):,} test {report['noun']} right ({right / len(test):.1%})"
        plot_confusion(folder / "confusion.png", report["model"]["confusion"], table.classes, title)
    shown = np.sort(np.random.default_rng(0).permutation(len(test))[:MAP_POINTS])
    points, method = flatten(pretrained.test[shown])
    labels = table.labels[test[shown]]
    plot_embedding_map(folder / "embedding_map.png", points, labels, classes, name, method)
    document = {
        "method": method,
        "sample_ids": _ids(table, test[shown]),
        "labels": [classes[k] for k in labels],
        "points": np.round(points, 3).tolist(),
    }
    (folder / MAP_FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")


def flatten(embeddings: np.ndarray) -> tuple[np.ndarray, str]:
    """Embeddings ``(M, D)`` as points ``(M, 2)`` for looking at, and the name of the method: t-SNE, or PCA of few samples."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    x = unit(embeddings)
    if len(x) < 2 or np.ptp(x, axis=0).max() < 1e-6:  # nothing to tell apart: one sample, or a collapsed encoder
        return np.zeros((len(x), 2)), "PCA"
    parts = min(2, *x.shape)
    linear = PCA(parts, random_state=0).fit_transform(x)
    linear = np.pad(linear, ((0, 0), (0, 2 - parts)))
    if len(x) < _TSNE_LEAST or linear.std(axis=0).min() < 1e-6:
        return linear, "PCA"
    from sklearn.manifold import TSNE

    # With a few hundred points its parallel sections cost more than they save, above all on a shared machine.
    with threadpool_limits(1):
        return TSNE(init="pca", perplexity=min(30, len(x) / 4), max_iter=500, random_state=0).fit_transform(x), "t-SNE"


def _conclude(ctx: StepContext, folder: Path, report: dict[str, Any]) -> StepOutput:
    """Tracks everything, and sums it up for people and for the step's record."""
    model, twin = report["model"], report["random_init_model"]
    name = "accuracy" if "accuracy" in model else "quality"
    metrics = {name: model["quality"], f"{name}_random_init_model": twin["quality"]}
    metrics |= {key: float(model[key]) for key in _TRACKED if model.get(key) is not None}
    for row in report["label_budgets"]:
        metrics[f"accuracy_{row['labels']}"] = row["pretrained"]["mean"]
        metrics[f"accuracy_{row['labels']}_random_init"] = row["random_init"]["mean"]
        metrics[f"accuracy_{row['labels']}_classical"] = row["classical"]["mean"]
    ctx.tracker.dataset(ctx.input("dataset"), "evaluation")
    ctx.tracker.metrics(metrics)
    ctx.tracker.tags({"ssl.test_set": report["test_set"]["sha256"]})
    link = ctx.tracker.artifact(folder)
    links = {"Evaluation": link} if link else {}
    return StepOutput({"evaluation": Output("evaluation", "evaluation")}, metrics, links, markdown(report))
