"""An image classifier: encoder, head, preprocessing and class names in one module that can be saved and served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.models.encoder import EncoderInfo, load_encoder, load_weights, save_encoder, save_weights
from ssl_core.models.heads import ClassifierHead

HEAD_FILE = "head.safetensors"
MODEL_FILE = "model.json"
SCHEMA_VERSION = 1


class ImageClassifier(nn.Module):
    """``softmax(head(encoder(preprocess(pixels))))``.

    ``forward`` takes uint8 pixels ``(N, C, H, W)`` or images that are normalised already (float), and returns class
    scores before the softmax ``(N, K)``: what a loss wants. ``predict_proba`` is what everybody else wants.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, info: EncoderInfo, classes: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.info = info
        self.classes = list(classes)

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.info.preprocessing.apply(pixels) if pixels.dtype == torch.uint8 else pixels
        return self.head(self.encoder(images))

    def predict_proba(self, pixels: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Class probabilities float32 ``(N, K)`` of uint8 pixels ``(N, C, H, W)``, in eval mode, columns as ``classes``."""
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        parts: list[Tensor] = []
        try:
            with torch.inference_mode():
                for start in range(0, len(pixels), batch_size):
                    batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch_size])).to(device)
                    if batch.dtype != torch.uint8:
                        raise ValueError(f"pixels must be uint8, not {batch.dtype}")
                    parts.append(self(batch).float().softmax(dim=1).cpu())
        finally:
            self.train(was_training)
        if not parts:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return torch.cat(parts).numpy()


def build_classifier(encoder: nn.Module, info: EncoderInfo, classes: Sequence[str]) -> ImageClassifier:
    """A classifier on ``encoder`` with a new head, in which every class is equally likely."""
    return ImageClassifier(encoder, ClassifierHead(info.features, len(classes)), info, classes)


def save_classifier(folder: Path, model: ImageClassifier) -> None:
    """Write ``encoder.safetensors``, ``encoder.json``, ``head.safetensors`` and ``model.json`` into ``folder``."""
    save_encoder(folder, model.encoder, model.info)
    save_weights(model.head, folder / HEAD_FILE)
    document = {"schema_version": SCHEMA_VERSION, "task": "image-classification", "classes": model.classes}
    (folder / MODEL_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_classifier(folder: Path) -> ImageClassifier:
    """The classifier in ``folder``, in eval mode on the CPU; ``UserError`` where its files do not fit together."""
    path = folder / MODEL_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version, classes = document["schema_version"], [str(name) for name in document["classes"]]
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, this program reads {SCHEMA_VERSION}")
    except FileNotFoundError:
        raise UserError("no classifier here", place=str(path), next_step="run the finetune step again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"not a description of a classifier ({error})", place=str(path), next_step="run the finetune step again"
        ) from None
    encoder, info = load_encoder(folder)
    model = build_classifier(encoder, info, classes)
    load_weights(model.head, folder / HEAD_FILE)
    return model.eval()
