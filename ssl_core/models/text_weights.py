"""Text encoders built, started from checkpoints, saved and loaded, with an account of every tensor.

A saved folder is one that ``AutoModel``, ``AutoModelForMaskedLM`` and ``AutoTokenizer`` load as well: ``config.json``,
``model.safetensors`` and the tokenizer's files; beside them ``encoder.json`` says how this platform feeds it.

Shapes: V vocabulary, D features.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from ssl_core.config.encoders import HEAD_WIDTH, HIDDEN, LAYERS, TransformerConfig
from ssl_core.data.text.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Checkpoint, inspect
from ssl_core.errors import UserError, shortened
from ssl_core.models.text_encoder import MLMHead, TextEncoder, join, split
from ssl_core.models.text_loading import LoadReport, from_checkpoint, library_config, model_class, new_model, tensors_of

if TYPE_CHECKING:
    from ssl_core.data.text.tokenizer import Tokenizer

SCHEMA_VERSION = 1
INFO_FILE = "encoder.json"
_RUN_AGAIN = "fetch the folder again, or run the step that makes it again"

# Our configuration's word for a size, and the library's.
_SIZES = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "intermediate": "intermediate_size",
}  # fmt: skip


@dataclass(frozen=True)
class TextInfo:
    """What is needed, beside ``config.json`` and the tensors, to feed a text encoder: all sizes filled in."""

    config: TransformerConfig
    features: int
    vocabulary: int
    """Rows of the embedding table; the tokenizer may have fewer tokens."""

    @classmethod
    def of(cls, config: TransformerConfig, encoder: TextEncoder) -> TextInfo:
        """The description of an encoder that was built from ``config``."""
        sizes = {ours: int(getattr(encoder.config, theirs)) for ours, theirs in _SIZES.items()}
        resolved = config.model_copy(
            update=sizes | {"init_from": None}
        )  # the weights are here, wherever they came from
        return cls(resolved, encoder.features, int(encoder.config.vocab_size))

    @property
    def modality(self) -> str:
        return "text"

    @property
    def max_length(self) -> int:
        """Tokens seen at once, special tokens included."""
        return self.config.max_length

    @property
    def pooling(self) -> str:
        return self.config.pooling

    def to_json(self) -> str:
        document = {
            "schema_version": SCHEMA_VERSION,
            "modality": self.modality,
            "config": self.config.model_dump(mode="json"),
            "features": self.features,
            "vocabulary": self.vocabulary,
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TextInfo:
        document: dict[str, Any] = json.loads(text)
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}, this program reads {SCHEMA_VERSION}")
        if document["modality"] != "text":
            raise ValueError(f"an encoder of modality {document['modality']}")
        config = TransformerConfig.model_validate(document["config"])
        return cls(config, int(document["features"]), int(document["vocabulary"]))


# ---- building


def build(
    config: TransformerConfig, tokenizer: Tokenizer, seed: int | None, folder: Path | None = None
) -> tuple[TextEncoder, MLMHead, LoadReport]:
    """A new encoder and its prediction head: from scratch, or from the checkpoint in ``folder`` (``data.text.pretrained.find``).

    From scratch with 2 layers, 128 features, a head for each 64 of them and as many positions as ``max_length``, unless the
    configuration says otherwise. Equal seeds give equal weights and leave torch's global generator untouched (None: draw from it).

    From a checkpoint all tensors of the encoder must arrive; its prediction head is taken where it is whole. The tokenizer is the
    checkpoint's own, or that with words added.

    Raises ``UserError`` where checkpoint, tokenizer and configuration do not fit together.
    """
    if folder is None:
        if config.init_from is not None:
            raise ValueError("init_from needs the folder that ssl_core.data.text.pretrained.find gives")
        model = new_model(library_config(config.arch, _sizes_from(config, tokenizer), "encoder"), seed)
        return *split(model, config.pooling), LoadReport(new=tuple(tensors_of(model)))
    checkpoint = inspect(folder)
    _require_agreement(config, checkpoint)
    known = _require_same_tokens(checkpoint, tokenizer)
    model, report = from_checkpoint(checkpoint, seed, known, tokenizer.size)
    return *split(model, config.pooling), replace(report, sha256=checkpoint.digest())


def random_encoder(source: Path | TextInfo, tokenizer: Tokenizer, seed: int) -> TextEncoder:
    """An encoder of the architecture in ``source`` (a folder that ``save_encoder`` wrote, or its description), random, in eval mode."""
    if isinstance(source, TextInfo):
        values = _sizes_from(source.config, tokenizer) | {"vocab_size": source.vocabulary}
        config, pooling = library_config(source.config.arch, values, "encoder"), source.config.pooling
    else:
        checkpoint = inspect(source)
        place = str(source / CONFIG_FILE)
        config, pooling = library_config(checkpoint.arch, checkpoint.config, place), read_info(source).config.pooling
    return split(new_model(config, seed), pooling)[0].eval()


def _sizes_from(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The library's configuration for an encoder from scratch."""
    hidden = config.hidden or HIDDEN
    values = {
        "vocab_size": tokenizer.size,
        "hidden_size": hidden,
        "num_hidden_layers": config.layers or LAYERS,
        "num_attention_heads": config.heads or max(1, hidden // HEAD_WIDTH),
        "intermediate_size": config.intermediate or 4 * hidden,
        "max_position_embeddings": config.max_length,
        "pad_token_id": tokenizer.pad_id,
    }
    if config.arch == "modernbert":
        values |= {"cls_token_id": tokenizer.cls_id, "bos_token_id": tokenizer.cls_id}
        values |= {"sep_token_id": tokenizer.sep_id, "eos_token_id": tokenizer.sep_id}
    return values


def _require_agreement(config: TransformerConfig, checkpoint: Checkpoint) -> None:
    """What the project names must be what the checkpoint has."""
    says = {"arch": checkpoint.arch} | {ours: checkpoint.config[theirs] for ours, theirs in _SIZES.items()}
    for name, value in says.items():
        asked = getattr(config, name)
        if asked is not None and asked != value:
            raise UserError(
                f"{name} is {asked}, but the checkpoint {checkpoint.folder} has {value}",
                place=f"encoder.{name}",
                next_step=f"write `{name}: {value}`" + ("" if name == "arch" else f", or leave {name} out"),
            )
    positions = checkpoint.config["max_position_embeddings"]
    if config.max_length > positions:
        raise UserError(
            f"sequence longer than positions: max_length is {config.max_length}, but the checkpoint {checkpoint.folder} knows {positions}",
            place="encoder.max_length",
            next_step=f"write `max_length: {positions}` or less; longer texts are seen window by window",
        )


def _require_same_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> int:
    """How many tokens the checkpoint's own tokenizer has; ``tokenizer`` must give each of them the same id."""
    from ssl_core.data.text.tokenizer import Tokenizer as Reader

    own = Reader.load(checkpoint.folder)
    _require_rows(checkpoint, own)
    given = tokenizer._vocabulary
    other = [token for token, number in own._vocabulary.items() if given.get(token) != number]
    if other:
        raise UserError(
            f"the tokenizer ({tokenizer.size} tokens) is not the one that the checkpoint ({own.size}) was trained with: "
            f"{len(other)} tokens have another id or none ({shortened(other)})",
            place=str(checkpoint.folder),
            next_step="take the tokenizer from the checkpoint too: with encoder.init_from the step tokenize does so",
        )
    return own.size


def _require_rows(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    if tokenizer.size > checkpoint.vocabulary:
        raise UserError(
            f"its tokenizer has {tokenizer.size} tokens, but its embedding table only {checkpoint.vocabulary} rows",
            place=str(checkpoint.folder),
            next_step="use tokenizer and weights of the same checkpoint",
        )


# ---- saving and loading


def save_encoder(folder: Path, encoder: TextEncoder, head: MLMHead, info: TextInfo, tokenizer: Tokenizer) -> None:
    """Writes one folder (made if absent) for this platform and for transformers; equal tensors give equal bytes.

    Weights are float32. ``AutoModelForMaskedLM`` finds all that it looks for and nothing else. ``AutoModel`` has no place for the
    prediction head and says so, and gives BERT a pooler, which is not pretrained, unless told ``add_pooling_layer=False``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in tensors_of(join(encoder, head)).items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = copy.deepcopy(encoder.config)
    config.architectures, config.dtype = [model_class(config).__name__], torch.float32
    (folder / CONFIG_FILE).write_text(config.to_json_string(), encoding="utf-8")
    (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
    tokenizer.save(folder, max_length=info.max_length)


def load_encoder(folder: Path) -> tuple[TextEncoder, MLMHead, TextInfo, Tokenizer]:
    """What ``save_encoder`` wrote, in eval mode on the CPU; ``UserError`` where anything is missing, added, damaged or does not fit."""
    from ssl_core.data.text.tokenizer import Tokenizer as Reader

    info = read_info(folder)
    checkpoint = inspect(folder)
    tokenizer = Reader.load(folder)
    _require_agreement(info.config, checkpoint)
    for what, said, found in (
        ("features", info.features, checkpoint.config["hidden_size"]),
        ("tokens", info.vocabulary, checkpoint.vocabulary),
    ):
        if said != found:
            raise UserError(f"says {said} {what}, but config.json {found}", place=str(folder / INFO_FILE), next_step=_RUN_AGAIN)  # fmt: skip
    _require_rows(checkpoint, tokenizer)
    model, _ = from_checkpoint(checkpoint, 0, tokenizer.size, tokenizer.size, complete=True)
    encoder, head = split(model.eval(), info.config.pooling)
    return encoder.eval(), head.eval(), info, tokenizer


def read_info(folder: Path) -> TextInfo:
    """``encoder.json`` alone; ``UserError`` where it is missing or not what this program writes."""
    path = folder / INFO_FILE
    try:
        return TextInfo.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no encoder here", place=str(path), next_step=_RUN_AGAIN) from None
    except (ValueError, KeyError, TypeError) as error:  # pydantic's and JSON's errors are ValueErrors
        raise UserError(
            f"not a description of a text encoder ({error})", place=str(path), next_step=_RUN_AGAIN
        ) from None
