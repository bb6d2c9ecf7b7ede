"""Training: deterministic, bounded, of the size that was asked for, and never a crash on odd corpora."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text import training
from ssl_core.errors import UserError
from tests.data.text.corpora import PROSE
from tests.data.text.test_encoding import KINDS

_DIGESTS = """
from pydoc_data.topics import topics
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.training import train
texts = [part for topic in topics.values() for part in topic.split("\\n\\n")][:200]
print(*(train(texts, TokenizerConfig(kind=kind), size=700).digest for kind in ("wordpiece", "bpe", "unigram")))
"""


def test_the_same_texts_give_the_same_files_in_any_process_on_any_number_of_threads() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _DIGESTS],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAYON_NUM_THREADS": threads},
        )
        for threads in ("1", "4")
    ]
    digests = {run.communicate()[0] for run in runs}
    assert len(digests) == 1
    assert len(digests.pop().split()) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_training_leaves_the_environment_alone(kind: str) -> None:
    before = dict(os.environ)
    training.train(PROSE, TokenizerConfig(kind=kind, size=400))
    assert dict(os.environ) == before


@pytest.mark.parametrize("kind", KINDS)
def test_frequent_words_become_tokens_and_size_is_the_most(kind: str) -> None:
    texts = [f"{word} " * (40 - i) for i, word in enumerate(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])]
    tokenizer = training.train(texts, TokenizerConfig(kind=kind, size=400))
    assert tokenizer.size <= 400
    assert [len(ids) for ids in tokenizer.encode(["alpha", "beta", "gamma"])] == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "texts", [["a"], ["x" * 5000], ["\0\0 \x01 a"], ["same text"] * 50, ["药"], ["😀"], ["é", "e\u0301"]]
)
def test_odd_corpora_train(kind: str, texts: list[str]) -> None:
    tokenizer = training.train(texts, TokenizerConfig(kind=kind, size=1000))
    assert len(tokenizer.encode(texts)[0]) > 0
    assert 5 < tokenizer.size <= 1000


@pytest.mark.parametrize("texts", [[], [""], ["  \n", "\t"]])
def test_an_empty_corpus_is_the_user_s_error(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text to learn"):
        training.train(texts, TokenizerConfig())


def test_control_characters_alone_teach_nothing_but_do_not_crash() -> None:
    for kind in KINDS:
        assert training.train(["\0\x01"], TokenizerConfig(kind=kind, size=400)).size >= 5


def test_no_room_beside_the_added_words() -> None:
    with pytest.raises(UserError, match="wordpiece takes 100 or more, and the added words take 300") as raised:
        training.train(PROSE, TokenizerConfig(size=310, added=tuple(f"word{i}" for i in range(300))))
    assert raised.value.place == "tokenizer.size"
    with pytest.raises(UserError, match="200 tokens are too few: bpe takes 300 or more\n"):
        training.train(PROSE, TokenizerConfig(kind="bpe"), size=200)


def test_more_characters_than_tokens() -> None:
    many = ["".join(chr(0x4E00 + i) for i in range(start, start + 50)) for start in range(0, 5000, 50)]
    for kind in KINDS:
        tokenizer = training.train(many, TokenizerConfig(kind=kind, size=1000))
        assert tokenizer.size <= 1000
        assert sum(map(len, tokenizer.encode(many))) >= 5000 or kind == "bpe"


def test_unigram_spells_what_it_lacks_once_there_is_room_for_bytes() -> None:
    large = training.train(PROSE, TokenizerConfig(kind="unigram", size=1000))
    small = training.train(PROSE, TokenizerConfig(kind="unigram", size=400))
    assert len(large.fallback_ids) == 256
    assert small.fallback_ids == ()
    (ids,) = large.encode(["药"])
    assert large.unk_id not in ids
    assert large.decode(ids) == "药"
    assert small.unk_id in small.encode(["药"])[0]


def test_a_sample_is_evenly_spaced_and_bounded() -> None:
    texts = [f"{i:06d}" for i in range(1000)]
    chosen = training.sample(iter(texts), most=100 * 70)
    assert chosen.texts == texts[::16]
    assert (chosen.seen, chosen.every) == (1000, 16)
    assert training.sample(texts).texts == texts
    (text,) = training.sample(["x" * 3_000_000], most=10).texts
    assert len(text) == 1_000_000


def test_a_large_corpus_is_learned_from_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAMPLE_CHARACTERS", 3000)
    whole = training.train(PROSE * 100, TokenizerConfig(size=300))
    assert whole.digest == training.train(training.sample(PROSE * 100).texts, TokenizerConfig(size=300)).digest


def test_of_many_different_words_the_rare_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is learned as if the corpus had only that."""
    odd = [f"{sentence} zq{number}" for number, sentence in enumerate(PROSE * 20)]
    with_all = training.train(odd, TokenizerConfig(size=300)).digest
    monkeypatch.setattr(training, "_MANY_WORDS", 50)
    left_out = training.train(odd, TokenizerConfig(size=300))
    assert left_out.digest != with_all
    assert "zq" not in "".join(left_out.decode([number]) for number in range(left_out.size))
    pure = training.train(PROSE * 20, TokenizerConfig(size=300))
    for sentence in PROSE:
        cut = [[one.decode([number]) for number in one.encode([sentence])[0]] for one in (pure, left_out)]
        assert cut[0] == cut[1]


def test_size_auto_is_one_token_a_frequent_word() -> None:
    config = TokenizerConfig()
    words = {f"w{i}": 10 for i in range(2000)} | {f"r{i}": 9 for i in range(50_000)}
    assert training.advise_size(words, config) == 2048
    assert training.advise_size({}, config) == 1000
    # Of every fourth text: what occurs three times there has been seen enough in the whole; once is never enough.
    assert training.advise_size({str(i): 3 if i < 2000 else 2 for i in range(5000)}, config, every=4) == 2048
    assert training.advise_size({str(i): 2 if i < 2000 else 1 for i in range(5000)}, config, every=64) == 2048
    assert training.advise_size(dict.fromkeys(map(str, range(99_999)), 10), config) == 30_522
    assert training.advise_size(dict.fromkeys(map(str, range(99_999)), 10), TokenizerConfig(kind="bpe")) == 50_257
    counted = training.count_words(["The the 吃药", "Thé"], config)
    assert counted == {"the": 3, "吃": 1, "药": 1}
    assert training.train(PROSE, config).size <= 1000
