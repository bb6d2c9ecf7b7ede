"""Texts through a registered encoder, from a dataset version on: fine-tuned, scored, embedded, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import DatasetRef, ModelRef
from ssl_core.data.table import LabelType
from ssl_core.errors import UserError
from ssl_core.evaluation.text_baselines import TextBaselines
from ssl_core.models.anchors import anchored
from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_golden import unpack
from ssl_core.models.text_weights import load_encoder, random_encoder
from ssl_core.step import StepContext
from ssl_core.store import path_sha256
from ssl_core.tasks import text_classification as task
from ssl_core.training import finetune, text_bench
from ssl_core.training.bench import Bench, Start
from ssl_core.training.runtime import Runtime
from ssl_core.training.text_bench import open_bench, texts_at
from tests.data.remotes import stored_version
from tests.data.text.corpora import write_folder
from tests.texts import WORDS, sentences, tokenizer, write_encoder

RUNTIME = Runtime("cpu", "float32", 1)
FAST = {"epochs": 40, "batch_size": 12, "learning_rate": 2e-2, "encoder_learning_rate": 5e-3, "dropout": 0.0}
COUNT = 60
SPLITS = [("train", "train", "train", "val", "test")[i % 5] for i in range(COUNT)]
TEXTS = [f"{text} {WORDS[i % 3]}" for i, text in enumerate(sentences(COUNT))]
TEXTS[7] += " " + " ".join(WORDS[4:] * 2)  # longer than a window
LABELS: dict[LabelType, list[str]] = {
    "class": [WORDS[i % 3] for i in range(COUNT)],
    "classes": [json.dumps([WORDS[i % 3]] if i % 3 else []) for i in range(COUNT)],
    "number": [str(1000 + 100 * (i % 3)) for i in range(COUNT)],
}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "MIN_STEPS", 2)
    monkeypatch.setattr(task, "MIN_HEAD_STEPS", 20)


def make_dataset(root: Path, label_type: LabelType, poisoned: Any = ()) -> DatasetRef:
    """A dataset version in a remote; labels of the rows ``poisoned`` can be read as nothing."""
    labels = list(LABELS[label_type])
    for row in poisoned:
        labels[row] = "poison"
    folder = root / "work"
    write_folder(folder, TEXTS, splits=SPLITS)
    manifest = pq.read_table(folder / "manifest.parquet").to_pandas()
    manifest["label"] = labels
    pq.write_table(pa.Table.from_pandas(manifest, preserve_index=False), folder / "manifest.parquet")
    info = json.loads((folder / "dataset.json").read_text())
    classes = [] if label_type == "number" else sorted(WORDS[:3])
    info |= {"labelled": COUNT, "label_type": label_type, "classes": classes}
    (folder / "dataset.json").write_text(json.dumps(info))
    return stored_version(folder, root / "remote")


@pytest.fixture
def context(tmp_path: Path, make_context: Callable[..., StepContext]) -> Callable[..., StepContext]:
    def make(label_type: LabelType = "class", *, key: str = "k", poisoned: Any = (), **settings: Any) -> StepContext:
        project = ProjectConfig.model_validate(
            {
                "name": "tiny", "modality": "text", "data": {"source": "sample://reviews", "label_type": label_type},
                "pretrain": {"threads": 1, "device": "cpu", "precision": "float32", "seed": 3}, "task": FAST | settings,
            }
        )  # fmt: skip
        ctx = make_context(project, step="finetune", key=key)
        folder = Path(ctx.store.path("tiny/pretrain/e/out/encoder"))
        if not folder.exists():
            write_encoder(folder)
        registered = ModelRef(
            kind="registered-encoder", name="tiny-encoder", version="3", model_id="m-1", run_id="r", uri="tiny/pretrain/e/out/encoder",
            sha256=path_sha256(folder), producer="pretrain/e",
        )  # fmt: skip
        dataset = make_dataset(tmp_path / f"data-{label_type}-{key}", label_type, poisoned)
        ctx.inputs = {"dataset": dataset, "registered_encoder": registered}
        return ctx

    return make


def bench_of(ctx: StepContext) -> Bench:
    return open_bench(ctx, ctx.input("dataset"), RUNTIME)


def encoder_folder(ctx: StepContext) -> Path:
    return Path(ctx.store.path("tiny/pretrain/e/out/encoder"))


@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
def test_finetunes_saves_loads_and_scores(
    context: Callable[..., StepContext], tmp_path: Path, label_type: LabelType
) -> None:
    bench = bench_of(context(label_type))
    train, test = bench.table.positions("train"), bench.table.positions("test")
    made = bench.finetune(train, train[:0])
    bench.save(tmp_path / "model", made.model)
    model = bench.load(tmp_path / "model")
    scores, targets = bench.scores(model, test), bench.table.targets[test]
    assert scores.dtype == np.float32
    assert np.array_equal(scores, bench.scores(made.model, test)), "what was saved answers as what was trained"
    if label_type == "class":
        assert (scores.argmax(axis=1) == bench.table.labels[test]).mean() > 0.8
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    elif label_type == "classes":
        assert ((scores >= 0.5) == (targets > 0)).mean() > 0.8
    else:
        assert scores.shape == (len(test), 1)
        assert np.abs(scores - targets).mean() < 40, "the mean alone is off by 67"
    golden = bench.golden(model, train[:4])
    assert unpack(golden) == [TEXTS[row] for row in train[:4]]
    np.testing.assert_allclose(golden["probabilities"], bench.scores(model, train[:4]), rtol=1e-4, atol=1e-5)
    assert made.record["texts"] == len(train)
    assert bench.scores(model, test[:0]).shape == (0, 1 if label_type == "number" else 3)


@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
@pytest.mark.parametrize("how", [{}, {"method": "linear"}, {"early_stopping": 2, "folds": 2, "epochs": 2}])
def test_labels_outside_the_budget_are_never_read(
    context: Callable[..., StepContext], label_type: LabelType, how: dict[str, Any]
) -> None:
    """What cannot be parsed there is never met, and whatever is there, the weights are the same bits."""
    if label_type == "class" and "folds" in how:
        how = how | {"class_weights": "balanced"}
    train = np.flatnonzero(np.array(SPLITS) == "train")
    labelled = train[:24]
    hidden = np.setdiff1d(np.arange(COUNT), labelled)
    clean = bench_of(context(label_type, key="clean", **{"epochs": 3} | how))
    poisoned = bench_of(context(label_type, key="poisoned", poisoned=hidden, **{"epochs": 3} | how))
    with pytest.raises(ValueError, match=r"poison|Expecting value"):
        _ = poisoned.table.targets
    first, second = (bench.finetune(labelled, np.setdiff1d(train, labelled)) for bench in (clean, poisoned))
    other = second.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.model.state_dict().items())
    assert first.record == second.record


@pytest.mark.parametrize("method", ["full", "linear", "lora"])
@pytest.mark.parametrize("label_type", ["class", "number"])
def test_it_starts_from_what_another_model_knows(
    context: Callable[..., StepContext], label_type: LabelType, method: str
) -> None:
    """With rates of all but nothing it answers as that model does, whatever its head was standardised with."""
    bench = bench_of(context(label_type, key=method, epochs=3))
    train = bench.table.positions("train")
    known = bench.finetune(train, train[:0]).model
    assert bench.suits(known) == ""
    still = context(
        label_type, key=f"{method}-2", method=method, learning_rate=1e-12, encoder_learning_rate=0.0, epochs=1
    )
    start = Start(known, anchored(1.0))
    again = bench.finetune(train[:12], train[:0], task=still.project.task, start=start).model
    scores, before = bench.scores(again, train), bench.scores(known, train)
    np.testing.assert_allclose(scores, before, rtol=1e-3, atol=1e-4)
    logits = bench.logits(known, train[:3])
    assert logits.requires_grad
    if label_type == "class":
        np.testing.assert_allclose(logits.softmax(dim=1).detach().numpy(), before[:3], rtol=1e-4, atol=1e-5)


def test_a_model_of_other_labels_does_not_suit(context: Callable[..., StepContext]) -> None:
    bench = bench_of(context("class", epochs=1))
    train = bench.table.positions("train")
    model = bench.finetune(train, train[:0]).model
    model.classes = ["a", "b", "c"]
    assert bench.suits(model) == "it knows other classes"
    model.label_type = "classes"
    assert bench.suits(model) == "its labels are of type classes"


def test_the_twin_from_random_weights_shares_all_but_the_encoder(context: Callable[..., StepContext]) -> None:
    ctx = context(epochs=2, folds=3, encoder_learning_rate=0.0)
    bench = bench_of(ctx)
    train = bench.table.positions("train")
    ours, twin = bench.finetune(train, train[:0]), bench.finetune(train, train[:0], random=True)
    assert ours.record["cross_validation"]["folds"] == 3
    assert "3 folds within them: accuracy 0." in ours.note
    assert "cross_validation" not in twin.record, "it is compared with, not reported on"
    assert (ours.record["steps"], ours.record["texts"]) == (twin.record["steps"], twin.record["texts"])
    # At a rate of 0 the encoders are what they started from.
    start, _, _, _ = load_encoder(encoder_folder(ctx))
    fresh = random_encoder(encoder_folder(ctx), tokenizer(), seed=3)
    for made, origin in ((ours, start), (twin, fresh)):
        other = origin.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in made.model.encoder.state_dict().items())
    assert all(
        torch.equal(a, b)
        for a, b in zip(start.parameters(), load_encoder(encoder_folder(ctx))[0].parameters(), strict=True)
    )


def test_a_version_trained_on_fewer_classes_gives_the_others_no_chance(context: Callable[..., StepContext]) -> None:
    bench = bench_of(context(epochs=2))
    train = bench.table.positions("train")
    model = bench.finetune(train, train[:0]).model
    kept = [name for name in model.classes if name != "green"]
    model.head.weight.data = model.head.weight.data[[model.classes.index(name) for name in kept]]
    model.head.bias.data = model.head.bias.data[[model.classes.index(name) for name in kept]]
    model.classes = kept
    scores = bench.scores(model, train)
    assert (scores[:, bench.table.classes.index("green")] == 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_embeds_by_the_registered_and_by_random_encoders(context: Callable[..., StepContext]) -> None:
    ctx = context()
    bench = bench_of(ctx)
    rows = np.array([7, 3, 40])
    texts = [TEXTS[row] for row in rows]
    registered, _, info, _ = load_encoder(encoder_folder(ctx))
    for random, network in ((None, registered), (0, None), (2, None)):
        if network is None:
            network = random_encoder(encoder_folder(ctx), tokenizer(), seed=3 + random)
        wanted = embed_texts(network, tokenizer(), info.max_length, texts)
        got = bench.embed(rows, random)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert bench.embed(rows[:0]).shape == (0, 16)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each computation was of."""
    counts: list[int] = []
    compute = text_bench.embed_tokens

    def counted(*arguments: Any, **more: Any) -> np.ndarray:
        counts.append(len(arguments[5]))
        return compute(*arguments, **more)

    monkeypatch.setattr(text_bench, "embed_tokens", counted)
    return counts


def test_embeddings_are_kept_by_what_they_follow_from(
    context: Callable[..., StepContext], computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    rows = np.arange(10)
    first = bench_of(ctx).embed(rows)
    assert np.array_equal(bench_of(ctx).embed(rows), first)
    assert computed == [10], "the second time they were read"
    bench_of(ctx).embed(rows[::-1])
    bench_of(ctx).embed(rows, 0)
    bench_of(ctx).embed(rows, 1)
    assert computed == [10] * 4, "other texts, another encoder"
    open_bench(ctx, ctx.input("dataset"), Runtime("cpu", "bfloat16", 1)).embed(rows)
    monkeypatch.setattr(text_bench, "source_digest", lambda: "changed code")
    bench_of(ctx).embed(rows)
    assert computed == [10] * 6, "another precision, other code"
    other = Path(ctx.store.path("tiny/pretrain/f/out/encoder"))
    write_encoder(other, seed=1)
    changes = {"uri": "tiny/pretrain/f/out/encoder", "sha256": path_sha256(other)}
    ctx.inputs = {
        **ctx.inputs,
        "registered_encoder": ctx.inputs["registered_encoder"].model_copy(update=changes),
    }
    bench_of(ctx).embed(rows)
    assert computed == [10] * 7, "another encoder"
    assert len(list((ctx.settings.cache / "embeddings").iterdir())) == 7


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: np.save(path, np.zeros((3, 16), np.float32)),
        lambda path: np.save(path, np.zeros((10, 16))),
        lambda path: np.save(path, np.array([object()] * 10), allow_pickle=True),
    ],
    ids=["empty", "cut off", "of other texts", "another type", "a pickle"],
)
def test_damaged_embeddings_are_made_anew(
    context: Callable[..., StepContext], computed: list[int], damage: Callable[[Path], None]
) -> None:
    ctx = context()
    rows = np.arange(10)
    first = bench_of(ctx).embed(rows)
    (kept,) = (ctx.settings.cache / "embeddings").iterdir()
    damage(kept)
    assert np.array_equal(bench_of(ctx).embed(rows), first)
    assert np.array_equal(bench_of(ctx).embed(rows), first)
    assert computed == [10, 10]


def test_classical_baselines_read_the_same_texts(context: Callable[..., StepContext]) -> None:
    bench = bench_of(context())
    train, test = bench.table.positions("train"), bench.table.positions("test")
    classical = bench.classical(train, test)
    assert isinstance(classical, TextBaselines)
    predicted = classical.predictions(bench.table.labels[train][None])
    assert set(predicted) == set(classical.names)
    assert (predicted["tfidf"][0] == bench.table.labels[test]).mean() > 0.8


def test_texts_are_found_in_any_order(context: Callable[..., StepContext], tmp_path: Path) -> None:
    context()
    folder = tmp_path / "data-class-k" / "work"
    rows = np.array([59, 0, 13, 12, 0])
    assert texts_at(folder, rows) == [TEXTS[row] for row in rows]
    assert texts_at(folder, rows[:0]) == []


@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
def test_the_finetune_step_leaves_a_model_its_labels_and_a_golden_batch(
    context: Callable[..., StepContext], label_type: LabelType
) -> None:
    ctx = context(label_type, labels=24, early_stopping=3)
    output = finetune.run(ctx)
    folder = ctx.out / "model"
    golden = load_file(folder / "golden.safetensors")
    assert len(unpack(golden)) == 16
    document = json.loads((folder / "training.json").read_text())
    assert document["label_budget"] == document["labels"] == len(set(document["sample_ids"])) == 24
    assert document["unlabeled"] == SPLITS.count("train") - 24
    assert document["max_length"] == 16
    assert 0 < document["held_out"] <= 4
    assert document["texts"] + document["held_out"] == 24
    assert f", {document['held_out']} of them held out to stop in time" in output.summary
    name = "val_accuracy" if label_type == "class" else "val_quality"
    assert output.metrics[name] > 0.6
    assert "24 labelled texts" in output.summary


def test_what_does_not_fit_is_the_user_s_error(context: Callable[..., StepContext]) -> None:
    with pytest.raises(UserError, match=rf"task\.folds: {SPLITS.count('train')} labels are too few for 20 folds"):
        finetune.run(context(folds=20))
