"""Gauges of a text encoder: right figures, no trace in the training, and an alarm where nothing is learned."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssl_core.config.encoders import TransformerConfig
from ssl_core.config.objectives import MaskingConfig
from ssl_core.models.probes import knn_scores
from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_windows import offsets_of
from ssl_core.objectives.masking import Masker
from ssl_core.objectives.mlm import MLM
from ssl_core.training import text_health
from ssl_core.training.health import CHANCE_PATIENCE, Gauge, Unhealthy
from ssl_core.training.text_health import TextMonitor, diagnose
from tests.texts import CONFIG, Texts, colours, encoder, sentences, tokenizer

TRAIN, VAL = np.arange(16), np.arange(16, 24)
VOCABULARY = 1000
GOOD = Gauge(step=0, loss=4.0, chance_loss=5.0, spread=0.5, effective_rank=9.0)


def objective(seed: int = 0, config: TransformerConfig = CONFIG) -> MLM:
    network, head, _ = encoder(config, seed)
    return MLM(network, head, Masker(MaskingConfig(), tokenizer())).train()


def monitor(texts: Texts | None = None, made: MLM | None = None, **more: Any) -> TextMonitor:
    values = {"max_length": 16, "train": TRAIN, "val": VAL} | more
    return TextMonitor(made or objective(), texts or colours(), tokenizer(), **values)


def test_figures_beside_a_slow_reference() -> None:
    texts = colours()
    watch = monitor(texts, labelled=(TRAIN, texts.table.labels[TRAIN], VAL, texts.table.labels[VAL]))
    gauge = watch.observe(3, 1.5, warmup=0)
    assert (gauge.step, gauge.loss, watch.history) == (3, 1.5, [gauge])

    counts = Counter(
        token for row in TRAIN for token in texts.ids[texts.offsets[row] : texts.offsets[row + 1]].tolist()
    )
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert gauge.chance_loss == pytest.approx(entropy)

    network, head = watch.objective.encoder, watch.objective.head
    losses, right, common = [], [], []
    with torch.no_grad():
        for batch in watch._hidden:
            logits = head(network.plain_hidden(batch.sequences))[batch.positions]
            losses += F.cross_entropy(logits, batch.targets, reduction="none").tolist()
            right += (logits.argmax(1) == batch.targets).tolist()
            common += (batch.targets == max(counts, key=lambda token: counts[token])).tolist()
    # Of 8 val texts with 6 words each.
    assert len(losses) == round(0.15 * int(texts.offsets[24] - texts.offsets[16]))
    assert gauge.val_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert gauge.masked_accuracy == pytest.approx(np.mean(right))
    assert gauge.unigram_accuracy == pytest.approx(np.mean(common))

    train, val = (embed_texts(network, tokenizer(), 16, [texts.texts[row] for row in rows]) for rows in (TRAIN, VAL))
    votes = knn_scores(train, texts.table.labels[TRAIN], val).argmax(axis=1)
    assert gauge.knn_accuracy == pytest.approx((votes == texts.table.labels[VAL]).mean())


def test_val_alone_is_hidden_and_train_where_there_is_none() -> None:
    texts = colours()
    for val, rows in ((VAL, VAL), (np.arange(0), TRAIN)):
        watch = monitor(texts, val=val)
        seen = [
            row.tolist()[1:-1]
            for batch in watch._hidden
            for row in _restored(batch).split(batch.sequences.lengths.tolist())
        ]
        expected = [texts.ids[texts.offsets[row] : texts.offsets[row + 1]].tolist() for row in rows]
        assert sorted(seen) == sorted(expected)


def test_val_without_a_known_token_is_as_none() -> None:
    texts = colours()
    expected = monitor(texts, val=np.arange(0))
    ids = texts.ids.copy()
    ids[texts.offsets[VAL[0]] :] = tokenizer().unk_id
    unknown = Texts(ids, texts.offsets, texts.table, texts.texts)
    gauge, other = (watch.observe(1, 5.0, warmup=0) for watch in (monitor(unknown), expected))
    assert gauge == other


def test_nothing_to_hide_at_all_is_no_figure() -> None:
    texts = colours()
    ids = np.full_like(texts.ids, tokenizer().unk_id)
    for val in (VAL, np.arange(0)):
        watch = monitor(Texts(ids, texts.offsets, texts.table, texts.texts), val=val)
        gauge = watch.observe(1, 5.0, warmup=0)
        assert (gauge.val_loss, gauge.masked_accuracy, gauge.unigram_accuracy) == (None, None, None)
        assert gauge.chance_loss == 0


def test_frequencies_are_those_of_tokens_that_can_be_hidden() -> None:
    texts = colours()
    half = Texts(np.concatenate([texts.ids, np.full(10**4, tokenizer().unk_id)]), texts.offsets.copy(), None, [])  # type: ignore[arg-type]
    half.offsets[-1] = len(half.ids)
    watch, plain = monitor(half, train=np.arange(24), val=TRAIN), monitor(texts, train=np.arange(24), val=TRAIN)
    assert (watch.entropy, watch.unigram_accuracy) == (plain.entropy, plain.unigram_accuracy)


def _restored(batch: Any) -> torch.Tensor:
    ids: torch.Tensor = batch.sequences.ids.clone()
    ids[batch.positions] = batch.targets.to(ids.dtype)
    return ids


def test_a_look_leaves_no_trace() -> None:
    made = objective()
    watch = monitor(made=made)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first, again = watch.observe(1, 5.0, warmup=0), watch.observe(2, 5.0, warmup=0)
    assert replace(again, step=1) == first
    assert made.training
    assert made.encoder.training
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert all(parameter.grad is None for parameter in made.parameters())


def test_masks_are_the_same_in_every_run() -> None:
    one, other = monitor(made=objective(0)), monitor(made=objective(1))
    for first, second in zip(one._hidden, other._hidden, strict=True):
        assert torch.equal(first.positions, second.positions)
        assert torch.equal(first.sequences.ids, second.sequences.ids)


def test_a_constant_encoder_raises_the_alarm_at_the_second_look() -> None:
    made = objective()
    watch = monitor(made=made)
    last = made.encoder.layers()[-1].output.LayerNorm  # type: ignore[union-attr]
    with torch.no_grad():
        last.weight.zero_()  # type: ignore[union-attr,operator]
        last.bias.fill_(0.1)  # type: ignore[union-attr,operator]
    watch.observe(1, 5.0, warmup=1)
    watch.observe(2, 5.0, warmup=1)
    with pytest.raises(Unhealthy, match="all texts get nearly the same features"):
        watch.observe(3, 5.0, warmup=1)
    assert len(watch.history) == 3


def test_features_that_are_not_finite_are_told() -> None:
    made = objective()
    watch = monitor(made=made)
    next(made.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(Unhealthy, match="not finite after step 7"):
        watch.observe(7, 5.0, warmup=0)
    assert made.training


@pytest.mark.parametrize("arch", ["bert", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_silent_on_untrained_encoders_of_ordinary_size(arch: str, pooling: str) -> None:
    """An alarm that a random encoder sets off would stop runs that have only begun."""
    config = TransformerConfig(arch=arch, pooling=pooling, layers=2, hidden=64, heads=1, max_length=16)  # type: ignore[arg-type]
    for seed in range(3):
        watch = monitor(made=objective(seed, config))
        for step in (1, 2, 3):
            watch.observe(step, math.log(300) + 0.5, warmup=0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"spread": 0.001}, "same features"),
        ({"effective_rank": 1.05}, "effective rank"),
        ({"loss": math.log(VOCABULARY) - 0.001}, "nothing is learned"),
    ],
)
def test_alarm_needs_the_fault_twice_in_a_row_after_the_warm_up(fault: dict[str, float], words: str) -> None:
    def at(step: int, bad: bool) -> Gauge:
        return replace(GOOD, step=step, **(fault if bad else {}))  # type: ignore[arg-type]

    def reason(*gauges: Gauge, warmup: int = 50) -> str | None:
        return diagnose(gauges, warmup, VOCABULARY)

    assert words in str(reason(at(100, False), at(200, True), at(300, True)))
    assert reason(at(100, True), at(200, True), at(300, False)) is None
    assert reason(at(100, True), at(200, False), at(300, True)) is None
    assert reason(at(100, True), at(200, True), at(300, True), warmup=200) is None
    assert reason(at(100, True)) is None


def test_first_steps_may_lie_at_chance_and_word_frequencies_are_something() -> None:
    early = [replace(GOOD, step=step, loss=math.log(VOCABULARY) + 1) for step in (2, CHANCE_PATIENCE - 1)]
    assert diagnose(early, 0, VOCABULARY) is None
    # At the entropy of the tokens contexts are not used yet; learning rests there, and goes on.
    resting = [replace(GOOD, step=step, loss=5.0, chance_loss=5.0) for step in (500, 600)]
    assert diagnose(resting, 0, VOCABULARY) is None


def test_a_large_corpus_is_looked_at_here_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, lengths = tokenizer().encode_flat(sentences(400, length=12))
    texts = Texts(ids, offsets_of(lengths), None, [])  # type: ignore[arg-type]
    train, val = np.arange(0, 300), np.arange(300, 400)
    whole = monitor(texts, train=train, val=val)
    monkeypatch.setattr(text_health, "_COUNTED", 600)
    monkeypatch.setattr(text_health, "_VAL_TOKENS", 120)
    some = monitor(texts, train=train, val=val)
    assert some._frequencies().sum() <= 600 + 12
    assert some.entropy == pytest.approx(whole.entropy, abs=0.15)
    assert 80 <= sum(len(batch.sequences.ids) - 2 * len(batch.sequences.lengths) for batch in some._hidden) <= 120
    assert sum(len(batch.sequences.ids) for batch in whole._hidden) == 100 * 14


def test_frequencies_are_counted_over_texts_of_any_length() -> None:
    ids, lengths = tokenizer().encode_flat(
        [sentence for length in (1, 30, 2, 7) for sentence in sentences(9, length=length)]
    )
    texts, train = Texts(ids, offsets_of(lengths), None, []), np.arange(0, 36, 2)  # type: ignore[arg-type]
    expected = np.zeros(tokenizer().size, dtype=np.int64)
    for row in train:
        np.add.at(expected, ids[texts.offsets[row] : texts.offsets[row + 1]], 1)
    assert np.array_equal(monitor(texts, train=train, val=train)._frequencies(), expected)


def test_texts_count_by_their_first_window() -> None:
    """A book is no more work than a note, and what is far down in it changes nothing."""
    rows = [sentence.split() for sentence in sentences(24, length=40)]
    made, looks = objective(), []
    for rest in (40, 14):
        ids, lengths = tokenizer().encode_flat([" ".join(row[:rest]) for row in rows])
        watch = monitor(Texts(ids, offsets_of(lengths), None, []), made)  # type: ignore[arg-type]
        looks.append(watch._embed(TRAIN))
    assert np.array_equal(looks[0], looks[1])


def test_one_endless_text() -> None:
    ids, _ = tokenizer().encode_flat(sentences(1, length=20_000))
    texts = Texts(ids, np.array([0, len(ids) // 2, len(ids)]), None, [])  # type: ignore[arg-type]
    watch = monitor(texts, train=np.array([0]), val=np.array([1]))
    assert max(int(batch.sequences.lengths.max()) for batch in watch._hidden) == 16
    assert watch._frequencies().sum() == len(ids) // 2
    assert watch.observe(1, 5.0, warmup=1).val_loss == pytest.approx(math.log(tokenizer().size), rel=0.1)
