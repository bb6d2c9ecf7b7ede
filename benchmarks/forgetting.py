"""Does a champion that learns a shifted window forget the old one? Going on beside naive fine-tuning and training from scratch.

    .venv/bin/python benchmarks/forgetting.py [--seeds 0 .. 9] [--labels all 200] [--threads 2] [--out benchmarks/results]

Real digits (scikit-learn), split anew for each seed: three fifths are the old window (dataset version 1), the others the
new one, all of them turned, drawn thicker and noisier (``ssl_core.data.samples.shift``). A seed decides the split, the
pretraining and the fine-tuning. For each, an encoder is pretrained on the old window's training images by the recipe of
``projects/digits.yaml``; then the real step ``finetune`` makes

* the champion, on the old window;
* going on: from the champion, with ``continual:`` at its defaults;
* naive: from the champion on the new window's labels alone: no replay, no anchor, full rates, no interpolation;
* from scratch: from the encoder, on both windows;
* new alone: from the encoder, on the new window and the labels that going on has of it: what there is to be gained.

Accuracy is that on each window's test images. "Gained" is ``(going on - champion) / (new alone - champion)`` on the new
window, of the means over seeds. Intervals: 95%, Student's t over seeds; of the ratio, the bootstrap over seeds.

Writes ``forgetting.json`` and ``forgetting.png``. Nothing was tuned on these seeds: the defaults were
set beforehand and looked at on seeds 100 and 101. With `--home`, a call
that was cut short goes on, and `seconds` is null.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import processor

from ssl_core.config.load import load_project
from ssl_core.config.project import ImageProject, ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, ModelRef, Ref, RunContext
from ssl_core.data.memory import Images
from ssl_core.data.samples import shift
from ssl_core.models.classifier import load_classifier
from ssl_core.pipeline import source_digest
from ssl_core.step import StepContext
from ssl_core.store import Store, path_sha256
from ssl_core.training import finetune, image_bench, image_pretrain, pretrain

ROOT = Path(__file__).parent.parent
OLD, NEW = 1, 2
SHARES = (0.6, 0.15, 0.25)
"""Of each window: train, val and test."""
NAIVE = {"replay": 0.0, "rate": 1.0, "anchor": 0.0, "interpolate": False}
ARMS = {
    "champion": "champion",
    "going_on": "going on (defaults)",
    "naive": "naive fine-tuning",
    "scratch": "from the encoder, on both",
    "new_alone": "from the encoder, on the new alone",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--labels", nargs="+", default=["all", "200"])
    parser.add_argument("--severity", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of continual:, for arm going_on")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--home", type=Path, help="where encoders are kept between calls; default: nowhere")
    arguments = parser.parse_args()
    began = time.monotonic()
    changes = {key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments.set)}
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            one_seed(arguments, seed, labels, changes, arguments.home or Path(scratch))
            for labels in arguments.labels
            for seed in arguments.seeds
        ]
    document = {
        "command": shlex.join(["python", *sys.argv]).replace(str(arguments.home), "DIR"),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "threads": arguments.threads, "device": "cpu", "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "numpy", "scikit-learn")} | {"python": platform.python_version(), "code": source_digest()},
        "seeds": arguments.seeds, "severity": arguments.severity, "seconds": None if arguments.home else round(time.monotonic() - began, 1),
        "continual": base_project(arguments.threads, "all", 0, changes).continual.model_dump(),
        "figures": {labels: figures([run for run in runs if run["labels"] == labels]) for labels in arguments.labels},
        "runs": runs,
    }  # fmt: skip
    show(document)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "forgetting.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if set(arguments.arms) == set(ARMS):
        plot(document, arguments.out / "forgetting.png")


def base_project(threads: int, labels: str, seed: int, continual: dict[str, Any]) -> ImageProject:
    """``projects/digits.yaml`` with this run's seed; one fine-tuning seed, since the benchmark has seeds of its own."""
    sections = load_project(ROOT / "projects" / "digits.yaml").model_dump(mode="json")
    sections["pretrain"] |= {"threads": threads, "seed": seed, "device": "cpu"}
    sections["task"] |= {"labels": labels if labels == "all" else int(labels), "seed": seed, "seeds": 1}
    sections["continual"] |= continual
    project = ProjectConfig.model_validate(sections)
    assert isinstance(project, ImageProject)
    return project


def windows(seed: int, severity: float) -> Images:
    """Both windows, old first, with a split of their own for each seed."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pixels))
    count = round(0.6 * len(pixels))
    moved = shift.shift(pixels[order[count:]], severity, seed)
    sides = np.concatenate(
        [
            rng.permutation(
                np.repeat(["train", "val", "test"], np.diff([0, *np.rint(np.cumsum(SHARES) * n)]).astype(int))
            )
            for n in (count, len(pixels) - count)
        ]
    )
    manifest = pd.DataFrame(
        {
            "sample_id": [f"{row:064x}" for row in order],
            "split": sides,
            "label": pd.Series([str(label) for label in digits.target[order]], dtype=object),
            "first_version": np.where(np.arange(len(pixels)) < count, OLD, NEW),
        }
    )
    everything = np.concatenate([pixels[order[:count]], moved])[:, None]
    return Images(pixels=everything, manifest=manifest, classes=[str(digit) for digit in range(10)])


def only(images: Images, *numbers: int) -> Images:
    """The rows of some windows."""
    rows = np.flatnonzero(images.manifest["first_version"].isin(numbers))
    return Images(
        pixels=images.pixels[rows], manifest=images.manifest.iloc[rows].reset_index(drop=True), classes=images.classes
    )


class Bench:
    """The platform's steps on images in memory, on a store of this seed's own."""

    def __init__(self, home: Path, threads: int) -> None:
        self.settings = Settings(home=home, store="", data_repo="", dvc_remote="", cache_dir=None)
        self.store = Store(self.settings.store_url, self.settings.cache)
        self.threads = threads

    def run(self, project: ProjectConfig, step: Any, name: str, key: str, images: Images, inputs: dict[str, Ref], what: str) -> Path:  # fmt: skip
        """One step on these images; the folder that it made, in the store. Done before: only found."""
        folder = Path(self.store.path(f"digits/{name}/{key}/out/{what}"))
        if folder.exists():
            return folder
        image_bench.open_images = lambda *_, **__: images
        image_pretrain.open_dataset = lambda *_: images
        with self.store.scratch() as out:
            step.run(
                StepContext(
                    project=project,
                    settings=self.settings,
                    inputs=inputs,
                    run=RunContext(run_id="benchmark"),
                    key=key,
                    out=out,
                    store=self.store,
                    checkpoints=self.store.checkpoints("digits", name, key),
                )
            )
            folder.parent.mkdir(parents=True)
            (out / what).rename(folder)
        self.store.checkpoints("digits", name, key).clear()
        return folder

    def ref(self, folder: Path, kind: str, name: str, step: str) -> ModelRef:
        return ModelRef(
            kind=kind, name=name, version="1", model_id="m", run_id="r", uri=folder.relative_to(self.store.root).as_posix(),
            sha256=path_sha256(folder), producer=step,
        )  # type: ignore[arg-type]  # fmt: skip


def dataset_ref(number: int, images: Images) -> DatasetRef:
    return DatasetRef(
        kind="dataset", name="digits", tag=f"digits@v{number}", revision="0" * 40, path="digits/data", md5="0" * 32 + ".dir",
        remote="", sha256=f"{number:064x}", producer="benchmark", rows=len(images), labelled=len(images), classes=10,
    )  # fmt: skip


def one_seed(
    arguments: argparse.Namespace, seed: int, labels: str, changes: dict[str, Any], home: Path
) -> dict[str, Any]:
    """Accuracy on both windows' test images, of each way."""
    images = windows(seed, arguments.severity)
    old, new = only(images, OLD), only(images, NEW)
    if labels != "all":  # a budget is drawn from both windows: the new one alone keeps its part of it
        drawn = finetune.draw_labels(images, base_project(1, labels, seed, {}).task)
        hidden = ~new.manifest["sample_id"].isin(images.manifest["sample_id"].to_numpy()[drawn])
        new.manifest.loc[hidden & (new.manifest["split"] == "train"), "label"] = None
    bench = Bench(home / f"seed-{seed}-{arguments.severity:g}", arguments.threads)
    project = base_project(arguments.threads, labels, seed, changes)
    naive = base_project(arguments.threads, "all", seed, NAIVE)
    encoder = bench.run(project, pretrain, "pretrain", "e", old, {"dataset": dataset_ref(OLD, old)}, "encoder")
    registered = bench.ref(encoder, "registered-encoder", "digits-encoder", "pretrain/e")

    def tune(arm: str, config: ProjectConfig, on: Images, number: int, **more: Ref) -> Path:
        key = f"{arm}-{labels}-{'-'.join(map(str, changes.values()))}" if arm == "going_on" else f"{arm}-{labels}"
        inputs = {"dataset": dataset_ref(number, on), "registered_encoder": registered, **more}
        return bench.run(config, finetune, "finetune", key, on, inputs, "model")

    made = {"champion": tune("champion", project, old, OLD)}
    champion = bench.ref(made["champion"], "registered-model", "digits", "finetune/champion")
    ways: dict[str, Any] = {
        "going_on": lambda: tune("going_on", project, images, NEW, champion=champion),
        "naive": lambda: tune("naive", naive, new, NEW, champion=champion),
        "scratch": lambda: tune("scratch", project, images, NEW),
        "new_alone": lambda: tune("new_alone", base_project(arguments.threads, "all", seed, changes), new, NEW),
    }
    made |= {arm: make() for arm, make in ways.items() if arm in arguments.arms}
    accuracy = {arm: [test_accuracy(folder, images, window) for window in (OLD, NEW)] for arm, folder in made.items()}
    run: dict[str, Any] = {"seed": seed, "labels": labels, "accuracy": accuracy}
    if "going_on" in made:
        run["training"] = json.loads((made["going_on"] / "training.json").read_text())["going_on"]
    print(f"{labels:>4} labels, seed {seed}: " + ", ".join(f"{arm} {a:.3f}/{b:.3f}" for arm, (a, b) in accuracy.items())
          + (f", alpha {run['training']['alpha']}" if "training" in run else ""), flush=True)  # fmt: skip
    return run


def test_accuracy(folder: Path, images: Images, window: int) -> float:
    rows = np.flatnonzero((images.manifest["first_version"] == window) & (images.manifest["split"] == "test"))
    model = load_classifier(folder)
    scores = model.predict_proba(np.ascontiguousarray(images.pixels[rows]))
    return float((scores.argmax(axis=1) == images.labels[rows]).mean())


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and intervals over seeds, of accuracies, of changes against the champion, and of the share that was gained."""
    table = {arm: np.array([run["accuracy"][arm] for run in runs]) for arm in runs[0]["accuracy"]}
    result: dict[str, Any] = {"accuracy": {}, "change": {}, "gained": {}}
    for arm, values in table.items():
        change = values - table["champion"]
        result["accuracy"][arm] = {"old": interval(values[:, 0]), "new": interval(values[:, 1])}
        result["change"][arm] = {"old": interval(change[:, 0]), "new": interval(change[:, 1])}
        if "new_alone" in table:
            result["gained"][arm] = ratio(change[:, 1], (table["new_alone"] - table["champion"])[:, 1])
    return result


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and 95% interval by Student's t."""
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return {"mean": round(mean, 5), "low": round(mean - half, 5), "high": round(mean + half, 5)}


def ratio(gain: np.ndarray, most: np.ndarray) -> dict[str, float]:
    """Of the means, with a 95% bootstrap interval over seeds."""
    draws = np.random.default_rng(0).integers(0, len(gain), (10_000, len(gain)))
    low, high = np.quantile(gain[draws].mean(axis=1) / most[draws].mean(axis=1), [0.025, 0.975])
    return {
        "mean": round(float(gain.mean() / most.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def show(document: dict[str, Any]) -> None:
    """The table for people."""
    for labels, found in document["figures"].items():
        print(f"\nlabels: {labels}, {len(document['seeds'])} seeds\n")
        print("| | old window | change, points | new window | change, points | of what the new alone gains |")
        print("|---|---|---|---|---|---|")
        for arm in found["accuracy"]:
            accuracy, change, gained = found["accuracy"][arm], found["change"][arm], found["gained"].get(arm)
            cells = [ARMS[arm]]
            for side in ("old", "new"):
                moved = "" if arm == "champion" else points(change[side])
                cells += [f"{accuracy[side]['mean']:.1%}", moved]
            shown = gained and arm != "champion"
            cells.append(f"{gained['mean']:.0%} ({gained['low']:.0%} to {gained['high']:.0%})" if shown else "")
            print("| " + " | ".join(cells) + " |")


def points(value: dict[str, float]) -> str:
    mean, low, high = (100 * value[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def plot(document: dict[str, Any], path: Path) -> None:
    """Each way as a point: change on the old window against change on the new one, with intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"going_on": "#1b7837", "naive": "#b2182b", "scratch": "#2166ac", "new_alone": "#777777"}
    figure, axes = plt.subplots(
        1, len(document["figures"]), figsize=(5.2 * len(document["figures"]), 4.2), squeeze=False
    )
    for axis, (labels, found) in zip(axes[0], document["figures"].items(), strict=True):
        for arm, colour in colours.items():
            old, new = found["change"][arm]["old"], found["change"][arm]["new"]
            axis.errorbar(
                100 * new["mean"], 100 * old["mean"],
                xerr=[[100 * (new["mean"] - new["low"])], [100 * (new["high"] - new["mean"])]],
                yerr=[[100 * (old["mean"] - old["low"])], [100 * (old["high"] - old["mean"])]],
                fmt="o", color=colour, label=ARMS[arm], capsize=3,
            )  # fmt: skip
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axhline(-1, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel("change on the new window, points")
        axis.set_ylabel("change on the old window, points")
        axis.set_title(f"labels: {labels}, {len(document['seeds'])} seeds")
    axes[0][0].legend(fontsize=8, loc="center left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
