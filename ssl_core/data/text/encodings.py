"""From bytes to text as a stream, with the place of every byte that is none.

What cannot be decoded becomes a lone surrogate that names the byte (as in PEP 383), so that reading goes on behind it: one bad
line costs one line. Line ends become ``\\n``. A byte order mark says UTF-8, UTF-16 or UTF-32; else ``auto`` is UTF-8.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from ssl_core.errors import UserError

_CHUNK_BYTES = 2**20
_MARKS = (  # UTF-32 before UTF-16, whose mark it begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HANDLER = "ssl_core.bad-byte"
_BAD = re.compile("[\ud800-\udfff]")


def _mark_bad_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), max(error.end, error.start + 1)


codecs.register_error(_HANDLER, _mark_bad_byte)


def text_chunks(raw: BinaryIO, encoding: str = "auto") -> Iterator[str]:
    """The text of a file in pieces of about a megabyte. Raises ``UserError`` where ``encoding`` is none of text files."""
    head = raw.read(4)
    decoder = io.IncrementalNewlineDecoder(_decoder(head, encoding), translate=True)
    first = True
    data: bytes = head + raw.read(_CHUNK_BYTES)
    while True:
        text = decoder.decode(data, final=not data)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text
        if not data:
            return
        data = raw.read(_CHUNK_BYTES)


def bad_character(text: str, encoding: str = "auto") -> tuple[int, str] | None:
    """Where a text that ``text_chunks`` gave cannot be used, and why: a byte that could not be decoded, or NUL."""
    nul = text.find("\0")
    bad = _BAD.search(text) if not text.isascii() else None
    if nul >= 0 and (bad is None or nul < bad.start()):
        is_wide = encoding == "auto" and text.count("\0", 0, 1000) > min(len(text), 1000) // 4
        return nul, "a NUL character" + ("; is it UTF-16 without its mark? Then set data.encoding" if is_wide else "")
    if bad is None:
        return None
    byte = ord(bad.group()) - 0xDC00
    if not 0 <= byte < 256:
        return bad.start(), "half of a surrogate pair"
    named = "UTF-8" if encoding == "auto" else encoding
    return bad.start(), f"not {named} (byte 0x{byte:02x})" + (
        "; name the file's encoding in data.encoding" if encoding == "auto" else ""
    )


def has_surrogates(text: str) -> bool:
    """Whether a text that was written as escapes holds halves of surrogate pairs, which no UTF-8 can."""
    return not text.isascii() and _BAD.search(text) is not None


def lines(chunks: Iterator[str]) -> Iterator[tuple[int, str, bool]]:
    """Each line's number, from 1, with a piece of it, and whether it is the line's last; none is longer than a chunk.

    A last line that no line end follows has no last piece.
    """
    number = 1
    for chunk in chunks:
        *whole, rest = chunk.split("\n")
        for line in whole:
            yield number, line, True
            number += 1
        if rest:
            yield number, rest, False


def whole_lines(chunks: Iterator[str], longest: int) -> Iterator[tuple[int, str | None]]:
    """Each line with its number, from 1; None instead of a line of more than ``longest`` characters, which is never held."""
    held: list[str] = []
    size = 0
    number = 0
    for number, piece, last in lines(chunks):
        size += len(piece)
        if size > longest:
            held.clear()
        else:
            held.append(piece)
        if last:
            yield number, None if size > longest else "".join(held)
            held, size = [], 0
    if size:
        yield number, None if size > longest else "".join(held)


def _decoder(head: bytes, encoding: str) -> codecs.IncrementalDecoder:
    if encoding == "auto":
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    try:
        info = codecs.lookup(encoding)
        decoder = codecs.getincrementaldecoder(encoding)(_HANDLER)
        if not getattr(info, "_is_text_encoding", True):
            raise LookupError
        decoder.decode(b"", True)
        decoder.reset()
    except (LookupError, UnicodeError) as error:
        raise UserError(
            f"{encoding!r} is no encoding of text files",
            place="data.encoding",
            next_step="name one as utf-8, cp1252, gb18030, shift_jis, or remove the key",
        ) from error
    return decoder
