"""From bytes to text: every encoding, the place of every byte that is none, and lines of any length in little memory."""

from __future__ import annotations

import codecs
import io
import tracemalloc
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.text import encodings
from ssl_core.data.text.encodings import bad_character, has_surrogates, lines, text_chunks, whole_lines
from ssl_core.errors import UserError

SAMPLE = "naïve café, e\u0301 👩\u200d👩\u200d👧 🇩🇪 नमस्ते 這部電影很好看。\nsecond line\n"
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufeff\0"))


def read(data: bytes, encoding: str = "auto") -> str:
    return "".join(text_chunks(io.BytesIO(data), encoding))


@pytest.fixture(params=[1, 2, 3, 7])
def tiny_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks that end inside characters, marks and line ends."""
    monkeypatch.setattr(encodings, "_CHUNK_BYTES", request.param)
    return int(request.param)


# ---- what is read


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_utf_is_known_by_its_mark_and_nothing_is_lost(mark: bytes, name: str, tiny_chunks: int) -> None:
    assert read(mark + SAMPLE.encode(name)) == SAMPLE
    assert bad_character(read(mark + SAMPLE.encode(name))) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("utf-8", SAMPLE),
        ("utf-8-sig", SAMPLE),
        ("utf-16", SAMPLE),
        ("utf-16-le", SAMPLE),
        ("cp1252", "naïve café – “quoted” €5"),
        ("latin-1", "naïve café"),
        ("gb18030", "這部電影很好看。"),
        ("shift_jis", "この映画は面白い"),
        ("koi8-r", "хороший фильм"),
    ],
)
def test_an_encoding_that_is_named(name: str, text: str, tiny_chunks: int) -> None:
    assert read(text.encode(name), name) == text
    assert bad_character(read(text.encode(name), name), name) is None


def test_a_mark_is_no_text_even_where_the_encoding_is_named() -> None:
    assert read(codecs.BOM_UTF8 + b"a", "utf-8") == "a"
    assert read(codecs.BOM_UTF16_LE + "a".encode("utf-16-le"), "utf-16-le") == "a"
    assert read(codecs.BOM_UTF8 + b"a\xef\xbb\xbfb") == "a\ufeffb", "only the first is a mark"


def test_emoji_and_combining_marks_stay_as_they_were_written() -> None:
    apart = unicodedata.normalize("NFD", "é ạ̈")
    assert read(apart.encode()) == apart
    assert len(read("👩\u200d👩\u200d👧🏽".encode())) == 6


def test_line_ends_are_one_sign(tiny_chunks: int) -> None:
    assert read(b"a\r\nb\rc\n\r\nd\r") == "a\nb\nc\n\nd\n"
    assert read("a\r\nb\r".encode("utf-16")) == "a\nb\n"


@pytest.mark.parametrize("data", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_nothing_gives_nothing(data: bytes) -> None:
    assert list(text_chunks(io.BytesIO(data))) == []


@settings(deadline=None)
@given(TEXTS)
def test_any_text_comes_back(text: str) -> None:
    for name in ("utf-8", "utf-16", "utf-32"):
        found = read(text.encode(name))
        assert found == text
        assert bad_character(found) is None


# ---- what is no text


@pytest.mark.parametrize(
    ("data", "place", "byte"),
    [
        (b"caf\xe9 noir", 3, "e9"),
        (b"good\nna\xefve\n", 7, "ef"),
        (b"\xff", 0, "ff"),
        (b"cut off: \xe2\x82", 9, "e2"),
        (b"over\xc0\xafslash", 4, "c0"),
        (b"half of a pair \xed\xa0\x80", 15, "ed"),
    ],
)
def test_a_byte_that_is_not_utf8_is_named_with_its_place(data: bytes, place: int, byte: str, tiny_chunks: int) -> None:
    found = bad_character(read(data))
    assert found == (place, f"not UTF-8 (byte 0x{byte}); name the file's encoding in data.encoding")


def test_reading_goes_on_behind_a_bad_byte(tiny_chunks: int) -> None:
    found = [line for _, line in whole_lines(text_chunks(io.BytesIO(b"one\ncaf\xe9\nthree\n")), 100)]
    assert [bad_character(line or "") is None for line in found] == [True, False, True]
    assert (found[0], found[2]) == ("one", "three")


@pytest.mark.parametrize("text", ["café", "“quoted”", "50 €"])
def test_cp1252_is_not_taken_for_utf8(text: str) -> None:
    assert "data.encoding" in (bad_character(read(text.encode("cp1252"))) or (0, ""))[1]


def test_the_encoding_that_was_named_is_blamed_and_not_advised_again() -> None:
    assert bad_character(read(b"ab\x81", "cp1252"), "cp1252") == (2, "not cp1252 (byte 0x81)")
    assert bad_character(read(b"ab\xff\xff", "gb18030"), "gb18030") == (2, "not gb18030 (byte 0xff)")


def test_utf16_that_is_cut_off_is_refused() -> None:
    assert bad_character(read("good".encode("utf-16")[:-1])) is not None


def test_nul_is_refused_and_utf16_without_its_mark_is_guessed() -> None:
    assert bad_character("ab\0c") == (2, "a NUL character")
    assert bad_character(read("plain text".encode("utf-16-le"))) == (
        1,
        "a NUL character; is it UTF-16 without its mark? Then set data.encoding",
    )
    assert bad_character("a\0b\0c\0", "utf-8") == (1, "a NUL character")
    assert bad_character(read(b"\xe9\0")) == (0, "not UTF-8 (byte 0xe9); name the file's encoding in data.encoding")
    assert bad_character(read(b"one word\0\xe9")) == (8, "a NUL character")


def test_halves_of_surrogate_pairs() -> None:
    assert bad_character("a\ud83d") == (1, "half of a surrogate pair")
    assert has_surrogates("a\ud83d")
    assert not has_surrogates("a😀")


@pytest.mark.parametrize("name", ["base64", "undefined", "idna", "no-such"])
def test_what_is_no_encoding_of_text_files_is_told(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no encoding of text files") as caught:
        read(b"text", name)
    assert caught.value.place == "data.encoding"
    assert "cp1252" in caught.value.next_step


# ---- lines


def joined(pieces: Iterator[tuple[int, str, bool]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, piece, _ in pieces:
        found[number] = found.get(number, "") + piece
    return found


@settings(deadline=None)
@given(st.lists(st.text("ab\n 這", max_size=6)))
def test_lines_are_those_of_the_whole_text(chunks: list[str]) -> None:
    whole = "".join(chunks).split("\n")
    if not whole[-1]:
        whole.pop()
    assert joined(lines(iter(chunks))) == dict(enumerate(whole, 1))
    assert list(whole_lines(iter(chunks), 1000)) == list(enumerate(whole, 1))


@settings(deadline=None)
@given(st.lists(st.text("ab\n", max_size=6)), st.integers(1, 5))
def test_a_line_that_is_too_long_is_none_and_the_others_stay(chunks: list[str], longest: int) -> None:
    whole = whole_lines(iter(chunks), 1000)
    assert list(whole_lines(iter(chunks), longest)) == [
        (number, line if line is not None and len(line) <= longest else None) for number, line in whole
    ]


def test_a_line_of_50_mb_is_passed_by_in_little_memory() -> None:
    raw = io.BytesIO(b"x" * 50_000_000 + b"\nlast\n")
    tracemalloc.start()
    found = list(whole_lines(text_chunks(raw), 2**24))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, None), (2, "last")]
    assert peak < 2 * 2**24, "what was held is let go, and no more than the limit is ever held"
