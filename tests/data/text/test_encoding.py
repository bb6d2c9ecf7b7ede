"""Word-by-word encoding gives the ids that the library gives for whole texts, in any order and from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text import encoding
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train
from tests.data.text.corpora import PROSE

KINDS = ("wordpiece", "bpe", "unigram")
VARIANTS = [(kind, lowercase, added) for kind in KINDS for lowercase in (True, False) for added in ((), ("plot",))]


@cache
def made(kind: str, lowercase: bool = True, added: tuple[str, ...] = ()) -> Tokenizer:
    config = TokenizerConfig(kind=kind, lowercase=lowercase, added=added, size=400)
    return train([*PROSE, "我们吃药。 naïve café 😀 [MASK]"] * 3, config)


def plainly(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The slow reference: each text whole, through the library."""
    return [tokenizer._backend.encode(text, add_special_tokens=False).ids for text in texts]


SPACES = "".join(chr(c) for c in [*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x202F, 0x3000, 0])
TEXTS = st.text(st.sampled_from("aplotTé,.'!7[MASK]药▁#\u0301😀\u200b" + SPACES), max_size=40)


@pytest.mark.parametrize(("kind", "lowercase", "added"), VARIANTS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5))
def test_the_ids_are_the_library_s(kind: str, lowercase: bool, added: tuple[str, ...], texts: list[str]) -> None:
    tokenizer = made(kind, lowercase, added)
    assert tokenizer.encode(texts) == plainly(tokenizer, texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["a ▁", "▁plot ▁ x", "the▁plot", "\x85q \x1c a\x1cb", " \n x", "a \u3000b", "plot's plot"]
)
def test_signs_that_a_tokenizer_reads_in_its_own_way(kind: str, text: str) -> None:
    for added in ((), ("plot",)):
        assert made(kind, added=added).encode([text]) == plainly(made(kind, added=added), [text])


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_that_are_trained_here_go_word_by_word(kind: str) -> None:
    assert made(kind)._encoder._words is not None


def test_a_phrase_goes_through_the_library_whole() -> None:
    tokenizer = train(PROSE, TokenizerConfig(size=300, added=("good acting", "the plot of the")))
    assert tokenizer._encoder._words is None
    (ids,) = tokenizer.encode(["A good  acting, good acting"])
    assert ids.count(tokenizer._backend.token_to_id("good acting")) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", [(), ("plot",)])
def test_a_long_text_is_never_cut_off_and_reads_as_one(
    kind: str, added: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_PIECE", 50)
    monkeypatch.setattr(encoding, "_BATCH", 200)
    tokenizer = made(kind, added=added)
    texts = [" ".join(PROSE * 5), "short", "", "a\n\n" + PROSE[0] * 3]
    assert tokenizer.encode(texts) == plainly(tokenizer, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_without_spaces_loses_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_PIECE", 50)
    tokenizer = made(kind)
    text = "吃药" * 100 + "a" * 60
    decoded = tokenizer.decode(tokenizer.encode([text])[0])
    assert decoded.replace(" ", "").count("药") == 100
    assert decoded.count("a") == 60


def test_a_megabyte_without_a_space() -> None:
    text = "plot" * 250_000
    (ids,) = made("bpe").encode([text])
    assert made("bpe").decode(ids) == text


def test_a_full_word_table_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_MOST_WORDS", 5)
    monkeypatch.setattr(encoding, "_LONGEST_WORD", 4)
    encoder = encoding.Encoder(made("wordpiece")._backend)
    for text in PROSE * 2:
        ids, lengths = encoder.encode([text, "", text])
        assert len(encoder._known) <= 5
        (expected,) = plainly(made("wordpiece"), [text])
        assert ids.tolist() == expected * 2
        assert lengths.tolist() == [len(expected), 0, len(expected)]


def test_threads_do_not_disturb_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_MOST_WORDS", 6)
    encoder = encoding.Encoder(made("wordpiece")._backend)
    expected = {text: plainly(made("wordpiece"), [text])[0] for text in PROSE}
    with ThreadPoolExecutor(8) as pool:
        for text, (ids, _) in zip(PROSE * 50, pool.map(lambda text: encoder.encode([text]), PROSE * 50), strict=True):
            assert ids.tolist() == expected[text]


def test_half_a_surrogate_pair_is_a_question_mark() -> None:
    tokenizer = made("bpe")
    assert tokenizer.encode(["a\ud800"]) == tokenizer.encode(["a?"])


def test_nothing_gives_nothing() -> None:
    ids, lengths = made("bpe").encode_flat([])
    assert (ids.dtype, ids.tolist(), lengths.tolist()) == (np.int64, [], [])
    assert made("bpe").encode([""]) == [[]]
