"""``kill -9`` of a training process at random moments, each followed by the same command.

The last process must end with the very weights of a run that nobody killed, and no step that lies before a checkpoint
may be done twice. This file is the test and, run as a module, the process that it kills.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

EPOCHS, STEPS_PER_EPOCH = 30, 3
TOTAL = EPOCHS * STEPS_PER_EPOCH
ROOT = Path(__file__).parents[2]


def train_in(step: str, folder: Path) -> None:
    """The process: one step on the store in ``folder``; each training step and checkpoint leaves a line in ``log``."""
    from ssl_core.config.project import ProjectConfig
    from ssl_core.config.settings import Settings
    from ssl_core.contracts import ModelRef, RunContext
    from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing, save_encoder
    from ssl_core.objectives.simclr import SimCLR
    from ssl_core.step import StepContext
    from ssl_core.store import Checkpoints, Store, path_sha256
    from ssl_core.tasks import image_classification as task
    from ssl_core.training import finetune, image_bench, image_pretrain, pretrain
    from tests.training.conftest import DATASET, ENCODER, TINY, striped_images

    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(line: str) -> None:
        os.write(log, f"{line}\n".encode())  # one system call: a killed process leaves whole lines

    settings = Settings(home=folder / "home")
    store = Store(settings.store_url, settings.cache)
    checkpoints = store.checkpoints("tiny", step, "key")
    save, forward, share = Checkpoints.save, SimCLR.forward, task.warmup_cosine

    def saved(self: Checkpoints, position: int, folder: Path) -> None:
        save(self, position, folder)
        write(f"saved {position}")

    def pretrained(self: SimCLR, *arguments: Any, step: int, **more: Any) -> Any:
        write(f"step {step}")
        return forward(self, *arguments, step=step, **more)

    def finetuned(step: int, *more: int) -> float:
        write(f"step {step}")
        return share(step, *more)

    Checkpoints.save = saved  # type: ignore[method-assign]
    SimCLR.forward = pretrained  # type: ignore[method-assign]
    task.warmup_cosine = finetuned
    task.CHECKPOINT_SECONDS = 0.1
    task.MIN_STEPS = 1
    images = striped_images(folder / f"decoded-{os.getpid()}")
    image_pretrain.open_dataset = lambda ctx, dataset: images  # type: ignore[assignment]
    image_bench.open_images = lambda *_, **__: images  # type: ignore[assignment]
    config = TINY | {
        "pretrain": {**TINY["pretrain"], "epochs": EPOCHS},
        "task": {"labels": 8, "epochs": EPOCHS, "batch_size": 16, "seeds": 1},
    }
    project = ProjectConfig.model_validate({"name": "tiny", "data": {"source": "sample://digits"}, **config})
    encoder = Path(store.path("tiny/pretrain/e/out/encoder"))
    if not encoder.exists():
        info = EncoderInfo(ENCODER, measure_preprocessing(images.pixels, images.positions("train")), 16)
        save_encoder(encoder, build_encoder(ENCODER, 1, seed=0), info)
    registered = ModelRef(
        kind="registered-encoder", name="tiny-encoder", version="1", model_id="m", run_id="r", uri="tiny/pretrain/e/out/encoder",
        sha256=path_sha256(encoder), producer="pretrain/e",
    )  # fmt: skip
    with store.scratch() as scratch:
        context = StepContext(
            project=project, settings=settings, inputs={"dataset": DATASET, "registered_encoder": registered},
            run=RunContext(run_id="test"), key="key", out=scratch, store=store, checkpoints=checkpoints,
        )  # fmt: skip
        write("start")
        (pretrain if step == "pretrain" else finetune).run(context)
        write(f"done {path_sha256(scratch / ('encoder' if step == 'pretrain' else 'model'))}")


def start(step: str, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.test_kill_resume", step, str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def finish(step: str, folder: Path) -> str:
    """Runs to the end; returns the digest of what was trained."""
    assert start(step, folder).wait(timeout=300) == 0
    return lines(folder)[-1].removeprefix("done ")


def kill_after(kind: str, folder: Path, step: int, delay: float) -> None:
    """Starts the process and kills it a moment after it began training step ``step``."""
    process = start(kind, folder)
    deadline = time.monotonic() + 300
    earlier = len(lines(folder))
    while f"step {step}" not in lines(folder)[earlier:]:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "kills"), [("pretrain", 5), ("finetune", 3)])
def test_kills_and_the_same_weights(kind: str, kills: int, tmp_path: Path) -> None:
    undisturbed = finish(kind, tmp_path / "whole")
    rng = random.Random(20261123)
    moments = sorted(rng.sample(range(2, TOTAL - 10), kills))
    broken = tmp_path / "broken"
    for step in moments:
        kill_after(kind, broken, step, rng.uniform(0, 0.05))
    assert finish(kind, broken) == undisturbed

    attempts = " ".join(lines(broken)).split("start")[1:]
    assert len(attempts) == kills + 1
    checkpoint, reached = 0, 0
    for attempt in attempts:
        steps = [int(number) for number in re.findall(r"step (\d+)", attempt)]
        saves = [int(number) for number in re.findall(r"saved (\d+)", attempt)]
        assert steps[0] >= checkpoint, "a step before a checkpoint was done again"
        assert steps[0] <= reached, "a step was left out"
        assert steps == list(range(steps[0], steps[-1] + 1))
        checkpoint, reached = max([checkpoint, *saves]), steps[-1] + 1
    assert reached == TOTAL
    assert checkpoint == TOTAL


if __name__ == "__main__":
    train_in(sys.argv[1], Path(sys.argv[2]))
