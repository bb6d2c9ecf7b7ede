"""Texts as ingest sees them."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ssl_core.config.data import TextDataConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.data.bad_sample import BadSample
from ssl_core.data.kinds import Decoded, Kind
from ssl_core.data.sources import Source
from ssl_core.data.text import minhash
from ssl_core.data.text.words import split_words

if TYPE_CHECKING:
    import pandas as pd

_MARK = "\ufeff"


class _Texts:
    """See ``Kind``."""

    name = "text"
    column = pa.field("text", pa.string(), nullable=False)
    measures = (
        pa.field("characters", pa.int32(), nullable=False),
        pa.field("words", pa.int32(), nullable=False),
        pa.field("bytes", pa.int32(), nullable=False),
        pa.field("letters", pa.float32(), nullable=False),
    )
    trace_shape = (minhash.VALUES,)
    trace_type = np.uint32
    compression = "zstd"

    def open(self, project: ProjectConfig, cache: Path | None) -> Source:
        from ssl_core.data.text.source import open_texts

        return open_texts(project, cache)

    def decode(self, data: bytes, project: ProjectConfig) -> Decoded:
        config = project.data
        assert isinstance(config, TextDataConfig)
        text = normalise(data)
        if len(text) < config.min_characters:
            raise BadSample(
                f"{len(text)} characters, fewer than data.min_characters ({config.min_characters})"
                if text
                else "there is no text in it"
            )
        measures = {
            "characters": len(text), "words": len(split_words(text)), "bytes": len(text.encode()), "letters": letters(text),
        }  # fmt: skip
        # The tag keeps a text and an image with the same bytes apart.
        sample_id = hashlib.sha256(b"text\n" + text.encode()).hexdigest()
        return Decoded(sample_id, measures, minhash.signature(text))

    def stored(self, data: bytes) -> str:
        return normalise(data)

    def near_duplicates(self, traces: np.ndarray, project: ProjectConfig) -> np.ndarray:
        config = project.data
        assert isinstance(config, TextDataConfig)
        return minhash.near_duplicate_pairs(traces, config.similarity)

    def summary(self, manifest: pd.DataFrame) -> dict[str, Any]:
        """How long the texts are, for people and for advice."""
        found: dict[str, Any] = {"characters": int(manifest["characters"].sum())}
        for name in ("characters", "words"):
            for share in (50, 95):
                found[f"{name}_p{share}"] = int(np.percentile(manifest[name], share)) if len(manifest) else 0
        return found


KIND: Kind = _Texts()


def normalise(data: bytes) -> str:
    """UTF-8 to text as it is stored: Unicode NFC, without a byte order mark and without space around it.

    Combining marks, joined emoji and everything else that a person wrote stay. Raises ``BadSample`` with the reason.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample(f"not UTF-8 (byte {error.start})") from None
    if "\0" in text:
        raise BadSample(f"holds a NUL character (character {text.index(chr(0)) + 1})")
    return unicodedata.normalize("NFC", text.removeprefix(_MARK)).strip()


def letters(text: str) -> float:
    """Share of letters, with their combining marks, among the characters that are no space; 0 where there are none."""
    seen = "".join(text.split())
    if seen.isascii():
        return sum(map(str.isalpha, seen)) / len(seen) if seen else 0.0
    return sum(unicodedata.category(character)[0] in "LM" for character in seen) / len(seen)
