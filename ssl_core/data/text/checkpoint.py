"""A text encoder's checkpoint in Hugging Face form, judged before anything of it is built or run.

Only JSON and safetensors are read: neither can hold code. What a pickle, a remote class or a link out of the folder could
do is refused here, once, for every way that a checkpoint may come.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_core.errors import UserError, shortened

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
SUFFIXES = (".safetensors", ".json", ".txt")
"""Of the files that a checkpoint consists of."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXT_BYTES = 200_000_000
_JSON_BYTES = {CONFIG_FILE: 1_000_000, INDEX_FILE: 50_000_000}
_DTYPES = ("F16", "BF16", "F32", "F64")
# Ways to run foreign code or foreign arithmetic, and what a library writes about itself.
_DROPPED = ("auto_map", "custom_pipelines", "transformers_version", "_name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Architecture:
    """How checkpoints of one architecture name and limit things."""

    table: str
    """The token embeddings, ``(V, D)``, whose name tells what a file's names begin with."""
    prefixes: tuple[str, ...]
    """Of the encoder's tensors: of a model with a head, of the encoder alone, of sentence-transformers."""
    sizes: Mapping[str, int]
    """Whole numbers that ``config.json`` must hold, and the largest of each that this program would build."""
    fixed: Mapping[str, Any]
    """Choices that this program runs in one way only; absent means the same."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the architecture means where ``config.json`` does not say."""


_SIZES = {
    "vocab_size": 2_000_000, "hidden_size": 8192, "num_hidden_layers": 96, "num_attention_heads": 128,
    "intermediate_size": 65_536, "max_position_embeddings": 131_072,
}  # fmt: skip
_TIED = {"tie_word_embeddings": True}  # the prediction head's matrix is the embedding table
ARCHITECTURES = {
    "bert": Architecture(
        table="embeddings.word_embeddings.weight",
        prefixes=("bert.", "", "0.auto_model."),
        sizes=_SIZES | {"type_vocab_size": 1000},
        fixed={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"} | _TIED,
        defaults={"type_vocab_size": 2},
    ),
    "modernbert": Architecture(
        table="embeddings.tok_embeddings.weight",
        prefixes=("model.", "", "0.auto_model."),
        sizes=_SIZES,
        fixed={"decoder_bias": True} | _TIED,
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """What a folder says of itself; the tensors themselves are not read yet."""

    folder: Path
    arch: str
    config: dict[str, Any]
    """``config.json`` without what could run code."""
    files: tuple[Path, ...]
    """The safetensors files."""
    shapes: dict[str, tuple[int, ...]]
    """By the name in the files."""
    prefix: str
    """What the names of the encoder's tensors begin with."""

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return int(self.config["vocab_size"])

    def digest(self) -> str:
        """SHA-256 of the weights: of their file, or of the files' digests."""
        found = []
        for path in self.files:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def inspect(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises ``UserError`` with the file at fault: pickled or damaged weights, a missing file, an architecture or a choice that
    is not supported, sizes of the wrong type or beyond all measure, a link out of the folder, a table that is not the vocabulary's.
    """
    if not folder.is_dir():
        raise UserError("there is no such folder", place=str(folder), next_step=_NAME_A_FOLDER)
    _check_files(folder)
    files = _weight_files(folder)
    config = _config(folder / CONFIG_FILE)
    shapes = _shapes(files)
    arch = ARCHITECTURES[config["model_type"]]
    found = [prefix for prefix in arch.prefixes if prefix + arch.table in shapes]
    if len(found) != 1:
        raise UserError(
            f"{'no' if not found else 'more than one'} {config['model_type']} encoder among its {len(shapes)} tensors "
            f"({shortened(sorted(shapes))})",
            place=str(files[0]),
            next_step=f"use weights and config.json of the same checkpoint; {found[0] if found else ''}{arch.table} is looked for",
        )
    wanted = (config["vocab_size"], config["hidden_size"])
    if shapes[found[0] + arch.table] != wanted:
        raise UserError(
            f"{found[0]}{arch.table} is {list(shapes[found[0] + arch.table])}, but config.json says {list(wanted)}: another vocabulary or width",
            place=str(files[0]),
            next_step="use weights and config.json of the same checkpoint",
        )
    return Checkpoint(folder, config["model_type"], config, files, shapes, found[0])


_NAME_A_FOLDER = f"name a folder that holds {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE}"
_CONVERT = (
    "choose a checkpoint that has model.safetensors; or, if you trust this one, convert it: "
    "AutoModelForMaskedLM.from_pretrained(FOLDER).save_pretrained(NEW), and the same with AutoTokenizer"
)


def _check_files(folder: Path) -> None:
    """Refuses a checkpoint file that is a link to somewhere else (it would be read, and copied to where others can), or beyond measure."""
    home = folder.resolve()
    for path in sorted(folder.iterdir()):
        if path.suffix not in SUFFIXES:
            continue
        if not path.resolve().is_relative_to(home):
            raise UserError(
                "the file is a link that leads out of the checkpoint's folder",
                place=str(path),
                next_step="copy the folder with what its links name (cp -rL FOLDER NEW) and name the copy",
            )
        if path.suffix != ".safetensors" and path.is_file() and path.stat().st_size > _TEXT_BYTES:
            raise UserError(
                f"{path.stat().st_size / 1e6:.0f} MB, and a tokenizer's or a configuration's file has at most {_TEXT_BYTES / 1e6:g}",
                place=str(path),
                next_step=FETCH_AGAIN,
            )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / WEIGHTS_FILE).is_file():
        return (folder / WEIGHTS_FILE,)
    index = folder / INDEX_FILE
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError("no list of weight files", place=str(index), next_step=FETCH_AGAIN)
        files = sorted({str(name) for name in names.values()})
        for name in files:
            if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
                raise UserError(f"names the weights file {name!r}, which is not here", place=str(index), next_step=FETCH_AGAIN)  # fmt: skip
        return tuple(folder / name for name in files)
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
    if pickles:
        raise UserError(
            f"holds only pickled weights ({shortened(pickles)}), which can run any code when they are opened; they are never read",
            place=str(folder),
            next_step=_CONVERT,
        )
    raise UserError(f"there is no {WEIGHTS_FILE} in it", place=str(folder), next_step=_NAME_A_FOLDER)


FETCH_AGAIN = "fetch the whole checkpoint again"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint; ``UserError`` where it is missing, too large, damaged or something else."""
    limit = _JSON_BYTES[path.name]
    try:
        if path.stat().st_size > limit:
            raise UserError(f"more than {limit / 1e6:g} MB of JSON", place=str(path), next_step=FETCH_AGAIN)
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path.name} in it", place=str(path.parent), next_step=_NAME_A_FOLDER) from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"not readable as JSON ({error})", place=str(path), next_step=FETCH_AGAIN) from None
    if not isinstance(document, dict):
        raise UserError("not a JSON object", place=str(path), next_step=FETCH_AGAIN)
    return document


def _config(path: Path) -> dict[str, Any]:
    config = {name: value for name, value in read_json(path).items() if name not in _DROPPED}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(
            f"the architecture {kind!r} is not supported"
            if kind
            else "does not say which architecture it is (model_type)",
            place=str(path),
            next_step=f"use a checkpoint of {' or '.join(ARCHITECTURES)}",
        )
    arch = ARCHITECTURES[kind]
    config = dict(arch.defaults) | config
    for name, largest in arch.sizes.items():
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise UserError(
                f"{name} is {value!r}, not a whole number from 1 to {largest}"
                if name in config
                else f"there is no {name}",
                place=str(path),
                next_step=FETCH_AGAIN,
            )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise UserError(
            f"hidden_size ({config['hidden_size']}) is not a multiple of num_attention_heads ({config['num_attention_heads']})",
            place=str(path),
            next_step=FETCH_AGAIN,
        )
    pad = config.get("pad_token_id")
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < config["vocab_size"]):
        raise UserError(f"pad_token_id is {pad!r}, no token of the vocabulary", place=str(path), next_step=FETCH_AGAIN)
    for name, value in arch.fixed.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{name}: {config[name]!r} is not supported, only {value!r}",
                place=str(path),
                next_step="choose a checkpoint without it",
            )
    if config.get("quantization_config"):
        raise UserError(
            "the weights are quantised", place=str(path), next_step="choose the checkpoint that it was made from"
        )
    return config


def _shapes(files: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    if name in shapes:
                        raise UserError(f"the tensor {name} is in two files", place=str(path), next_step=FETCH_AGAIN)
                    shapes[name] = tuple(part.get_shape())
                    if part.get_dtype() not in _DTYPES and not name.endswith(_NUMBERING):
                        raise UserError(
                            f"the tensor {name} holds {part.get_dtype()}, not floating-point numbers",
                            place=str(path),
                            next_step="choose a checkpoint that is not quantised",
                        )
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"not a readable safetensors file ({error})", place=str(path), next_step=FETCH_AGAIN
            ) from None
    return shapes


_NUMBERING = ("position_ids", "token_type_ids")
"""Buffers of 0, 1, 2, ... or zeros that older versions of the library saved."""
