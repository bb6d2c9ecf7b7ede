"""The loop of fine-tuning on texts: AdamW with warm-up and cosine, exact resume, and early stopping that keeps the best."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core.errors import CheckFailed, TryAgain
from ssl_core.models.optim import set_rates, step_seed, warmup_cosine
from ssl_core.step import NoProgress, NoTracker, Progress, Tracker
from ssl_core.tasks.text_batches import Order

CHECKPOINT_SECONDS = 30.0
"""What a killed process loses, at most; 0 stores every step."""
WARMUP = 0.1
GRADIENT_NORM_LIMIT = 1.0
MIN_ROUND = 10
"""Steps between two looks at held-out texts, at least: a few labels make an epoch of one step."""


class Checkpoints(Protocol):
    """What is needed of ``training.state.CheckpointFiles``: where an interrupted training goes on from."""

    def save(self, step: int, trained: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None: ...
    def restore(self, trained: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]: ...


@dataclass(frozen=True)
class Follower:
    """Who watches the training, and who may stop it."""

    stop: threading.Event
    progress: Progress = field(default_factory=NoProgress)
    tracker: Tracker = field(default_factory=NoTracker)
    checkpoints: Checkpoints | None = None

    def alone(self) -> Follower:
        """For work beside the main one: it can be stopped and shows its progress, but keeps and reports nothing."""
        return replace(self, tracker=NoTracker(), checkpoints=None)


class Watch:
    """Early stopping: keeps the weights of the round with the lowest ``score()``, a loss on held-out texts.

    A training ends after ``patience`` rounds in a row that were no better (Prechelt 1998, "Early Stopping - But When?").
    """

    def __init__(self, trained: nn.Module, score: Callable[[], float], patience: int) -> None:
        self.trained, self.score, self.patience = trained, score, patience
        self.best = _Snapshot(trained)
        self.losses: list[float] = []

    def look(self) -> float:
        """Scores the weights as they are, and keeps them where they are the best so far."""
        loss = self.score()
        if not self.losses or loss < min(self.losses):
            self.best.take(self.trained)
        self.losses.append(loss)
        return loss

    @property
    def best_round(self) -> int:
        """Counted from 1."""
        return int(np.argmin(self.losses)) + 1

    @property
    def is_over(self) -> bool:
        return len(self.losses) - self.best_round >= self.patience


class _Snapshot(nn.Module):
    """A copy of a module's tensors that a checkpoint can hold."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for number, tensor in enumerate(module.state_dict().values()):
            self.register_buffer(str(number), tensor.detach().clone())

    def take(self, module: nn.Module) -> None:
        for kept, tensor in zip(self.buffers(), module.state_dict().values(), strict=True):
            kept.copy_(tensor)

    def give(self, module: nn.Module) -> None:
        with torch.no_grad():
            for kept, tensor in zip(self.buffers(), module.state_dict().values(), strict=True):
                tensor.copy_(kept)


class _State(nn.Module):
    """What a checkpoint holds: the weights, and the best ones so far where those are kept."""

    def __init__(self, trained: nn.Module, watch: Watch | None) -> None:
        super().__init__()
        self.trained = trained
        if watch:
            self.best = watch.best


def descend(
    loss_of: Callable[[np.ndarray], Tensor],
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: Order,
    steps: int,
    seed: int,
    follow: Follower,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Takes ``steps`` steps on ``loss_of(windows)``, or fewer where ``watch`` has seen enough; returns JSON values.

    A step follows from (seed, step) and the state before it, so state and step number are all that a resume has to know.
    The loss is read, and logged, once an epoch (or every ``MIN_ROUND`` steps, where that is longer).
    """
    per_round = max(order.per_epoch, min(MIN_ROUND, steps))
    warmup = round(WARMUP * steps)
    state = _State(trained, watch)
    start, record = follow.checkpoints.restore(state, optimizer) if follow.checkpoints else (0, {})
    if watch:
        watch.losses = list(record.get("held_out_losses", []))
    total = torch.tensor(record.get("loss_sum", 0.0), device=next(trained.parameters()).device)
    counted, shown, done = record.get("loss_count", 0), start, start
    mean = float(record.get("loss", math.nan))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved_at = time.monotonic()
    with follow.progress.bar("finetune", steps - start, "steps") as bar:
        for step, chosen in enumerate(order.steps(start, steps), start):
            if watch and watch.losses and watch.is_over:
                break
            set_rates(optimizer, warmup_cosine(step, steps, warmup))
            torch.manual_seed(step_seed(seed, step))  # for dropout
            loss = loss_of(chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_LIMIT)
            optimizer.step()
            total, counted = total + loss.detach(), counted + 1
            done, stopping = step + 1, follow.stop.is_set()
            round_ends = done % per_round == 0 or done == steps
            due = stopping or done == steps or time.monotonic() - saved_at >= CHECKPOINT_SECONDS
            if round_ends or due:
                # Before a state is stored, what led to it is read and found finite.
                mean = _finite_mean(float(total), counted, float(norm), done)
            if round_ends:
                values = {"loss": mean} | ({"held_out_loss": watch.look()} if watch else {})
                follow.tracker.metrics(values, done)
                parts = {name: f"{value:.3f}" for name, value in values.items()}
                bar.advance(
                    done - shown, epoch=f"{-(-done // order.per_epoch)}/{-(-steps // order.per_epoch)}", **parts
                )
                total, counted, shown = torch.zeros_like(total), 0, done
                due = due or bool(watch and watch.is_over)
            if follow.checkpoints and due:
                kept = {"loss_sum": float(total), "loss_count": counted, "loss": mean}
                follow.checkpoints.save(
                    done, state, optimizer, kept | ({"held_out_losses": watch.losses} if watch else {})
                )
                saved_at = time.monotonic()
            if stopping and done < steps:
                where = f"go on from step {done} of {steps}" if follow.checkpoints else "fine-tune from the start"
                raise TryAgain(f"stopped; run again to {where}")
    summary: dict[str, Any] = {"steps": done, "loss": mean}
    if watch:
        watch.best.give(trained)
        best = min(watch.best_round * per_round, steps)
        summary |= {
            "best_step": best, "best_epoch": round(best / order.per_epoch, 2), "held_out_losses": watch.losses,
            "stopped_early": done < steps,
        }  # fmt: skip
    return summary


def _finite_mean(loss_sum: float, count: int, gradient_norm: float, step: int) -> float:
    """The mean loss; raises ``CheckFailed`` where it, or the last gradient, is not finite."""
    for what, value in (("loss", loss_sum / count), ("gradient norm", gradient_norm)):
        if not math.isfinite(value):
            raise CheckFailed(
                f"the {what} is not finite ({value}) at step {step}",
                place="task.learning_rate",
                next_step="lower task.learning_rate and task.encoder_learning_rate, or set pretrain.precision: float32",
            )
    return loss_sum / count
