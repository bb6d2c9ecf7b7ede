"""Real digits that arrive in windows, the later ones from a moved world: what `ssl-core demo-drift` plays with."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_core.data.samples import sample_items, shift
from ssl_core.errors import UserError

NAME = "digits-live"
FIRST = 1100
"""Images that the first champion learns from and is judged by."""
EACH = 110
"""Images of each window after it."""
WINDOWS = ("quiet", "quiet", "quiet", "shifted", "shifted")
SEVERITY = 1.0
SEED = 0
_MARK = "# Written by `ssl-core demo-drift`."


@dataclass(frozen=True)
class Picture:
    """One image that is to arrive."""

    name: str
    label: str
    pixels: np.ndarray
    """uint8 ``(H, W)``."""


def write_project(folder: Path, data: Path) -> Path:
    """The project file in ``folder``; ``UserError`` where somebody's own file has that name."""
    path = folder / f"{NAME}.yaml"
    text = f"""{_MARK} Digits whose images arrive in windows; remove the file when you are done.
name: {NAME}
description: Digits that arrive in windows, the later ones turned, thickened and noisy
tags: [example, image, drift]

data:
  source: {json.dumps(str(data))}

encoder:
  arch: resnet
  widths: [16, 32, 64]

objective:
  name: simclr
  temperature: 0.2
  augment: {{crop_scale: [0.5, 1.0], rotate: 15, shear: 15, translate: 0.1, noise: 0, blur: 0, cutout: 0}}

pretrain:
  when: manual             # new data wakes the monitor; it is the monitor that says whether to train again
  epochs: 60
  batch_size: 256
  learning_rate: 2.0e-3

task:
  name: image-classification
  spread_labels: false     # all images that arrive have a label
  epochs: 25
"""
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise UserError("is not the demo's own project file", place=str(path), next_step="rename it, and its project")
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def pictures(window: int) -> list[Picture]:
    """What arrives with a window: 0 is what the champion starts from, then ``WINDOWS`` in order. No image comes twice."""
    from PIL import Image

    items = sample_items("digits")
    order = np.random.default_rng(SEED).permutation(len(items))
    begin = 0 if window == 0 else FIRST + (window - 1) * EACH
    chosen = [items[i] for i in order[begin : begin + (FIRST if window == 0 else EACH)]]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(item.read()))) for item in chosen])
    if window > 0 and WINDOWS[window - 1] == "shifted":
        pixels = shift.shift(pixels, SEVERITY, seed=SEED + window)
    return [Picture(f"w{window}-{item.name}", str(item.label), one) for item, one in zip(chosen, pixels, strict=True)]


def arrive(data: Path, window: int) -> int:
    """Puts a window's images below ``data``, one folder a class; returns how many. Again gives the same files."""
    from PIL import Image

    arriving = pictures(window)
    for picture in arriving:
        path = data / picture.label / picture.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.pixels).save(path, "PNG")
    return len(arriving)
