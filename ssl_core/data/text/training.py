"""Learns a tokenizer from texts: WordPiece, byte-level BPE or Unigram."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.tokenizer import SPECIALS, Tokenizer


def train(texts: Iterable[str], config: TokenizerConfig, *, size: int | None = None) -> Tokenizer:
    """A tokenizer of at most ``size`` tokens (default: ``config.size``) that was learned from ``texts``."""
    texts = list(texts)
    size = size or int(config.size)
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=config.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(backend.normalizer.normalize_str(text))
    known = sorted(c for c in characters if not c.isspace())
    trainer = trainers.WordPieceTrainer(
        vocab_size=size - len(config.added),
        min_frequency=config.min_frequency,
        special_tokens=[*SPECIALS.values(), *known, *(f"##{c}" for c in known)],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str()) | {"added_tokens": []}  # the trainer calls all that it was given special
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(learned)), SPECIALS)
    tokenizer.add_words(config.added)
    return tokenizer
