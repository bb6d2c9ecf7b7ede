"""Where samples come from and how they become a dataset version: what ``data:`` in a project may hold."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ssl_core.config.base import IN_FORM, Section


class SplitConfig(Section):
    """Shares of the four splits. A sample's side follows from its content, so it never changes as data grows."""

    train: float = Field(default=0.70, gt=0, lt=1, description="Seen by pretraining and fine-tuning")
    val: float = Field(default=0.05, gt=0, lt=1, description="Watched during training, never trained on")
    test: float = Field(default=0.20, gt=0, lt=1, description="Read by evaluate and gate only")
    vault: float = Field(default=0.05, gt=0, lt=1, description="Held back; read by gate only")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.val + self.test + self.vault
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test + vault must be 1, not {total:g}")
        return self


def _check_bucket(address: str) -> None:
    """What follows ``s3://``. The names that S3 servers allow differ; this keeps out what none of them can mean."""
    bucket = address.partition("/")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise ValueError("names no bucket; write s3://bucket/prefix, with a bucket of letters, digits, dots and dashes")


class DataConfig(Section):
    """Where the samples come from and how they become a dataset version."""

    source: str = Field(min_length=1, description="A folder, s3://bucket/prefix, or a bundled sample: sample://NAME")
    labels: str | None = Field(default=None, description="A file of labels beside the source")
    classes: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="The classes that labels may name; default: those found"
    )
    label_type: Literal["class", "classes", "number"] = Field(default="class", description="What a label is")
    max_quarantined: float = Field(
        default=0.02, ge=0, le=1, description="Largest share of unreadable samples before ingest fails with exit code 3"
    )
    near_duplicates: bool = Field(
        default=True, description="Find near-duplicates and keep each cluster on one side of the split"
    )
    split: SplitConfig = Field(default_factory=SplitConfig, description="Shares of train, val, test and vault")

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        scheme, found, rest = value.partition("://")
        if found and scheme == "s3":
            _check_bucket(rest)
        elif found and scheme != "sample":
            # What follows may hold a password: it is not repeated.
            raise ValueError(f"{scheme}:// is no source; a folder, s3://bucket/prefix or a bundled sample://NAME is")
        return value

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, value: str | None) -> str | None:
        scheme, found, rest = (value or "").partition("://")
        if found and scheme != "s3":
            raise ValueError(f"{scheme}:// holds no labels; a file or s3://bucket/key does")
        if found:
            _check_bucket(rest)
            if not rest.partition("/")[2].strip("/"):
                raise ValueError("names a bucket and no object in it; write s3://bucket/key")
        return value

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a class is listed twice")
        return value


class ImageDataConfig(DataConfig):
    """Where the images come from and how they become a dataset version."""

    source: str = Field(
        min_length=1,
        description="A folder (class folders, or files plus labels.csv, or just files), the same in S3: s3://bucket/prefix, "
        "or a bundled sample: sample://digits, sample://animals. A relative folder is taken from the project file's folder",
        json_schema_extra=IN_FORM,
    )
    labels: str | None = Field(
        default=None,
        description="CSV file with the columns file,label; default: labels.csv in the source, if there is one. A file, an object "
        "s3://bucket/key, or with a source in S3 the name of an object there (then a file starts with / or ./)",
    )
    label_type: Literal["class"] = Field(default="class", description="A label is one class")
    image_size: int | Literal["auto"] = Field(
        default="auto", description="Side in pixels that encoders see (8 to 512); auto: the median side, at most 96"
    )
    channels: Literal["auto", 1, 3] = Field(
        default="auto", description="1 grey, 3 colour; auto: 3 if any image has colour"
    )
    max_pixels: int = Field(default=50_000_000, ge=1, description="A larger image is quarantined, not decoded")
    min_side: int = Field(default=4, ge=1, description="An image with a shorter side is quarantined, pixels")

    @field_validator("image_size")
    @classmethod
    def _size_in_range(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 8 <= value <= 512:
            raise ValueError("must be between 8 and 512, or auto")
        return value


class TextDataConfig(DataConfig):
    """Where the texts come from and how they become a dataset version."""

    source: str = Field(
        min_length=1,
        description="A folder of .txt, .jsonl, .csv, .tsv or .parquet files, or one such file; the same in S3: s3://bucket/prefix; "
        "or a bundled sample: sample://reviews. A relative path is taken from the project file's folder",
        json_schema_extra=IN_FORM,
    )
    text: str = Field(default="text", min_length=1, description="The column, or JSON key, that holds the text")
    label: str = Field(
        default="label", min_length=1, description="The column, or JSON key, that holds the label; it may be missing"
    )
    id: str | None = Field(
        default=None,
        description="The column that names each row, for a separate file of labels; default: file name and row number",
    )
    labels: str | None = Field(
        default=None,
        description="A separate CSV file with the columns id,label (or file,label for .txt files); default: labels.csv in the source, "
        "if there is one. A file, an object s3://bucket/key, or with a source in S3 the name of an object there",
    )
    label_type: Literal["class", "classes", "number"] = Field(
        default="class",
        description="class: one class a text; classes: any number of them, as a list or separated by `;`; number: a quantity",
    )
    unit: Literal["file", "line"] = Field(
        default="file", description="What one text of a .txt file is: the whole file, or each line that is not blank"
    )
    encoding: str = Field(
        default="auto",
        description="Text encoding of .txt, .jsonl, .csv and .tsv files; auto: UTF-8, or UTF-16 and UTF-32 by their mark, or refused "
        "with the line number. Name another one (cp1252, gb18030, shift_jis, ...) where it is known",
    )
    max_characters: int = Field(
        default=1_000_000,
        ge=100,
        le=100_000_000,
        description="A longer text is cut into consecutive samples of at most so many characters, which stay on one side of the split",
    )
    min_characters: int = Field(default=1, ge=1, description="A shorter text is quarantined, characters")
    similarity: float = Field(
        default=0.8, gt=0, le=1, description="Two texts with at least this Jaccard similarity are near-duplicates"
    )
    triples: str | None = Field(
        default=None,
        description="A file of a knowledge graph (CSV or TSV: subject, relation, object): each triple becomes one more text without "
        "label, `subject relation object`",
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        import codecs

        if value != "auto":
            try:
                codecs.lookup(value)
            except LookupError:
                raise ValueError("is no text encoding that Python knows; for example utf-8, cp1252, gb18030") from None
        return value

    @model_validator(mode="after")
    def _label_is_not_the_text(self) -> TextDataConfig:
        if self.label == self.text:
            raise PydanticCustomError(
                "elsewhere", "is the column of `data.text`; name another one", {"key": "data.label"}
            )
        return self

    @model_validator(mode="after")
    def _numbers_have_no_classes(self) -> TextDataConfig:
        if self.label_type == "number" and self.classes is not None:
            raise ValueError("label_type: number has no classes; remove data.classes")
        return self
