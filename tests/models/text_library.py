"""Checkpoints as transformers saves them, and its answers: the reference for text encoders of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.config.encoders import TransformerConfig
from ssl_core.data.text.sequences import Sequences
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from tests.data.text.checkpoints import sizes, write_tokenizer

ARCHS = ["bert", "modernbert"]
TEXTS = ["the film was very good .", "a bad cats !", "good"]
SMALL = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 16}


def library(folder: Path, arch: str = "bert", model: str = "ForMaskedLM", seed: int = 5, **changes: Any) -> Path:
    """A random model of transformers with a tokenizer, as it saves itself: ``model`` is the end of its class's name."""
    import transformers

    name = {"bert": "Bert", "modernbert": "ModernBert"}[arch]
    if arch == "modernbert":
        changes = {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3} | changes
    values = sizes(arch, hidden_size=16, num_hidden_layers=4, max_position_embeddings=24, **changes)
    values.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = getattr(transformers, name + model)(getattr(transformers, name + "Config")(**values))
        for parameter in whole.parameters():  # biases and norms begin as constants: a mix-up would not be seen
            torch.nn.init.normal_(parameter, std=0.3)
    whole.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def sequences(tokenizer: Tokenizer, texts: list[str] = TEXTS) -> Sequences:
    rows = [[tokenizer.cls_id, *ids, tokenizer.sep_id] for ids in tokenizer.encode(texts)]
    return Sequences(torch.tensor([i for row in rows for i in row]), torch.tensor([len(row) for row in rows]))


@torch.no_grad()
def answers(encoder: TextEncoder, head: MLMHead, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    hidden = encoder.eval().hidden(sequences(tokenizer))
    return hidden, head.eval()(hidden)


@torch.no_grad()
def library_answers(folder: Path) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of all tokens of all texts by transformers alone: its tokenizer, padding, models."""
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    filled = batch["attention_mask"].bool()
    hidden = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state[filled]
    return hidden, AutoModelForMaskedLM.from_pretrained(folder).eval()(**batch).logits[filled]


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def small_config(folder: Path | None = None, **changes: Any) -> TransformerConfig:
    values = {"init_from": str(folder), "max_length": 24} if folder else dict(SMALL)
    return TransformerConfig(**values | changes)


def flat(module: torch.nn.Module) -> tuple[Tensor, Tensor]:
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return flat, flat
