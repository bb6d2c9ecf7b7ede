"""The loop: deterministic, resumable at every step, and it stops where it must."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.errors import TryAgain
from ssl_core.models.optim import adamw, parameter_groups, set_rates, step_seed, warmup_cosine
from ssl_core.training import loop
from ssl_core.training.health import Unhealthy
from tests.training.conftest import Bench

MakeBench = Callable[..., Bench]


class Killed(BaseException):
    """What the process would not survive: no handler, no last checkpoint."""


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_learns_and_repeats_itself(make_bench: MakeBench) -> None:
    one, two, other = (
        make_bench(config={"epochs": 10}),
        make_bench(config={"epochs": 10}),
        make_bench(config={"epochs": 10}),
    )
    one.start()
    two.start()
    other.start(seed=1)
    assert same(one.weights(), two.weights())
    assert not same(one.weights(), other.weights())
    losses = [values["loss"] for _, values in one.tracker.logged_metrics if "loss" in values]
    assert len(losses) == 30
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.2


@pytest.mark.parametrize("killed_at", [(1,), (3,), (7, 7, 10), (11,), (2, 5, 8)])
def test_resumed_equals_uninterrupted(make_bench: MakeBench, killed_at: tuple[int, ...]) -> None:
    whole, broken = make_bench(), make_bench()
    whole.start()
    for moment in killed_at:

        def die(step: int, _: object, moment: int = moment) -> None:
            if step == moment:
                raise Killed

        with pytest.raises(Killed):
            broken.start(before_step=die)
    pace = broken.start()
    assert same(whole.weights(), broken.weights())
    assert whole.monitor.history == broken.monitor.history
    assert pace.steps == 12
    assert pace.samples == 12 * 16
    # Checkpoints lie at the ends of epochs (3 steps): nothing before the last one is done again.
    expected, start = [], 0
    for moment in (*killed_at, 12):
        expected += list(range(start, moment))
        start = moment // 3 * 3
    assert broken.steps_done == expected


def test_finished_run_is_not_trained_again(bench: Bench) -> None:
    bench.config["checkpoint_seconds"] = 1e9
    bench.start()
    first, steps = bench.weights(), list(bench.steps_done)
    pace = bench.start()
    assert bench.steps_done == steps
    assert same(first, bench.weights())
    assert pace.per_second > 0


def test_stop_saves_the_very_step(make_bench: MakeBench) -> None:
    whole, stopped = make_bench(config={"checkpoint_seconds": 1e9}), make_bench(config={"checkpoint_seconds": 1e9})
    whole.start()
    stop = threading.Event()
    with pytest.raises(TryAgain, match="go on from step 5 of 12"):
        stopped.start(before_step=lambda step, _: stop.set() if step == 4 else None, stop=stop)
    stopped.start()
    assert stopped.steps_done == list(range(12))
    assert same(whole.weights(), stopped.weights())


def test_truncated_checkpoint_falls_back_to_the_older_one(make_bench: MakeBench) -> None:
    whole, broken = make_bench(), make_bench()
    whole.start()

    def die(step: int, _: object) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        broken.start(before_step=die)
    newest = broken.checkpoints.newest()
    assert newest is not None
    assert newest[0] == 6
    state = newest[1] / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    broken.start()
    assert broken.steps_done == [*range(7), *range(3, 12)]
    assert same(whole.weights(), broken.weights())


def test_checkpoint_of_another_configuration_is_left_with_a_note(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.start()
    bench.digest = "another recipe"
    bench.start()
    assert bench.steps_done == [*range(12), *range(12)]
    assert "another configuration" in bench.notes[-1]
    newest = bench.checkpoints.newest()
    assert newest is not None
    assert newest[0] == 12


def test_unusable_checkpoints_do_not_push_out_new_ones(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.start()
    for state in bench.folder.rglob("state.pt"):
        state.write_bytes(b"")

    def die(step: int, _: object) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        bench.start(before_step=die)
    newest = bench.checkpoints.newest()
    assert newest is not None
    assert newest[0] == 3


def test_non_finite_loss_stops_with_the_step(bench: Bench) -> None:
    def poison(step: int, objective: torch.nn.Module) -> None:
        if step == 5:
            next(iter(objective.parameters())).data.fill_(float("nan"))

    with pytest.raises(Unhealthy, match=r"loss is not finite .* at step 6"):
        bench.start(before_step=poison)
    newest = bench.checkpoints.newest()
    assert newest is not None
    assert newest[0] == 3, "a poisoned state must never be stored"


def test_non_finite_gradient_stops(bench: Bench) -> None:
    def poison(step: int, objective: torch.nn.Module) -> None:
        if step == 2:
            parameter = next(iter(objective.parameters()))
            parameter.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(Unhealthy, match=r"gradient norm is not finite .* at step 3"):
        bench.start(before_step=poison)


def test_constant_encoder_raises_the_alarm(make_bench: MakeBench) -> None:
    bench = make_bench(config={"warmup": 0.0})

    def flatten(step: int, objective: torch.nn.Module) -> None:
        # Scale and shift of every norm at zero: each image gets the same (zero) features.
        for module in objective.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.zero_()
                module.bias.data.fill_(0.1)

    with pytest.raises(Unhealthy, match="collapsed"):
        bench.start(before_step=flatten)
    assert len(bench.monitor.history) == 2


def test_smaller_set_than_a_batch_is_taken_whole(make_bench: MakeBench) -> None:
    bench = make_bench(count=9, config={"epochs": 3})
    pace = bench.start()
    assert pace.steps == 3
    assert pace.samples == 27


def test_bfloat16_runs_on_cpu(make_bench: MakeBench) -> None:
    full, half = make_bench(), make_bench(config={"precision": "bfloat16"})
    full.start()
    half.start()
    assert all(value.dtype != torch.bfloat16 for value in half.objective.state_dict().values())
    assert not same(full.weights(), half.weights())
    assert abs(full.monitor.history[-1].loss - half.monitor.history[-1].loss) < 0.2


def test_leaves_logging_and_random_state_alone(bench: Bench) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    level, handlers = logging.root.level, list(logging.root.handlers)
    bench.start()
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert (logging.root.level, logging.root.handlers) == (level, handlers)


def test_the_objective_stays_in_float32_outside_of_the_loop(bench: Bench) -> None:
    bench.config["precision"] = "bfloat16"
    bench.start()
    pixels = torch.from_numpy(bench.pixels[:8])
    with torch.no_grad():
        features = bench.objective.encoder(bench.objective.preprocessing.apply(pixels))
    assert features.dtype == torch.float32


def test_curves_and_gauges_reach_the_tracker(bench: Bench) -> None:
    bench.start()
    logged = bench.tracker.logged_metrics
    curve = {"loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait_share"}
    assert all(curve <= values.keys() for _, values in logged if "loss" in values)
    gauges = [step for step, values in logged if "health/effective_rank" in values]
    assert gauges == [2, 4, 6, 8, 10, 12]
    assert all(0 <= values["data_wait_share"] < 1 for _, values in logged if "loss" in values)


def test_norms_and_biases_do_not_decay() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    decaying, others = parameter_groups(module, 0.1, 0.5)
    assert {p.ndim for p in decaying["params"]} == {4, 2}
    assert decaying["weight_decay"] == 0.5
    assert {p.ndim for p in others["params"]} == {1}
    assert others["weight_decay"] == 0
    assert len(decaying["params"]) + len(others["params"]) == len(list(module.parameters()))


def test_schedule_rises_then_falls() -> None:
    shares = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1
    assert shares[55] == pytest.approx(0.5)
    assert 0 < shares[99] < 0.001
    assert all(b <= a for a, b in pairwise(shares[10:]))
    assert warmup_cosine(0, 1, 0) == 1
    module = torch.nn.Linear(2, 2)
    optimizer = adamw([*parameter_groups(module, 0.4, 0.0), *parameter_groups(torch.nn.Linear(2, 1), 0.2, 0.0)])
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2, 0.1, 0.1]


def test_gradients_are_clipped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    fused = loop.adamw

    def spy(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        optimizer = fused(groups)
        step = optimizer.step

        def stepping(*arguments: object, **more: object) -> object:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            seen.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
            return step(*arguments, **more)

        optimizer.step = stepping  # type: ignore[method-assign]
        return optimizer

    monkeypatch.setattr(loop, "adamw", spy)
    monkeypatch.setattr(loop, "GRADIENT_NORM_LIMIT", 0.01)
    bench.start()
    assert len(seen) == 12
    assert max(seen) <= 0.0101


def test_adamw_is_torchs_own() -> None:
    def trained(make: Callable[[list[dict[str, object]]], torch.optim.Optimizer]) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2))
        optimizer = make(parameter_groups(module, 0.1, 0.1))
        for step in range(4):
            optimizer.zero_grad(set_to_none=True)
            module(torch.full((3, 5), float(step))).square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    assert torch.equal(trained(adamw), trained(lambda groups: torch.optim.AdamW(groups, fused=True)))


def test_training_imports_nothing_slow_that_it_does_not_need(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tests.training.conftest import Bench
Bench(Path({str(tmp_path)!r})).start()
slow = {{"torch._dynamo", "torch.distributed.tensor", "sympy", "sklearn"}} & sys.modules.keys()
assert not slow, f"seconds at the start of every step: {{slow}}"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_step_seeds_differ() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_budget_of_time_trains_until_it_is_spent(make_bench: Callable[..., Bench]) -> None:
    """Whatever the epochs say; a resumed run has the rest of the time."""
    bench = make_bench(config={"epochs": 1, "budget": "2s"})
    started = time.monotonic()
    pace = bench.start()
    assert pace.steps > 3, "more than the epoch"
    assert 1.9 < time.monotonic() - started < 20
    assert bench.monitor.history[-1].step == pace.steps
    again = bench.start()
    assert again.steps == pace.steps
