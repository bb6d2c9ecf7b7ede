"""Requests to texts: what a served text model does with the column ``text``. Travels inside the model."""

from __future__ import annotations

import pandas as pd

from ssl_core.serving.requests import BadRequest

COLUMN = "text"
MAX_CHARACTERS = 1_000_000


def texts_of(rows: pd.DataFrame) -> list[str]:
    """The texts of column ``text``.

    Raises ``BadRequest`` that names the row and the reason where one is no text that can be used.
    """
    if COLUMN not in rows.columns:
        raise BadRequest(f"the column '{COLUMN}' is missing: send strings")
    texts = rows[COLUMN].tolist()
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest(f"row {number}: '{COLUMN}' must be a string, not {type(text).__name__}")
        if not text.strip():
            raise BadRequest(f"row {number}: the text is empty")
        if len(text) > MAX_CHARACTERS:
            raise BadRequest(f"row {number}: {len(text):,} characters, and at most {MAX_CHARACTERS:,} are taken")
    return texts
