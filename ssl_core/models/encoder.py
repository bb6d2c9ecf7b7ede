"""Encoders: built from a config, saved as safetensors + JSON together with the preprocessing they were trained with.

Light on purpose (torch, numpy, safetensors, Pillow): this module travels inside the served model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_core.config.encoders import ResNetConfig
from ssl_core.errors import UserError, shortened
from ssl_core.models.resnet import ResNet

if TYPE_CHECKING:
    from PIL import Image

SCHEMA_VERSION = 1
WEIGHTS_FILE = "encoder.safetensors"
INFO_FILE = "encoder.json"


@dataclass(frozen=True)
class Preprocessing:
    """What turns a stored picture into what the encoder sees: the same in training, evaluation and serving.

    ``normalised = (uint8 / 255 - mean) / std``, per channel.
    """

    modality: str
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers each")
        if not all(s > 0 for s in self.std):
            raise ValueError("std must be positive")

    def normalise(self, images: Tensor) -> Tensor:
        """Float images in 0..1 ``(N, C, H, W)`` to zero mean and unit variance."""
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
        return (images - mean) / std

    def apply(self, pixels: Tensor) -> Tensor:
        """uint8 ``(N, C, H, W)`` to normalised float32; raises ``ValueError`` on another type or shape."""
        shape = (self.channels, self.size, self.size)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            raise ValueError(
                f"expected uint8 pixels of shape (N, {', '.join(map(str, shape))}), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return self.normalise(pixels.float().div_(255))

    def from_image(self, image: Image.Image) -> np.ndarray:
        """A Pillow image of any mode and size to uint8 ``(C, H, W)``, by the very functions that ingested images go through."""
        from ssl_core.data.images import normalise, to_array

        return to_array(normalise(image), self.size, self.channels)


def measure_preprocessing(pixels: np.ndarray, positions: np.ndarray, *, limit: int = 10_000) -> Preprocessing:
    """Preprocessing for uint8 ``(N, C, S, S)`` pixels, with mean and std of the images at ``positions`` (the first ``limit``).

    Statistics are whole numbers of 8-bit values until the last division, so they do not depend on the order of summation.
    """
    sample = np.asarray(pixels[np.sort(positions[:limit])])
    n = sample.shape[0] * sample.shape[2] * sample.shape[3]
    if n == 0:
        raise ValueError("no images to measure")
    values = np.arange(256, dtype=np.float64)
    mean, std = [], []
    for channel in range(sample.shape[1]):
        counts = np.bincount(sample[:, channel].ravel(), minlength=256)
        centre = float(counts @ values) / n
        spread = float(counts @ (values - centre) ** 2) / n
        mean.append(centre / 255)
        std.append(max(spread**0.5, 1.0) / 255)  # constant images: no division by zero
    return Preprocessing("image", sample.shape[2], sample.shape[1], tuple(mean), tuple(std))


@dataclass(frozen=True)
class EncoderInfo:
    """What is needed, beside the tensors, to build an encoder again and feed it."""

    config: ResNetConfig
    preprocessing: Preprocessing
    features: int

    def to_json(self) -> str:
        document = {
            "schema_version": SCHEMA_VERSION,
            "config": self.config.model_dump(mode="json"),
            "preprocessing": asdict(self.preprocessing),
            "features": self.features,
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EncoderInfo:
        document: dict[str, Any] = json.loads(text)
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}, this program reads {SCHEMA_VERSION}")
        shape = document["preprocessing"]
        preprocessing = Preprocessing(**(shape | {"mean": tuple(shape["mean"]), "std": tuple(shape["std"])}))
        return cls(ResNetConfig.model_validate(document["config"]), preprocessing, int(document["features"]))


def build_encoder(config: ResNetConfig, in_channels: int, seed: int | None = None) -> ResNet:
    """A new encoder; equal seeds give equal weights and leave torch's global generator untouched (None: draw from it)."""
    if seed is None:
        return ResNet(config, in_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(config, in_channels)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def save_weights(module: nn.Module, path: Path) -> None:
    """The module's tensors (parameters and buffers) as one safetensors file; equal tensors give equal bytes."""
    save_file({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}, path)


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Fill ``module`` from a safetensors file and return the names of the tensors that arrived: all of them, always.

    Raises ``UserError`` with the missing, unexpected and mismatched tensors before anything is changed.
    """
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise UserError("the weights file is missing", place=str(path), next_step=_RUN_AGAIN) from None
    except SafetensorError as error:
        raise UserError(f"not a readable safetensors file ({error})", place=str(path), next_step=_RUN_AGAIN) from None
    wanted = module.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "mismatched": [
            f"{name} is {_form(found[name])}, the architecture has {_form(tensor)}"
            for name, tensor in wanted.items()
            if name in found and _form(found[name]) != _form(tensor)
        ],
    }
    if any(faults.values()):
        lines = [f"{kind}: {shortened(names)}" for kind, names in faults.items() if names]
        raise UserError(
            f"the weights do not fit the architecture ({len(wanted)} tensors wanted, {len(found)} found)\n  "
            + "\n  ".join(lines),
            place=str(path),
            next_step="use weights and JSON from the same folder, or pretrain again with this encoder configuration",
        )
    module.load_state_dict(found)
    return sorted(found)


_RUN_AGAIN = "fetch the folder again, or run the step that makes it again"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def save_encoder(folder: Path, encoder: nn.Module, info: EncoderInfo) -> None:
    """Write ``encoder.safetensors`` and ``encoder.json`` into ``folder`` (made if absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(encoder, folder / WEIGHTS_FILE)
    (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")


def load_encoder(folder: Path) -> tuple[ResNet, EncoderInfo]:
    """The encoder in ``folder``, in eval mode on the CPU, and its description; ``UserError`` where they do not fit together."""
    info = read_info(folder)
    encoder = build_encoder(info.config, info.preprocessing.channels, seed=0)
    if encoder.features != info.features:
        raise UserError(
            f"says {info.features} features, but its architecture has {encoder.features}",
            place=str(folder / INFO_FILE),
            next_step=_RUN_AGAIN,
        )
    load_weights(encoder, folder / WEIGHTS_FILE)
    return encoder.eval(), info


def read_info(folder: Path) -> EncoderInfo:
    """``encoder.json`` alone; ``UserError`` where it is missing or not what this program writes."""
    path = folder / INFO_FILE
    try:
        return EncoderInfo.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no encoder here", place=str(path), next_step=_RUN_AGAIN) from None
    except (ValueError, KeyError, TypeError) as error:  # pydantic's and JSON's errors are ValueErrors
        raise UserError(f"not a description of an encoder ({error})", place=str(path), next_step=_RUN_AGAIN) from None
