"""Small texts, a tokenizer and an encoder that tests of several folders share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from ssl_core.config.encoders import TransformerConfig
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.table import LabelType, SampleTable
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train as train_tokenizer
from ssl_core.models.text_classifier import build_classifier, save_classifier
from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from ssl_core.models.text_golden import pack
from ssl_core.models.text_weights import TextInfo, build, save_encoder
from ssl_core.models.text_windows import offsets_of

WORDS = [
    "red", "green", "blue", "grey", "tree", "river", "stone", "cloud", "house", "bird", "fish", "road", "lamp", "wind", "hill", "boat",
]  # fmt: skip
CONFIG = TransformerConfig(layers=2, hidden=16, heads=2, intermediate=32, max_length=16)


@dataclass
class Texts:
    """Tokens of texts, and what is known of them: as ``data.text.tokens.Tokens`` has it."""

    ids: np.ndarray
    offsets: np.ndarray
    table: SampleTable
    texts: list[str]


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 4, TokenizerConfig(size=300))


def encoder(config: TransformerConfig = CONFIG, seed: int = 0) -> tuple[TextEncoder, MLMHead, TextInfo]:
    """A random one, in eval mode."""
    network, head, _ = build(config, tokenizer(), seed)
    return network.eval(), head.eval(), TextInfo.of(config, network)


def sentences(count: int, *, length: int = 5, seed: int = 0) -> list[str]:
    """Random words; nothing else."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[4:], length)) for _ in range(count)]


def make_texts(
    texts: list[str], labels: list[Any], *, label_type: LabelType = "class", classes: list[str] | None = None
) -> Texts:
    """Texts of split train with the labels that a manifest would hold; None: no label."""
    known = [label for label in labels if label is not None]
    stored = [
        json.dumps(label) if isinstance(label, list) else None if label is None else str(label) for label in labels
    ]
    if classes is None and label_type != "number":
        classes = sorted({one for label in known for one in (label if isinstance(label, list) else [label])})
    manifest = pd.DataFrame(
        {
            "sample_id": [f"{row:064x}" for row in range(len(texts))],
            "split": "train",
            "label": pd.Series(stored, dtype=object),
        }
    )
    ids, lengths = tokenizer().encode_flat(texts)
    return Texts(ids, offsets_of(lengths), SampleTable(manifest, classes or [], label_type), list(texts))


def colours(count: int = 24, classes: int = 3, seed: int = 0) -> Texts:
    """Texts that a colour among other words tells the class of; labels are the colours."""
    labels = [WORDS[row % classes] for row in range(count)]
    texts = [f"{text} {label}" for text, label in zip(sentences(count, seed=seed), labels, strict=True)]
    return make_texts(texts, list(labels))


def write_encoder(folder: Path, seed: int = 0) -> None:
    """As the pretrain step leaves it, with its golden batch."""
    network, head, info = encoder(seed=seed)
    save_encoder(folder, network, head, info, tokenizer())
    features = embed_texts(network, tokenizer(), info.max_length, GOLDEN)
    save_file(pack(GOLDEN) | {"features": features}, folder / "golden.safetensors")


def write_classifier(folder: Path, label_type: LabelType = "class", seed: int = 0) -> None:
    """As the finetune step leaves it, with a random head and its golden batch; classes are the first three words."""
    network, mlm_head, info = encoder(seed=seed)
    classes = [] if label_type == "number" else WORDS[:3]
    model = build_classifier(network, info, tokenizer(), classes, label_type, 4, mlm_head)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    save_classifier(folder, model.eval())
    save_file(pack(GOLDEN) | {"probabilities": model.predict(GOLDEN)}, folder / "golden.safetensors")
    (folder / "training.json").write_text(json.dumps({"label_budget": "all", "labels": 60}))


GOLDEN = [*sentences(3), "red", "œuf 日本 😀", " ".join(WORDS * 3)]
"""The last one is longer than a window."""
