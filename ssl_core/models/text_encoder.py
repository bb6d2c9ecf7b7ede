"""Text encoders of the transformers library, run on tokens that lie one after the other, without padding.

The modules and the names in their state dict are the library's (``BertModel``, ``ModernBertModel``); the forward is ours:
embeddings, linear layers, norms and activations see all tokens as one matrix, and attention sees one text at a time.
``TextEncoder.plain_hidden`` is the library's own forward; tests hold the two together, gradients included.

Shapes: T tokens of N texts, D features, V vocabulary, H heads of d features, k tokens that are asked for.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.data.text.sequences import Sequences
from ssl_core.models.dense import linear, product
from ssl_core.models.text_attention import Attention

Pooling = Literal["mean", "cls"]
_ROWS = 64
"""Token rows are rounded up to a multiple of this: batches of nearly one size then have one shape, whose kernels are kept."""


class TextEncoder(nn.Module):
    """``network`` (a ``BertModel`` without pooler, or a ``ModernBertModel``) with a pooling: texts to features."""

    def __init__(self, network: Any, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.config = network.config
        self.features: int = self.config.hidden_size

    def forward(self, sequences: Sequences, pooling: Pooling | None = None) -> Tensor:
        """Embeddings of N texts, ``(N, D)``: the mean of a text's token outputs, or the output of its first token.

        ``pooling``: another than the encoder's own.
        """
        device = sequences.ids.device
        if (pooling or self.pooling) == "cls":
            return self.hidden(sequences, (sequences.lengths.cumsum(0) - sequences.lengths).to(device))
        hidden = self.hidden(sequences)
        total = hidden.new_zeros(len(sequences.lengths), self.features).index_add(0, sequences.rows, hidden)
        return total / sequences.lengths.to(device)[:, None].to(hidden.dtype)

    def hidden(self, sequences: Sequences, at: Tensor | None = None) -> Tensor:
        """The outputs of the last layer, ``(T, D)``; or only those at the positions ``at`` ``(k,)``, as ``(k, D)``.

        With ``at``, whatever follows the last layer's attention is computed for these tokens alone: the same numbers, for
        less work. Raises ``ValueError`` for a text that is longer than the encoder has positions.
        """
        longest, known = int(sequences.lengths.max()), int(self.config.max_position_embeddings)
        if longest > known:
            raise ValueError(f"a sequence of {longest} tokens, but the encoder has {known} positions")
        ids, positions, at = _by_length(sequences, at)
        attention = Attention(sequences.lengths, ids.device)
        spare = -len(ids) % _ROWS
        if self.config.model_type == "bert":
            return self._bert(F.pad(ids, (0, spare)), F.pad(positions, (0, spare)), attention, at)
        return self._modernbert(F.pad(ids, (0, spare)), F.pad(positions, (0, spare)), attention, at)

    def plain_hidden(self, sequences: Sequences) -> Tensor:
        """``hidden`` by the library's own forward on padded rows: slower, and what ``hidden`` is compared with."""
        lengths = sequences.lengths
        filled = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        filled = filled.to(sequences.ids.device)
        ids = sequences.ids.new_zeros(filled.shape).masked_scatter(filled, sequences.ids)
        outputs: Tensor = self.network(input_ids=ids, attention_mask=filled.long()).last_hidden_state
        return outputs[filled]

    @property
    def embeddings(self) -> nn.Module:
        """The module of the token embeddings and what belongs to them."""
        module: nn.Module = self.network.embeddings
        return module

    def layers(self) -> list[nn.Module]:
        """The transformer layers, bottom to top."""
        return list(self.network.encoder.layer if self.config.model_type == "bert" else self.network.layers)

    def set_dropout(self, share: float) -> None:
        """Drops ``share`` of the activations wherever the architecture can, in place of what ``config`` says."""
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
        if self.config.model_type == "modernbert":
            for layer in self.network.layers:
                # A new module is in training mode, whatever mode its layer is in.
                layer.attn.attention_dropout, layer.attn.out_drop = share, nn.Dropout(share).train(layer.training)

    def _bert(self, ids: Tensor, positions: Tensor, attention: Attention, at: Tensor | None) -> Tensor:
        """Devlin et al. 2019, https://arxiv.org/abs/1810.04805: norms after the sums, biases everywhere."""
        embeddings = self.network.embeddings
        x = embeddings.word_embeddings(ids) + embeddings.token_type_embeddings.weight[0]
        x = embeddings.dropout(embeddings.LayerNorm(x + embeddings.position_embeddings(positions)))
        layers = self.network.encoder.layer
        for layer in layers:
            heads = layer.attention.self
            share = heads.dropout.p if self.training else 0.0
            y = attention(_project(x, [heads.query, heads.key, heads.value], heads.num_attention_heads), share)
            if layer is layers[-1]:
                x, y = _chosen(x, at, attention.tokens), _chosen(y, at, attention.tokens)
            out = layer.attention.output
            x = out.LayerNorm(out.dropout(linear(out.dense, y)) + x)
            y = layer.intermediate.intermediate_act_fn(linear(layer.intermediate.dense, x))
            out = layer.output
            x = out.LayerNorm(out.dropout(linear(out.dense, y)) + x)
        return x

    def _modernbert(self, ids: Tensor, positions: Tensor, attention: Attention, at: Tensor | None) -> Tensor:
        """Warner et al. 2024, https://arxiv.org/abs/2412.13663: norms before, gated GELU, rotary positions, local attention."""
        network = self.network
        x = network.embeddings(input_ids=ids)
        turns = {kind: network.rotary_emb(x, positions[None], kind) for kind in set(self.config.layer_types)}
        for layer in network.layers:
            attn, mlp = layer.attn, layer.mlp
            cos, sin = turns[layer.attention_type]
            qkv = _project(layer.attn_norm(x), [attn.Wqkv], self.config.num_attention_heads)
            qkv = torch.cat((_rotate(qkv[:, :2], cos[0], sin[0]), qkv[:, 2:]), dim=1)
            window = self.config.sliding_window if layer.attention_type == "sliding_attention" else None
            y = attention(qkv, attn.attention_dropout if self.training else 0.0, window)
            if layer is network.layers[-1]:
                x, y = _chosen(x, at, attention.tokens), _chosen(y, at, attention.tokens)
            x = x + attn.out_drop(linear(attn.Wo, y))
            y, gate = linear(mlp.Wi, layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + linear(mlp.Wo, mlp.drop(mlp.act(y) * gate))
        outputs: Tensor = network.final_norm(x)
        return outputs


def _by_length(sequences: Sequences, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids and positions ``(T,)`` with the shortest texts first, and where the tokens ``at`` (default: all) now are.

    Only attention knows which token is whose, so the order costs no more than this; None: it is as it was, and all are asked for.
    """
    lengths, positions = sequences.lengths, sequences.positions
    if bool((lengths[1:] >= lengths[:-1]).all()):
        return sequences.ids, positions, at
    sizes, order = lengths.sort(stable=True)
    starts = (lengths.cumsum(0) - lengths)[order]
    source = torch.arange(len(positions)) + torch.repeat_interleave(starts - (sizes.cumsum(0) - sizes), sizes)
    place = torch.empty_like(source).scatter_(0, source, torch.arange(len(source)))
    source, place = source.to(positions.device), place.to(positions.device)
    return sequences.ids[source], positions[source], place if at is None else place[at]


def _chosen(x: Tensor, at: Tensor | None, tokens: int) -> Tensor:
    return x[:tokens] if at is None else x.index_select(0, at)


def _project(x: Tensor, layers: list[nn.Module], heads: int) -> Tensor:
    """Queries, keys and values of all tokens, ``(T, 3, H, d)``, from one product where they are plain linear layers."""
    if len(layers) > 1 and all(type(layer) is nn.Linear for layer in layers):
        weights, biases = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        joined = product(x, weights, biases)
    else:
        joined = torch.cat([linear(layer, x) for layer in layers], dim=-1)
    return joined.view(len(x), 3, heads, -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864) in float32: ``x`` ``(T, 2, H, d)``, angles ``(T, d)``."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cos[:, None, None] + turned * sin[:, None, None]).to(x.dtype)


class MLMHead(nn.Module):
    """The library's prediction head: ``(k, D)`` outputs to ``(k, V)`` logits.

    ``logits = norm(act(dense(h))) W^T + b``. W is the embedding table itself, held by the encoder, or with ``untied``
    checkpoints a parameter of this head.
    """

    def __init__(self, transform: nn.Module, decoder: nn.Linear, table: nn.Embedding) -> None:
        super().__init__()
        self.transform = transform
        self.bias = decoder.bias
        tied = decoder.weight is table.weight
        # A tuple hides the table from ``parameters()``: it is the encoder's.
        self._table: tuple[nn.Embedding] | None = (table,) if tied else None
        self.untied = None if tied else decoder.weight

    @property
    def weight(self) -> Tensor:
        """W, ``(V, D)``."""
        return self._table[0].weight if self._table else self.untied  # type: ignore[return-value]

    def forward(self, hidden: Tensor) -> Tensor:
        return product(self.transform(hidden), self.weight, self.bias)


def split(model: nn.Module, pooling: Pooling = "mean") -> tuple[TextEncoder, MLMHead]:
    """The parts of a ``BertForMaskedLM`` or a ``ModernBertForMaskedLM``; they share its tensors."""
    whole: Any = model
    if whole.config.model_type == "bert":
        network, table, predictions = whole.bert, whole.bert.embeddings.word_embeddings, whole.cls.predictions
        transform, decoder = predictions.transform, predictions.decoder
    elif whole.config.model_type == "modernbert":
        network, table = whole.model, whole.model.embeddings.tok_embeddings
        transform, decoder = whole.head, whole.decoder
    else:
        raise ValueError(f"bert or modernbert, not {whole.config.model_type}")
    # A new module is in training mode, whatever mode its parts are in.
    encoder, head = TextEncoder(network, pooling), MLMHead(transform, decoder, table)
    return encoder.train(whole.training), head.train(whole.training)


def join(encoder: TextEncoder, head: MLMHead) -> Any:
    """The library's masked language model of these parts, sharing their tensors: what ``split`` takes apart."""
    from transformers import BertForMaskedLM, ModernBertForMaskedLM

    config = encoder.config
    with torch.device("meta"):
        whole: Any = (BertForMaskedLM if config.model_type == "bert" else ModernBertForMaskedLM)(config)
    decoder = nn.Linear(encoder.features, len(head.bias), device="meta")
    decoder.weight, decoder.bias = head.weight, head.bias
    if config.model_type == "bert":
        whole.bert = encoder.network
        predictions = whole.cls.predictions
        predictions.transform, predictions.bias, predictions.decoder = head.transform, head.bias, decoder
    else:
        whole.model, whole.head, whole.decoder = encoder.network, head.transform, decoder
    return whole.train(encoder.training)
