"""Did pretraining help? Accuracy at each label budget, over several pretraining seeds, beside classical and random init.

    .venv/bin/python benchmarks/label_budgets.py [--projects digits animals] [--seeds 0 1 2] [--out benchmarks/results]

For each seed the project's own steps pretrain an encoder in a platform home of this run; then ``evaluation.helped``
compares it with the classical baselines and with random encoders, on the same draws of labels and the same test samples
for all seeds. A seed's table holds, for each draw and test sample, whether the answer was right; the figures are means over
seeds, with two-level bootstrap intervals over draws and test samples; ``by_seed`` shows how far seeds lie apart.
"animals" is also judged at 1% and 10% of its training labels.

Writes ``label_budgets_<project>.json`` with command, machine, versions and seconds.
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
from machine import processor

from ssl_core.config.load import load_project
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, Ref, RunContext
from ssl_core.data import ingest
from ssl_core.data.memory import Images, open_images
from ssl_core.evaluation.helped import Answers, Encoded, Task, answer, plan_budgets, summarise
from ssl_core.evaluation.image_baselines import NAMES, ImageBaselines
from ssl_core.models.embed import embed, random_encoder
from ssl_core.models.encoder import EncoderInfo, load_encoder
from ssl_core.pipeline import get_step, source_digest, step_key
from ssl_core.step import StepContext
from ssl_core.store import Store
from ssl_core.training import pretrain
from ssl_core.training.runtime import Runtime, resolve_runtime

ROOT = Path(__file__).parent.parent
SHARES = {"animals": (0.01, 0.1)}
"""Budgets as shares of the training labels, beside those of the project."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--projects", nargs="+", default=["digits", "animals"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--home", type=Path, help="platform home to use and keep; default: one that is removed")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(home=arguments.home or Path(scratch), store="", data_repo="", dvc_remote="", cache_dir=None)
        for name in arguments.projects:
            document = measure(load_project(ROOT / "projects" / f"{name}.yaml"), arguments.seeds, settings)
            path = arguments.out / f"label_budgets_{name}.json"
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            show(document)


def measure(project: ProjectConfig, seeds: list[int], settings: Settings) -> dict[str, Any]:
    """Everything about one project."""
    began = time.monotonic()
    dataset = make_dataset(project, settings)
    runtime = resolve_runtime(project.pretrain)
    seconds: list[float] = []
    by_seed: list[list[Answers]] = []
    for seed in seeds:
        own = project.model_copy(update={"pretrain": project.pretrain.model_copy(update={"seed": seed})})
        start = time.monotonic()
        encoder, info = load_encoder(make_encoder(own, dataset, settings))
        seconds.append(round(time.monotonic() - start, 1))
        images = open_images(
            dataset, settings, size=info.preprocessing.size, channels=info.preprocessing.channels, progress=None
        )
        project = with_shares(project, images)
        by_seed.append(judge(project, images, encoder, info, seed, runtime))
    config = project.evaluate
    rows = summarise(mean_over_seeds(by_seed), config, NAMES)
    for row, *own in zip(rows, *(summarise(answers, config, NAMES) for answers in by_seed), strict=True):
        row["by_seed"] = {method: [one[method]["mean"] for one in own] for method in ("pretrained", "random_init")}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "threads": runtime.threads, "device": runtime.device, "system": platform.platform()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "numpy", "scikit-learn", "scipy")} | {"python": platform.python_version(), "code": source_digest()},
        "project": project.model_dump(mode="json"),
        "dataset": {"rows": dataset.rows, "md5": dataset.md5},
        "test_samples": len(images.positions("test", labelled=True)),
        "pretraining_seeds": seeds,
        "seconds": {"pretraining": seconds, "all": round(time.monotonic() - began, 1)},
        "label_budgets": rows,
    }  # fmt: skip


def context(project: ProjectConfig, name: str, inputs: dict[str, Ref], settings: Settings) -> StepContext:
    """A step's context on the store of this run."""
    store = Store(settings.store_url, settings.cache)
    key = step_key(get_step(name), project, inputs)
    out = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=settings.root))
    return StepContext(
        project=project, settings=settings, inputs=inputs, run=RunContext(run_id="benchmark"), key=key, out=out,
        store=store, checkpoints=store.checkpoints(project.name, name, key),
    )  # fmt: skip


def make_dataset(project: ProjectConfig, settings: Settings) -> DatasetRef:
    """The project's data as a candidate: its content is fixed, so there is nothing to validate or to publish."""
    settings.root.mkdir(parents=True, exist_ok=True)
    candidate = ingest.run(context(project, "ingest", {}, settings)).outputs["candidate"]
    assert isinstance(candidate, DatasetRef)
    return candidate


def make_encoder(project: ProjectConfig, dataset: DatasetRef, settings: Settings) -> Path:
    """Pretrains by the project's own step."""
    ctx = context(project, "pretrain", {"dataset": dataset}, settings)
    pretrain.run(ctx)
    return ctx.out / "encoder"


def with_shares(project: ProjectConfig, images: Images) -> ProjectConfig:
    """Adds the budgets that are named as shares of the training labels."""
    labelled = len(images.positions("train", labelled=True))
    more = {round(share * labelled) for share in SHARES.get(project.name, ())}
    budgets = tuple(sorted({*project.evaluate.budgets(len(images.classes)), *more}))
    return project.model_copy(update={"evaluate": project.evaluate.model_copy(update={"label_budgets": budgets})})


def judge(
    project: ProjectConfig, images: Images, encoder: Any, info: EncoderInfo, seed: int, runtime: Runtime
) -> list[Answers]:
    """One pretraining seed beside the baselines: the tables of right and wrong answers at each budget."""
    train, test = images.positions("train"), images.positions("test", labelled=True)

    def encode(network: Any) -> Encoded:
        both = [
            embed(
                network.to(runtime.device),
                info.preprocessing,
                images.pixels,
                p,
                device=runtime.device,
                precision=runtime.precision,
            )
            for p in (train, test)
        ]
        return Encoded(*both)

    random_init = [
        # other random networks for each pretraining seed
        encode(random_encoder(info, seed + 1000 * i, images.pixels, train))
        for i in range(project.evaluate.random_encoders)
    ]
    task = Task(images.labels[train], images.labels[test], len(images.classes))
    budgets, _ = plan_budgets(task, project.evaluate, project.evaluate.random_encoders)
    classical = ImageBaselines(images.pixels[train], images.pixels[test], task.classes, project.evaluate.seed)
    return answer(task, budgets, classical, random_init, encode(encoder), seed=project.evaluate.seed)


def mean_over_seeds(by_seed: list[list[Answers]]) -> list[Answers]:
    """Tables ``(B, M)`` that hold, for each draw and sample, the share of seeds that were right."""
    return [
        Answers(
            same[0].budget,
            {
                method: {name: np.mean([one.right[method][name] for one in same], axis=0) for name in tables}
                for method, tables in same[0].right.items()
            },
        )
        for same in zip(*by_seed, strict=True)
    ]


def show(document: dict[str, Any]) -> None:
    """A line for each budget."""
    print(
        f"{document['project']['name']}: {len(document['pretraining_seeds'])} pretraining seeds, {document['test_samples']} test samples"
    )
    for row in document["label_budgets"]:
        cells = "   ".join(
            f"{method} {row[method]['mean']:.3f} [{row[method]['low']:.3f}, {row[method]['high']:.3f}]"
            for method in ("classical", "random_init", "pretrained")
        )
        print(f"  {row['labels']:>5} labels   {cells}")


if __name__ == "__main__":
    main()
