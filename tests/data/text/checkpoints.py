"""Small checkpoints in Hugging Face form, for tests: as a hand writes them, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ssl_core.data.text.tokenizer import Tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "film", "was", "good", "bad", "very", "a", "cat", "##s", "##ly", ".", "!")
TABLES = {"bert": "bert.embeddings.word_embeddings.weight", "modernbert": "model.embeddings.tok_embeddings.weight"}


def write_tokenizer(folder: Path, tokens: tuple[str, ...] = SPECIALS + WORDS) -> Tokenizer:
    """A WordPiece tokenizer with these tokens, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    (folder / "vocab.txt").unlink()
    tokenizer.save(folder)
    return tokenizer


def sizes(arch: str = "bert", **changes: Any) -> dict[str, Any]:
    """A ``config.json`` for 17 tokens and 8 features, with what is given changed; None leaves a key out."""
    values = {
        "model_type": arch, "vocab_size": len(SPECIALS + WORDS), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 32, "pad_token_id": 0,
    }  # fmt: skip
    if arch == "bert":
        values["type_vocab_size"] = 2
    return {name: value for name, value in (values | changes).items() if value is not None}


def write_checkpoint(folder: Path, arch: str = "bert", *, config: Any = None, tensors: Any = None) -> Path:
    """A folder that ``inspect`` accepts: of the weights only the token embeddings, unless others are given."""
    write_tokenizer(folder)
    config = sizes(arch) if config is None else config
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    table = np.random.default_rng(0).normal(size=(len(SPECIALS + WORDS), 8)).astype(np.float32)
    save_file({TABLES[arch]: table} if tensors is None else tensors, folder / "model.safetensors")
    return folder
