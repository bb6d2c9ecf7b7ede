"""Features of many texts, in batches in order of length, in eval mode: the same for probes, golden batches and serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssl_core.models.text_encoder import TextEncoder
from ssl_core.models.text_windows import cut, evaluating, mean_by_text, offsets_of, values_of_windows

if TYPE_CHECKING:
    from ssl_core.data.text.tokenizer import Tokenizer

TEXTS_AT_ONCE = 4096
"""Texts tokenised at once: the memory that a long list takes has a bound."""


def embed_tokens(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    max_length: int,
    ids: np.ndarray,
    offsets: np.ndarray,
    positions: np.ndarray,
    *,
    precision: str = "float32",
) -> np.ndarray:
    """Features float32 ``(n, D)`` of the texts at ``positions`` of a token store, text i being ``ids[offsets[i]:offsets[i + 1]]``.

    A text of more than ``max_length - 2`` tokens has the mean of its windows' features. Computed where the encoder is, which
    is left in the mode that it came in; nothing is random, so equal calls on one machine give equal bits.
    """
    if len(positions) == 0:
        return np.empty((0, encoder.features), dtype=np.float32)
    windows = cut(offsets, positions, max_length - 2, 0)
    with evaluating(encoder) as device, torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        values = values_of_windows(
            ids, windows, tokenizer.cls_id, tokenizer.sep_id, lambda batch: encoder(batch.to(device))
        )
    return mean_by_text(windows, values)


def embed_texts(encoder: TextEncoder, tokenizer: Tokenizer, max_length: int, texts: Sequence[str]) -> np.ndarray:
    """``embed_tokens`` of texts that are not tokenised yet."""
    parts = [np.empty((0, encoder.features), dtype=np.float32)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        ids, lengths = tokenizer.encode_flat(texts[start : start + TEXTS_AT_ONCE])
        rows = np.arange(len(lengths))
        parts.append(embed_tokens(encoder, tokenizer, max_length, ids, offsets_of(lengths), rows))
    return np.concatenate(parts)
