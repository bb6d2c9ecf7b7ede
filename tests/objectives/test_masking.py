"""Which tokens are hidden: the exact count, equal chances, whole words, spans and entities, and what the encoder sees."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from ssl_core.config.objectives import MaskingConfig
from ssl_core.errors import UserError
from ssl_core.objectives.masking import Masker

STRATEGIES = ("token", "whole-word", "span", "entity")
CLS, SEP, MASK = 2, 3, 4


@dataclass(frozen=True)
class SmallVocabulary:
    """Five special tokens, then ``words`` tokens that begin words, then ``pieces`` that go on with them."""

    words: int = 20
    pieces: int = 10
    mask_id: int = MASK
    special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)

    @property
    def size(self) -> int:
        return 5 + self.words + self.pieces

    @cached_property
    def continues(self) -> np.ndarray:
        return np.arange(self.size) >= 5 + self.words


VOCABULARY = SmallVocabulary()
PIECE = 5 + VOCABULARY.words  # the first token that goes on with a word


def masker(strategy, entities=((5,),), vocabulary=VOCABULARY, **more):
    file = {"entities": "names.txt"} if strategy == "entity" else {}
    return Masker(MaskingConfig(strategy=strategy, **file, **more), vocabulary, entities)


def sequences(*texts):
    """``[CLS] text [SEP]`` of each, one after the other: ids and lengths."""
    ids = [token for text in texts for token in (CLS, *text, SEP)]
    return np.array(ids, dtype=np.int64), np.array([len(text) + 2 for text in texts], dtype=np.int64)


def corpus(texts, seed=0, longest=40, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    return sequences(*(rng.integers(5, vocabulary.size, rng.integers(1, longest)).tolist() for _ in range(texts)))


def chosen(result, tokens):
    mask = np.zeros(tokens, dtype=bool)
    mask[result.positions] = True
    return mask


def slow_units(ids, lengths, entities=()):
    """The words of each sequence as lists of positions; ``entities`` are (start, size) and one unit each."""
    units, begin = [], 0
    inside = {start + i for start, size in entities for i in range(1, size)}
    for length in lengths:
        fresh = True
        for position in range(begin, begin + length):
            if ids[position] in VOCABULARY.special_ids:
                fresh = True
                continue
            if fresh or (not VOCABULARY.continues[ids[position]] and position not in inside):
                units.append([])
            units[-1].append(position)
            fresh = False
        begin += length
    return units


texts_strategy = st.lists(st.lists(st.integers(0, VOCABULARY.size - 1), max_size=12), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(texts=texts_strategy, strategy=st.sampled_from(STRATEGIES), rate=st.floats(0.01, 0.99), seed=st.integers(0, 99))
@example(texts=[[]], strategy="span", rate=0.15, seed=0)
@example(texts=[[], [5], []], strategy="entity", rate=0.15, seed=0)
@example(texts=[[PIECE, PIECE]], strategy="whole-word", rate=0.5, seed=0)
def test_exactly_the_count_and_never_a_special_token(texts, strategy, rate, seed):
    """Special tokens (unknown ones among them) may stand anywhere; everything about the result is consistent."""
    ids, lengths = sequences(*texts)
    hide = masker(strategy, [(5,), (6, 7), (6, PIECE), (8, 9, 10)], rate=rate)
    count = hide.count(lengths)
    before = ids.copy()
    result = hide(ids, lengths, count, np.random.default_rng(seed))
    ordinary = ~np.isin(ids, VOCABULARY.special_ids)
    assert (ids == before).all()
    assert len(result.positions) == min(count, ordinary.sum())
    assert (np.diff(result.positions) > 0).all()
    assert ordinary[result.positions].all()
    assert (result.targets == ids[result.positions]).all()
    untouched = ~chosen(result, len(ids))
    assert (result.inputs[untouched] == ids[untouched]).all()
    assert not np.isin(result.inputs[~untouched], (0, 1, CLS, SEP)).any()
    again = hide(ids, lengths, count, np.random.default_rng(seed))
    assert (again.inputs == result.inputs).all()
    assert (again.positions == result.positions).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_count_is_the_rate_of_what_can_be_hidden_and_at_least_one(strategy):
    hide = masker(strategy)
    assert hide.count(np.array([102, 2, 102])) == 30
    assert hide.count(np.array([3])) == 1
    assert hide.count(np.array([2, 2])) == 0
    assert hide.count(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_smallest_batches(strategy):
    rng = np.random.default_rng(0)
    hide = masker(strategy)
    for texts, count, expected in ([[]], 0, []), ([[], []], 3, []), ([[7]], 1, [1]), ([[7], [8, PIECE]], 99, [1, 4, 5]):
        ids, lengths = sequences(*texts)
        assert hide(ids, lengths, count, rng).positions.tolist() == expected
    empty = hide(np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int64), 0, rng)
    assert len(empty.inputs) == len(empty.positions) == 0


def test_ids_and_lengths_must_belong_together():
    ids, lengths = sequences([5, 6])
    with pytest.raises(ValueError, match="lengths that sum to 5"):
        masker("token")(ids, lengths + 1, 1, np.random.default_rng(0))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_ids_keep_their_type(strategy, dtype):
    ids, lengths = corpus(5)
    result = masker(strategy)(ids.astype(dtype), lengths, 20, np.random.default_rng(0))
    assert result.inputs.dtype == result.targets.dtype == dtype


def test_a_vocabulary_of_one_word():
    """The random token can only be the word itself."""
    ids, lengths = sequences([5] * 50)
    vocabulary = SmallVocabulary(words=1, pieces=0)
    result = masker("token", vocabulary=vocabulary, rate=0.5, mask=0.0, random=1.0)(
        ids, lengths, 25, np.random.default_rng(0)
    )
    assert (result.inputs == ids).all()
    assert len(result.positions) == 25


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_the_chosen_80_percent_are_masked_10_random_and_10_as_they_were(strategy):
    vocabulary = SmallVocabulary(words=2000, pieces=1000)
    ids, lengths = corpus(3000, vocabulary=vocabulary)
    hide = masker(strategy, vocabulary=vocabulary)
    result = hide(ids, lengths, hide.count(lengths), np.random.default_rng(1))
    seen, units = result.inputs[result.positions], len(result.positions)
    if strategy in ("span", "entity"):  # decided for each unit: fewer draws, wider bounds
        units //= 4
    for share, expected in (
        ((seen == MASK).mean(), 0.8),
        ((seen == result.targets).mean(), 0.1 + 0.1 / 3000),
        (((seen != MASK) & (seen != result.targets)).mean(), 0.1 * 2999 / 3000),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / units)


def test_the_three_shares_follow_the_configuration():
    ids, lengths = corpus(50)
    rng = np.random.default_rng(0)
    all_masked = masker("token", mask=1.0, random=0.0)(ids, lengths, 100, rng)
    assert (all_masked.inputs[all_masked.positions] == MASK).all()
    as_they_are = masker("token", mask=0.0, random=0.0)(ids, lengths, 100, rng)
    assert (as_they_are.inputs == ids).all()


def test_random_tokens_come_evenly_from_all_that_are_not_special():
    ids, lengths = corpus(500)
    result = masker("token", mask=0.0, random=1.0)(ids, lengths, 6000, np.random.default_rng(3))
    drawn = np.bincount(result.inputs[result.positions], minlength=VOCABULARY.size)
    assert not drawn[list(VOCABULARY.special_ids)].any()
    assert stats.chisquare(drawn[5:]).pvalue > 1e-3


@pytest.mark.parametrize("strategy", ["token", "whole-word", "span"])
def test_every_position_has_the_same_chance(strategy):
    """Long words as often as short ones, last pieces as often as first ones, the text's ends as often as its middle."""
    ids, lengths = sequences(
        [5, 6, PIECE, PIECE, PIECE, 7, 8, 9, PIECE], [10], [PIECE, PIECE, 5, 6, 7], [8, PIECE, PIECE, PIECE, PIECE, 9]
    )
    hide, rng, rounds, count = masker(strategy), np.random.default_rng(5), 12_000, 4
    times = np.zeros(len(ids))
    for _ in range(rounds):
        times[hide(ids, lengths, count, rng).positions] += 1
    times = times[ids >= 5]
    chance = count / len(times)
    bound = stats.norm.ppf(1 - 1e-3 / len(times)) * np.sqrt(rounds * chance * (1 - chance))
    assert np.abs(times - rounds * chance).max() < bound


def test_token_positions_pass_a_chi_square_test():
    ids, lengths = corpus(20)
    hide, rng = masker("token"), np.random.default_rng(6)
    times = np.zeros(len(ids))
    for _ in range(4000):
        times[hide(ids, lengths, 1, rng).positions] += 1
    assert stats.chisquare(times[ids >= 5]).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(texts=texts_strategy, count=st.integers(0, 30), seed=st.integers(0, 99))
def test_words_are_chosen_whole_but_for_one(texts, count, seed):
    ids, lengths = sequences(*texts)
    result = masker("whole-word")(ids, lengths, count, np.random.default_rng(seed))
    mask = chosen(result, len(ids))
    shares = [mask[unit].mean() for unit in slow_units(ids, lengths)]
    assert sum(0 < share < 1 for share in shares) <= 1


def test_where_every_character_is_a_word_whole_words_are_single_tokens():
    """As WordPiece writes Chinese: no token goes on with another, so that neighbours are chosen independently."""
    ids, lengths = sequences([5 + i % 20 for i in range(100)])
    hide, rng = masker("whole-word"), np.random.default_rng(8)
    runs = [np.diff(hide(ids, lengths, 15, rng).positions) == 1 for _ in range(500)]
    assert np.mean(runs) == pytest.approx(0.15 * 99 / 100, abs=0.02)


def runs_of(mask, lengths):
    """Lengths of the runs of chosen tokens, sequence by sequence."""
    found, begin = [], 0
    for length in lengths:
        padded = np.concatenate(([0], mask[begin : begin + length].astype(int), [0]))
        found.extend((np.flatnonzero(np.diff(padded) == -1) - np.flatnonzero(np.diff(padded) == 1)).tolist())
        begin += length
    return np.array(found)


@pytest.mark.parametrize(("mean", "longest"), [(1.5, 8), (2.0, 8), (1.5, 200), (3.0, 200), (5.0, 200)])
def test_spans_have_the_mean_length_that_was_asked_for(mean, longest):
    """At a low rate hardly two spans touch, so that the runs of chosen tokens are the spans; long ones where there is room."""
    ids, lengths = corpus(60_000 // longest, longest=longest)
    result = masker("span", rate=0.01, span_length=mean)(ids, lengths, 1500, np.random.default_rng(2))
    runs = runs_of(chosen(result, len(ids)), lengths)
    assert runs.mean() == pytest.approx(mean, rel=0.1)


def test_spans_are_whole_words_of_one_sequence_and_geometric_in_number():
    """A mean of 6 tokens is one of 4 words here: P(n words) = 1/4 (3/4)^(n-1)."""
    ids, lengths = corpus(400, longest=200)
    hide, rng = masker("span", span_length=6.0), np.random.default_rng(0)
    units = slow_units(ids, lengths)
    firsts, sizes = np.array([unit[0] for unit in units]), np.array([len(unit) for unit in units])
    rows = np.searchsorted(np.cumsum(lengths), firsts, side="right")
    lengths_in_words = np.bincount(rows, minlength=len(lengths))
    found = []
    for _ in range(20):
        mask = chosen(hide(ids, lengths, 1200, rng), len(ids))
        taken = np.array([mask[unit].sum() for unit in units])
        assert ((taken > 0) & (taken < sizes)).sum() <= 1
        found.extend(runs_of(taken == sizes, lengths_in_words))
    shares = np.bincount(found, minlength=10)[1:8] / len(found)
    mean_words = 6 * len(sizes) / sizes.sum()
    expected = (1 - 1 / mean_words) ** np.arange(7) / mean_words
    assert shares == pytest.approx(expected, abs=0.03)


def test_units_of_span_and_entity_share_their_fate():
    """A span is masked, random or as it is as a whole; words decide token by token."""
    ids, lengths = sequences(*[[5, 6, 7]] * 3000)

    def mixed(strategy, **more):
        result = masker(strategy, [(5, 6, 7)], random=0.0, mask=0.5, **more)(
            ids, lengths, 4500, np.random.default_rng(4)
        )
        masked = (result.inputs == MASK).reshape(-1, 5)[:, 1:4].sum(axis=1)
        return ((masked > 0) & (masked < 3)).mean()

    assert mixed("span", span_length=3.0) < 1e-3  # but for the one that is cut
    assert mixed("entity") < 1e-3
    assert mixed("whole-word") > 0.3


def planted(entity=(11, PIECE, 12), texts=400, seed=0):
    """Texts of other words, each with the entity once, at a random place: ids, lengths and where the entity stands."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(texts):
        words = rng.integers(13, 20, 30).tolist()
        at = int(rng.integers(len(words)))
        rows.append(words[:at] + list(entity) + words[at:])
    ids, lengths = sequences(*rows)
    return ids, lengths, np.flatnonzero(ids == entity[0])


def test_planted_entities_are_hidden_as_wholes_half_of_the_time():
    ids, lengths, starts = planted()
    hide = masker("entity", [(11, PIECE, 12), (5, 7)], rate=0.3)
    shares = []
    for seed in range(20):
        mask = chosen(hide(ids, lengths, hide.count(lengths), np.random.default_rng(seed)), len(ids))
        each = mask[starts[:, None] + np.arange(3)].sum(axis=1)
        assert np.isin(each, (0, 3)).all()
        shares.append((each == 3).mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(400 * 20))


def test_dense_entities_leave_half_of_the_count_to_other_words():
    ids, lengths, _ = planted(entity=(11, 12) * 8)
    hide = masker("entity", [(11, 12)])
    count = hide.count(lengths)
    shares = [
        np.isin(hide(ids, lengths, count, np.random.default_rng(seed)).targets, (11, 12)).mean() for seed in range(20)
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)


def test_texts_of_nothing_but_entities_still_give_the_count():
    ids, lengths = sequences(*[[11, 12] * 5] * 50)
    result = masker("entity", [(11, 12)])(ids, lengths, 400, np.random.default_rng(0))
    pairs = chosen(result, len(ids)).reshape(50, 12)[:, 1:11].reshape(-1, 2).sum(axis=1)
    assert len(result.positions) == 400
    assert (pairs == 1).sum() <= 1


def test_words_outside_of_entities_all_have_the_same_chance():
    ids, lengths = sequences([5, 6, PIECE, 11, 12, 7, PIECE, PIECE, 8], [9, 10, PIECE])
    hide, rng, rounds = masker("entity", [(11, 12)], rate=0.4), np.random.default_rng(9), 8000
    times = np.zeros(len(ids))
    for _ in range(rounds):
        times[hide(ids, lengths, 5, rng).positions] += 1
    others = times[(ids >= 5) & (ids != 11) & (ids != 12)] / rounds
    assert times[ids == 11] == times[ids == 12] == pytest.approx(0.5 * rounds, rel=0.06)
    assert others == pytest.approx(np.full(10, 4 / 10), abs=0.03)


def test_entities_that_cannot_be_found_are_an_error():
    for entities in ((), ((),), ((MASK, 7),)):
        with pytest.raises(UserError, match="none of the entities") as raised:
            masker("entity", entities)
        assert "names.txt" in raised.value.place
    with pytest.raises(ValueError, match="outside the vocabulary"):
        masker("entity", [(VOCABULARY.size,)])
