"""Text encoders of the transformers library, run on tokens that lie one after the other, without padding.

The modules and the names in their state dict are the library's (``BertModel``, ``ModernBertModel``); the forward is ours:
embeddings, linear layers, norms and activations see ``(T, D)``, and attention sees one text at a time.

Shapes: T tokens of N texts, D features, V vocabulary, H heads, L tokens in a text, k predicted tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.data.text.sequences import Sequences

Pooling = Literal["mean", "cls"]


class TextEncoder(nn.Module):
    """``network`` (a ``BertModel`` without pooler, or a ``ModernBertModel``) with a pooling: texts to features."""

    def __init__(self, network: nn.Module, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.network: Any = network
        self.pooling = pooling
        self.config: Any = network.config
        self.features = int(self.config.hidden_size)

    def forward(self, sequences: Sequences) -> Tensor:
        """Embeddings of N texts, ``(N, D)``: the mean of a text's token outputs, or the output of its first token."""
        hidden = self.hidden(sequences)
        if self.pooling == "cls":
            starts = sequences.lengths.cumsum(0) - sequences.lengths
            return hidden[starts.to(hidden.device)]
        total = hidden.new_zeros(len(sequences.lengths), self.features).index_add(0, sequences.rows, hidden)
        return total / sequences.lengths.to(hidden.device)[:, None].to(hidden.dtype)

    def hidden(self, sequences: Sequences) -> Tensor:
        """The outputs of the last layer, ``(T, D)``."""
        return self.plain_hidden(sequences)

    def plain_hidden(self, sequences: Sequences) -> Tensor:
        """``hidden`` by the library's own forward on padded rows: slower, and what ``hidden`` is compared with."""
        lengths = sequences.lengths
        filled = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        filled = filled.to(sequences.ids.device)
        ids = sequences.ids.new_zeros(filled.shape).masked_scatter(filled, sequences.ids)
        return self.network(input_ids=ids, attention_mask=filled.long()).last_hidden_state[filled]

    @property
    def embeddings(self) -> nn.Module:
        """The module of the token embeddings and what belongs to them."""
        return self.network.embeddings

    def layers(self) -> list[nn.Module]:
        """The transformer layers, bottom to top."""
        return list(self.network.encoder.layer if self.config.model_type == "bert" else self.network.layers)


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
        return F.linear(self.transform(hidden), self.weight, self.bias)


def split(model: nn.Module, pooling: Pooling = "mean") -> tuple[TextEncoder, MLMHead]:
    """The parts of a ``BertForMaskedLM`` or a ``ModernBertForMaskedLM``; they share its tensors."""
    whole: Any = model
    if whole.config.model_type == "bert":
        network, table, predictions = whole.bert, whole.bert.embeddings.word_embeddings, whole.cls.predictions
        transform, decoder = predictions.transform, predictions.decoder
    elif whole.config.model_type == "modernbert":
        network, table, transform, decoder = (
            whole.model,
            whole.model.embeddings.tok_embeddings,
            whole.head,
            whole.decoder,
        )
    else:
        raise ValueError(f"bert or modernbert, not {whole.config.model_type}")
    # A new module is in training mode, whatever mode its parts are in.
    return TextEncoder(network, pooling).train(whole.training), MLMHead(transform, decoder, table).train(whole.training)


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
