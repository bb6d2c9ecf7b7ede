"""Requests to texts: what a served text model does with the column ``text``. Travels inside the model."""

from __future__ import annotations

import unicodedata

import pandas as pd

from ssl_core.serving.requests import BadRequest

COLUMN = "text"
MAX_CHARACTERS = 1_000_000


def texts_of(rows: pd.DataFrame) -> list[str]:
    """The texts of column ``text`` as training saw its own: Unicode NFC, without space around them.

    Raises ``BadRequest`` that names the row and the reason where one is no text that can be used.
    """
    if COLUMN not in rows.columns:
        raise BadRequest(f"the column '{COLUMN}' is missing: send strings")
    return [_text(number, value) for number, value in enumerate(rows[COLUMN].tolist())]


def _text(number: int, value: object) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"row {number}: '{COLUMN}' must be a string, not {type(value).__name__}")
    if len(value) > MAX_CHARACTERS:
        raise BadRequest(f"row {number}: {len(value):,} characters, and at most {MAX_CHARACTERS:,} are taken")
    text = unicodedata.normalize("NFC", value).strip()
    if not text:
        raise BadRequest(f"row {number}: the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can say "\ud800", which no tokenizer takes
        raise BadRequest(f"row {number}: the text holds half of a surrogate pair") from None
    return text
