"""Which tokens are hidden from the encoder, and what it sees in their place.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", section 3.1,
https://arxiv.org/abs/1810.04805. Every strategy divides the tokens into *units* that are predicted together, and chooses
units until exactly ``count`` tokens of the batch are chosen: the number is fixed, so that shapes are.

Shapes: T tokens in all, N sequences, M tokens that may be hidden (all but special ones), U units, k tokens hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssl_core.config.objectives import MaskingConfig
from ssl_core.data.text.entities import EntityFinder
from ssl_core.errors import UserError

_ENTITY_CHANCE = 0.5
"""Chance of an entity to be hidden: as often something to predict as something to predict from."""
_ENTITY_SHARE = 0.5
"""Entities get at most this share of the hidden tokens in the mean, however dense they are: the other words teach too."""


class Vocabulary(Protocol):
    """What masking asks of a tokenizer."""

    @property
    def size(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def special_ids(self) -> tuple[int, ...]: ...
    @property
    def continues(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Masked:
    """What the encoder sees, and what it has to say."""

    inputs: np.ndarray
    """``(T,)``, of the type of the ids: the tokens as the encoder sees them."""
    positions: np.ndarray
    """int64 ``(k,)``, ascending: where the encoder is asked."""
    targets: np.ndarray
    """``(k,)``: the tokens that stand there."""


class Masker:
    """Chooses the tokens to predict and hides them: 80% as [MASK], 10% as a random token, 10% as they are (``config``).

    ``token``: each token by itself. ``whole-word``: words as wholes (the whole word masking of BERT's second release); where
    the tokenizer makes every character a word, as WordPiece does with Chinese, this is ``token``. ``span``: neighbouring words
    of one sequence, in number geometric (Joshi et al. 2020, SpanBERT, https://arxiv.org/abs/1907.10529). ``entity``:
    occurrences of ``entities`` (token ids) as wholes, then whole words (Sun et al. 2019, ERNIE,
    https://arxiv.org/abs/1904.09223).

    Every token has the same chance to be chosen (with ``entity``: every token outside of entities, and every entity).
    One unit at most is cut for the exact count, and in it one word at most. Mask, random or as it is: decided for each token with ``token`` and
    ``whole-word`` (as BERT's code does), for each unit with ``span`` and ``entity`` (SpanBERT, section 3.1).

    Departures: the rate holds for the batch, not for each sequence; ``span_length`` counts tokens, not words, and is the
    mean that comes out (SpanBERT cuts its spans at 10 words, here only the sequence ends them).
    Raises ``UserError`` where ``entity`` is asked for and no entity can be found.
    """

    def __init__(self, config: MaskingConfig, tokenizer: Vocabulary, entities: Sequence[Sequence[int]] = ()) -> None:
        self.config = config
        self._mask_id = tokenizer.mask_id
        self._continues = np.asarray(tokenizer.continues, dtype=bool)
        self._ordinary = np.ones(tokenizer.size, dtype=bool)
        self._ordinary[list(tokenizer.special_ids)] = False
        self._words = np.flatnonzero(self._ordinary)
        self._finder: EntityFinder | None = None
        if config.strategy == "entity":
            self._finder = EntityFinder(entities, self._ordinary)
            if not self._finder.entities:
                raise UserError(
                    "none of the entities can be written in the tokens of this vocabulary",
                    place=f"objective.masking.entities ({config.entities})",
                    next_step="give entities that occur in the corpus, or another strategy",
                )

    def count(self, lengths: np.ndarray) -> int:
        """How many tokens to hide in sequences of these lengths ``(N,)``, of which two each are special.

        At least one where there is a token to hide.
        """
        maskable = int(np.maximum(np.asarray(lengths) - 2, 0).sum())
        return max(round(self.config.rate * maskable), min(1, maskable))

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, count: int, rng: np.random.Generator) -> Masked:
        """Hides ``count`` tokens of ``ids`` ``(T,)``, sequences of ``lengths`` ``(N,)`` one after the other.

        Never a special token; fewer than ``count`` only where the batch has fewer tokens to hide. All chance is ``rng``'s.
        """
        if count < 0 or int(np.sum(lengths)) != len(ids):
            raise ValueError(f"{len(ids)} ids, lengths that sum to {int(np.sum(lengths))}, count {count}")
        maskable_M = np.flatnonzero(self._ordinary[ids])
        count = min(count, len(maskable_M))
        if self.config.strategy == "token":
            positions = np.sort(maskable_M[rng.choice(len(maskable_M), count, replace=False, shuffle=False)])
            fate = rng.random(count)
        else:
            words_T = self._word_starts(ids, np.asarray(lengths))
            begins_T = words_T.copy()
            entities = np.zeros(0, dtype=np.int64)
            if self._finder is not None:
                entities, sizes = self._finder(ids, lengths, words_T)
                begins_T[_ranges(entities + 1, sizes - 1)] = False  # an entity is one unit
            elif self.config.strategy == "span":
                begins_T = self._span_starts(words_T, np.asarray(lengths), len(maskable_M), rng)
            begins_M = begins_T[maskable_M]
            first_U = np.flatnonzero(begins_M)
            sizes_U = np.diff(first_U, append=len(maskable_M))
            if self._finder is not None:
                is_entity_T = np.zeros(len(ids), dtype=bool)
                is_entity_T[entities] = True
                taken_U = _choose_entities(sizes_U, is_entity_T[maskable_M[first_U]], count, rng)
            else:
                taken_U = _choose(sizes_U, count, rng)
            chosen = np.flatnonzero(_tokens_of(sizes_U, taken_U, words_T[maskable_M], rng))
            positions = maskable_M[chosen]
            if self.config.strategy == "whole-word":
                fate = rng.random(count)
            else:
                fate = rng.random(len(first_U))[(np.cumsum(begins_M) - 1)[chosen]]
        return self._hide(ids, positions, fate, rng)

    def _hide(self, ids: np.ndarray, positions: np.ndarray, fate: np.ndarray, rng: np.random.Generator) -> Masked:
        """``fate`` ``(k,)``, uniform in 0..1, says which of the three happens at each position."""
        inputs = np.array(ids)
        inputs[positions[fate < self.config.mask]] = self._mask_id
        random = positions[(fate >= self.config.mask) & (fate < self.config.mask + self.config.random)]
        if len(random):
            inputs[random] = self._words[rng.integers(len(self._words), size=len(random))]
        return Masked(inputs, positions, np.asarray(ids)[positions])

    def _word_starts(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """bool ``(T,)``: a word begins here: at a token that goes on with none, after a special one, with a sequence."""
        ordinary = self._ordinary[ids]
        begins = ~self._continues[ids]
        begins[1:] |= ~ordinary[:-1]
        starts = np.cumsum(lengths) - lengths
        begins[starts[lengths > 0]] = True
        return begins & ordinary

    def _span_starts(
        self, begins_T: np.ndarray, lengths: np.ndarray, maskable: int, rng: np.random.Generator
    ) -> np.ndarray:
        """bool ``(T,)``: the words cut into spans; each word after a sequence's first begins one with equal chance.

        That makes the number of words in a span geometric. The chance is the one with which spans have ``span_length``
        tokens in the mean, those that the ends of sequences cut short among them.
        """
        words = np.flatnonzero(begins_T)
        rows = np.searchsorted(np.cumsum(lengths), words, side="right")
        leads = np.diff(rows, prepend=-1) > 0
        free = len(words) - int(leads.sum())
        wanted = maskable / self.config.span_length - int(leads.sum())
        chance = min(1.0, max(0.0, wanted / free)) if free else 0.0
        spans = np.zeros(len(begins_T), dtype=bool)
        spans[words[leads | (rng.random(len(words)) < chance)]] = True
        return spans


def _choose(sizes_U: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How many tokens of each unit are taken ``(U,)``: ``count`` in all, every token with chance ``count / M``.

    The units lie in random order on a circle, and what a window of ``count`` tokens at a random place covers is taken:
    every token is as likely as any other, which "take units until it is enough" does not give (short units and first tokens
    would be preferred). The window may cut two units; then tokens move from one to the other, in the direction drawn
    so that neither gains in the mean, until one of the two is whole or untouched.
    """
    total = int(sizes_U.sum())
    if count >= total:
        return sizes_U
    order = rng.permutation(len(sizes_U))
    ends = np.cumsum(sizes_U[order])
    begins = ends - sizes_U[order]
    start = int(rng.integers(total))
    taken = np.maximum(np.minimum(ends, start + count) - np.maximum(begins, start), 0)
    taken += np.maximum(np.minimum(ends, start + count - total) - begins, 0)
    taken_U = np.empty_like(sizes_U)
    taken_U[order] = taken
    cut = np.flatnonzero((taken_U > 0) & (taken_U < sizes_U))
    if len(cut) == 2:
        (a, b), (room_a, room_b) = taken_U[cut], (sizes_U - taken_U)[cut]
        to_a, to_b = min(room_a, b), min(a, room_b)
        move = to_a if rng.random() * (to_a + to_b) < to_b else -to_b
        taken_U[cut] += np.array([move, -move])
    return taken_U


def _choose_entities(sizes_U: np.ndarray, entity_U: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As ``_choose``, with entities first: each is chosen by itself, whole or not at all; other words fill the count.

    The chance is ``_ENTITY_CHANCE``, less where entities are so dense that they would take more than ``_ENTITY_SHARE``
    of the count. Only where all other words are taken do the remaining entities make up the count.
    """
    taken_U = np.zeros_like(sizes_U)
    entities = np.flatnonzero(entity_U)
    if len(entities):
        chance = min(_ENTITY_CHANCE, _ENTITY_SHARE * count / int(sizes_U[entities].sum()))
        drawn = rng.permutation(entities[rng.random(len(entities)) < chance])
        drawn = drawn[np.cumsum(sizes_U[drawn]) <= count]
        taken_U[drawn] = sizes_U[drawn]
    for pool in (np.flatnonzero(~entity_U), np.flatnonzero(entity_U & (taken_U == 0))):
        taken_U[pool] = _choose(sizes_U[pool], count - int(taken_U.sum()), rng) if len(pool) else 0
    return taken_U


def _tokens_of(sizes_U: np.ndarray, taken_U: np.ndarray, words_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """bool ``(M,)``: which tokens are taken, given how many of each unit; ``words_M`` says where words begin.

    A cut unit of several words gives whole words, chosen in the same way; a cut word gives neighbouring tokens from a
    random one on, its first following its last. So each of a unit's tokens is as likely as the others.
    """
    chosen_M = np.repeat(taken_U == sizes_U, sizes_U)
    for unit in np.flatnonzero((taken_U > 0) & (taken_U < sizes_U)):  # one at most
        begin, size, take = int(sizes_U[:unit].sum()), int(sizes_U[unit]), int(taken_U[unit])
        within = slice(begin, begin + size)
        words_W = np.diff(np.flatnonzero(words_M[within]), append=size)
        if len(words_W) > 1:
            chosen_M[within] = _tokens_of(words_W, _choose(words_W, take, rng), words_M[within], rng)
        else:
            chosen_M[begin + (rng.integers(size) + np.arange(take)) % size] = True
    return chosen_M


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``start, start + 1, ..., start + size - 1`` of each, one after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
