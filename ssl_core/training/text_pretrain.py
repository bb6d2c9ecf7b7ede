"""Pretraining on texts: the network, its batches and its gauges."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from ssl_core.config.project import TextProject
from ssl_core.config.settings import expand
from ssl_core.contracts import GOLDEN_FILE, DatasetRef
from ssl_core.data.text import pretrained
from ssl_core.data.text.entities import entity_ids, load_entities
from ssl_core.data.text.packing import TextBatches
from ssl_core.data.text.sequences import Sequences
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.tokens import Tokens, open_tokens
from ssl_core.errors import UserError
from ssl_core.models.encoder import parameter_count
from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from ssl_core.models.text_golden import pack
from ssl_core.models.text_weights import TextInfo, build, load_encoder, save_encoder
from ssl_core.objectives.masking import Masker
from ssl_core.objectives.mlm import MLM
from ssl_core.step import StepContext
from ssl_core.training.memory import keep_freed_memory
from ssl_core.training.prepared import Prepared
from ssl_core.training.runtime import Precision, Runtime, computes_in_bfloat16
from ssl_core.training.state import newest_record
from ssl_core.training.text_bench import golden_texts
from ssl_core.training.text_health import TextMonitor, frequencies

MIN_TRAIN_TEXTS = 8
MIN_TRAIN_TOKENS = 64
"""Of fewer there is next to nothing to hide; [UNK] does not count."""
_MIN_KNOWN, _KNOWN_IN = 0.01, 1_000_000
"""The least share of tokens that are not [UNK], and how many are looked at to tell it."""
_TRIAL_PAIRS, _TRIAL_LEAST, _TRIAL_SECONDS = 10, 3, 2.0
"""Pairs of steps in all, how many have to count, and after how long so few are enough."""
_TRIAL_WORK = 150e9
"""Multiplications of a step of the trial on a CPU, at most: half a second; of a large network's batch a part is taken."""
_WORTH = 1.1
"""bfloat16 has fewer digits, so it must be faster by this much to be taken."""


def prepare(ctx: StepContext, dataset: DatasetRef, runtime: Runtime) -> Prepared:
    """A transformer, masked language modelling on it and what feeds and watches them.

    Raises ``UserError`` where there are too few texts, or where tokenizer, checkpoint and configuration do not fit together.
    """
    project = ctx.project
    assert isinstance(project, TextProject)
    config = project.pretrain
    keep_freed_memory()
    tokenizer = Tokenizer.load(ctx.fetch("tokenizer"))
    tokens = open_tokens(dataset, ctx.settings, tokenizer, progress=ctx.progress, stop=ctx.stop)
    source = project.encoder.init_from
    train = _train_texts(tokens, dataset, tokenizer, source)
    folder = None if source is None else pretrained.find(source, ctx.settings)
    encoder, head, loaded = build(project.encoder, tokenizer, config.seed, folder)
    ctx.progress.note(str(loaded))
    masking = project.objective.masking
    entities = [] if masking.entities is None else entity_ids(load_entities(expand(masking.entities)), tokenizer)
    batches = TextBatches(
        tokens, train, max_length=project.encoder.max_length, batch_tokens=config.batch_tokens,
        cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, seed=config.seed,
    )  # fmt: skip
    hidden = max(1, round(masking.rate * batches.maskable))
    objective = MLM(
        encoder, head, Masker(masking, tokenizer, entities), count=hidden, dropout=project.objective.dropout
    )
    trial: dict[str, Any] = {}
    if config.precision == "auto":
        trial = _choose_precision(ctx, objective, batches, runtime)
        runtime = replace(runtime, precision=trial["precision"])
    parameters = parameter_count(objective)
    return Prepared(
        objective=objective,
        batches=batches,
        monitor=TextMonitor(
            objective, tokens, tokenizer, project.encoder.max_length, train, tokens.positions("val"),
            device=runtime.device, precision=runtime.precision, labelled=_labelled(tokens),
        ),
        unit="tokens",
        resolved={
            "max_length": project.encoder.max_length, "vocabulary": int(encoder.config.vocab_size), "train_texts": len(train),
            "train_tokens": batches.tokens, "batch_tokens": round(batches.tokens / batches.per_epoch), "hidden_tokens": hidden,
            "parameters": parameters, "entities": len(entities),
        },
        save=lambda path: _save(path, encoder.cpu(), head.cpu(), TextInfo.of(project.encoder, encoder), tokenizer, tokens, train),
        features=encoder.features,
        network=f"a {project.encoder.arch} ({parameters:,} parameters{f', from {source}' if source else ''})",
        data=f"{len(train):,} texts ({batches.tokens:,} tokens)",
        mend="lower pretrain.learning_rate, raise pretrain.batch_tokens, or look at the texts and at the tokenizer's report",
        runtime=runtime,
        measured={"loaded": loaded.to_dict()} | ({"precision_trial": trial} if trial else {}),
    )  # fmt: skip


def _train_texts(tokens: Tokens, dataset: DatasetRef, tokenizer: Tokenizer, source: str | None) -> np.ndarray:
    """Texts of split train that have a token. Raises ``UserError`` where they are too few, or say too little to the tokenizer."""
    train = tokens.positions("train")
    lengths = tokens.lengths(train)
    train = train[lengths > 0]
    counts = frequencies(tokens, train, tokenizer.size, _KNOWN_IN)
    known = 1 - counts[list(tokenizer.special_ids)].sum() / max(1, counts.sum())
    if known < _MIN_KNOWN:
        raise UserError(
            f"the tokenizer knows next to none of these texts: {1 - known:.1%} of their tokens are [UNK]",
            place="tokenizer.kind" if source is None else "encoder.init_from",
            next_step="set tokenizer.kind: bpe, which can write every character"
            + (
                ""
                if source is None
                else ", and leave out encoder.init_from, or name a checkpoint of these texts' language there"
            ),
        )
    usable = round(known * int(lengths.sum()))
    if len(train) < MIN_TRAIN_TEXTS or usable < MIN_TRAIN_TOKENS:
        raise UserError(
            f"{len(train):,} training texts with {usable:,} tokens; pretraining needs at least {MIN_TRAIN_TEXTS} texts and "
            f"{MIN_TRAIN_TOKENS} tokens",
            place=f"dataset {dataset.tag or dataset.name}",
            next_step="add texts to data.source, or raise data.split.train",
        )
    return train


def _labelled(tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """What the kNN observer votes with and on, where train and val both hold classes."""
    (train, train_labels), (val, val_labels) = tokens.labelled("train"), tokens.labelled("val")
    return (train, train_labels, val, val_labels) if len(train) and len(val) else None


def _save(
    folder: Path, encoder: TextEncoder, head: MLMHead, info: TextInfo, tokenizer: Tokenizer, tokens: Tokens, train: np.ndarray
) -> None:  # fmt: skip
    """The encoder folder, with a golden batch computed by what was read back from it: registration compares with that."""
    save_encoder(folder, encoder, head, info, tokenizer)
    loaded, _, info, tokenizer = load_encoder(folder)
    texts = golden_texts(tokens, train)
    save_file(pack(texts) | {"features": embed_texts(loaded, tokenizer, info.max_length, texts)}, folder / GOLDEN_FILE)


# ---- which precision


def _choose_precision(ctx: StepContext, objective: MLM, batches: TextBatches, runtime: Runtime) -> dict[str, Any]:
    """bfloat16 where the hardware computes in it and a short trial finds it faster; in a run that goes on, what it began with.

    Gives ``precision`` and its ``reason``, and after a trial the tokens per second of both.
    """
    found: dict[str, Any] = {"device": runtime.device}
    began = newest_record(ctx.checkpoints).get("runtime", {})
    if began.get("device") == runtime.device:
        found |= {"precision": began["precision"], "reason": "that of the checkpoint"}
    elif not computes_in_bfloat16(runtime.device):
        found |= {"precision": "float32", "reason": "the hardware does not compute in bfloat16"}
    else:
        seconds = compare_precisions(objective, batches, runtime.device)
        speeds = {name: round(1 / min(values)) for name, values in seconds.items()}
        reason = ", ".join(f"{name} {speed:,} tokens/s" for name, speed in speeds.items())
        found |= {"precision": faster(seconds), "reason": reason, "tokens_per_second": speeds}
    ctx.progress.note(f"precision: {found['precision']} ({found['reason']})")
    return found


def faster(seconds: dict[str, list[float]]) -> Precision:
    """bfloat16 where it is worth it by its best time, which other work on the machine disturbs least, and in most pairs, too.

    ``seconds``: those of equal work, by precision; the times at one place were taken one right after the other.
    """
    plain, half = np.array(seconds["float32"]), np.array(seconds["bfloat16"])
    wins = float(np.mean(plain > _WORTH * half))
    return "bfloat16" if plain.min() > _WORTH * half.min() and wins > 0.5 else "float32"


def compare_precisions(objective: MLM, batches: TextBatches, device: str) -> dict[str, list[float]]:
    """Seconds per token of forward and backward in both precisions, in turns on the same batches.

    Weights and random state stay as they are.
    """
    kind = torch.device(device).type
    objective.to(device).train()
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    started = time.monotonic()
    count, objective.count = objective.count, None  # of a part of a batch fewer tokens are hidden
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if kind == "cuda" else []):
            for pair in range(_TRIAL_PAIRS):
                batch = batches.fetch(pair % batches.per_epoch)
                if kind == "cpu":
                    batch = _part(batch, int(_TRIAL_WORK / (6 * _weights_a_token(objective))))
                for name, values in seconds.items():
                    begin = time.perf_counter()
                    with torch.autocast(kind, torch.bfloat16, enabled=name == "bfloat16"):
                        loss, _ = objective(batch, seed=0, step=pair)
                    loss.backward()
                    loss.item()  # a GPU answers only when it is done
                    values.append((time.perf_counter() - begin) / len(batch.ids))
                    objective.zero_grad(set_to_none=True)
                if pair >= _TRIAL_LEAST and time.monotonic() - started > _TRIAL_SECONDS:
                    break
    finally:
        objective.count = count
    # The first pair makes kernels and takes memory.
    return {name: values[1:] for name, values in seconds.items()}


def _weights_a_token(objective: MLM) -> float:
    """Weights that a token is multiplied with in the mean: all layers' for each, the head's table for those that are hidden."""
    layers = sum(parameter.numel() for layer in objective.encoder.layers() for parameter in layer.parameters())
    return layers + objective.masker.config.rate * objective.head.weight.numel()


def _part(batch: Sequences, tokens: int) -> Sequences:
    """Evenly spaced sequences of the batch, of about ``tokens`` tokens in all, at least one."""
    every = -(-len(batch.ids) // tokens)
    lengths = batch.lengths.tolist()
    return Sequences(torch.cat(batch.ids.split(lengths)[::every]), batch.lengths[::every])
