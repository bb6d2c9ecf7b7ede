"""How long does a drift check take, and how much memory? 100,000 stored samples against 100,000, and whether time is linear.

    .venv/bin/python benchmarks/drift_speed.py [--sizes 10000 30000 100000] [--out benchmarks/results]

The step ``monitor`` as it runs, each time in a new process: imports, MLflow (SQLite), manifest, embeddings of 128 numbers and the
champion's answers from the store, calibration (nothing of it is kept yet), tests, columns, report. Embeddings and answers are made up, and
kept in the store beforehand: what is timed is the check of stored samples. N in the reference, N in the window, and twice N training samples.

Writes ``drift-speed.json`` and ``.png``: seconds and peak memory of each size, and what each part of the largest took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import processor

from ssl_core.config.project import ImageProject, project_class
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef, RunContext
from ssl_core.data.dataset import write_dataset
from ssl_core.data.windows import new_windows, reference_of
from ssl_core.monitoring import monitor, watch
from ssl_core.monitoring.seen import Champion, Seen
from ssl_core.monitoring.two_sample import subsample
from ssl_core.pipeline import source_digest
from ssl_core.registry.client import connect
from ssl_core.step import StepContext
from ssl_core.store import Store

ROOT = Path(__file__).parent.parent
FEATURES, CLASSES = 128, [str(n) for n in range(10)]
MOST_SECONDS, MOST_BYTES = 60, 2e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 30_000, 100_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.sizes[0], arguments.seed)
        return
    if arguments.check:
        check(arguments.check)
        return
    rows = [measure(size, arguments.seed) for size in arguments.sizes]
    document = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform(), "load_before": os.getloadavg()},
        "versions": {name: version(name) for name in ("ssl-core", "torch", "numpy", "pandas", "pyarrow")} | {"python": platform.python_version(), "code": source_digest()},
        "seed": arguments.seed,
        "features": FEATURES,
        "sizes": rows,
        "growth": growth(rows),
        "within_limits": rows[-1]["seconds"] <= MOST_SECONDS and rows[-1]["peak_bytes"] <= MOST_BYTES,
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "drift-speed.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(arguments.out / "drift-speed.png", rows)
    for row in rows:
        print(f"{row['samples']:>7,} against {row['samples']:,}: {row['seconds']:.1f} s (CPU {row['cpu_seconds']:.1f} s), {row['peak_bytes'] / 1e6:.0f} MB, {row['finding']}")  # fmt: skip
    print(document["growth"])


def measure(samples: int, seed: int) -> dict[str, Any]:
    """Prepares and checks in processes of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        me, home = [sys.executable, __file__], Path(scratch)
        subprocess.run(
            [*me, "--prepare", str(home), "--sizes", str(samples), "--seed", str(seed)], check=True, cwd=home
        )
        began = time.monotonic()
        done = subprocess.run([*me, "--check", str(home)], check=True, cwd=home, stdout=subprocess.PIPE, text=True)
        return {"samples": samples, "seconds": round(time.monotonic() - began, 2)} | json.loads(
            done.stdout.splitlines()[-1]
        )


def prepare(home: Path, samples: int, seed: int) -> None:
    """A dataset of two versions, a champion in the registry, and what it sees, in the store."""
    generator = np.random.default_rng(seed)
    splits = np.repeat(["train", "val", "test", "train"], [2 * samples, samples // 2, samples - samples // 2, samples])
    count = len(splits)
    first = np.repeat([1, 2], [3 * samples, samples]).astype(np.int32)
    ids = np.array([hashlib.sha256(str(row).encode()).hexdigest() for row in range(count)])
    for number in (1, 2):
        ids[first == number] = np.sort(ids[first == number])
    labels = np.array(CLASSES, dtype=object)[generator.integers(0, 10, count)]
    labels[generator.random(count) < 0.9] = None
    manifest = pd.DataFrame(
        {
            "sample_id": ids, "split": splits, "group": ids, "label": pd.Series(labels, dtype=object),
            "source": pd.Series("camera-1/", index=range(count)) + pd.Series(ids).str[:12], "arrived_at": pd.Series(pd.Timestamp("2026-01-01", tz="UTC"), index=range(count)).astype("datetime64[us, UTC]"),
            "first_version": first, "width": np.int32(28), "height": np.int32(28), "channels": np.int32(1), "bytes": generator.integers(200, 400, count).astype(np.int32),
            "brightness": generator.random(count).astype(np.float32), "contrast": generator.random(count).astype(np.float32),
        }
    )  # fmt: skip
    folder = home / "dataset"
    write_dataset(folder, manifest, lambda row: b"", name="speed", modality="image", classes=CLASSES)
    dataset = stored(folder, home / "remote")
    (home / "dataset.ref").write_text(dataset.model_dump_json())
    ctx = context(home, dataset)
    client = connect(ctx.settings)
    for name, kind in (("speed-encoder", "encoder"), ("speed", "model")):
        uri = f"speed/{kind}/k/out/{kind}"
        Path(ctx.store.path(uri)).mkdir(parents=True)
        tags = {"ssl.kind": f"registered-{kind}", "ssl.uri": uri, "ssl.sha256": kind * 8, "ssl.producer": f"{kind}/k", "ssl.model_id": "", "ssl.dataset": "speed@v1"}  # fmt: skip
        client.create_registered_model(name)
        client.create_model_version(name, "file:///nowhere", tags=tags | {"ssl.encoder": "speed-encoder", "ssl.encoder_version": "1"})  # fmt: skip
        client.set_registered_model_alias(name, "champion", "1")
    champion = monitor.find_champion(ctx, dataset)
    table = monitor.read_table(ctx, dataset)
    assert isinstance(champion, Champion)
    assert not isinstance(table, list)
    seen = Seen(ctx, dataset, champion, table)
    seen.__dict__["_bench"] = Imagined(generator)  # nothing is decoded
    seen.__dict__["_model"] = None
    for rows, number in ((reference_of(table.manifest, 1).rows, 0), (new_windows(table.manifest, 1, 2)[0].rows, 2)):
        seen.embeddings(rows)
        seen.scores(rows[subsample(len(rows), watch.ANSWERED, number)])
        known = rows[table.manifest["label"].notna().to_numpy()[rows]]
        seen.scores(known[subsample(len(known), watch.ANSWERED, number)])


class Imagined:
    """Stands for the network: embeddings around ten centres, and answers that follow from nothing."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._centres = generator.normal(size=(10, FEATURES))

    def embed(self, rows: np.ndarray) -> np.ndarray:
        centres = self._centres[self._generator.integers(0, 10, len(rows))]
        return (centres + self._generator.normal(size=centres.shape)).astype(np.float32)

    def scores(self, model: None, rows: np.ndarray) -> np.ndarray:
        return self._generator.dirichlet(np.full(10, 0.2), len(rows)).astype(np.float32)


def check(home: Path) -> None:
    """The step; prints what it took as a line of JSON."""
    dataset = DatasetRef.model_validate_json((home / "dataset.ref").read_text())
    ctx = context(home, dataset)
    ctx.out.mkdir()
    made = monitor.run(ctx)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report = json.loads((ctx.out / "drift.json").read_bytes())
    print(json.dumps({"cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "peak_bytes": usage.ru_maxrss * 1024, "finding": report["finding"]["kind"], "draws": report["embedding"]["draws"], "summary": made.summary.splitlines()[0]}))  # fmt: skip


def context(home: Path, dataset: DatasetRef) -> StepContext:
    section = {
        "name": "speed",
        "data": {"source": str(home)},
        "pretrain": {"device": "cpu", "precision": "float32"},
    }
    project = project_class(section).model_validate(section)
    assert isinstance(project, ImageProject)
    settings = Settings(home=home / "home", store="", data_repo="", dvc_remote="", cache_dir=None, MLFLOW_TRACKING_URI=f"sqlite:///{home / 'mlflow.db'}")  # fmt: skip
    store = Store(settings.store_url, settings.cache)
    return StepContext(
        project=project, settings=settings, inputs={"dataset": dataset}, run=RunContext(run_id="benchmark"), key="k", out=home / "out",
        store=store, checkpoints=store.checkpoints("speed", "monitor", "k"),
    )  # fmt: skip


def stored(folder: Path, remote: Path) -> DatasetRef:
    """The folder as a version in a DVC remote."""
    listing = []
    for path in sorted(folder.iterdir()):
        listing.append({"md5": put(remote, path.read_bytes()), "relpath": path.name})
    address = put(remote, json.dumps(listing).encode(), ".dir")
    info = json.loads((folder / "dataset.json").read_bytes())
    return DatasetRef(
        kind="dataset", name="speed", tag="speed@v2", revision="0" * 40, path="speed/data", md5=address, remote=str(remote),
        sha256=hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest(), producer="ingest/k", rows=info["rows"],
        labelled=info["labelled"], classes=len(info["classes"]),
    )  # fmt: skip


def put(remote: Path, data: bytes, ending: str = "") -> str:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    path = remote / "files" / "md5" / md5[:2] / (md5[2:] + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return md5 + ending


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """CPU seconds as ``same + each * thousands of samples``, by least squares, and how far the farthest lies off that line."""
    sizes, seconds = (np.array([row[name] for row in rows], dtype=float) for name in ("samples", "cpu_seconds"))
    if len(rows) < 3:
        return {}
    each, same = np.polyfit(sizes / 1000, seconds, 1)
    off = np.abs(same + each * sizes / 1000 - seconds).max()
    return {"same_for_all_seconds": round(float(same), 2), "seconds_a_thousand": round(float(each), 4), "farthest_off_seconds": round(float(off), 2)}  # fmt: skip


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    sizes = [row["samples"] / 1000 for row in rows]
    left.plot(sizes, [row["seconds"] for row in rows], "o-", label="clock")
    left.plot(sizes, [row["cpu_seconds"] for row in rows], "o--", label="CPU")
    left.set(xlabel="thousand samples a side", ylabel="seconds", ylim=(0, None), title=f"{datetime.now(UTC):%Y-%m-%d}")
    left.legend(frameon=False)
    right.plot(sizes, [row["peak_bytes"] / 1e6 for row in rows], "o-")
    right.set(xlabel="thousand samples a side", ylabel="peak memory, MB", ylim=(0, None))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
