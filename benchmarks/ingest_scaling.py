"""Ingest of 2,000 to 20,000 images of 64 x 64: seconds and peak memory, each size in a process of its own.

    python benchmarks/ingest_scaling.py             # writes benchmarks/results/ingest_scaling.json
    python benchmarks/ingest_scaling.py --counts 500 1000 --output /tmp/trial.json

The images are made from a seed: smooth colour fields with grain, 1% of them saved again a little brighter (near-duplicates).
Peak memory is the resident set of the ingest process with its libraries, or of DVC, its child, where that is larger.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEED = 0
SIDE = 64
COUNTS = (2_000, 5_000, 10_000, 20_000)
COPIES = 0.01
LIMIT_GIB = 1.5


def make_images(folder: Path, count: int) -> None:
    """``count`` PNG files in ten class folders."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(SEED)
    previous: Any = None
    for number in range(count):
        if previous is not None and random.random() < COPIES:
            values = np.minimum(previous.astype(int) + 3, 255).astype(np.uint8)
        else:
            field = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
                (SIDE, SIDE), Image.Resampling.BICUBIC
            )
            values = np.clip(np.asarray(field) + random.normal(0, 4, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        previous = values
        path = folder / f"class-{number % 10}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)


def ingest(folder: Path, home: Path) -> dict[str, Any]:
    """One ingest in this process; what it made, how long it took and its peak memory."""
    from ssl_core.config.project import ProjectConfig
    from ssl_core.config.settings import Settings
    from ssl_core.contracts import RunContext
    from ssl_core.data.ingest import run
    from ssl_core.step import StepContext
    from ssl_core.store import Store

    settings = Settings(home=home)
    project = ProjectConfig.model_validate({"name": "scaling", "data": {"source": str(folder)}})
    store = Store(settings.store_url, settings.cache)
    with store.scratch() as out:
        context = StepContext(
            project=project,
            settings=settings,
            inputs={},
            run=RunContext(run_id="benchmark"),
            key="benchmark",
            out=out,
            store=store,
            checkpoints=store.checkpoints(project.name, "ingest", "benchmark"),
        )
        started = time.perf_counter()
        output = run(context)
        seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "seconds": round(seconds, 2),
        "peak_gib": round(max(own, children), 3),
        "peak_own_gib": round(own, 3),
        "metrics": output.metrics,
    }


def measure(counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            folder, home = Path(scratch) / f"images-{count}", Path(scratch) / f"home-{count}"
            make_images(folder, count)
            command = [sys.executable, __file__, "--ingest", str(folder), str(home)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = {"images": count, **json.loads(done.stdout.splitlines()[-1])}
            row["images_per_second"] = round(count / row["seconds"], 1)
            rows.append(row)
            print(
                f"{count:>7,} images  {row['seconds']:8.2f} s  {row['images_per_second']:8.1f} images/s  {row['peak_gib']:.3f} GiB",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ingest_scaling.json")
    parser.add_argument("--ingest", nargs=2, metavar=("IMAGES", "HOME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ingest:
        print(json.dumps(ingest(*map(Path, arguments.ingest))))
        return
    rows = measure(arguments.counts)
    first, last = rows[0], rows[-1]
    result = {
        "what": f"ingest of {SIDE} x {SIDE} colour PNG files, from class folders to a committed candidate, DVC included",
        "command": "python benchmarks/ingest_scaling.py",
        "seed": SEED,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "rows": rows,
        # 1 is exactly linear; below it, fixed costs are shared by more images.
        "time_growth_over_linear": round(last["seconds"] / first["seconds"] / (last["images"] / first["images"]), 3),
        "limits": {"peak_gib": LIMIT_GIB, "time_growth_over_linear": 1.2},
    }
    result["passed"] = last["peak_gib"] < LIMIT_GIB and result["time_growth_over_linear"] <= 1.2
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"peak {last['peak_gib']} GiB, time over linear {result['time_growth_over_linear']}: {'passed' if result['passed'] else 'FAILED'}"
    )
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
