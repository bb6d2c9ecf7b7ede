"""Masked language modelling: the loss by hand, and the head at hidden tokens alone is the head at all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.config.objectives import MaskingConfig
from ssl_core.data.text.sequences import Sequences
from ssl_core.models.optim import adamw, parameter_groups
from ssl_core.models.text_encoder import MLMHead, TextEncoder, join, split
from ssl_core.objectives import mlm
from ssl_core.objectives.masking import Masked, Masker
from ssl_core.objectives.mlm import MLM, predict
from tests.models.test_text_encoder import ARCHS, close, gradients, model
from tests.objectives.test_masking import SmallVocabulary

VOCABULARY = 50
CLS, SEP, MASK = 2, 3, 4
LENGTHS = [12, 5, 30, 5, 21, 3]


class Fixed:
    """A masker that hides what the test says."""

    def __init__(self, masked: Masked) -> None:
        self.masked = masked

    def count(self, lengths: np.ndarray) -> int:
        return len(self.masked.positions)

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, count: int, rng: np.random.Generator) -> Masked:
        return self.masked


def batch(lengths: list[int] = LENGTHS, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    rows = [[CLS, *rng.integers(5, VOCABULARY, length - 2).tolist(), SEP] for length in lengths]
    return Sequences(torch.tensor([token for row in rows for token in row]), torch.tensor(lengths))


def masker(**more: Any) -> Masker:
    return Masker(MaskingConfig(**more), SmallVocabulary(words=30, pieces=15))


def objective(arch: str = "bert", *, seed: int = 0, dropout: float = 0.0, count: int | None = None, **more: Any) -> MLM:
    encoder, head = split(model(arch, seed))
    return MLM(encoder, head, masker(**more), count=count, dropout=dropout)


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# ---- the loss


@pytest.mark.parametrize("arch", ARCHS)
def test_a_uniform_model_has_the_loss_ln_v(arch: str) -> None:
    made = objective(arch)
    torch.nn.init.zeros_(made.head.weight)
    torch.nn.init.zeros_(made.head.bias)
    loss, _ = made(batch(), seed=0, step=0)
    assert float(loss.detach()) == pytest.approx(math.log(VOCABULARY), abs=1e-6)


def test_the_loss_term_by_term() -> None:
    """``-1/(N p) * sum over hidden i of log P(y_i | x)``: N p tokens are hidden, and x is what the encoder sees."""
    sequences = batch([7, 5])  # 8 tokens that may be hidden, at 1-5 and 8-10
    rate = 0.375  # N p = 3
    inputs, positions = sequences.ids.numpy().copy(), np.array([2, 5, 9])
    targets = inputs[positions].copy()
    inputs[2], inputs[5] = MASK, 17  # one hidden, one random, one as it is
    encoder, head = split(model())
    made = MLM(encoder, head, Fixed(Masked(inputs, positions, targets)))  # type: ignore[arg-type]
    loss, metrics = made(sequences, seed=0, step=0)

    whole = join(encoder, head)
    log_p = []
    with torch.no_grad():
        for start, stop, asked in ((0, 7, [2, 5]), (7, 12, [9])):
            logits = whole(input_ids=torch.from_numpy(inputs[None, start:stop])).logits[0].double()
            for i in asked:
                scores = [math.exp(float(value)) for value in logits[i - start]]
                log_p.append(math.log(scores[int(sequences.ids[i])] / sum(scores)))
                assert (int(logits[i - start].argmax()) == int(sequences.ids[i])) in (True, False)
    assert float(loss.detach()) == pytest.approx(-1 / (8 * rate) * sum(log_p), abs=1e-5)
    assert float(metrics["masked_accuracy"]) in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_sparse_head_is_the_dense_head(
    arch: str, tied: bool, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and all gradients are the library's, whose head sees every token and whose loss then forgets most of them."""
    monkeypatch.setattr(mlm, "_LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    whole = model(arch, tie_word_embeddings=tied)
    sequences = batch()
    lengths = sequences.lengths.numpy()
    masked = masker()(sequences.ids.numpy(), lengths, 11, np.random.default_rng([3, 5]))

    filled = torch.arange(max(LENGTHS))[None] < sequences.lengths[:, None]
    labels = torch.full((len(sequences.ids),), -100)
    labels[torch.from_numpy(masked.positions)] = torch.from_numpy(masked.targets)
    padded = torch.zeros(filled.shape, dtype=torch.int64)
    theirs = whole(
        input_ids=padded.masked_scatter(filled, torch.from_numpy(masked.inputs)),
        attention_mask=filled.long(),
        labels=(padded - 100).masked_scatter(filled, labels),
    ).loss
    theirs.backward()
    expected = gradients(whole)

    ours, metrics = MLM(*split(whole), masker(), count=11)(sequences, seed=3, step=5)
    ours.backward()
    close(ours, theirs)
    found = gradients(whole)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        close(gradient, expected[name])
    assert not metrics["masked_accuracy"].requires_grad


def test_a_scaled_loss_has_scaled_gradients() -> None:
    made = objective()
    made(batch(), seed=0, step=0)[0].backward()
    plain = gradients(made)
    (made(batch(), seed=0, step=0)[0] * 0.25).backward()
    for name, gradient in gradients(made).items():
        close(gradient, 0.25 * plain[name])
    for _ in range(2):  # gradients add up over steps
        made(batch(), seed=0, step=0)[0].backward()
    for name, gradient in gradients(made).items():
        close(gradient, 2 * plain[name])


def test_a_second_backward_is_told() -> None:
    loss, _ = objective()(batch(), seed=0, step=0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_frozen_parts_and_no_gradient_at_all() -> None:
    made = objective()
    made.encoder.requires_grad_(False)
    made(batch(), seed=0, step=0)[0].backward()
    assert {name.split(".")[0] for name in gradients(made)} == {"head"}
    with torch.inference_mode():
        loss, _ = made(batch(), seed=0, step=0)
    assert not loss.requires_grad


def known_head() -> tuple[MLMHead, Callable[[list[list[float]]], Tensor]]:
    """A head whose logits are its input, and a maker of inputs."""
    decoder, table = torch.nn.Linear(4, 4), torch.nn.Embedding(4, 4)
    decoder.weight = table.weight
    with torch.no_grad():
        table.weight.copy_(torch.eye(4))
        decoder.bias.zero_()
    return MLMHead(torch.nn.Identity(), decoder, table), lambda rows: torch.tensor(rows, requires_grad=True)


def test_prediction_by_hand() -> None:
    head, rows = known_head()
    hidden = rows([[0.0, math.log(2), 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]])
    loss, correct = predict(head, hidden, torch.tensor([1, 2]))
    # P = 2/5 for the first, 1/6 for the second; only the first target is the most probable.
    assert float(loss.detach()) == pytest.approx(-(math.log(2 / 5) + math.log(1 / 6)) / 2, abs=1e-6)
    assert float(correct) == 1
    loss.backward()
    expected = torch.tensor([[1 / 5, 2 / 5 - 1, 1 / 5, 1 / 5], [3 / 6, 1 / 6, 1 / 6 - 1, 1 / 6]]) / 2
    assert hidden.grad is not None
    close(hidden.grad, expected)


def test_a_target_that_the_model_holds_for_impossible_has_a_finite_loss_and_the_exact_gradient() -> None:
    head, rows = known_head()
    hidden = rows([[1000.0, 0.0, 0.0, 0.0]])
    loss, _ = predict(head, hidden, torch.tensor([1]))
    assert float(loss.detach()) == pytest.approx(-math.log(torch.finfo(torch.float32).tiny), rel=1e-5)
    loss.backward()
    assert hidden.grad is not None
    close(hidden.grad, torch.tensor([[1.0, -1.0, 0.0, 0.0]]))


def test_bfloat16_is_near() -> None:
    made = objective()
    exact, _ = made(batch(), seed=0, step=0)
    exact.backward()
    wanted = gradients(made)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = made(batch(), seed=0, step=0)
    half.backward()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.05)
    found = gradients(made)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    table = next(name for name in wanted if "word_embeddings" in name)
    assert F.cosine_similarity(found[table].flatten(), wanted[table].flatten(), dim=0) > 0.98


# ---- what is hidden


def test_the_same_number_is_hidden_in_every_batch() -> None:
    made, seen = objective(count=6), []
    hidden = made.encoder.hidden
    made.encoder.hidden = lambda sequences, at: seen.append((sequences, at)) or hidden(sequences, at)  # type: ignore[method-assign,func-returns-value]
    for step in range(20):
        made(batch([4, 9, 13], seed=step), seed=0, step=step)
    assert {len(at) for _, at in seen} == {6}
    shown = torch.cat([sequences.ids[at] for sequences, at in seen])
    assert 0.6 < float((shown == MASK).float().mean()) < 0.95
    for step, (sequences, at) in enumerate(seen):
        original = batch([4, 9, 13], seed=step).ids
        assert set(original[at].tolist()).isdisjoint({CLS, SEP})
        others = torch.ones(len(original), dtype=torch.bool)
        others[at] = False
        assert torch.equal(sequences.ids[others], original[others])


def test_without_a_number_the_rate_decides() -> None:
    made, seen = objective(rate=0.3), []
    hidden = made.encoder.hidden
    made.encoder.hidden = lambda sequences, at: seen.append(at) or hidden(sequences, at)  # type: ignore[method-assign,func-returns-value]
    made(batch([12, 22]), seed=0, step=0)
    assert len(seen[0]) == round(0.3 * 30)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_follows_from_seed_and_step(arch: str) -> None:
    one, again = objective(arch, count=9), objective(arch, count=9)
    torch.manual_seed(1)
    first = one(batch(), seed=4, step=2)[0]
    torch.manual_seed(2)
    np.random.seed(2)
    second = again(batch(), seed=4, step=2)[0]
    assert torch.equal(first, second)
    first.backward()
    second.backward()
    other = gradients(again)
    assert all(torch.equal(gradient, other[name]) for name, gradient in gradients(one).items())
    assert not torch.equal(first, one(batch(), seed=4, step=3)[0])
    assert not torch.equal(first, one(batch(), seed=5, step=2)[0])


def test_neither_weights_nor_random_state_nor_the_batch_change() -> None:
    made, sequences = objective(), batch()
    before, ids, state = flat(made), sequences.ids.clone(), torch.get_rng_state()
    made(sequences, seed=0, step=0)
    assert torch.equal(before, flat(made))
    assert torch.equal(ids, sequences.ids)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("strategy", ["token", "whole-word", "span"])
def test_special_tokens_alone_are_nothing_to_learn_from(strategy: str) -> None:
    made = objective(strategy=strategy)
    loss, metrics = made(batch([2, 2]), seed=0, step=0)
    loss.backward()
    assert (float(loss.detach()), float(metrics["masked_accuracy"])) == (0, 0)
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert gradients, "the loss is connected to the weights"
    assert not any(gradient.any() for gradient in gradients)


def test_dropout_is_off_unless_it_is_chosen() -> None:
    plain, dropping = objective().train(), objective(dropout=0.3).train()
    assert torch.equal(plain(batch(), seed=0, step=0)[0], plain(batch(), seed=0, step=0)[0])
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(dropping(batch(), seed=0, step=0)[0].item())
    assert losses[0] == losses[1] != losses[2]


# ---- learning


@pytest.mark.parametrize("arch", ARCHS)
def test_the_gradient_reaches_every_parameter(arch: str) -> None:
    made = objective(arch)
    made(batch(), seed=0, step=0)[0].backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys moves all scores of a query alike, and a softmax does not see that.
        assert bool(parameter.grad.abs().max() > 1e-7) or name.endswith("key.bias"), name


@pytest.mark.parametrize("arch", ARCHS)
def test_one_batch_can_be_learned_by_heart(arch: str) -> None:
    import transformers

    name = {"bert": "Bert", "modernbert": "ModernBert"}[arch]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so small a network two are slower than one, and on a busy machine far slower
    torch.manual_seed(0)
    whole = getattr(transformers, name + "ForMaskedLM")(model(arch).config)
    made = MLM(*split(whole), masker(), count=15).train()
    optimizer = adamw(parameter_groups(made, 1e-2, 0.0))
    accuracy = 0.0
    for _ in range(150):
        loss, metrics = made(batch(), seed=0, step=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        accuracy = float(metrics["masked_accuracy"])
        if float(loss.detach()) < 0.05:
            break
    torch.set_num_threads(threads)
    assert float(loss.detach()) < 0.1
    assert accuracy == 1


def test_parts_are_the_callers() -> None:
    encoder, head = split(model())
    made = MLM(encoder, head, masker())
    assert isinstance(made.encoder, TextEncoder)
    assert (made.encoder, made.head) == (encoder, head)
