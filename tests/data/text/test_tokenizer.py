"""The tokenizer: round trips, special tokens, whole words, and files that transformers reads the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train
from ssl_core.errors import UserError
from tests.data.text.corpora import PROSE
from tests.data.text.test_encoding import KINDS, made


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer._backend.id_to_token(i) for i in tokenizer.encode([text])[0]]


def is_in_one_word(tokenizer: Tokenizer, text: str) -> list[bool]:
    return tokenizer.continues[tokenizer.encode([text])[0]].tolist()


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_bytes_keep_every_text_exactly(text: str) -> None:
    tokenizer = made("bpe")
    decoded = tokenizer.decode(tokenizer.encode([text])[0])
    assert decoded == (text[1:] if text.startswith(" ") else text)  # one space at the very beginning tells nothing


@pytest.mark.parametrize(
    "text",
    ["👩‍👩‍👧 and 🇪🇺", "e\u0301 is not é", "我们吃药。", "a\0b\0", "\ufeffx", "ﷺ \u202b", "tab\t\n\n  end  ", "x" * 500],
)
def test_bytes_keep_what_is_odd(text: str) -> None:
    tokenizer = made("bpe")
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id not in ids


def test_wordpiece_and_unigram_come_back_in_lower_case_without_accents() -> None:
    for kind in ("wordpiece", "unigram"):
        tokenizer = made(kind)
        assert tokenizer.decode(tokenizer.encode(["The  PLÖT of the film"])[0]) == "the plot of the film"
    assert made("unigram", False).decode(made("unigram", False).encode(["The plot naïve"])[0]) == "The plot naïve"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_a_text_that_names_a_special_token_holds_none(kind: str, lowercase: bool) -> None:
    tokenizer = made(kind, lowercase)
    (ids,) = tokenizer.encode(["[MASK] [SEP][CLS] a [PAD] [UNK] [mask]"])
    assert not set(ids) & (set(tokenizer.special_ids) - {tokenizer.unk_id})
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )


def test_what_goes_on_with_a_word_wordpiece() -> None:
    tokenizer = train(["play plays played"] * 9 + ["go! 药"] * 2, TokenizerConfig(min_frequency=9), size=110)
    tokens = spelled(tokenizer, "Plays, goes 药药 played")
    assert " ".join(tokens) == "plays [UNK] g ##o ##e ##s 药 药 played"
    assert is_in_one_word(tokenizer, "Plays, goes 药药 played") == [token.startswith("##") for token in tokens]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab, c!", ["ab", ",", "c", "!"]),
        ("don't 7a", ["don", "'t", "7a"]),
        ("药 药", ["药", "药"]),
        ("Жя é", ["Жя", "é"]),
        ("a\nb", ["a", "\nb"]),  # b has no mark of a space: it is taken for one word with the line break
        ("😀 x", ["😀", "x"]),
    ],
)
def test_what_goes_on_with_a_word_bpe(text: str, words: list[str]) -> None:
    tokenizer = train(["xq"], TokenizerConfig(kind="bpe", size=300))  # knows single bytes only
    (ids,) = tokenizer.encode([text])
    starts = np.flatnonzero(~tokenizer.continues[ids]).tolist()
    assert starts[0] == 0
    parts = [tokenizer._backend.decode(ids[a:b]).strip(" ") for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert [part for part in parts if part] == words  # a space that stands alone is a word of its own


def test_what_goes_on_with_a_word_unigram() -> None:
    tokenizer = train(["play plays, played"] * 9, TokenizerConfig(kind="unigram", min_frequency=1), size=120)
    marks = {token: bool(tokenizer.continues[number]) for token, number in tokenizer._backend.get_vocab().items()}
    assert marks["s"] is True
    assert marks[","] is False
    assert marks["▁"] is False
    assert not any(goes_on for token, goes_on in marks.items() if token.startswith("▁"))
    assert not tokenizer.continues[list(tokenizer.special_ids)].any()


@pytest.mark.parametrize("kind", KINDS)
def test_added_words_are_one_token_whatever_was_learned(kind: str) -> None:
    words = ("cat", "Heart Attack", "吃药", "Xylophon-7")
    tokenizer = train(PROSE * 3, TokenizerConfig(kind=kind, size=400, added=words))
    number = {word: tokenizer._backend.token_to_id(word) for word in words}
    text = "A cat, category Heart Attack; 我吃药了 Xylophon-7."
    (ids,) = tokenizer.encode([text])
    assert {word: ids.count(i) for word, i in number.items()} == dict.fromkeys(words, 1)
    assert not tokenizer.continues[list(number.values())].any()
    assert "cat" in tokenizer.decode(ids)
    assert tokenizer.size <= 400
    if kind != "bpe":  # which keeps text as it is
        assert number["Heart Attack"] in tokenizer.encode(["a heart attack"])[0]


def test_words_added_later_get_new_ids_at_the_end() -> None:
    tokenizer = train(PROSE, TokenizerConfig(size=300))
    before, digest = tokenizer.size, tokenizer.digest
    old = tokenizer.encode(PROSE)
    tokenizer.add_words(["zebra", "yak"])
    assert tokenizer.size == before + 2 == len(tokenizer.continues)
    assert tokenizer.digest != digest
    assert tokenizer.encode(PROSE) == old
    assert tokenizer.encode(["a yak"])[0][-1] == before + 1
    tokenizer.add_words(["plot"])  # known already
    assert tokenizer.size == before + 2


def test_a_special_token_is_no_word_to_add() -> None:
    tokenizer, before = made("wordpiece"), made("wordpiece")
    with pytest.raises(UserError, match=r"tokenizer\.added: \[MASK\]: a special token"):
        tokenizer.add_words(["zebra", "[MASK]"])
    assert (tokenizer.special_ids, tokenizer.size) == (before.special_ids, before.size), "nothing was added"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer = made(kind, added=("plot",))
    tokenizer.save(tmp_path / "a", max_length=64)
    loaded = Tokenizer.load(tmp_path / "a")
    loaded.save(tmp_path / "b", max_length=64)
    assert loaded.digest == tokenizer.digest
    assert loaded.encode(PROSE) == tokenizer.encode(PROSE)
    assert loaded.kind == kind
    assert np.array_equal(loaded.continues, tokenizer.continues)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("architecture", [None, "bert", "modernbert"])
def test_auto_tokenizer_reads_its_files_and_gives_the_same_ids(architecture: str | None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = [*PROSE, "[MASK] of [SEP] a plot 我们吃药 😀 e\u0301", "", "  two  spaces ", "the <0x41> ▁"]
    for kind in KINDS:
        for added in ((), ("plot", "the film")):
            tokenizer = made(kind, added=added)
            folder = tmp_path / f"{kind}{len(added)}"
            tokenizer.save(folder, max_length=16)
            if architecture:  # beside weights there is a config.json, which must not win over the tokenizer's own files
                (folder / "config.json").write_text(json.dumps({"model_type": architecture}))
            auto = AutoTokenizer.from_pretrained(folder)
            assert [auto(text, add_special_tokens=False)["input_ids"] for text in texts] == tokenizer.encode(texts)
            whole = auto(texts)
            assert whole["input_ids"] == [[tokenizer.cls_id, *ids, tokenizer.sep_id] for ids in tokenizer.encode(texts)]
            assert set(whole) == {"input_ids", "attention_mask"}
            assert (auto.mask_token_id, auto.pad_token_id, len(auto)) == (4, 0, tokenizer.size)
            assert auto.model_max_length == 16


def foreign(folder: Path, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_s_own_names_of_special_tokens(tmp_path: Path) -> None:
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 9}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.enable_truncation(2)
    backend.enable_padding(length=5)
    names = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": {"content": "<mask>"}}
    tokenizer = Tokenizer.load(foreign(tmp_path / "x", backend, names))
    assert (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert tokenizer.encode(["a b a b z"]) == [[5, 9, 5, 9, 3]]  # its truncation and padding are not ours
    assert tokenizer.size == 10  # there are holes in the numbers


def test_bert_s_own_vocabulary_file(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "Play"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    assert Tokenizer.load(tmp_path).encode(["Playing it"]) == [[5, 6, 1]]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(tmp_path).encode(["Playing it"]) == [[7, 6, 1]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_only_a_line_feed_ends_a_line_of_a_vocabulary(end: str, last: str, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028", "\x85", "a\x1cb", "\u2029", "\x0b", "\x0c", "play"]
    (tmp_path / "vocab.txt").write_bytes((end.join(words) + end * bool(last)).encode())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.size == len(words)
    assert tokenizer.encode(["play"]) == [[11]]


def test_without_a_mask_token_nothing_can_be_predicted(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    with pytest.raises(UserError, match="no mask token") as raised:
        Tokenizer.load(foreign(tmp_path / "x", backend, {"mask_token": "<mask>"}))
    assert raised.value.place == str(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "\0"])
def test_files_that_are_no_tokenizer(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    made("bpe").save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON") as raised:
        Tokenizer.load(tmp_path)
    assert raised.value.place.endswith("tokenizer_config.json")


def test_it_imports_no_transformers() -> None:
    import subprocess
    import sys

    code = "import ssl_core.data.text.tokenizer, ssl_core.data.text.training, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
