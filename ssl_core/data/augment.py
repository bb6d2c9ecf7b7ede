"""Random views of whole batches of images, computed on the device the batch is on.

Per-sample draws come from a counter-based hash of (seed, step, view, global position): no generator state, hence the
same view of the same sample whatever the batch it travels in, the rank, the device's thread count or the order. All
shapes are static and no value is read back, so a GPU is never waited for.

Shapes: N images, C channels, H x W pixels. Everything between the hash and the result is element-wise or per sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.config.objectives import ImageAugmentConfig

# One column of uniform draws per parameter of a view.
_CROP, _X, _Y, _ROTATE, _SHIFT_X, _SHIFT_Y, _SHEAR, _FLIP = range(8)
_BRIGHTNESS, _CONTRAST, _NOISE, _BLUR, _SIGMA, _CUT, _CUT_X, _CUT_Y = range(8, 16)
_DRAWS = 16

# Sigma in pixels. SimCLR blurs 224-pixel images with 0.1 to 2; below 0.3 nothing changes, and small images get less.
_SIGMA_MIN = 0.3
_SIGMA_MAX = 2.0
_SIGMA_SHARE = 1 / 28


class ImageAugment:
    """Crop, rotation, shear, shift and flip as one resampling; then contrast, brightness, blur, noise and cut-out."""

    def __init__(self, config: ImageAugmentConfig) -> None:
        self.config = config

    def __call__(self, images: Tensor, seed: int, step: int, view: int, positions: Tensor | None = None) -> Tensor:
        """One random view of each image: uint8 (or float in 0..1) ``(N, C, H, W)`` to float32 in 0..1, same shape.

        ``positions`` are the samples' places in the global batch of this step, int64 ``(N,)``; default 0..N-1.
        """
        if positions is None:
            positions = torch.arange(len(images), device=images.device)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        key = _key(seed, step, view)
        hash_N = _mix(positions.to(images.device, torch.int32) * _signed(0x9E3779B1) + _signed(key))
        u_NP = _uniform(
            _combine(hash_N[:, None], torch.arange(_DRAWS, device=images.device, dtype=torch.int32), key >> 32)
        )

        # What comes in from outside the picture, and what cut-out leaves, is the picture's own border colour. Resampling
        # pads with zero, so the border colour is the zero of everything up to the end.
        background = _background(images)
        x = self._resample(images - background, u_NP) + background
        x = self._recolour(x, u_NP)
        x = self._blur(x, u_NP)
        x = self._add_noise(x, hash_N, u_NP, key >> 32)
        x = self._cut_out(x, background, u_NP)
        return x.clamp_(0, 1)

    def _resample(self, images: Tensor, u_NP: Tensor) -> Tensor:
        """``x_in = A x_out + t`` in coordinates of -1..1: A = rotation . shear . flip . scale."""
        c = self.config
        smallest, largest = c.crop_scale
        scale = (smallest + (largest - smallest) * u_NP[:, _CROP]).sqrt()
        angle = _both_sides(u_NP[:, _ROTATE]) * math.radians(c.rotate)
        shear = (_both_sides(u_NP[:, _SHEAR]) * math.radians(c.shear)).tan()
        flip = 1.0 - 2.0 * (u_NP[:, _FLIP] < 0.5).float() if c.flip else torch.ones_like(scale)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        a_xx, a_xy = cos * flip, cos * shear - sin
        a_yx, a_yy = sin * flip, sin * shear + cos
        # The crop lies anywhere inside the picture; the shift may push it over the edge.
        t_x = _both_sides(u_NP[:, _X]) * (1 - scale) + _both_sides(u_NP[:, _SHIFT_X]) * 2 * c.translate
        t_y = _both_sides(u_NP[:, _Y]) * (1 - scale) + _both_sides(u_NP[:, _SHIFT_Y]) * 2 * c.translate

        height, width = images.shape[2:]
        x = _pixel_centres(width, images).view(1, 1, width)
        y = _pixel_centres(height, images).view(1, height, 1)
        grid_x = a_xx[:, None, None] * x + a_xy[:, None, None] * y + t_x[:, None, None]
        grid_y = a_yx[:, None, None] * x + a_yy[:, None, None] * y + t_y[:, None, None]
        grid = torch.stack((grid_x, grid_y), dim=-1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _recolour(self, x: Tensor, u_NP: Tensor) -> Tensor:
        """``brightness * (mean + contrast * (x - mean))``, mean over the view's pixels."""
        c = self.config
        if not (c.brightness or c.contrast):
            return x
        contrast = (1 + c.contrast * _both_sides(u_NP[:, _CONTRAST]))[:, None, None, None]
        brightness = (1 + c.brightness * _both_sides(u_NP[:, _BRIGHTNESS]))[:, None, None, None]
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return x * (brightness * contrast) + mean * (brightness * (1 - contrast))

    def _blur(self, x: Tensor, u_NP: Tensor) -> Tensor:
        """Separable Gaussian with a sigma of each sample's own; samples that are not blurred get sigma 0."""
        c = self.config
        if not c.blur:
            return x
        sigma_max = min(_SIGMA_MAX, max(min(x.shape[2:]) * _SIGMA_SHARE, 0.5))
        radius = math.ceil(2 * sigma_max)
        sigma = _SIGMA_MIN + (sigma_max - _SIGMA_MIN) * u_NP[:, _SIGMA]
        offsets = torch.arange(1, radius + 1, device=x.device)
        side_NR = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2) * (u_NP[:, _BLUR] < c.blur)[:, None]
        side_NR = side_NR / (1 + 2 * side_NR.sum(dim=1, keepdim=True))
        weight_RN = side_NR.T.reshape(radius, -1, 1, 1, 1)
        for axis in (2, 3):
            pad = [0, 0, radius, radius] if axis == 2 else [radius, radius, 0, 0]
            padded, size = F.pad(x, pad, mode="replicate"), x.shape[axis]
            # centre + sum_r w_r (left_r + right_r - 2 centre): the weights add up to one.
            for r in range(1, radius + 1):
                neighbours = padded.narrow(axis, radius - r, size) + padded.narrow(axis, radius + r, size)
                x = x + weight_RN[r - 1] * (neighbours - 2 * padded.narrow(axis, radius, size))
        return x

    def _add_noise(self, x: Tensor, hash_N: Tensor, u_NP: Tensor, key: int) -> Tensor:
        """Gaussian noise by Box and Muller, 1958: two normal numbers from the two halves of one hash."""
        c = self.config
        if not c.noise:
            return x
        n, numel = len(x), x[0].numel()
        half = (numel + 1) // 2
        counter = torch.arange(_DRAWS, _DRAWS + half, device=x.device, dtype=torch.int32)
        bits = _combine(hash_N[:, None], counter, key)
        radius = (((bits & 0xFFFF).float() + 1) / 65536).log_().mul_(-2).sqrt_()
        turn = ((bits >> 16) & 0xFFFF).float() * (2 * math.pi / 65536)
        radius *= c.noise * u_NP[:, _NOISE : _NOISE + 1]
        noise = torch.cat((radius * turn.cos(), radius * turn.sin()), dim=1)[:, :numel]
        return x + noise.view(n, *x.shape[1:])

    def _cut_out(self, x: Tensor, background: Tensor, u_NP: Tensor) -> Tensor:
        """Cover one square (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552) with the border colour."""
        c = self.config
        if not c.cutout:
            return x
        half = (c.cutout * u_NP[:, _CUT])[:, None]  # half a side, where a picture's side is 2
        inside_x = (_pixel_centres(x.shape[3], x) - _both_sides(u_NP[:, _CUT_X : _CUT_X + 1])).abs() < half
        inside_y = (_pixel_centres(x.shape[2], x) - _both_sides(u_NP[:, _CUT_Y : _CUT_Y + 1])).abs() < half
        return torch.where((inside_y[:, :, None] & inside_x[:, None, :])[:, None], background, x)


def _background(images: Tensor) -> Tensor:
    """Median of each sample's border pixels, per channel ``(N, C, 1, 1)``."""
    border = torch.cat((images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]), dim=2)
    return border.median(dim=2).values[:, :, None, None]


def _pixel_centres(size: int, like: Tensor) -> Tensor:
    """Where ``size`` pixels lie between -1 and 1."""
    return (torch.arange(size, device=like.device, dtype=like.dtype) * 2 + 1) / size - 1


def _both_sides(u: Tensor) -> Tensor:
    return u * 2 - 1


# --- Draws: 32-bit integer arithmetic that wraps, the same on every device ------------------------------------------


def _key(seed: int, step: int, view: int) -> int:
    """64 bits that name one view of one step: SplitMix64 (Steele et al. 2014) over the three numbers."""
    state = 0
    for number in (seed, step, view):
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def _signed(number: int) -> int:
    """The low 32 bits as a signed integer, which is what int32 tensors take."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser in which every input bit changes every output bit half of the time ("lowbias32", C. Wellons)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _signed(0x7FEB352D)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    return x


def _combine(hash_N1: Tensor, counter_P: Tensor, key: int) -> Tensor:
    """Independent hashes ``(N, P)``: one per sample and counter."""
    return _mix(hash_N1 ^ _mix(counter_P * _signed(0x85EBCA6B) + _signed(key)))


def _uniform(bits: Tensor) -> Tensor:
    """Hashes to float32 in [0, 1), 24 bits each."""
    return ((bits >> 8) & 0xFFFFFF).float() * (1 / (1 << 24))
