"""Is the encoder learning? Label-free gauges while it is pretrained, and the alarm that stops a run that is not.

Legend: N samples, D features; rows of ``(N, D)`` are one sample each.

The gauges only look: fixed samples, eval mode, no gradient, no random number that training could miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ssl_core.models.embed import embed
from ssl_core.models.encoder import Preprocessing
from ssl_core.models.probes import knn_scores
from ssl_core.models.resnet import ResNet

SPREAD_FLOOR = 0.01
"""Below this, features point the same way for every image (1 is isotropic; a random ResNet is at 0.03 to 0.3)."""
RANK_FLOOR = 1.2
"""Below this effective rank, one direction holds nearly everything."""
CHANCE_SHARE = 0.99
"""A loss above this share of log(2N - 1) tells two views of an image from the others no better than chance."""
CHANCE_PATIENCE = 50
"""Steps before the loss is held against chance: on few, hard images the first steps lie above it."""
GAUGES_A_RUN = 6
GAUGE_SAMPLES = 512
"""Training images a gauge looks at; the kNN observer takes at most as many labelled ones, and as many of val."""


class Unhealthy(Exception):
    """Training must stop; the message says why, in words."""


@dataclass(frozen=True)
class Gauge:
    """One look at the encoder after ``step`` steps."""

    step: int
    loss: float
    """Mean since the look before."""
    chance_loss: float
    spread: float
    effective_rank: float
    alignment: float | None = None
    uniformity: float | None = None
    knn_accuracy: float | None = None
    """On labelled val samples, from labelled train samples; None without labels."""
    val_loss: float | None = None
    masked_accuracy: float | None = None
    """Hidden tokens of val texts that are guessed right; to be read beside the next."""
    unigram_accuracy: float | None = None
    """What always guessing the most frequent token would get."""

    def metrics(self) -> dict[str, float]:
        """What the tracker shows, one curve each."""
        values = {name: value for name, value in asdict(self).items() if name != "step" and value is not None}
        return {f"health/{name}": float(value) for name, value in values.items()}


def spread(features: np.ndarray) -> float:
    """``sqrt(D) * mean over features of std over samples``, of unit-length rows: 0 collapsed, 1 isotropic.

    Chen and He 2021, "Exploring Simple Siamese Representation Learning" (https://arxiv.org/abs/2011.10566), section 4.1.
    """
    unit = _unit(features)
    return float(unit.std(axis=0).mean() * math.sqrt(unit.shape[1]))


def effective_rank(features: np.ndarray) -> float:
    """RankMe: ``exp(entropy(p))``, p the singular values of ``(N, D)`` divided by their sum; 1 to min(N, D).

    Garrido et al. 2023, "RankMe" (https://arxiv.org/abs/2210.02885), equation 1. Features of all zeros have rank 1.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    if values.sum() == 0:
        return 1.0
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share + 1e-12)).sum()))


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """``mean ||x - y||^2`` of unit-length features of two views of the same images: 0 where views look alike.

    Wang and Isola 2020 (https://arxiv.org/abs/2005.10242), section 4.1, alpha = 2. Read with uniformity: a collapsed
    encoder aligns perfectly.
    """
    return float(((_unit(first) - _unit(second)) ** 2).sum(axis=1).mean())


def uniformity(features: np.ndarray) -> float:
    """``log mean exp(-2 ||x - y||^2)`` over pairs of unit-length features: 0 collapsed, lower is more even.

    Wang and Isola 2020 (https://arxiv.org/abs/2005.10242), section 4.1, t = 2.
    """
    unit = _unit(features)
    upper = np.triu_indices(len(unit), k=1)
    squared = np.maximum(2 - 2 * (unit @ unit.T)[upper], 0)
    return float(np.log(np.exp(-2 * squared).mean()))


def chance_loss(batch_size: int) -> float:
    """NT-Xent of an encoder that gives every image the same features: ``log(2N - 1)``, N images a batch."""
    return math.log(2 * batch_size - 1)


def diagnose(history: Sequence[Gauge], warmup: int) -> str | None:
    """Why the run must stop, or None: a fault must show at the last two gauges after the warm-up in a row.

    Faults: spread below ``SPREAD_FLOOR``, effective rank below ``RANK_FLOOR``, loss above ``CHANCE_SHARE`` of chance
    once ``CHANCE_PATIENCE`` steps are done.
    """
    last = [gauge for gauge in history if gauge.step > warmup][-2:]
    if len(last) < 2:
        return None
    now = last[-1]
    if all(gauge.spread < SPREAD_FLOOR for gauge in last):
        return f"the encoder collapsed: all samples get nearly the same features (spread {now.spread:.4f}, below {SPREAD_FLOOR})"
    if all(gauge.effective_rank < RANK_FLOOR for gauge in last):
        return f"the encoder collapsed: its features fill {now.effective_rank:.2f} dimensions (effective rank, below {RANK_FLOOR})"
    if all(gauge.step >= CHANCE_PATIENCE and gauge.loss > CHANCE_SHARE * gauge.chance_loss for gauge in last):
        return f"nothing is learned: the loss {now.loss:.3f} is that of chance, {now.chance_loss:.3f}"
    return None


class Observer(Protocol):
    """What the loop needs of a monitor."""

    history: list[Gauge]

    def observe(self, step: int, loss: float, warmup: int) -> Gauge:
        """Looks at the encoder, remembers the gauge, and raises ``Unhealthy`` where the run must stop."""
        ...


@dataclass
class Monitor:
    """Takes the gauges of one run at fixed steps and raises ``Unhealthy`` where ``diagnose`` finds a fault."""

    encoder: ResNet
    preprocessing: Preprocessing
    pixels: np.ndarray
    train: np.ndarray
    """Positions of training images ``(N,)``; ``GAUGE_SAMPLES`` of them, evenly spaced, are looked at."""
    batch_size: int
    views: Callable[[torch.Tensor, int], torch.Tensor]
    """``views(pixels uint8 (N, C, H, W), view) -> normalised images``: view 0 or 1 of the objective, fixed draws."""
    device: str = "cpu"
    precision: str = "float32"
    labelled: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
    """Positions and labels of the labelled train images, then of the labelled val images."""
    history: list[Gauge] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.train = evenly(self.train, GAUGE_SAMPLES)
        if self.labelled is not None:
            train, train_labels, val, val_labels = self.labelled
            some, others = evenly(np.arange(len(train)), GAUGE_SAMPLES), evenly(np.arange(len(val)), GAUGE_SAMPLES)
            self.labelled = (train[some], train_labels[some], val[others], val_labels[others])

    def observe(self, step: int, loss: float, warmup: int) -> Gauge:
        """Looks at the encoder, remembers the gauge, and raises ``Unhealthy`` where the run must stop."""
        was_training = self.encoder.training
        self.encoder.eval()
        # Reading must not move any random state, whatever the encoder or the views draw.
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.device.startswith("cuda") else []):
            try:
                gauge = self._look(step, loss)
            finally:
                self.encoder.train(was_training)
        self.history.append(gauge)
        if reason := diagnose(self.history, warmup):
            raise Unhealthy(reason)
        return gauge

    def _look(self, step: int, loss: float) -> Gauge:
        features = self._embed(self.train)
        if not np.isfinite(features).all():
            raise Unhealthy(f"the encoder's features are not finite after step {step}")
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels[self.train])).to(self.device)
        first, second = (self._encode(self.views(pixels, view)) for view in (0, 1))
        return Gauge(
            step=step,
            loss=loss,
            chance_loss=chance_loss(self.batch_size),
            spread=spread(features),
            effective_rank=effective_rank(features),
            alignment=alignment(first, second),
            uniformity=uniformity(features),
            knn_accuracy=self._knn_accuracy(),
        )

    def _knn_accuracy(self) -> float | None:
        if self.labelled is None:
            return None
        train, train_labels, val, val_labels = self.labelled
        scores = knn_scores(self._embed(train), train_labels, self._embed(val))
        return float((scores.argmax(axis=1) == val_labels).mean())

    def _embed(self, positions: np.ndarray) -> np.ndarray:
        return embed(
            self.encoder, self.preprocessing, self.pixels, positions, device=self.device, precision=self.precision
        )

    def _encode(self, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(self.encoder(images).float().cpu().numpy())


def report(monitor: Observer, measured: dict[str, Any], reason: str | None) -> dict[str, Any]:
    """``health.json``: the last gauge, how fast it went, all gauges, the thresholds, and why the run stopped, if it did."""
    return {
        "schema_version": 1,
        "healthy": reason is None,
        "reason": reason,
        **(asdict(monitor.history[-1]) if monitor.history else {}),
        **measured,
        "thresholds": {
            "spread": SPREAD_FLOOR,
            "effective_rank": RANK_FLOOR,
            "loss_share_of_chance": CHANCE_SHARE,
            "chance_patience": CHANCE_PATIENCE,
        },
        "gauges": [asdict(gauge) for gauge in monitor.history],
    }


def gauge_steps(total: int) -> frozenset[int]:
    """After which steps the gauges are taken: evenly spread, the last step among them."""
    return frozenset(max(1, round(total * k / GAUGES_A_RUN)) for k in range(1, GAUGES_A_RUN + 1))


def evenly(positions: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of ``positions``, evenly spaced: fixed, whatever the seed."""
    if len(positions) <= limit:
        return positions
    return positions[np.linspace(0, len(positions) - 1, limit).astype(np.int64)]


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length one, float64; a row of zeros stays zero."""
    values = features.astype(np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
