"""A text classifier: tokenizer, encoder, head and class names in one module that can be saved and served.

Shapes: N sequences, n texts, T tokens, D features, K classes (1 for numbers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from torch import Tensor, nn

from ssl_core.data.text.sequences import Sequences
from ssl_core.errors import UserError
from ssl_core.models.encoder import load_weights, save_weights
from ssl_core.models.heads import ClassifierHead
from ssl_core.models.text_embed import TEXTS_AT_ONCE
from ssl_core.models.text_encoder import MLMHead, TextEncoder
from ssl_core.models.text_weights import TextInfo, load_encoder, save_encoder
from ssl_core.models.text_windows import cut, evaluating, mean_by_text, offsets_of, values_of_windows

if TYPE_CHECKING:
    from ssl_core.data.text.tokenizer import Tokenizer

LabelType = Literal["class", "classes", "number"]

HEAD_FILE = "head.safetensors"
MODEL_FILE = "model.json"
SCHEMA_VERSION = 1
TASK = "text-classification"


class TextClassifier(nn.Module):
    """``head(encoder([CLS] tokens [SEP]))``, window by window.

    ``logits`` is what a loss wants. ``predict`` and ``predict_tokens`` are what everybody else wants: float32 ``(n, K)``,
    a text's mean over its windows of the softmax (``label_type`` class: rows sum to 1), of the sigmoid (classes) or of
    the number itself (number: training's mean and scale are folded into the head).
    """

    def __init__(
        self,
        encoder: TextEncoder,
        head: nn.Module,
        info: TextInfo,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        label_type: LabelType,
        stride: int,
        mlm_head: MLMHead | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.0)
        self.head = head
        self.info = info
        self.tokenizer = tokenizer
        self.classes = list(classes)
        self.label_type = label_type
        self.room = info.max_length - 2
        """Tokens of a text that fit into one sequence."""
        self.stride = min(stride, self.room // 2)
        """Tokens that neighbouring windows share, at least; never more than half of them."""
        # A tuple hides it from ``parameters()``: pretraining's prediction head is kept as it was, to be saved with the encoder.
        self._mlm_head = (mlm_head,)

    def logits(self, sequences: Sequences) -> Tensor:
        """``(N, K)``, before softmax or sigmoid."""
        return self.head(self.dropout(self.encoder(sequences)))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """``(n, K)`` for texts, in eval mode; the model is left in the mode that it came in."""
        parts = [np.empty((0, self.outputs), dtype=np.float32)]
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            ids, lengths = self.tokenizer.encode_flat(texts[start : start + TEXTS_AT_ONCE])
            parts.append(self.predict_tokens(ids, offsets_of(lengths), np.arange(len(lengths))))
        return np.concatenate(parts)

    def predict_tokens(self, ids: np.ndarray, offsets: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """``(n, K)`` for the texts at ``positions`` of a token store, text i being ``ids[offsets[i]:offsets[i + 1]]``."""
        if len(positions) == 0:
            return np.empty((0, self.outputs), dtype=np.float32)
        windows = cut(offsets, positions, self.room, self.stride)
        cls_id, sep_id = self.tokenizer.cls_id, self.tokenizer.sep_id
        with evaluating(self) as device:
            values = values_of_windows(
                ids, windows, cls_id, sep_id, lambda batch: self.answer(self.logits(batch.to(device)))
            )
        return mean_by_text(windows, values)

    def answer(self, logits: Tensor) -> Tensor:
        """Logits ``(N, K)`` as probabilities of classes that exclude each other, or do not, or as numbers."""
        if self.label_type == "number":
            return logits.float()
        return logits.float().softmax(dim=1) if self.label_type == "class" else logits.float().sigmoid()

    def mlm_head(self) -> MLMHead:
        """The prediction head that the encoder came with, tied to the encoder's embeddings as they are now."""
        (kept,) = self._mlm_head
        if kept is None:
            raise ValueError("this classifier was built without the prediction head, and is not to be saved")
        if kept.untied is not None:
            return kept
        table = self.encoder.network.get_input_embeddings()
        size, width = table.weight.shape
        decoder = nn.Linear(width, size, device="meta")
        decoder.weight, decoder.bias = table.weight, kept.bias
        return MLMHead(kept.transform, decoder, table)

    @property
    def outputs(self) -> int:
        """K."""
        return 1 if self.label_type == "number" else len(self.classes)


def build_classifier(
    encoder: TextEncoder,
    info: TextInfo,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    label_type: LabelType,
    stride: int,
    mlm_head: MLMHead | None = None,
) -> TextClassifier:
    """A classifier on ``encoder`` with a new head, in which every class is equally likely and every number is 0."""
    outputs = 1 if label_type == "number" else len(classes)
    head = ClassifierHead(encoder.features, outputs)
    return TextClassifier(encoder, head, info, tokenizer, classes, label_type, stride, mlm_head)


def save_classifier(folder: Path, model: TextClassifier) -> None:
    """Writes the encoder as ``save_encoder`` does (transformers loads it too), ``head.safetensors`` and ``model.json``.

    The masked language model's prediction head in it is the one that pretraining left, on the embeddings of now.
    """
    save_encoder(folder, model.encoder, model.mlm_head(), model.info, model.tokenizer)
    save_weights(model.head, folder / HEAD_FILE)
    document = {
        "schema_version": SCHEMA_VERSION, "task": TASK, "classes": model.classes, "label_type": model.label_type,
        "stride": model.stride,
    }  # fmt: skip
    (folder / MODEL_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_classifier(folder: Path) -> TextClassifier:
    """The classifier in ``folder``, in eval mode on the CPU; ``UserError`` where its files do not fit together."""
    path = folder / MODEL_FILE
    again = "run the finetune step again"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["schema_version"], document["task"]) != (SCHEMA_VERSION, TASK):
            raise ValueError(
                f"schema version {document['schema_version']} of {document['task']}; this program reads {SCHEMA_VERSION} of {TASK}"
            )
        classes, label_type = [str(name) for name in document["classes"]], document["label_type"]
        stride = int(document["stride"])
        if label_type not in get_args(LabelType) or (not classes) != (label_type == "number") or stride < 0:
            raise ValueError(f"label type {label_type}, {len(classes)} classes, stride {stride}")
    except FileNotFoundError:
        raise UserError("no text classifier here", place=str(path), next_step=again) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a description of a text classifier ({error})", place=str(path), next_step=again) from None
    encoder, mlm_head, info, tokenizer = load_encoder(folder)
    model = build_classifier(encoder, info, tokenizer, classes, label_type, stride, mlm_head)
    load_weights(model.head, folder / HEAD_FILE)
    return model.eval()
