"""The ``evaluate`` step: what the model predicts on the test split, and whether pretraining helped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.contracts import DatasetRef, ModelRef
from ssl_core.data.memory import Images, open_images
from ssl_core.errors import UserError
from ssl_core.evaluation.classical import Pixels
from ssl_core.evaluation.helped import Encoded, Task, did_it_help
from ssl_core.evaluation.metrics import Bootstrap, describe
from ssl_core.evaluation.plots import plot_confusion, plot_embedding_map, plot_label_efficiency
from ssl_core.evaluation.predictions import Predictions, make_predictions, write_predictions
from ssl_core.evaluation.report import EVALUATION_FILE, markdown
from ssl_core.models.classifier import ImageClassifier, load_classifier
from ssl_core.models.embed import embed, random_encoder
from ssl_core.models.encoder import EncoderInfo, load_encoder
from ssl_core.models.probes import unit
from ssl_core.models.resnet import ResNet
from ssl_core.step import Output, StepContext, StepOutput
from ssl_core.training.finetune import finetune_from
from ssl_core.training.runtime import Runtime, resolve_runtime

SCHEMA_VERSION = 1
PREDICTIONS_FILE = "predictions.parquet"
RANDOM_INIT_FILE = "predictions-random-init.parquet"
MAP_FILE = "embedding_map.json"
RANDOM_ENCODERS = 3
"""Random init is judged by so many of them; the first is the very network that pretraining started from."""
MAP_POINTS = 500
_TSNE_LEAST = 50  # fewer points than this have no neighbourhoods to keep


@dataclass(frozen=True)
class _Samples:
    """Positions in the images: ``train`` is the whole split, ``test`` its labelled samples."""

    train: np.ndarray
    test: np.ndarray


def run(ctx: StepContext) -> StepOutput:
    """Judges the fine-tuned model and the frozen encoder on the labelled samples of split test.

    Makes ``evaluation/``: ``evaluation.json``, the predictions of the model and of the same recipe from a random encoder,
    and three plots with their numbers. Raises ``UserError`` where split test has no label, or a budget is too small.
    """
    dataset: DatasetRef = ctx.input("dataset")
    runtime = resolve_runtime(ctx.project.pretrain)
    encoder, info = load_encoder(ctx.fetch("registered_encoder"))
    model = load_classifier(ctx.fetch("model"))
    images = open_images(
        dataset, ctx.settings, size=info.preprocessing.size, channels=info.preprocessing.channels, progress=ctx.progress
    )
    samples = _Samples(images.positions("train"), images.positions("test", labelled=True))
    if len(samples.test) == 0:
        raise UserError(
            "no labelled sample in split test: there is nothing to judge by",
            place="data.labels",
            next_step="label more samples (about one in five falls into split test), then run again",
        )
    folder = ctx.out / "evaluation"
    folder.mkdir()

    pretrained, report = _compare(ctx, images, samples, encoder, info, runtime)
    ctx.progress.note("fine-tuning the same recipe from a random encoder")
    baseline = finetune_from(
        random_encoder(info, ctx.project.pretrain.seed, images.pixels, images.positions("train")),
        info, images, ctx.project.task, runtime,
        stop=ctx.stop, progress=ctx.progress,
    ).model  # fmt: skip
    predictions = {
        PREDICTIONS_FILE: _predict(model, images, samples.test),
        RANDOM_INIT_FILE: _predict(baseline, images, samples.test),
    }
    for name, one in predictions.items():
        write_predictions(folder / name, one)
    report = _document(ctx, predictions[PREDICTIONS_FILE], predictions[RANDOM_INIT_FILE]) | report
    (folder / EVALUATION_FILE).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _draw(folder, report, pretrained, images, samples.test)
    return _conclude(ctx, folder, report)


def _compare(
    ctx: StepContext, images: Images, samples: _Samples, encoder: ResNet, info: EncoderInfo, runtime: Runtime
) -> tuple[Encoded, dict[str, Any]]:
    """The frozen encoder against random encoders and pixels: its embeddings, and the report's half on label budgets."""
    config, seed = ctx.project.evaluate, ctx.project.pretrain.seed

    def encode(network: ResNet) -> Encoded:
        network.to(runtime.device)
        both = [
            embed(
                network,
                info.preprocessing,
                images.pixels,
                positions,
                device=runtime.device,
                precision=runtime.precision,
            )
            for positions in (samples.train, samples.test)
        ]
        network.cpu()
        return Encoded(*both)

    pretrained = encode(encoder)
    random_init = [encode(random_encoder(info, seed + i, images.pixels, samples.train)) for i in range(RANDOM_ENCODERS)]
    task = Task(images.labels[samples.train], images.labels[samples.test], len(images.classes))
    pixels = Pixels.of(images.pixels[samples.train], images.pixels[samples.test])
    budgets = len(config.budgets(task.classes)) + 1
    with ctx.progress.bar("did pretraining help?", total=3 * budgets, unit="comparisons") as bar:
        rows, notes = did_it_help(task, pixels, random_init, pretrained, config, advance=bar.advance)
    for note in notes:
        ctx.progress.note(note)
    return pretrained, {"label_budgets": rows, "notes": notes}


def _predict(model: ImageClassifier, images: Images, test: np.ndarray) -> Predictions:
    pixels = np.ascontiguousarray(images.pixels[test])
    scores = np.zeros((len(test), len(images.classes)), dtype=np.float32)
    scores[:, [images.classes.index(name) for name in model.classes]] = model.predict_proba(pixels)
    return make_predictions(_ids(images, test), images.labels[test], scores, images.classes)


def _ids(images: Images, positions: np.ndarray) -> list[str]:
    return [str(i) for i in images.manifest["sample_id"].to_numpy()[positions]]


def _document(ctx: StepContext, model: Predictions, random_init: Predictions) -> dict[str, Any]:
    """The half of ``evaluation.json`` on the fine-tuned models, and what everything was made from."""
    project, config = ctx.project, ctx.project.evaluate
    dataset: DatasetRef = ctx.input("dataset")
    encoder: ModelRef = ctx.input("registered_encoder")
    boot = Bootstrap(1, len(model.labels), resamples=config.bootstrap, seed=config.seed)
    return {
        "schema_version": SCHEMA_VERSION,
        "project": project.name,
        "dataset": {"version": dataset.tag or dataset.revision, "revision": dataset.revision, "md5": dataset.md5},
        "encoder": {"name": encoder.name, "version": encoder.version, "sha256": encoder.sha256},
        "model_sha256": ctx.input("model").sha256,
        "test_set": {"split": model.split, "n": len(model.labels), "sha256": model.digest},
        "classes": list(model.classes),
        "probe": config.probe,
        "draws": config.draws,
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "random_encoders": RANDOM_ENCODERS,
        "model": describe(model.scores, model.labels, boot.interval(model.correct[None])),
        "random_init_model": describe(random_init.scores, random_init.labels, boot.interval(random_init.correct[None])),
        "model_minus_random_init": boot.difference(model.correct[None], random_init.correct[None]).as_dict(),
    }


def _draw(folder: Path, report: dict[str, Any], pretrained: Encoded, images: Images, test: np.ndarray) -> None:
    name, classes = report["project"], images.classes
    plot_label_efficiency(folder / "label_efficiency.png", report["label_budgets"], name)
    right = int(np.trace(np.asarray(report["model"]["confusion"])))
    title = f"{name}: {right:,} of {len(test):,} test images right ({right / len(test):.1%})"
    plot_confusion(folder / "confusion.png", report["model"]["confusion"], classes, title)
    shown = np.sort(np.random.default_rng(0).permutation(len(test))[:MAP_POINTS])
    points, method = flatten(pretrained.test[shown])
    labels = images.labels[test[shown]]
    plot_embedding_map(folder / "embedding_map.png", points, labels, classes, name, method)
    document = {
        "method": method,
        "sample_ids": _ids(images, test[shown]),
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
    metrics = {
        "accuracy": report["model"]["accuracy"],
        "accuracy_random_init_model": report["random_init_model"]["accuracy"],
    }
    metrics |= {name: report["model"][name] for name in ("balanced_accuracy", "macro_f1", "ece")}
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
