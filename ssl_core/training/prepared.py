"""What a modality hands to the ``pretrain`` step: a network, its batches and gauges, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ssl_core.training.batches import Feed
from ssl_core.training.health import Observer
from ssl_core.training.runtime import Runtime


@dataclass(frozen=True)
class Prepared:
    """Everything that the loop runs on."""

    objective: nn.Module
    """Called as ``objective(batch, seed=, step=) -> (loss, metrics)``; holds the encoder and whatever else is trained."""
    batches: Feed
    monitor: Observer
    unit: str
    """What the throughput counts: images, tokens."""
    resolved: dict[str, Any]
    """What was decided for this machine and dataset, as JSON values."""
    save: Callable[[Path], None]
    """Writes the encoder's folder, with its golden batch, into a folder that is not there yet."""
    features: int
    """D, the width of an embedding."""
    network: str
    """What is trained, in a few words."""
    data: str
    """On what, in a few words."""
    mend: str
    """What to change where a run collapses."""
    runtime: Runtime | None = None
    """Where a trial chose another precision than the configuration resolves to."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What was found out on the way, for ``health.json``: which tensors were loaded, how long a trial took, ..."""
