"""The checkpoint files of a training loop: what is needed to go on at exactly the next step.

``state.pt`` holds tensors only and is read with ``weights_only=True``: nothing is unpickled. ``loop.json`` holds the
rest. The order of batches, the augmentation and the learning rate follow from the step number, so no random state and
no scheduler has to be kept.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_core.store import Checkpoints, storage_errors


@dataclass(frozen=True)
class CheckpointFiles:
    """Saves and restores a loop in the step's ``checkpoints``; ``digest`` names the configuration and the data."""

    checkpoints: Checkpoints
    scratch: Callable[[], AbstractContextManager[Path]]
    """Gives an empty folder on the store's own disk."""
    digest: str
    note: Callable[[str], None]

    def save(self, step: int, trained: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None:
        """Stores the state after ``step`` steps; an older checkpoint stays until this one is sealed."""
        buffer = io.BytesIO()
        torch.save({"trained": trained.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
        document = {"step": step, "digest": self.digest, **record}
        with self.scratch() as scratch:
            folder = scratch / "checkpoint"
            with storage_errors(str(scratch)):
                folder.mkdir()
                (folder / "state.pt").write_bytes(buffer.getbuffer())
                (folder / "loop.json").write_text(json.dumps(document))
            self.checkpoints.save(step, folder)

    def restore(self, trained: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
        """Loads the newest whole checkpoint into both; returns ``(steps done, record)``, ``(0, {})`` where there is none."""
        found = self.checkpoints.newest()
        document = _record(found)
        if found is None or document["digest"] != self.digest:
            if found is not None:
                self.note(f"the checkpoint at step {found[0]} is of another configuration; starting from step 0")
            # What cannot be used must not outlast the new ones: only the highest positions are kept.
            self.checkpoints.clear()
            return 0, {}
        step, folder = found
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        self.note(f"going on from the checkpoint at step {step}")
        return step, document


def newest_record(checkpoints: Checkpoints) -> dict[str, Any]:
    """What the newest whole checkpoint says beside its tensors, for what is decided before a loop; empty where there is none."""
    return _record(checkpoints.newest())


def _record(found: tuple[int, Path] | None) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((found[1] / "loop.json").read_text()) if found else {}
    return document
