"""Sync of 10,000 objects of 4 KB from a local S3 server, against the plain loop that a script would have.

    python benchmarks/s3_sync.py                 # writes benchmarks/results/s3_sync.json
    python benchmarks/s3_sync.py --objects 1000 --rounds 1 --output /tmp/trial.json

Both sides do the same job, from nothing to all objects on this machine: list the prefix, get every object, keep it. The loop is
boto3's paginator and ``get_object``, one after the other, each object written to a file. Ours is ``open_source(...).sync()``. They
take turns, each round in a folder and a process of its own, and the ratio is that of the medians. Then ten objects are changed
and the sync runs once more. Each run waits up to a minute for a machine that others leave alone. The server is SeaweedFS; it and its clients share the machine, so the CPU is the limit for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SEED = 0
OBJECTS, SIZE, CHANGED = 10_000, 4096, 10
ROUNDS = 5
QUIET_PERCENT, QUIET_SECONDS = 15.0, 60.0
BUCKET, PREFIX = "benchmark", "images"
GOAL_RATIO, GOAL_SECONDS = 5.0, 5.0


def client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=16))


def fill(objects: int, seed: int) -> None:
    """``objects`` objects of random bytes, in ten class folders."""
    import numpy as np

    random = np.random.default_rng(seed)
    s3 = client()
    if seed == SEED:
        s3.create_bucket(Bucket=BUCKET)
    contents = [(f"{PREFIX}/class-{i % 10}/{i:06d}.png", random.bytes(SIZE)) for i in range(objects)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: s3.put_object(Bucket=BUCKET, Key=one[0], Body=one[1]), contents))


def plain(folder: Path) -> dict[str, Any]:
    """The loop that a script would have."""
    import boto3

    started = time.perf_counter()
    s3 = boto3.client("s3")
    count = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/"):
        for found in page["Contents"]:
            path = folder / found["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read())
            count += 1
    return {"seconds": round(time.perf_counter() - started, 3), "fetched": count, "cpu": round(time.process_time(), 2)}


def ours(folder: Path) -> dict[str, Any]:
    """The platform's sync, and that what it brought is what it should be."""
    import threading

    import boto3  # noqa: F401 - imported before the clock starts, as for the loop

    from ssl_core.config.project import ProjectConfig
    from ssl_core.data.sources import open_source
    from ssl_core.step import NoProgress

    project = ProjectConfig.model_validate({"name": "sync", "data": {"source": f"s3://{BUCKET}/{PREFIX}"}})
    started = time.perf_counter()
    source = open_source(project, folder)
    fetched = source.sync(NoProgress(), threading.Event())
    seconds = time.perf_counter() - started
    cpu = time.process_time()
    assert all(len(item.read()) == SIZE for item in source.items())
    return {"seconds": round(seconds, 3), "fetched": fetched, "cpu": round(cpu, 2)}


def wait_for_quiet(limit: float = QUIET_SECONDS) -> float:
    """Waits until other programs leave the machine alone, not for ever; returns how busy it still is, in percent."""
    import psutil

    deadline = time.monotonic() + limit
    while (busy := psutil.cpu_percent(interval=1)) > QUIET_PERCENT and time.monotonic() < deadline:
        pass
    return busy


def in_process(side: str, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    busy = wait_for_quiet()
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, str(folder)], check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1]) | {"busy_before": busy}
    print(
        f"{side:6} {result['seconds']:7.2f} s  {result['fetched']:>6,} fetched  machine busy before: {busy:.0f}%",
        flush=True,
    )
    return result


def measure(objects: int, rounds: int, scratch: Path) -> dict[str, Any]:
    from tests.e2e.tools.s3_server import s3_server

    with s3_server(scratch / "server") as server:
        os.environ.update(server.environment())
        fill(objects, SEED)
        loop, sync = [], []
        for number in range(rounds):
            loop.append(in_process("plain", scratch / f"loop-{number}"))
            sync.append(in_process("ours", scratch / f"sync-{number}"))
        unchanged = in_process("ours", scratch / f"sync-{rounds - 1}")
        fill(CHANGED, SEED + 1)
        changed = in_process("ours", scratch / f"sync-{rounds - 1}")
    return {"plain": loop, "ours": sync, "unchanged": unchanged, "changed": changed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "s3_sync.json")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder = arguments.side
        print(json.dumps({"plain": plain, "ours": ours}[side](Path(folder))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(arguments.objects, arguments.rounds, Path(scratch))
    loop, sync = (statistics.median(row["seconds"] for row in rows[side]) for side in ("plain", "ours"))
    result = {
        "what": f"{arguments.objects:,} objects of {SIZE} bytes, from an S3 server on the same machine to local copies",
        "command": "python benchmarks/s3_sync.py",
        "seed": SEED,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "rounds": arguments.rounds,
        "plain_boto3_loop_seconds": loop,
        "sync_seconds": sync,
        "ratio": round(loop / sync, 2),
        "second_sync_unchanged": rows["unchanged"],
        "second_sync_ten_changed": rows["changed"],
        "rows": rows,
        "goals": {"ratio": GOAL_RATIO, "second_sync_fetches": CHANGED, "second_sync_seconds": GOAL_SECONDS},
    }
    result["passed"] = (
        result["ratio"] >= GOAL_RATIO
        and rows["changed"]["fetched"] == CHANGED
        and rows["changed"]["seconds"] <= GOAL_SECONDS
        and rows["unchanged"]["fetched"] == 0
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"loop {loop:.2f} s, sync {sync:.2f} s: {result['ratio']} times as fast; ten changed: {rows['changed']['fetched']} "
        f"fetched in {rows['changed']['seconds']} s: {'passed' if result['passed'] else 'FAILED'}"
    )
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
