"""Images per second of pretraining: our data path beside the obvious recipe, in one run.

    .venv/bin/python benchmarks/pretrain_throughput.py [--repeats 5] [--out benchmarks/results/pretrain_throughput.json]

Ours: uint8 images decoded once, whole batches augmented on the device. The obvious recipe: a torch ``Dataset`` that opens
one PNG file, makes two views with Pillow and numpy (the same changes, the same strengths), in a ``DataLoader`` with two
workers that persist. Everything after the views is the same code for both: encoder, projection head, NT-Xent, AdamW,
float32, batch size, threads. The two take turns; each figure is the median over the turns. "Views alone" leaves the network
out: on a CPU the network takes nearly all of our step, so the whole can gain no more than the share that the views had. Images are random pixels, so
nothing is downloaded; sizes, encoder, batch and augmentation are those of the named project.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from machine import processor
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_core.config.objectives import ImageAugmentConfig
from ssl_core.config.project import ProjectConfig
from ssl_core.models.encoder import build_encoder, measure_preprocessing
from ssl_core.models.optim import adamw, parameter_groups
from ssl_core.objectives.simclr import SimCLR, nt_xent

SEED = 0
WORKERS = 2
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """One comparison: the image side, and which changes make the views."""

    name: str
    project: str
    size: int
    images: int
    augment: dict[str, Any]
    """Empty: as the project says."""


EVERYTHING = ImageAugmentConfig(flip=True).model_dump()
CASES = (
    Case("digits, as in projects/digits.yaml", "digits", 8, 1280, {}),
    Case("digits, every augmentation on", "digits", 8, 1280, EVERYTHING),
    Case("animals, as in projects/animals.yaml", "animals", 14, 1280, {}),
    Case("animals at full size, every augmentation on", "animals", 28, 1280, EVERYTHING),
)


class PillowViews(Dataset):
    """The obvious recipe: open, change and convert one image at a time, twice."""

    def __init__(self, files: list[Path], config: ImageAugmentConfig) -> None:
        self.files = files
        self.config = config

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.files[index]) as image:
            image.load()
        return self._view(image), self._view(image)

    def _view(self, image: Image.Image) -> Tensor:
        c, size = self.config, image.width
        u = np.random.random(16).tolist()
        scale = math.sqrt(c.crop_scale[0] + (c.crop_scale[1] - c.crop_scale[0]) * u[0])
        angle, shear = math.radians(c.rotate) * (2 * u[1] - 1), math.tan(math.radians(c.shear) * (2 * u[2] - 1))
        flip = -1.0 if c.flip and u[3] < 0.5 else 1.0
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        a, b, d, e = cos * flip, cos * shear - sin, sin * flip, sin * shear + cos
        half = size / 2
        x = half + half * ((2 * u[4] - 1) * (1 - scale) + 2 * c.translate * (2 * u[5] - 1))
        y = half + half * ((2 * u[6] - 1) * (1 - scale) + 2 * c.translate * (2 * u[7] - 1))
        matrix = (a, b, x - a * half - b * half, d, e, y - d * half - e * half)
        image = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        if c.contrast:
            image = ImageEnhance.Contrast(image).enhance(1 + c.contrast * (2 * u[8] - 1))
        if c.brightness:
            image = ImageEnhance.Brightness(image).enhance(1 + c.brightness * (2 * u[9] - 1))
        if u[10] < c.blur:
            image = image.filter(ImageFilter.GaussianBlur(0.3 + 0.7 * u[11]))
        if c.cutout:
            side = round(size * c.cutout * u[12])
            left, top = int(size * u[13]) - side // 2, int(size * u[14]) - side // 2
            image.paste(0, (left, top, left + side, top + side))
        pixels = np.asarray(image, dtype=np.float32)[None] / 255
        if c.noise:
            pixels = pixels + np.random.normal(0, c.noise * u[15], pixels.shape).astype(np.float32)
        return torch.from_numpy(np.clip(pixels, 0, 1))


class Trainer:
    """The part that both share."""

    def __init__(self, project: ProjectConfig, pixels: np.ndarray) -> None:
        preprocessing = measure_preprocessing(pixels, np.arange(len(pixels)))
        encoder = build_encoder(project.encoder, 1, seed=SEED)
        self.model = SimCLR(encoder, project.objective, preprocessing, seed=SEED).train()
        config = project.pretrain
        self.optimizer = adamw(parameter_groups(self.model, config.learning_rate, config.weight_decay))

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def step_on_views(self, view0: Tensor, view1: Tensor) -> None:
        model = self.model
        z0, z1 = model.projection(model.encoder(model.preprocessing.normalise(torch.cat((view0, view1))))).chunk(2)
        self.update(nt_xent(z0, z1, model.config.temperature))


def ours(trainer: Trainer, pixels: Tensor, batch: int) -> Callable[[], int]:
    counter = iter(range(10**9))
    generator = np.random.default_rng(SEED)

    def epoch() -> int:
        order = torch.from_numpy(generator.permutation(len(pixels)))
        for start in range(0, len(pixels), batch):
            trainer.update(trainer.model(pixels[order[start : start + batch]], seed=SEED, step=next(counter))[0])
        return len(pixels)

    return epoch


def stream(files: list[Path], config: ImageAugmentConfig, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One endless stream of batches, so that a turn does not begin with empty queues."""
    loader = DataLoader(
        PillowViews(files, config), batch, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True,
        worker_init_fn=lambda worker: np.random.seed(SEED + worker),
    )  # fmt: skip
    while True:
        yield from loader


def obvious(trainer: Trainer, files: list[Path], config: ImageAugmentConfig, batch: int) -> Callable[[], int]:
    batches = stream(files, config, batch)

    def epoch() -> int:
        for _ in range(len(files) // batch):
            trainer.step_on_views(*next(batches))
        return len(files)

    return epoch


def our_views(trainer: Trainer, pixels: Tensor, batch: int) -> Callable[[], int]:
    """The data path alone: what an accelerator that computes for free would see."""

    def epoch() -> int:
        for start in range(0, len(pixels), batch):
            for view in (0, 1):
                trainer.model.augment(pixels[start : start + batch], SEED, start, view)
        return len(pixels)

    return epoch


def obvious_views(files: list[Path], config: ImageAugmentConfig, batch: int) -> Callable[[], int]:
    batches = stream(files, config, batch)

    def epoch() -> int:
        for _ in range(len(files) // batch):
            next(batches)
        return len(files)

    return epoch


def timed(work: Callable[[], int], seconds: float) -> float:
    """Images per second over whole epochs of at least ``seconds``."""
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += work()
    return images / (time.perf_counter() - start)


def parts(trainer: Trainer, pixels: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of one of our steps, by part (medians)."""
    model = trainer.model
    found: dict[str, list[float]] = {"augment": [], "forward": [], "backward": [], "optimizer": []}
    for step in range(repeats + 2):
        clock = [time.perf_counter()]
        views = torch.cat([model.augment(pixels, SEED, step, view) for view in (0, 1)])
        clock.append(time.perf_counter())
        z0, z1 = model.projection(model.encoder(model.preprocessing.normalise(views))).chunk(2)
        loss = nt_xent(z0, z1, model.config.temperature)
        clock.append(time.perf_counter())
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clock.append(time.perf_counter())
        trainer.optimizer.step()
        clock.append(time.perf_counter())
        if step >= 2:  # the first steps allocate
            for name, (start, end) in zip(found, itertools.pairwise(clock), strict=True):
                found[name].append((end - start) * 1000)
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def compare(case: Case, repeats: int, seconds: float) -> dict[str, Any]:
    project = ProjectConfig.model_validate(
        yaml.safe_load((ROOT / "projects" / f"{case.project}.yaml").read_text(encoding="utf-8"))
    )
    augment = ImageAugmentConfig.model_validate(case.augment) if case.augment else project.objective.augment
    project = project.model_copy(update={"objective": project.objective.model_copy(update={"augment": augment})})
    batch = min(project.pretrain.batch_size, case.images)
    count = case.images // batch * batch  # whole batches only: both contenders see the same number of images
    # Smooth random pictures: noise would make the PNG files unusually large.
    coarse = np.random.default_rng(SEED).integers(0, 256, (count, 4, 4), dtype=np.uint8)
    pictures = [Image.fromarray(c).resize((case.size, case.size), Image.Resampling.BICUBIC) for c in coarse]
    pixels = np.stack([np.asarray(picture) for picture in pictures])[:, None]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i:05d}.png" for i in range(count)]
        for file, picture in zip(files, pictures, strict=True):
            picture.save(file)
        our_trainer = Trainer(project, pixels)
        contenders = {
            "ours": ours(our_trainer, torch.from_numpy(pixels), batch),
            "obvious": obvious(Trainer(project, pixels), files, augment, batch),
            "ours_views_only": our_views(our_trainer, torch.from_numpy(pixels), batch),
            "obvious_views_only": obvious_views(files, augment, batch),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for work in contenders.values():
            work()  # warm-up: workers start, kernels are chosen
        for _ in range(repeats):
            for name, work in contenders.items():
                rates[name].append(timed(work, seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "case": case.name,
        "image_side": case.size,
        "batch_size": batch,
        "encoder": project.encoder.model_dump(),
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "all_turns": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "speed_up": round(medians["ours"] / medians["obvious"], 2),
        "speed_up_views_only": round(medians["ours_views_only"] / medians["obvious_views_only"], 2),
        "our_step_ms": parts(our_trainer, torch.from_numpy(pixels[:batch]), 10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=5.0, help="least length of a turn")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch threads of the training process"
    )
    parser.add_argument("--out", type=Path, help="write the result there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    results = []
    for case in CASES:
        result = compare(case, arguments.repeats, arguments.seconds)
        rate, step = result["images_per_second"], result["our_step_ms"]
        print(
            f"{case.name}: ours {rate['ours']:,.0f} images/s, obvious recipe {rate['obvious']:,.0f} images/s, {result['speed_up']:.2f}x; "
            f"views alone {rate['ours_views_only']:,.0f} beside {rate['obvious_views_only']:,.0f}, {result['speed_up_views_only']:.1f}x; "
            f"our step: {', '.join(f'{name} {value:.1f} ms' for name, value in step.items())}",
            flush=True,
        )
        results.append(result)
    document = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"cpu": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.system(), "load_before": round(load, 2)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": Image.__version__, "numpy": np.__version__},
        "seed": SEED, "threads": arguments.threads, "workers": WORKERS, "repeats": arguments.repeats, "precision": "float32",
        "results": results,
    }  # fmt: skip
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
