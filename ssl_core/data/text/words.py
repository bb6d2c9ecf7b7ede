"""Where words begin, told from the characters of a token alone."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_SPACELESS = (
    (0x2E80, 0x30FF),  # radicals, kana
    (0x3400, 0x4DBF),  # ideographs, extension A
    (0x4E00, 0x9FFF),  # ideographs
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0x20000, 0x323AF),  # the other extensions
)
_RANGES = "".join(f"{chr(first)}-{chr(last)}" for first, last in _SPACELESS)
_WORD = re.compile(f"[{_RANGES}]|[^\\s{_RANGES}]+")
_CONTINUATION = range(0x80, 0xC0)


def is_spaceless(character: str) -> bool:
    """Whether a character belongs to a script that sets no spaces between words: Chinese and Japanese."""
    return any(first <= ord(character) <= last for first, last in _SPACELESS)


def split_words(text: str) -> list[str]:
    """The words of a text: what stands between spaces, and each character of a script without spaces."""
    return text.split() if text.isascii() else _WORD.findall(text)


def continues_word(token: bytes) -> bool:
    """Whether a token that may begin in the middle of a character goes on with the word before it.

    It does if its first character is a letter, digit or combining mark of a script with spaces. Half a character is judged by
    its first byte.
    """
    if not token:
        return False
    if token[0] in _CONTINUATION:
        return True
    width = 1 if token[0] < 0x80 else 2 if token[0] < 0xE0 else 3 if token[0] < 0xF0 else 4
    try:
        character = token[:width].decode()
    except UnicodeDecodeError:
        return not (0xE3 <= token[0] <= 0xE9 or token[0] >= 0xF0)  # the first bytes of Chinese, kana and emoji
    is_mark = unicodedata.category(character).startswith("M")
    return (character.isalnum() or is_mark) and not is_spaceless(character)


def byte_of_character(character: str) -> int:
    """The byte that a character of byte-level BPE stands for (GPT-2's table)."""
    return _byte_table()[character]


@cache
def _byte_table() -> dict[str, int]:
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
