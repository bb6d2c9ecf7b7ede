"""Encodes texts word by word, each distinct word once: some ten times as fast as reading every text through the library.

Where a tokenizer treats what lies between spaces independently (all that are trained here, and BERT's own), a text's ids are its
words' ids one after the other, and a corpus has few distinct words. Whatever else a tokenizer does, its texts go through the
library whole. Tests hold both ways equal. N texts, T tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import tokenizers

_PIECE = 50_000
"""Characters of a text that are looked at at once; the library needs about a hundred bytes for each of them."""
_BATCH = 16 * _PIECE
_MOST_WORDS = 100_000
_LONGEST_WORD = 40

# Unicode's White_Space, as the library reads it; Python's own \s has four control characters more.
_WHITE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
_SPACED = re.compile(f"[{_WHITE}]*[^{_WHITE}]+|[{_WHITE}]+")
_NOT_AS_SPLIT = re.compile("[\\x0b\\x0c\\x1c-\\x1f\\x85]")
"""Where BERT's normaliser drops a character that ``str.split`` takes for a space."""


class Encoder:
    """The encoding half of a tokenizer; safe to call from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._words, self._backend = _by_words(backend)
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int64 ids ``(T,)`` of all texts one after the other, without special tokens, and how many each has ``(N,)``."""
        ids: list[np.ndarray] = []
        lengths = np.zeros(len(texts), dtype=np.int64)
        for batch, rows in _batches(texts):
            found, counts = self._encode_batch(batch)
            ids.append(found)
            np.add.at(lengths, rows, counts)
        return np.concatenate(ids) if ids else np.zeros(0, np.int64), lengths

    def _encode_batch(self, texts: list[tuple[str, bool]]) -> tuple[np.ndarray, np.ndarray]:
        """Of pieces, each with whether it opens a text."""
        if self._words is None:
            rows = [np.asarray(row, dtype=np.int64) for row in self._library([text for text, _ in texts])]
            return np.concatenate(rows), np.asarray([len(row) for row in rows], dtype=np.int64)
        words = [self._words(text, opens) for text, opens in texts]
        distinct = set(chain.from_iterable(words))
        known = self._known  # a name of this call's own: another thread may begin a new one
        missing = [word for word in distinct if word not in known]
        new = dict(zip(missing, map(tuple, self._library(missing)), strict=True)) if missing else {}
        if len(known) + len(new) > _MOST_WORDS:
            self._known = {}
        kept = {word: row for word, row in new.items() if len(word) <= _LONGEST_WORD}
        self._known.update(islice(kept.items(), _MOST_WORDS))
        table = known | new if len(kept) < len(new) or self._known is not known else known
        each = [list(map(table.__getitem__, row)) for row in words]
        counts = np.fromiter((sum(map(len, row)) for row in each), dtype=np.int64, count=len(each))
        flat = chain.from_iterable(chain.from_iterable(each))
        return np.fromiter(flat, dtype=np.int64, count=int(counts.sum())), counts

    def _library(self, texts: list[str]) -> Iterator[list[int]]:
        try:
            rows = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeError):  # half a surrogate pair, as JSON can carry it, is no character
            clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
            rows = self._backend.encode_batch_fast(clean, add_special_tokens=False)
        return (row.ids for row in rows)


_Words = Callable[[str, bool], list[str]]


def _by_words(backend: tokenizers.Tokenizer) -> tuple[_Words | None, tokenizers.Tokenizer]:
    """How to cut a text into parts that this tokenizer treats independently, and the tokenizer that encodes a part.

    None where no such way is known: then texts are encoded whole.
    """
    structure = json.loads(backend.to_str())
    kind, normal, before = (structure[part] or {} for part in ("model", "normalizer", "pre_tokenizer"))
    added = [token["content"] for token in structure["added_tokens"] if not token["special"]]
    if kind.get("type") == "BPE":
        if added or normal or before.get("type") != "ByteLevel" or not before.get("use_regex", True):
            return None, backend
        # A text's first word is told apart by the space that it gets here; a word after a line break has none.
        within = structure | {"pre_tokenizer": before | {"add_prefix_space": False}}
        inner = tokenizers.Tokenizer.from_str(json.dumps(within))
        inner.encode_special_tokens = True
        return (_bytewise_prefixed if before["add_prefix_space"] else _bytewise), inner
    if any(any(c.isspace() for c in word) for word in added):
        return None, backend  # a word of several words may begin anywhere
    if kind.get("type") == "Unigram":
        steps = normal.get("normalizers") or [{}]
        whole = steps[0].get("type") == "BertNormalizer" and steps[0]["clean_text"]
        spaces = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
        if whole and steps[1:] == [spaces, {"type": "Strip", "strip_left": True, "strip_right": True}]:
            return (_split_unmarked if before.get("type") == "Metaspace" and before["split"] else None), backend
    elif normal.get("type") == "BertNormalizer" and normal["clean_text"] and before.get("type") == "BertPreTokenizer":
        return _split, backend
    return None, backend


def _split(text: str, _opens: bool) -> list[str]:
    return [text] if _NOT_AS_SPLIT.search(text) else text.split()


def _split_unmarked(text: str, opens: bool) -> list[str]:
    return [text] if "▁" in text else _split(text, opens)  # this sign stands for a space in Unigram


def _bytewise(text: str, _opens: bool) -> list[str]:
    return _SPACED.findall(text)


def _bytewise_prefixed(text: str, opens: bool) -> list[str]:
    return _SPACED.findall(f" {text}" if opens and text and not text.startswith(" ") else text)


def _batches(texts: Iterable[str]) -> Iterator[tuple[list[tuple[str, bool]], list[int]]]:
    """Pieces of texts with whether they open one, and the row of each; a bounded number of characters at a time."""
    batch: list[tuple[str, bool]] = []
    rows: list[int] = []
    size = 0
    for row, text in enumerate(texts):
        for number, piece in enumerate(_pieces(text)):
            batch.append((piece, number == 0))
            rows.append(row)
            size += len(piece) + 16
            if size >= _BATCH:
                yield batch, rows
                batch, rows, size = [], [], 0
    if batch:
        yield batch, rows


def _pieces(text: str) -> Iterator[str]:
    """``text``, cut before single spaces between letters if it is very long: nothing reads across these, the ids are the same.

    A stretch of ``_PIECE`` characters without such a space is cut at its end; nothing is lost, but a word may be two there. So may
    an added word of several words be, once in ``_PIECE`` characters.
    """
    start = 0
    while len(text) - start > _PIECE:
        cut = text.rfind(" ", start + 1, start + _PIECE)
        while cut > start and not (text[cut - 1].isalnum() and text[cut + 1].isalnum()):
            cut = text.rfind(" ", start + 1, cut)
        end = cut if cut > start else start + _PIECE
        yield text[start:end]
        start = end
    yield text[start:] if start else text
