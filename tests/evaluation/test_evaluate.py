"""The step as a whole on a tiny dataset with real networks; its report, plots and table."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from ssl_core.config.encoders import ResNetConfig
from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef
from ssl_core.data.memory import Images
from ssl_core.errors import UserError
from ssl_core.evaluation import evaluate
from ssl_core.evaluation.plots import plot_confusion, plot_embedding_map, plot_label_efficiency
from ssl_core.evaluation.predictions import read_predictions, test_set_digest
from ssl_core.evaluation.report import as_json, markdown, read_evaluation, render
from ssl_core.models.classifier import build_classifier, save_classifier
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing, save_encoder
from ssl_core.store import path_sha256
from ssl_core.training import image_bench

NAMES = ["bar", "dot"]


def make_images(train=60, test=24, vault=6):
    """8x8 pictures of a bar or a dot on noise; every third training image has no label, and one test image."""
    generator = np.random.default_rng(0)
    n = train + test + vault
    kinds = np.arange(n) % 2
    pixels = generator.integers(0, 90, (n, 1, 8, 8))
    for i, kind in enumerate(kinds):
        at = generator.integers(1, 6)
        if kind == 0:
            pixels[i, 0, at] += 150
        else:
            pixels[i, 0, at : at + 2, at : at + 2] += 150
    labels = [None if i < train and i % 3 == 0 else NAMES[k] for i, k in enumerate(kinds)]
    labels[train] = None
    manifest = pd.DataFrame({
        "sample_id": [f"{(i * 7919) % 1000:04d}" for i in range(n)],
        "split": ["train"] * train + ["test"] * test + ["vault"] * vault,
        "label": labels,
    })  # fmt: skip
    return Images(pixels=pixels.astype(np.uint8), manifest=manifest, classes=NAMES)


@pytest.fixture
def step(tmp_path, make_project, make_context, monkeypatch):
    """``step(images)`` runs evaluate; ``step.context`` is its context."""
    project = make_project(
        evaluate={"label_budgets": [4, 10], "draws": 4, "random_encoders": 2, "bootstrap": 200},
        task={"epochs": 2, "batch_size": 16}, pretrain={"threads": 1, "device": "cpu", "precision": "float32"},
    )  # fmt: skip

    def run(images, **more):
        preprocessing = measure_preprocessing(images.pixels, images.positions("train"))
        config = ResNetConfig(widths=(8, 16))
        encoder = build_encoder(config, 1, seed=0).eval()
        info = EncoderInfo(config, preprocessing, encoder.features)
        folders = {"registered_encoder": tmp_path / "encoder", "model": tmp_path / "model"}
        save_encoder(folders["registered_encoder"], encoder, info)
        save_classifier(folders["model"], build_classifier(encoder, info, NAMES))
        shas = {name: path_sha256(folder) for name, folder in folders.items()}
        inputs = {
            "dataset": DatasetRef(
                kind="dataset", name="tiny", tag="tiny@v3", revision="0" * 40, path="tiny/data", md5="1.dir", remote="r",
                sha256="2", producer="publish/k", rows=len(images.manifest), labelled=50, classes=2,
            ),
            "registered_encoder": ModelRef(
                kind="registered-encoder", name="tiny-encoder", version="5", model_id="m", run_id="r", uri="e",
                sha256=shas["registered_encoder"], producer="pretrain/k",
            ),
            "model": ArtifactRef(kind="model", uri="m", sha256=shas["model"], producer="finetune/k"),
        }  # fmt: skip
        ctx = make_context(project, step="evaluate", inputs=inputs, **more)
        monkeypatch.setattr(ctx.store, "fetch", lambda ref: next(folders[n] for n, r in inputs.items() if r is ref))
        monkeypatch.setattr(image_bench, "open_images", lambda ref, settings, **kwargs: images)
        run.context = ctx
        return evaluate.run(ctx)

    return run


def test_the_step_writes_what_others_read(step):
    images = make_images()
    output = step(images)
    ctx = step.context
    folder = ctx.out / output.outputs["evaluation"].path
    assert {p.name for p in folder.iterdir()} == {
        "evaluation.json", "predictions.parquet", "predictions-random-init.parquet",
        "label_efficiency.png", "confusion.png", "embedding_map.png", "embedding_map.json",
    }  # fmt: skip
    report = read_evaluation(folder)
    test = images.positions("test", labelled=True)
    ids = images.manifest["sample_id"].to_numpy()[test]
    assert report["test_set"] == {"split": "test", "n": 23, "sha256": test_set_digest(ids)}
    assert report["dataset"]["version"] == "tiny@v3"
    assert report["encoder"]["version"] == "5"
    for name, part in (("predictions.parquet", "model"), ("predictions-random-init.parquet", "random_init_model")):
        predictions = read_predictions(folder / name)
        assert list(predictions.sample_ids) == sorted(ids)
        truth = dict(zip(ids, images.labels[test], strict=True))
        assert [truth[i] for i in predictions.sample_ids] == predictions.labels.tolist()
        assert report[part]["accuracy"] == pytest.approx(predictions.correct.mean())
        np.testing.assert_allclose(predictions.scores.sum(axis=1), 1, atol=1e-4)
    assert [row["labels"] for row in report["label_budgets"]] == [4, 10, "all"]
    assert report["label_budgets"][-1]["count"] == 40
    for picture in folder.glob("*.png"):
        assert min(Image.open(picture).size) > 400
    points = json.loads((folder / "embedding_map.json").read_text())
    assert set(points["sample_ids"]) == set(ids)
    logged = ctx.tracker.logged_metrics[-1][1]
    assert logged["accuracy"] == report["model"]["accuracy"]
    assert logged["accuracy_10"] == report["label_budgets"][1]["pretrained"]["mean"]
    assert "evaluation" in ctx.tracker.logged_artifacts
    assert len(output.summary.encode()) < 4096
    assert output.metrics["accuracy_all_classical"] == report["label_budgets"][-1]["classical"]["mean"]


def test_random_init_is_as_many_encoders_as_the_project_says(step, monkeypatch):
    asked = []
    embed = image_bench.ImageBench.embed
    monkeypatch.setattr(
        image_bench.ImageBench, "embed", lambda self, at, random=None: asked.append(random) or embed(self, at, random)
    )
    step(make_images())
    assert asked == [None, None, 0, 0, 1, 1]
    report = read_evaluation(step.context.out / "evaluation")
    assert report["random_encoders"] == 2
    assert report["label_budgets"][-1]["draws"] == 1


def test_the_vault_is_never_read_and_equal_runs_are_equal(step):
    first = step(make_images())
    before = {p.name: p.read_bytes() for p in (step.context.out / "evaluation").iterdir()}
    changed = make_images()
    changed.pixels[changed.positions("vault")] = 255
    second = step(changed, key="other")
    assert first.metrics == second.metrics
    for path in (step.context.out / "evaluation").iterdir():
        assert path.read_bytes() == before[path.name], path.name


def test_a_test_split_without_labels_is_the_users_to_mend(step):
    images = make_images()
    images.manifest.loc[images.manifest["split"] == "test", "label"] = None
    with pytest.raises(UserError, match=r"data\.labels"):
        step(Images(pixels=images.pixels, manifest=images.manifest, classes=NAMES))


def test_few_labelled_test_samples_are_warned_of_everywhere(step):
    output = step(make_images(test=10))
    report = read_evaluation(step.context.out / "evaluation")
    assert any("only 9 labelled test samples" in note for note in report["notes"])
    assert "only 9 labelled test samples" in output.summary


# ---- report


def row(labels, count, low, middle, high):
    """A row where random init is ``low``, classical ``middle``, pretrained ``high``."""

    def near(mean):
        return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}

    return {
        "labels": labels, "count": count, "draws": 20,
        "classical": {"name": "SVM (RBF) on pixels", "short": "svm", **near(middle)},
        "random_init": {"probe": "knn", **near(low)}, "pretrained": {"probe": "knn", **near(high)},
        "differences": {"pretrained_minus_classical": near(high - middle), "pretrained_minus_random_init": near(high - low)},
        "details": {},
    }  # fmt: skip


REPORT = {
    "schema_version": 1, "project": "tiny", "noun": "images", "probe": "knn", "dataset": {"version": "tiny@v3"},
    "encoder": {"name": "tiny-encoder", "version": "5"}, "test_set": {"n": 360, "sha256": "x", "split": "test"},
    "label_budgets": [row(10, 10, 0.5, 0.7, 0.9), row("all", 1256, 0.8, 0.9, 0.95)], "notes": ["a note"],
    "model": {"headline": "accuracy", "quality": 0.97, "accuracy": 0.97, "low": 0.95, "high": 0.99, "macro_f1": 0.96, "ece": 0.02, "n": 360, "confusion": [[1]]},
    "random_init_model": {"headline": "accuracy", "quality": 0.9, "accuracy": 0.9, "low": 0.85, "high": 0.95, "macro_f1": 0.9, "ece": 0.1, "n": 360, "confusion": [[1]]},
    "model_minus_random_init": {"mean": 0.07, "low": 0.04, "high": 0.1},
}  # fmt: skip


def test_table_says_each_budget_and_the_gain_over_the_stronger_rival():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(REPORT))
    text = console.export_text()
    for part in (
        "90.0 [88.0, 92.0]",
        "+20.0*",
        " all ",
        "70.0 [68.0, 72.0] SVM",
        "a note",
        "accuracy 0.970 [0.950, 0.990]",
    ):
        assert part in text
    assert "+40.0" not in text  # over random init, which is the weaker one here
    assert (
        "| 10 | 0.700 [0.680, 0.720] SVM | 0.500 [0.480, 0.520] | 0.900 [0.880, 0.920] | +0.200 [+0.180, +0.220] |"
        in markdown(REPORT)
    )


def test_json_has_the_documented_form():
    document = json.loads(json.dumps(as_json(REPORT, version="2", links={"Model": "http://m"})))
    assert document["dataset"] == "tiny@v3"
    assert document["links"] == {"Model": "http://m"}
    assert [b["labels"] for b in document["label_budgets"]] == [10, "all"]
    first = document["label_budgets"][0]
    assert set(first["classical"]) == {"name", "mean", "low", "high"}
    assert set(first["pretrained"]) == {"probe", "mean", "low", "high"}
    assert first["random_init"]["mean"] == 0.5


def test_summary_of_very_many_budgets_still_fits_a_step_result():
    long = REPORT | {"label_budgets": [row(i, i, 0.5, 0.7, 0.9) for i in range(2, 200)]}
    assert len(markdown(long).encode()) < 4096


def test_an_unreadable_evaluation_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluation\.json"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"schema_version": 9}')
    with pytest.raises(UserError, match="schema version 9"):
        read_evaluation(tmp_path)


# ---- plots


@pytest.mark.parametrize("classes", [2, 60])
def test_plots_of_any_number_of_classes_are_equal_for_equal_numbers(tmp_path, classes):
    generator = np.random.default_rng(0)
    names = [f"a rather long class name {i}" for i in range(classes)]
    matrix = generator.integers(0, 20, (classes, classes)).tolist()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        plot_label_efficiency(folder / "l.png", REPORT["label_budgets"], "tiny")
        plot_confusion(folder / "c.png", matrix, names, "title")
        plot_embedding_map(
            folder / "m.png",
            np.random.default_rng(1).normal(size=(90, 2)),
            np.arange(90) % classes,
            names,
            "tiny",
            "PCA",
        )
    for name in ("l.png", "c.png", "m.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_class_names_are_shown_as_they_are(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    names, shown = ["$_$", r"$\x$", "_hidden", "a $b_c$", "100%", "^{"], []
    save = Figure.savefig

    def watched(figure, *arguments, **options):
        shown.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", watched)
    plot_confusion(tmp_path / "c.png", np.eye(6, dtype=int).tolist(), names, "title $_$")
    points = np.random.default_rng(1).normal(size=(90, 2))
    plot_embedding_map(tmp_path / "m.png", points, np.arange(90) % 6, names, "tiny", "PCA")
    confusion, embedding = (figure.axes[0] for figure in shown)
    assert [text.get_text() for text in confusion.get_xticklabels()] == names
    assert [text.get_text() for text in embedding.get_legend().get_texts()] == names
    assert min((tmp_path / name).stat().st_size for name in ("c.png", "m.png")) > 5_000


def test_flatten_falls_back_where_there_is_nothing_to_map():
    generator = np.random.default_rng(0)
    assert evaluate.flatten(generator.normal(size=(1, 5)))[0].shape == (1, 2)
    assert evaluate.flatten(generator.normal(size=(9, 5)))[1] == "PCA"
    points, method = evaluate.flatten(np.ones((80, 5)))  # a collapsed encoder
    assert method == "PCA"
    assert np.isfinite(points).all()
    points, method = evaluate.flatten(np.repeat(np.eye(4) * 9, 30, axis=0) + generator.normal(0, 0.1, (120, 4)))
    assert (points.shape, method) == ((120, 2), "t-SNE")
