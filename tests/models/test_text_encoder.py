"""Unpadded tokens through a text encoder: the same numbers and gradients as the library's forward on padded rows."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.data.text.sequences import Sequences
from ssl_core.models.text_attention import Attention
from ssl_core.models.text_encoder import MLMHead, TextEncoder, join, split

ARCHS = ["bert", "modernbert"]
VOCABULARY, WIDTH, POSITIONS = 50, 16, 40
MIXES = {
    "one": [9],
    "one token": [1],
    "equal": [7] * 5,
    "rising": [2, 3, 3, 8, 20],
    "mixed": [12, 3, 30, 3, 40, 2, 12],
    "falling": [40, 17, 5, 1],
    "whole rows": [32, 32],
}
"""Lengths of the texts of a batch; 32 and 32 are 64 tokens, for which no row is added."""


def model(arch: str = "bert", seed: int = 0, **changes: Any) -> Any:
    """A masked language model of the library in which no parameter is a constant, so that no mix-up stays unseen."""
    import transformers

    values: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": POSITIONS, "pad_token_id": 0,
    }  # fmt: skip
    if arch == "modernbert":
        # Global, local, local: a window of 4 on either side is shorter than most of the texts.
        values |= {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "local_attention": 8}
    name = {"bert": "Bert", "modernbert": "ModernBert"}[arch]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = getattr(transformers, name + "ForMaskedLM")(getattr(transformers, name + "Config")(**values | changes))
        for parameter in whole.parameters():
            nn.init.normal_(parameter, std=0.3)
    return whole.eval()


def batch(lengths: list[int], seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    return Sequences(
        torch.randint(3, VOCABULARY, (sum(lengths),), generator=generator), torch.tensor(lengths, dtype=torch.int64)
    )


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    module.zero_grad()
    return found


# ---- packed is padded


@pytest.mark.parametrize("lengths", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("arch", ARCHS)
def test_packed_is_padded(arch: str, lengths: list[int]) -> None:
    """Hidden states, masked language modelling loss and every gradient."""
    whole = model(arch)
    encoder, head = split(whole)
    sequences = batch(lengths)
    generator = torch.Generator().manual_seed(1)
    asked = torch.randperm(len(sequences.ids), generator=generator)[: max(1, len(sequences.ids) // 6)].sort().values
    targets = torch.randint(3, VOCABULARY, asked.shape, generator=generator)

    hidden, plain = encoder.hidden(sequences), encoder.plain_hidden(sequences)
    close(hidden, plain)
    close(encoder.hidden(sequences, asked), plain[asked])

    # The library's own loss, from padded ids and labels.
    filled = torch.arange(max(lengths))[None] < sequences.lengths[:, None]
    ids = torch.zeros(filled.shape, dtype=torch.int64).masked_scatter(filled, sequences.ids)
    flat = torch.full((len(sequences.ids),), -100).index_copy(0, asked, targets)
    labels = torch.full(filled.shape, -100).masked_scatter(filled, flat)
    theirs = whole(input_ids=ids, attention_mask=filled.long(), labels=labels).loss
    theirs.backward()
    expected = gradients(whole)
    ours = F.cross_entropy(head(encoder.hidden(sequences, asked)), targets)
    ours.backward()
    close(ours, theirs)
    found = gradients(whole)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        close(gradient, expected[name])


@pytest.mark.parametrize("arch", ARCHS)
def test_a_text_does_not_depend_on_its_neighbours_or_their_order(arch: str) -> None:
    encoder, _ = split(model(arch))
    lengths = [12, 3, 30, 3]
    sequences = batch(lengths)
    parts = sequences.ids.split(lengths)
    alone = torch.cat([encoder.hidden(Sequences(part, torch.tensor([len(part)]))) for part in parts])
    close(encoder.hidden(sequences), alone)
    order = [2, 0, 3, 1]
    turned = Sequences(torch.cat([parts[i] for i in order]), torch.tensor([lengths[i] for i in order]))
    rows = encoder.hidden(turned).split([lengths[i] for i in order])
    close(torch.cat([rows[order.index(i)] for i in range(4)]), alone)


def test_positions_that_are_asked_for_in_any_order_come_in_that_order() -> None:
    encoder, _ = split(model())
    sequences, asked = batch(MIXES["mixed"]), torch.tensor([90, 0, 13, 13, 50])
    close(encoder.hidden(sequences, asked), encoder.hidden(sequences)[asked])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("asks", ["all", "some"])
def test_the_gradient_reaches_every_parameter(arch: str, asks: str) -> None:
    encoder, head = split(model(arch))
    sequences = batch(MIXES["mixed"])
    asked = None if asks == "all" else torch.tensor([3, 14, 40, 60])
    logits = head(encoder.hidden(sequences, asked))
    logits.mul(torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for module in (encoder, head):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            # A bias of the keys moves all scores of a query alike, and a softmax does not see that.
            assert bool(parameter.grad.abs().max() > 1e-6) or name.endswith("key.bias"), name


# ---- attention


def slow_attention(qkv: Tensor, lengths: list[int], window: int | None = None) -> Tensor:
    """One text, one head, one query at a time, from the formula."""
    rows, start = [], 0
    for length in lengths:
        q, k, v = qkv[start : start + length].unbind(1)
        for place in range(length):
            low, high = (0, length) if window is None else (max(0, place - window), place + window + 1)
            heads = [
                torch.softmax(k[low:high, h] @ q[place, h] / q.shape[-1] ** 0.5, dim=0) @ v[low:high, h]
                for h in range(q.shape[1])
            ]
            rows.append(torch.cat(heads))
        start += length
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 2, 5])
@pytest.mark.parametrize("step", [None, 4, 64])
def test_attention_is_the_formula(window: int | None, step: int | None) -> None:
    """Lengths that are rounded up, as on a GPU, too."""
    lengths = [2, 3, 3, 8, 8, 13]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths) + 5, 3, 2, 4, generator=generator, requires_grad=True)
    output = Attention(torch.tensor(lengths), torch.device("cpu"), step)(qkv, window=window)
    expected = slow_attention(qkv[: sum(lengths)], lengths, window)
    close(output[: sum(lengths)], expected)
    assert torch.equal(output[sum(lengths) :], torch.zeros(5, 8))
    grad = torch.randn(expected.shape, generator=generator)
    close(*(torch.autograd.grad(made, qkv, grad)[0] for made in (output[: sum(lengths)], expected)))


# ---- pooling, dropout, bad input


def test_pooling_takes_the_mean_or_the_first_token() -> None:
    whole = model()
    sequences = batch(MIXES["mixed"])
    mean, first = split(whole, "mean")[0], split(whole, "cls")[0]
    rows = mean.plain_hidden(sequences).split(sequences.lengths.tolist())
    close(mean(sequences), torch.stack([row.mean(0) for row in rows]))
    close(first(sequences), torch.stack([row[0] for row in rows]))
    assert mean(sequences).shape == (7, WIDTH)
    for encoder in (mean, first):
        encoder(sequences).square().sum().backward()
        assert all(g.abs().max() > 0 for n, g in gradients(encoder).items() if not n.endswith("key.bias"))


@pytest.mark.parametrize("arch", ARCHS)
def test_dropout_is_set_everywhere_and_acts_in_training_alone(arch: str) -> None:
    encoder, _ = split(model(arch))
    sequences, exact = batch([5, 9]), split(model(arch))[0].hidden(batch([5, 9]))
    encoder.set_dropout(0.5)
    assert torch.equal(encoder.hidden(sequences), exact)
    encoder.train()
    torch.manual_seed(0)
    one, other = encoder.hidden(sequences), encoder.hidden(sequences)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(encoder.hidden(sequences), one)
    encoder.set_dropout(0.0)
    assert torch.equal(encoder.hidden(sequences), exact)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sequence_longer_than_the_positions_is_told(arch: str) -> None:
    encoder, _ = split(model(arch))
    with pytest.raises(ValueError, match="41 tokens, but the encoder has 40 positions"):
        encoder.hidden(batch([3, POSITIONS + 1]))


@pytest.mark.parametrize("arch", ARCHS)
def test_bfloat16_is_near(arch: str) -> None:
    encoder, _ = split(model(arch))
    sequences = batch(MIXES["mixed"])
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.hidden(sequences).float()
    exact = encoder.hidden(sequences)
    assert F.cosine_similarity(half, exact).min() > 0.99


# ---- parts of a model of the library


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tied", [True, False])
def test_split_and_join_share_all_tensors(arch: str, tied: bool) -> None:
    whole = model(arch, tie_word_embeddings=tied)
    encoder, head = split(whole)
    again = join(encoder, head)
    names, others = whole.state_dict(), again.state_dict()
    assert names.keys() == others.keys()
    # Without a common table BERT has a second bias, which its forward does not read.
    unread = {"cls.predictions.bias"} if arch == "bert" and not tied else set()
    assert all(tensor.data_ptr() == others[name].data_ptr() for name, tensor in names.items() if name not in unread)
    assert (head.untied is None) == tied
    # Each parameter is in one of the two parts, and in one alone.
    owners = [id(p) for part in (encoder, head) for p in part.parameters()]
    assert len(owners) == len(set(owners))
    assert {id(p) for name, p in whole.named_parameters() if name not in unread} == set(owners)
    sequences = batch([4, 6])
    ids = sequences.ids[:4][None]
    close(head(encoder.hidden(Sequences(ids[0], torch.tensor([4])))), again(input_ids=ids).logits[0])


def test_parts_are_named_and_counted() -> None:
    for arch in ARCHS:
        encoder, head = split(model(arch))
        assert isinstance(encoder, TextEncoder)
        assert isinstance(head, MLMHead)
        assert (len(encoder.layers()), encoder.features) == (3, WIDTH)
        below = [*encoder.embeddings.parameters(), *(p for layer in encoder.layers() for p in layer.parameters())]
        above = {id(p) for p in encoder.parameters()} - {id(p) for p in below}
        assert len(above) == (1 if arch == "modernbert" else 0)  # the last norm
        assert json.loads(encoder.config.to_json_string())["model_type"] == arch


def test_an_unknown_architecture_is_told() -> None:
    other = copy.deepcopy(model())
    other.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="bert or modernbert, not gpt2"):
        split(other)


def test_a_layer_with_an_adapter_computes_for_itself() -> None:
    """What peft puts in place of a linear layer is called, not read past."""

    class Adapter(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    encoder, _ = split(model())
    before = encoder.hidden(batch([5, 7]))
    heads = encoder.network.encoder.layer[0].attention.self
    plain = heads.value
    heads.value = Adapter(WIDTH, WIDTH)
    heads.value.load_state_dict(plain.state_dict())
    after = encoder.hidden(batch([5, 7]))
    assert not torch.allclose(before, after)
    close(after, encoder.plain_hidden(batch([5, 7])))
