"""SimCLR: two views of one image attract, all other views of the batch repel.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", https://arxiv.org/abs/2002.05709.

Shapes: N images, C channels, H x W pixels, D features, P projection width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.config.objectives import SimCLRConfig
from ssl_core.data.augment import ImageAugment
from ssl_core.models.encoder import Preprocessing
from ssl_core.models.heads import ProjectionHead
from ssl_core.models.resnet import ResNet


def nt_xent(z0_NP: Tensor, z1_NP: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy loss (NT-Xent), equation 1 of the paper, mean over all 2N views.

    ``l(i, j) = -log( exp(sim(z_i, z_j) / t) / sum_{k != i} exp(sim(z_i, z_k) / t) )``, sim = cosine similarity, (i, j)
    the two views of one image. Always computed in float32. Identical embeddings give log(2N - 1). Returns a scalar.
    """
    return _nt_xent_and_logits(z0_NP, z1_NP, temperature)[0]


def _nt_xent_and_logits(z0_NP: Tensor, z1_NP: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    if z0_NP.shape != z1_NP.shape or z0_NP.ndim != 2:
        raise ValueError(
            f"two views of equal shape (N, P) are needed, got {tuple(z0_NP.shape)} and {tuple(z1_NP.shape)}"
        )
    n = len(z0_NP)
    with torch.autocast(z0_NP.device.type, enabled=False):
        z = F.normalize(torch.cat((z0_NP, z1_NP)).float(), dim=1)
        logits = z @ z.T / temperature  # (2N, 2N)
        logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), float("-inf"))
        partner = torch.arange(2 * n, device=z.device).roll(n)
        return F.cross_entropy(logits, partner), logits, partner


class SimCLR(nn.Module):
    """Encoder, projection head, augmentation and NT-Xent: ``forward`` takes a batch of stored pixels.

    Departures from the paper, for small images and small machines: AdamW in place of LARS; brightness and contrast in
    place of the full colour jitter, and small rotations, shears and shifts, because the images may be grey; no flip
    unless asked for; the blur's width follows the image's size. ``seed`` sets the projection head's first weights.
    """

    def __init__(
        self,
        encoder: ResNet,
        config: SimCLRConfig,
        preprocessing: Preprocessing,
        *,
        norm: Literal["batch", "group"] = "batch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.preprocessing = preprocessing
        self.augment = ImageAugment(config.augment)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.projection = ProjectionHead(encoder.features, config.projection_hidden, config.projection_dim, norm)

    def forward(
        self, pixels: Tensor, *, seed: int, step: int, positions: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and metrics (detached scalars on the device) of uint8 pixels ``(N, C, H, W)``, N >= 2.

        ``positions`` ``(N,)`` are the samples' places in the global batch of ``step``: all that the views depend on
        beside the seed. Metrics: ``positive_similarity`` (mean cosine of the two views of an image),
        ``negative_similarity`` (mean cosine of views of different images) and ``contrastive_top1`` (how often a view's
        nearest other view is its partner).
        """
        views = [self.augment(pixels, seed, step, view, positions) for view in (0, 1)]
        z_2NP = self.projection(self.encoder(self.preprocessing.normalise(torch.cat(views))))
        z0_NP, z1_NP = z_2NP.chunk(2)
        loss, logits, partner = _nt_xent_and_logits(z0_NP, z1_NP, self.config.temperature)
        with torch.no_grad():
            size = len(logits)
            similarity = logits * self.config.temperature
            positive = similarity.gather(1, partner[:, None]).sum()
            every = similarity.masked_fill(similarity.isneginf(), 0).sum()
            metrics = {
                "positive_similarity": positive / size,
                "negative_similarity": (every - positive) / max(1, size * (size - 2)),
                "contrastive_top1": (logits.argmax(dim=1) == partner).float().mean(),
            }
        return loss, metrics
