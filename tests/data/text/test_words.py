"""Words and where they begin."""

from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers

from ssl_core.data.text.words import byte_of_character, continues_word, is_spaceless, split_words


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("ing", True), (" the", False), (",", False), ("'s", False), ("7", True), ("é", True), ("\u0301", True), ("\n", False),
        ("药", False), ("カ", False), ("Ж", True), ("한", True), ("😀", False), ("", False), ("_x", False),
    ],
)  # fmt: skip
def test_a_token_goes_on_with_a_word_if_it_begins_with_a_letter_of_a_spaced_script(token: str, expected: bool) -> None:
    assert continues_word(token.encode()) is expected


def test_half_characters_are_judged_by_their_first_byte() -> None:
    assert not continues_word("药".encode()[:1])
    assert continues_word("药".encode()[1:])  # what is left of it
    assert continues_word("Ж".encode()[:1])
    assert not continues_word("😀".encode()[:2])


def test_the_byte_table_is_the_library_s() -> None:
    assert {byte_of_character(c) for c in pre_tokenizers.ByteLevel.alphabet()} == set(range(256))
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("aé \n")[0][0]
    assert bytes(map(byte_of_character, shown)) == "aé \n".encode()


def test_words_of_mixed_scripts() -> None:
    assert split_words("a bc  d,") == ["a", "bc", "d,"]
    assert split_words("吃药 now é") == ["吃", "药", "now", "é"]
    assert split_words("") == []
    assert is_spaceless("药")
    assert not is_spaceless("x")
