"""A checkpoint's tensors into the library's network, with an account of each: none is lost or made up in silence.

V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssl_core.data.text.checkpoint import ARCHITECTURES, CONFIG_FILE, FETCH_AGAIN, Checkpoint
from ssl_core.errors import UserError, shortened

_SAME_CHECKPOINT = "use weights and config.json of the same checkpoint"
_NOT_OURS = ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids", "rotary_emb.")
"""What an encoder's checkpoint may hold beyond our network: BERT's pooler, and buffers that older libraries saved."""
_ROWS_OF_TOKENS = (
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "decoder.weight",
    "decoder.bias",
    "predictions.bias",
)
"""Tensors with one row for each token of the vocabulary."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor when an encoder was built."""

    source: str = ""
    """The checkpoint's folder; empty where the encoder was built from scratch."""
    sha256: str = ""
    """Of the checkpoint's weights: which they were, wherever they lay."""
    loaded: tuple[str, ...] = ()
    """Tensors of the network that the checkpoint gave."""
    new: tuple[str, ...] = ()
    """Tensors of the network that it did not have: random."""
    unused: tuple[str, ...] = ()
    """Tensors of the checkpoint that the network has no place for."""
    added_rows: int = 0
    """Tokens that the checkpoint's tokenizer did not have; each starts as the mean of the old ones."""

    def __str__(self) -> str:
        if not self.source:
            return f"built from scratch: {len(self.new)} tensors, all random"
        parts = [f"{len(self.loaded)} tensors came from the checkpoint ({_groups(self.loaded)})"]
        if self.new:
            parts.append(
                f"the prediction head is new and random ({_groups(self.new)}), the checkpoint has no whole one"
            )
        if self.added_rows:
            parts.append(f"{self.added_rows} added words start as the mean of the others")
        if self.unused:
            parts.append(f"not used: {_groups(self.unused)}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for the step's record."""
        return {
            "source": self.source, "sha256": self.sha256, "loaded": list(self.loaded), "new": list(self.new), "unused": list(self.unused),
            "added_rows": self.added_rows, "summary": str(self),
        }  # fmt: skip


def _groups(names: Iterable[str]) -> str:
    """Names by their first two parts, layers taken together: ``bert.encoder: 96, pooler.dense: 2``."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        counts[".".join(parts[: max(1, min(number, 2))])] += 1
    return ", ".join(f"{group}: {count}" for group, count in counts.items())


# ---- the library's network


def library_config(arch: str, values: dict[str, Any], place: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import BertConfig, ModernBertConfig
    from transformers.activations import ACT2FN

    try:
        config: Any = (BertConfig if arch == "bert" else ModernBertConfig).from_dict(dict(values))
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"not a configuration of {arch}: {cause}", place=place, next_step=FETCH_AGAIN) from None
    activation = config.hidden_act if arch == "bert" else config.hidden_activation
    if activation not in ACT2FN:
        raise UserError(f"the activation {activation!r} is not known", place=place, next_step=FETCH_AGAIN)
    if arch == "modernbert" and config.hidden_size // config.num_attention_heads % 2:
        raise UserError(
            f"{config.hidden_size} features in {config.num_attention_heads} heads: rotary positions need an even width of each head",
            place=place,
            next_step="choose hidden as an even multiple of heads",
        )
    config._attn_implementation = "sdpa"
    return config


def model_class(config: Any) -> Any:
    from transformers import BertForMaskedLM, ModernBertForMaskedLM

    return BertForMaskedLM if config.model_type == "bert" else ModernBertForMaskedLM


def new_model(config: Any, seed: int | None) -> nn.Module:
    if seed is None:
        return model_class(config)(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config)(config)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model by name, one that has several names (tied weights) under its first."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


# ---- checkpoints


def from_checkpoint(
    checkpoint: Checkpoint, seed: int | None, known: int, tokens: int, *, complete: bool = False
) -> tuple[nn.Module, LoadReport]:
    """The library's model with a checkpoint's tensors; rows ``known`` to ``tokens`` of the vocabulary are new words.

    ``complete``: head and all must be there and nothing else. Shapes are compared before memory is taken for them.
    """
    values = checkpoint.config | {"vocab_size": max(checkpoint.vocabulary, tokens)}
    config = library_config(checkpoint.arch, values, str(checkpoint.folder / CONFIG_FILE))
    with torch.device("meta"):
        sources, report = _match(model_class(config)(config), checkpoint, complete=complete)
    model = new_model(config, seed)
    _fill(model, checkpoint, sources, slice(known, tokens))
    return model, replace(report, added_rows=tokens - known)


def _match(model: nn.Module, checkpoint: Checkpoint, *, complete: bool) -> tuple[dict[str, str], LoadReport]:
    """``(name in the files -> name in the model, report)``; raises ``UserError`` with every tensor that does not fit."""
    wanted = tensors_of(model)
    by_tensor = {id(tensor): name for name, tensor in wanted.items()}
    first_name = {name: by_tensor[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}
    base = ARCHITECTURES[checkpoint.arch].prefixes[0]
    ours = {name: _our_name(name, checkpoint.prefix, base, first_name) for name in checkpoint.shapes}
    sources = {name: first_name[our] for name, our in ours.items() if our in first_name}
    unused = [name for name in ours if name not in sources]
    head = [name for name in wanted if not name.startswith(base)]
    new: list[str] = []
    if not complete and not set(head) <= set(sources.values()):
        new = head  # a part of a head is none: what it was trained with is not here
        unused += [name for name, our in sources.items() if our in head]
        sources = {name: our for name, our in sources.items() if our not in head}
    faults = {
        "missing": [name for name in wanted if name not in new and name not in sources.values()],
        "unexpected": [name for name in unused if complete or _belongs_to_encoder(ours[name], base)],
        "mismatched": [
            f"{name} is {list(checkpoint.shapes[name])}, the architecture has {list(wanted[our].shape)}"
            for name, our in sources.items()
            if not _fits(checkpoint.shapes[name], our, wanted[our], checkpoint.vocabulary)
        ],
    }
    if any(faults.values()):
        lines = [f"{kind}: {shortened(names)}" for kind, names in faults.items() if names]
        raise UserError(
            f"the weights do not fit the architecture ({len(wanted)} tensors wanted, {len(ours)} found)\n  "
            + "\n  ".join(lines),
            place=str(checkpoint.folder),
            next_step=_SAME_CHECKPOINT,
        )
    loaded = tuple(name for name in wanted if name not in new)
    return sources, LoadReport(str(checkpoint.folder), "", loaded, tuple(new), tuple(sorted(unused)))


def _our_name(name: str, prefix: str, base: str, ours: Iterable[str]) -> str:
    """What a tensor of a file is called in the library's masked language model."""
    if base == "bert.":  # as BERT's authors named them
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    if prefix:
        return base + name.removeprefix(prefix) if name.startswith(prefix) else name
    parts = {our.removeprefix(base).split(".")[0] for our in ours if our.startswith(base)} | {"pooler", "rotary_emb"}
    return base + name if name.split(".")[0] in parts else name


def _belongs_to_encoder(name: str, base: str) -> bool:
    """Whether leaving a tensor out would make another network of the encoder."""
    return name.startswith(base) and not name.removeprefix(base).startswith(_NOT_OURS)


def _fits(shape: Sequence[int], name: str, tensor: Tensor, vocabulary: int) -> bool:
    wanted = list(tensor.shape)
    if name.endswith(_ROWS_OF_TOKENS):
        wanted[0] = vocabulary  # more where words were added
    return list(shape) == wanted


@torch.no_grad()
def _fill(model: nn.Module, checkpoint: Checkpoint, sources: dict[str, str], added: slice) -> None:
    targets = tensors_of(model)
    done: set[str] = set()
    for path in checkpoint.files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if name in sources:
                        tensor, target = opened.get_tensor(name).float(), targets[sources[name]]
                        if not torch.isfinite(tensor).all():
                            raise UserError(f"{name} holds numbers that are not finite", place=str(path), next_step=FETCH_AGAIN)  # fmt: skip
                        rows = target[: len(tensor)]
                        if sources[name] not in done:
                            rows.copy_(tensor)
                            done.add(sources[name])
                        elif not torch.equal(rows, tensor):
                            raise UserError(
                                f"{name} differs from {sources[name]}, with which it is to be one (tie_word_embeddings)",
                                place=str(path),
                                next_step=_SAME_CHECKPOINT,
                            )
        except SafetensorError as error:
            raise UserError(
                f"not a readable safetensors file ({error})", place=str(path), next_step=FETCH_AGAIN
            ) from None
    for name in done:
        if name.endswith(_ROWS_OF_TOKENS):
            targets[name][added] = targets[name][: added.start].mean(dim=0)
