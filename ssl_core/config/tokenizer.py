"""The tokenizer of a text project: what ``tokenizer:`` may hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ssl_core.config.base import IN_FORM, Section


class TokenizerConfig(Section):
    """How text becomes tokens. Trained on the training split, or taken from ``encoder.init_from``, and then only ``added`` counts."""

    kind: Literal["wordpiece", "bpe", "unigram"] = Field(
        default="wordpiece",
        description="wordpiece (BERT), bpe on bytes (GPT-2; knows every character of every language), or unigram (SentencePiece)",
    )
    size: int | Literal["auto"] = Field(
        default="auto",
        description="Tokens in the vocabulary (300 to 200000); auto: advised from the size of the corpus",
        json_schema_extra=IN_FORM,
    )
    lowercase: bool = Field(
        default=True, description="Lower case and no accents (wordpiece, unigram); bpe keeps text as it is"
    )
    min_frequency: int = Field(default=2, ge=1, description="A word that is rarer teaches the tokenizer nothing")
    added: tuple[str, ...] = Field(
        default=(), max_length=10_000, description="Words that are one token each, whatever was learned"
    )

    @field_validator("size")
    @classmethod
    def _size_in_range(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 300 <= value <= 200_000:
            raise ValueError("must be between 300 and 200000, or auto")
        return value

    @field_validator("added")
    @classmethod
    def _words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, word in enumerate(value, start=1):
            if not word.strip():
                raise ValueError(f"word {number} is blank")
            if word != word.strip():
                raise ValueError(f"word {number} has blanks around it; write {word.strip()!r}")
        if len(set(value)) != len(value):
            raise ValueError("a word is listed twice")
        return value
