"""Learns a tokenizer from texts: WordPiece, byte-level BPE or Unigram. The same texts always give the same files.

Learning looks at an evenly spaced sample of at most ``SAMPLE_CHARACTERS`` of the corpus: more text moves only the rarest of the
tokens, and so memory and time stay the same for a corpus of any size.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text import unigram
from ssl_core.data.text.tokenizer import SPECIALS, Tokenizer
from ssl_core.data.text.words import split_words
from ssl_core.errors import UserError

SAMPLE_CHARACTERS = 24_000_000
SEEN_ENOUGH = 10
"""How often a word must occur for ``size: auto`` to give it a token."""
SMALLEST, LARGEST = 1_000, {"wordpiece": 30_522, "unigram": 30_522, "bpe": 50_257}
"""Bounds of ``size: auto``; the largest are BERT's and GPT-2's."""
BYTES_FROM = 1_000
"""A Unigram vocabulary of so many tokens has 256 bytes among them, to spell what it lacks; a smaller one says [UNK]."""

_OVERHEAD = 64
_LONGEST_TEXT = 1_000_000
_UNIGRAM_WORDS = 50_000
_MANY_WORDS = 50_000
"""Of more different words those rarer than ``min_frequency`` are left out before learning: most words of a large corpus are, and
each takes half a kilobyte there."""
_REPEATED = 1000
_ROUND = 64
_NEVER = -1000.0
_LONG = re.compile(r"(\S{256})(?=\S)")


@dataclass(frozen=True)
class Sample:
    """Every ``every``-th of ``seen`` texts: what a tokenizer is learned from."""

    texts: list[str]
    seen: int
    every: int


def sample(texts: Iterable[str], most: int | None = None) -> Sample:
    """An evenly spaced sample of at most ``most`` characters (default ``SAMPLE_CHARACTERS``), in one pass.

    A text counts with at most its first million characters. Whenever the room is spent, every other text is left out.
    """
    most = most or SAMPLE_CHARACTERS
    kept: list[str] = []
    every, seen, size = 1, 0, 0
    for text in texts:
        if seen % every == 0:
            kept.append(text[:_LONGEST_TEXT])
            size += len(kept[-1]) + _OVERHEAD
            while size > most and len(kept) > 1:
                kept, every = kept[::2], 2 * every
                size = sum(len(one) + _OVERHEAD for one in kept)
        seen += 1
    return Sample(kept, seen, every)


def count_words(texts: Iterable[str], config: TokenizerConfig) -> Counter[str]:
    """How often each word occurs, as the tokenizer sees it (in lower case, if so configured); a Chinese character is a word."""
    normalizer = _normalizer(config)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(split_words(normalizer.normalize_str(text) if normalizer else text))
    return words


def frequent_words(words: Mapping[str, int], config: TokenizerConfig, every: int = 1) -> int:
    """How many words occur at least ``SEEN_ENOUGH`` times in a corpus of which ``words`` counts every ``every``-th text.

    In the sample that is at least ``min_frequency``: what is seen once there says next to nothing of the corpus.
    """
    enough = max(SEEN_ENOUGH / every, min(config.min_frequency, SEEN_ENOUGH))
    return sum(count >= enough for count in words.values())


def advise_size(words: Mapping[str, int], config: TokenizerConfig, every: int = 1) -> int:
    """What ``tokenizer.size: auto`` stands for: one token for each word that occurs at least ``SEEN_ENOUGH`` times.

    A token's embedding is learned from its occurrences alone, and by Zipf's law most words of a corpus occur once or twice:
    tokens for these would be bought with parameters and head time and stay as good as random. Rounded up to a multiple of 64
    (which matrix products like), within ``SMALLEST`` and ``LARGEST``.
    """
    rounded = -(-frequent_words(words, config, every) // _ROUND) * _ROUND
    return max(SMALLEST, min(LARGEST[config.kind], rounded))


def train(texts: Iterable[str], config: TokenizerConfig, *, size: int | None = None) -> Tokenizer:
    """A tokenizer of at most ``size`` tokens, special and added ones included; fewer where the texts have no more to teach.

    ``size`` is by default ``config.size``, and with that on auto what ``advise_size`` says. Raises ``UserError`` where there is
    nothing to learn from, or where ``size`` has no room for the alphabet.
    """
    drawn = sample(texts)
    chosen = [_LONG.sub(r"\1 ", text) for text in drawn.texts]  # one endless "word" would take all the time
    if not any(text.strip() for text in chosen):
        raise UserError(
            "there is no text to learn a tokenizer from",
            place="data.source",
            next_step="add texts, or lower data.split",
        )
    if size is None:
        size = (
            advise_size(count_words(chosen, config), config, drawn.every) if config.size == "auto" else int(config.size)
        )
    room, least = size - len(config.added), 300 if config.kind == "bpe" else 100
    if room < least:
        raise UserError(
            f"{size} tokens are too few: {config.kind} takes {least} or more"
            + (f", and the added words take {len(config.added)}" if config.added else ""), place="tokenizer.size",
            next_step=f"set it to {len(config.added) + 1000} or more, or to auto",
        )  # fmt: skip
    learn = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[config.kind]
    tokenizer = Tokenizer(learn(chosen, config, room), SPECIALS)
    tokenizer.add_words(config.added)
    return tokenizer


def _normalizer(config: TokenizerConfig) -> Any:
    """What happens to a text before anything else; None with BPE, which keeps text as it is."""
    if config.kind == "bpe":
        return None
    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=config.kind == "wordpiece", strip_accents=config.lowercase,
        lowercase=config.lowercase,
    )  # fmt: skip
    if config.kind == "wordpiece":
        return bert
    return normalizers.Sequence([bert, normalizers.Replace(tokenizers.Regex(" +"), " "), normalizers.Strip()])


def _characters(texts: list[str], normalizer: Any, most: int) -> list[str]:
    """The ``most`` frequent characters, in their own order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    visible = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(visible[:most])


def _count_parts(texts: list[str], backend: tokenizers.Tokenizer, least: int) -> dict[str, int]:
    """How often each word occurs in ``texts`` as the tokenizer splits them; see ``_MANY_WORDS``."""
    spaced: Counter[str] = Counter()
    for text in texts:
        spaced.update(text.split())
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    parts: Counter[str] = Counter()
    while spaced:
        word, count = spaced.popitem()
        for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word)):
            parts[part] += count
    return parts if len(parts) <= _MANY_WORDS else {part: count for part, count in parts.items() if count >= least}


def _repeated(counts: Mapping[str, int]) -> Iterator[str]:
    """Texts in which each word occurs as often as it is to be counted."""
    for word, count in counts.items():
        for done in range(0, count, _REPEATED):
            yield f"{word} " * min(_REPEATED, count - done)


def _wordpiece(texts: list[str], config: TokenizerConfig, size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"], max_input_chars_per_word=100))
    backend.normalizer = _normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    known = _characters(texts, backend.normalizer, size // 4)
    within = [
        c for c in known if len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(f"a{c}"))) == 1
    ]
    # Handed over in order, beginnings and continuations both: the trainer would number the latter as its hash map has them.
    alphabet = [*SPECIALS.values(), *known, *(f"##{c}" for c in within)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=config.min_frequency,
        special_tokens=alphabet,
        limit_alphabet=0,
        show_progress=False,
    )
    # Counted before: the trainer holds the tokenizer, and would wait for what is asked of it meanwhile.
    backend.train_from_iterator(_repeated(_count_parts(texts, backend, config.min_frequency)), trainer)
    learned = json.loads(backend.to_str()) | {"added_tokens": []}  # or all of the alphabet would be special
    return tokenizers.Tokenizer.from_str(json.dumps(learned))


def _bpe(texts: list[str], config: TokenizerConfig, size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=config.min_frequency, special_tokens=list(SPECIALS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return backend


def _unigram(texts: list[str], config: TokenizerConfig, size: int) -> tokenizers.Tokenizer:
    normalizer = _normalizer(config)
    names = [*SPECIALS.values(), *((f"<0x{byte:02X}>" for byte in range(256)) if size >= BYTES_FROM else ())]
    room = size - len(names)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(normalizer.normalize_str(text).split(" "))
    most = max(_UNIGRAM_WORDS, 4 * size)
    frequent = sorted(((w, n) for w, n in words.items() if w), key=lambda pair: (-pair[1], pair[0]))[:most]
    often = {f"▁{w}": n for w, n in frequent if n >= config.min_frequency} or {f"▁{w}": n for w, n in frequent}
    # Every printable ASCII character: a text that says "[MASK]" or "<0x41>" is then spelled, whatever was in the corpus.
    required = {normalizer.normalize_str(c) for c in string.punctuation + string.digits + string.ascii_letters}
    required |= {"▁", *_characters(texts, normalizer, max(0, room // 2 - len(required)))}
    pieces = unigram.learn(often, room, sorted(required))
    backend = tokenizers.Tokenizer(
        models.Unigram([(name, _NEVER) for name in names] + pieces, unk_id=1, byte_fallback=size >= BYTES_FROM)
    )
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(spaces)
    return backend
