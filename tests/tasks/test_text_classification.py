"""Fine-tuning on texts: it learns by every method, repeats itself, goes on exactly, and reads its own labels only."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.config.encoders import TransformerConfig
from ssl_core.config.tasks import TextClassificationConfig
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.models.text_classifier import TextClassifier
from ssl_core.models.text_embed import embed_tokens
from ssl_core.store import Store
from ssl_core.tasks import text_classification as task
from ssl_core.tasks.text_classification import encoder_groups, train_classifier
from ssl_core.tasks.text_descent import Watch
from ssl_core.training.state import CheckpointFiles
from tests.texts import CONFIG, Texts, colours, encoder, make_texts, sentences, tokenizer

FAST = {"epochs": 60, "batch_size": 12, "learning_rate": 2e-2, "encoder_learning_rate": 5e-3, "dropout": 0.0}
BRIEF = {"epochs": 2, "batch_size": 4, "early_stopping": 0}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few steps as the configuration asks for; the floors have a test of their own."""
    monkeypatch.setattr(task, "MIN_STEPS", 2)
    monkeypatch.setattr(task, "MIN_HEAD_STEPS", 2)


def fit(
    texts: Texts,
    labelled: Any = None,
    *,
    config: TransformerConfig = CONFIG,
    how: dict[str, Any] | None = None,
    **settings: Any,
):  # type: ignore[no-untyped-def]
    """``(model, record)``, from the same random encoder each time."""
    network, head, info = encoder(config)
    rows = np.arange(len(texts.texts)) if labelled is None else np.asarray(labelled)
    return train_classifier(
        network, info, tokenizer(), texts, rows, TextClassificationConfig(**settings), mlm_head=head, threads=1, **(how or {})
    )  # fmt: skip


def same(first: TextClassifier, second: TextClassifier) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def changed(model: TextClassifier) -> set[str]:
    """Names of the encoder's tensors that are not what they were."""
    fresh = encoder()[0].state_dict()
    return {name for name, value in model.encoder.state_dict().items() if not torch.equal(value, fresh[name])}


def several(count: int = 24) -> Texts:
    labels = [[name for name in ("red", "green") if f" {name} " in f" {text} "] for text in coloured(count)]
    return make_texts(coloured(count), labels, label_type="classes", classes=["green", "red"])


def coloured(count: int) -> list[str]:
    parts = ("", "red", "green", "red green")
    return [f"{text} {parts[i % 4]}".strip() for i, text in enumerate(sentences(count))]


def numbers(count: int = 24) -> Texts:
    """1000 and 100 more for each "red"."""
    return make_texts(
        [f"{text}{' red' * (i % 3)}" for i, text in enumerate(sentences(count))], [1000 + 100 * (i % 3) for i in range(count)],
        label_type="number",
    )  # fmt: skip


@pytest.mark.parametrize("method", ["full", "linear", "lora"])
@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
def test_a_tiny_set_can_be_learned_by_heart(method: str, label_type: str) -> None:
    texts = {"class": colours, "classes": several, "number": numbers}[label_type]()
    more = {"linear": {"epochs": 600}, "lora": {"epochs": 100, "encoder_learning_rate": 2e-2}}.get(method, {})
    model, record = fit(texts, method=method, **FAST | more)
    scores = model.predict(texts.texts)
    targets = texts.table.targets
    if label_type == "class":
        assert (scores.argmax(axis=1) == texts.table.labels).all()
    elif label_type == "classes":
        assert ((scores >= 0.5) == (targets > 0)).mean() > 0.95
    else:
        assert np.abs(scores - targets).mean() < 40, "by the mean alone it would be 67"
    assert not model.training
    assert record["texts"] == 24
    assert record["loss"] < 0.4


@pytest.mark.parametrize("method", ["full", "linear", "lora"])
def test_seed_decides_everything_and_the_encoder_given_stays(method: str) -> None:
    texts = colours()
    first, again, other = (fit(texts, method=method, seed=seed, **BRIEF)[0] for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    network, _, info = encoder()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_classifier(network, info, tokenizer(), texts, np.arange(24), TextClassificationConfig(method=method, **BRIEF))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("settings", [{}, {"early_stopping": 1}, {"folds": 2}, {"method": "linear"}], ids=str)
def test_labels_outside_the_budget_are_never_read(settings: dict[str, Any]) -> None:
    texts = colours()
    budget = np.arange(0, 24, 2)
    first, record = fit(texts, budget, **BRIEF | settings)
    texts.table.manifest.loc[1::2, "label"] = "poison"
    second, again = fit(Texts(texts.ids, texts.offsets, texts.table, texts.texts), budget, **BRIEF | settings)
    assert same(first, second)
    assert record == again


def test_frozen_layers_stay() -> None:
    model, _ = fit(colours(), frozen_layers=1, **FAST | {"epochs": 3})
    moved = changed(model)
    assert moved
    assert all("layer.1." in name for name in moved)
    assert all(p.requires_grad for p in model.parameters()), "whoever trains it next decides anew"
    with pytest.raises(UserError, match=r"task\.frozen_layers: asks for 3 frozen layers, but the encoder has 2"):
        fit(colours(), frozen_layers=3, **BRIEF)


@pytest.mark.parametrize(
    "config", [CONFIG, CONFIG.model_copy(update={"arch": "modernbert"})], ids=["bert", "modernbert"]
)
def test_layers_below_learn_slower(config: TransformerConfig) -> None:
    network, _, _ = encoder(config)
    groups = encoder_groups(network, TextClassificationConfig(encoder_learning_rate=1e-3, layer_decay=0.5))
    rate = {id(p): group["peak"] for group in groups for p in group["params"]}
    assert len(rate) == len(list(network.parameters())), "each parameter once"
    layers = network.layers()
    assert {rate[id(p)] for p in network.embeddings.parameters()} == {2.5e-4}
    assert {rate[id(p)] for p in layers[0].parameters()} == {5e-4}
    assert {rate[id(p)] for p in layers[1].parameters()} == {1e-3}
    assert {rate[id(p)] for name, p in network.named_parameters() if "final_norm" in name} <= {1e-3}
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim == 1)


def test_class_weights_change_the_decision() -> None:
    """Of ten texts "red" six are a; but of all texts only four are b, and all of these say "red"."""
    texts = make_texts(["red"] * 10 + ["green"] * 4, ["a"] * 6 + ["b"] * 4 + ["a"] * 4)
    plain, _ = fit(texts, **FAST)
    balanced, _ = fit(texts, class_weights="balanced", **FAST)
    # With weights 14 / (2 * 10) and 14 / (2 * 4), "red" is a by 6 * 0.7 and b by 4 * 1.75.
    assert plain.predict(["red"])[0].tolist() == pytest.approx([0.6, 0.4], abs=0.05)
    assert balanced.predict(["red"])[0].tolist() == pytest.approx([4.2 / 11.2, 7 / 11.2], abs=0.05)


def test_early_stopping_keeps_the_best_round() -> None:
    layer = torch.nn.Linear(1, 1)
    scores = iter([3.0, 1.0, 2.0, 1.0, 5.0])
    watch = Watch(layer, lambda: next(scores), patience=3)
    over = []
    for number in range(5):
        layer.weight.data.fill_(number)
        watch.look()
        over.append(watch.is_over)
    assert over == [False, False, False, False, True]
    assert watch.best_round == 2
    watch.best.give(layer)
    assert layer.weight.item() == 1


def test_early_stopping_ends_a_training_that_learns_noise() -> None:
    rng = np.random.default_rng(0)
    texts = make_texts(sentences(60), list(rng.choice(["a", "b"], 60)))
    settings = FAST | {"epochs": 50, "batch_size": 6}
    model, record = fit(texts, early_stopping=2, **settings)
    losses = record["held_out_losses"]
    assert record["stopped_early"]
    assert record["held_out"] == 6
    assert len(losses) - 1 - int(np.argmin(losses)) == 2
    assert record["best_step"] == (int(np.argmin(losses)) + 1) * 10, "a round is ten steps, where an epoch is shorter"
    assert record["epochs"] < 50
    # The weights are those of the best round: stopping right there gives the same answers to the held-out texts.
    held = task.hold_out(task.make_targets(texts.table, np.arange(60), TextClassificationConfig()).strata, 0)
    scores = model.predict_tokens(texts.ids, texts.offsets, np.flatnonzero(held))
    kept = -np.log(scores[np.arange(6), texts.table.labels[held]]).mean()
    assert kept == pytest.approx(min(losses), rel=1e-5)


def test_adapters_are_merged_and_touch_attention_alone() -> None:
    model, record = fit(colours(), method="lora", **FAST | {"epochs": 3})
    assert record["merge_difference"] < 1e-5
    assert not any("lora" in name for name in model.state_dict())
    assert {name.split(".self.")[1] for name in changed(model)} == {"query.weight", "key.weight", "value.weight"}
    modern = CONFIG.model_copy(update={"arch": "modernbert"})
    model, record = fit(colours(), config=modern, method="lora", **FAST | {"epochs": 3})
    assert record["merge_difference"] < 1e-5
    assert not any("lora" in name for name in model.state_dict())


def test_a_wrong_merge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(CheckFailed, match="with the adapters merged the model answers otherwise"):
        fit(colours(), method="lora", **FAST | {"epochs": 10})


def test_linear_is_a_linear_classifier_on_frozen_features() -> None:
    texts = colours()
    model, _ = fit(texts, method="linear", **FAST)
    assert not changed(model)
    features = embed_tokens(model.encoder, tokenizer(), 16, texts.ids, texts.offsets, np.arange(24))
    logits = features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()  # type: ignore[union-attr, operator]
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(texts.texts), wanted, rtol=1e-4, atol=1e-5)


class After(threading.Event):
    """Set once it was asked so many times: SIGTERM at a known step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize(
    "settings",
    [{"dropout": 0.3}, {"early_stopping": 2, "epochs": 12}, {"method": "lora", "dropout": 0.1}, {"frozen_layers": 1}],
    ids=str,
)
def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path: Path, settings: dict[str, Any]) -> None:
    texts = colours(30)
    settings = FAST | {"epochs": 4, "batch_size": 6} | settings
    whole, record = fit(texts, **settings)
    store = Store(tmp_path.as_uri(), tmp_path / "cache")
    notes: list[str] = []
    files = CheckpointFiles(store.checkpoints("tiny", "finetune", "key"), store.scratch, "recipe", notes.append)
    for step in (3, 7):
        with pytest.raises(TryAgain, match="go on from step"):
            fit(texts, how={"checkpoints": files, "stop": After(step)}, **settings)
    resumed, again = fit(texts, how={"checkpoints": files}, **settings)
    assert same(whole, resumed)
    assert again == record
    assert notes[-1] == "going on from the checkpoint at step 10"
    done, last = fit(texts, how={"checkpoints": files}, **settings)
    assert same(whole, done), "after the end there is nothing left to do"
    assert last == record


def test_stop_is_heard_without_checkpoints() -> None:
    stop = threading.Event()
    stop.set()
    for method in ("full", "linear", "lora"):
        with pytest.raises(TryAgain, match="from the start"):
            fit(colours(), how={"stop": stop}, method=method, **FAST)


def test_few_labels_get_enough_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "MIN_STEPS", 9)
    monkeypatch.setattr(task, "MIN_HEAD_STEPS", 11)
    assert fit(colours(3), **BRIEF)[1]["steps"] == 9
    assert fit(colours(3), method="linear", **BRIEF)[1]["steps"] == 11


def test_long_texts_learn_by_all_their_windows() -> None:
    """The word that matters is at the end of a text of three windows."""
    colour = ["red", "green"] * 8
    texts = make_texts(
        [f"{text} {c} {c} {c}" for text, c in zip(sentences(16, length=35), colour, strict=True)], colour
    )
    model, record = fit(texts, **FAST | {"epochs": 150})
    assert record["windows"] > 2 * 16
    assert (model.predict(texts.texts).argmax(axis=1) == texts.table.labels).all()


def test_cross_validation_stays_beside_the_model() -> None:
    plain, _ = fit(colours(), **BRIEF)
    model, record = fit(colours(), folds=3, **BRIEF)
    assert same(plain, model)
    found = record["cross_validation"]
    assert (found["folds"], found["metric"], len(found["values"])) == (3, "accuracy", 3)
    several_folds = fit(numbers(), folds=2, **FAST)[1]["cross_validation"]
    assert several_folds["metric"] == "mean_absolute_error"
    assert several_folds["loss"]["mean"] < 2, "in the standardised numbers that are trained on"


def test_too_few_labels_for_the_folds_are_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "build_classifier", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(UserError, match=r"task\.folds: 24 labels are too few for 13 folds"):
        fit(colours(), folds=13, **BRIEF)


def test_a_loss_that_is_not_finite_stops_with_the_key() -> None:
    network, _, info = encoder()
    next(iter(network.parameters())).data.fill_(float("nan"))
    with pytest.raises(CheckFailed, match=r"task\.learning_rate: the loss is not finite"):
        train_classifier(network, info, tokenizer(), colours(), np.arange(24), TextClassificationConfig(**BRIEF))


@pytest.mark.parametrize("method", ["full", "linear", "lora"])
def test_bfloat16_gives_float32_weights(method: str) -> None:
    model, _ = fit(colours(), method=method, how={"precision": "bfloat16"}, **BRIEF)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert np.isfinite(model.predict(["red"])).all()


def test_dropout_is_on_while_training_and_gone_after() -> None:
    with_, without = (fit(colours(), **FAST | {"epochs": 2, "dropout": share})[0] for share in (0.5, 0.0))
    assert not same(with_, without)
    shares = {module.p for module in with_.modules() if isinstance(module, torch.nn.Dropout)}
    assert shares == {module.p for module in without.modules() if isinstance(module, torch.nn.Dropout)}
