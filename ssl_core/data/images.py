"""From encoded bytes to pixels: which files are images that can be used, and what they measure.

Every mode ends as 8-bit grey (``L``) or colour (``RGB``), upright. A sample's identity is a digest of these pixels, so the
same picture saved as PNG and as BMP is one sample. Nothing is decoded before the size in the header was judged.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from ssl_core.data.bad_sample import BadSample

Image.MAX_IMAGE_PIXELS = (
    None  # `max_pixels` is judged here, from the header; Pillow's own limit would warn below and raise above it
)

# Samples and requests come from anyone: only formats that Pillow or its bundled libraries decode in this process. EPS would
# start Ghostscript, and the rest are rarely photographs and seldom tested.
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "PPM", "ICO", "TGA")

_LARGE_PIXELS = 4_000_000
_LARGE = threading.Lock()  # one large image at a time, so that memory does not grow with the number of threads
_RESAMPLING = Image.Resampling.BOX


class BadImage(BadSample):
    """A file that cannot be used as an image; the message is the reason, for the quarantine list."""


@dataclass(frozen=True)
class ImageInfo:
    """One decoded image and what the manifest keeps of it."""

    sample_id: str
    """SHA-256 of mode, size and pixels after normalisation, hexadecimal."""
    image: Image.Image
    """Mode L or RGB, 8 bits, upright."""
    width: int
    height: int
    channels: int
    """1 grey, 3 colour: what the pixels hold, not what the file's mode could hold."""
    brightness: float
    """Mean of the grey levels, 0 to 1."""
    contrast: float
    """Standard deviation of the grey levels, 0 to 0.5."""


def open_header(data: bytes, *, max_pixels: int, min_side: int) -> Image.Image:
    """The image behind ``data`` with only its header read.

    Raises ``BadImage`` for no image at all, more than ``max_pixels`` pixels, or a side shorter than ``min_side``.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise BadImage(f"the header is damaged: {_reason(error)}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} is more than data.max_pixels ({max_pixels}) pixels")
    if min(width, height) < min_side:
        raise BadImage(f"{width} x {height}: a side is shorter than data.min_side ({min_side})")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow was built with; to name another would be an error."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode(data: bytes, *, max_pixels: int, min_side: int) -> ImageInfo:
    """Decodes, turns upright, brings to 8-bit L or RGB, and measures. Raises ``BadImage`` with the reason."""
    image = open_header(data, max_pixels=max_pixels, min_side=min_side)
    with _LARGE if image.width * image.height > _LARGE_PIXELS else nullcontext():
        try:
            image = normalise(image)
        except BadImage:
            raise
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise BadImage(f"the image is damaged: {_reason(error)}") from error
        pixels = image.tobytes()
        sample_id = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode() + pixels).hexdigest()
        brightness, contrast = _grey_statistics(image)
    return ImageInfo(
        sample_id=sample_id,
        image=image,
        width=image.width,
        height=image.height,
        channels=len(image.getbands()),
        brightness=brightness,
        contrast=contrast,
    )


def normalise(image: Image.Image) -> Image.Image:
    """Brings any mode to 8-bit ``L`` or ``RGB``: first frame, EXIF orientation applied, transparency over white.

    Integer greys of more than 8 bits are scaled from the full 16-bit range, floats from 0..1, or from 0..255 where larger.
    """
    image.load()
    upright = ImageOps.exif_transpose(image)
    image = upright if upright is not None else image
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _deep_grey(image)
    if mode == "L" and "transparency" not in image.info:
        return image
    if mode == "1":
        return image.convert("L")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _collapse_grey(_over_white(image))
    return _collapse_grey(image.convert("RGB"))


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """``(C, H, W)`` uint8 of side ``size``; the aspect ratio is kept, the border filled with the edge's mean colour.

    An image of the asked size passes untouched. Shrinking averages areas, enlarging interpolates.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = _fit(image, size)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def thumbnail(image: Image.Image, side: int) -> np.ndarray:
    """``(3, side, side)`` uint8 for comparing images; the aspect ratio is given up."""
    shrinks = image.width >= side and image.height >= side
    small = image.resize((side, side), _RESAMPLING if shrinks else Image.Resampling.BILINEAR).convert("RGB")
    return np.ascontiguousarray(np.asarray(small, dtype=np.uint8).transpose(2, 0, 1))


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise BadImage("holds values that are not finite")
    largest = values.max(initial=0)
    full_scale = 65_535 if image.mode != "F" else 1 if largest <= 1 else 255
    if largest > full_scale:
        raise BadImage(f"holds grey levels up to {largest:g}; what is white cannot be told above {full_scale}")
    if image.mode == "F":
        return Image.fromarray(np.rint(values.clip(0) * np.float32(255 / full_scale)).astype(np.uint8))
    table = np.rint(np.arange(65_536) / 257).astype(
        np.uint8
    )  # a table, because large images in floats would fill the memory
    return Image.fromarray(table[values.clip(0)])


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _collapse_grey(image: Image.Image) -> Image.Image:
    """Colour whose three channels agree everywhere is grey: a scan saved as RGB is the same sample as its L twin."""
    red, green, blue = image.split()
    same = all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
    return red if same else image


def _grey_statistics(image: Image.Image) -> tuple[float, float]:
    histogram = np.asarray(image.convert("L").histogram(), dtype=np.float64)
    levels = np.arange(256) / 255.0
    total = histogram.sum()
    mean = float((histogram * levels).sum() / total)
    variance = float((histogram * (levels - mean) ** 2).sum() / total)
    return mean, variance**0.5


def _fit(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    filter_ = _RESAMPLING if scale < 1 else Image.Resampling.BILINEAR
    resized = image.resize((width, height), filter_)
    if (width, height) == (size, size):
        return resized
    canvas = Image.new(image.mode, (size, size), _border_colour(resized))
    canvas.paste(resized, ((size - width) // 2, (size - height) // 2))
    return canvas


def _border_colour(image: Image.Image) -> int | tuple[int, ...]:
    array = np.asarray(image)
    edge = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
    mean = np.rint(edge.reshape(len(edge), -1).mean(axis=0)).astype(int)
    return int(mean[0]) if len(mean) == 1 else tuple(int(value) for value in mean)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
