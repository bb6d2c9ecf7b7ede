"""What becomes of every kind of image file, and which are refused."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from ssl_core.data import images
from tests.data.conftest import encode, picture

_LIMITS = {"max_pixels": 1_000_000, "min_side": 4}


def _decode(data: bytes) -> images.ImageInfo:
    return images.decode(data, **_LIMITS)


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(_decode(data).image)


def _bomb(width: int, height: int) -> bytes:
    """A PNG that says it is so large; a few hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_grey_and_colour_keep_their_pixels() -> None:
    grey, colour = picture(1), picture(2, mode="RGB")
    assert np.array_equal(_pixels(encode(grey)), np.asarray(grey))
    assert np.array_equal(_pixels(encode(colour)), np.asarray(colour))
    assert (_decode(encode(grey)).channels, _decode(encode(colour)).channels) == (1, 3)


def test_transparency_is_laid_over_white() -> None:
    values = np.zeros((8, 8, 4), dtype=np.uint8)
    values[..., 0] = 200
    values[:4, :, 3] = 255
    values[4:, :, 3] = 51  # a fifth
    pixels = _pixels(encode(Image.fromarray(values)))
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert np.abs(pixels[7, 7].astype(int) - [244, 204, 204]).max() <= 1


def test_grey_with_alpha_and_transparent_palette_are_laid_over_white() -> None:
    grey_alpha = Image.merge("LA", [Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 0)])
    assert (_pixels(encode(grey_alpha)) == 255).all()
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0, 0, 0] * 3 + [10, 20, 30])
    assert (_pixels(encode(palette)) == [10, 20, 30]).all()
    assert (_pixels(encode(palette, transparency=3)) == 255).all()


def test_one_bit_images_use_the_whole_range() -> None:
    image = Image.new("1", (8, 8), 1)
    image.putpixel((0, 0), 0)
    assert sorted(np.unique(_pixels(encode(image)))) == [0, 255]


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format_: str) -> None:
    values = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    pixels = _pixels(encode(Image.fromarray(values), format_))
    assert np.array_equal(pixels, np.rint(values / 257.0).astype(np.uint8))
    assert len(np.unique(pixels)) == 64


def test_floats_are_scaled_from_their_range() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(_pixels(encode(Image.fromarray(values), "TIFF")), np.rint(values * 255).astype(np.uint8))
    with pytest.raises(images.BadImage, match="grey levels up to 5000"):
        _decode(encode(Image.fromarray(values * 5000), "TIFF"))
    with pytest.raises(images.BadImage, match="not finite"):
        _decode(encode(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF"))


def test_cmyk_becomes_colour() -> None:
    image = picture(3, (16, 16), "RGB").resize((32, 32)).convert("CMYK")
    info = _decode(encode(image, "JPEG", quality=95))
    assert (info.image.mode, info.image.size) == ("RGB", (32, 32))


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_orientation_is_applied(orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(4, (12, 8))
    info = _decode(encode(image, "PNG", exif=exif))
    assert np.array_equal(np.asarray(info.image), np.rot90(np.asarray(image), turn))
    assert info.sample_id == _decode(encode(Image.fromarray(np.rot90(np.asarray(image), turn).copy()))).sample_id


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    assert (_pixels(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == 10).all()


def test_identity_is_that_of_the_pixels_not_of_the_file() -> None:
    image = picture(5)
    same = [encode(image), encode(image, "PNG", compress_level=0), encode(image, "BMP"), encode(image.convert("RGB"))]
    assert len({_decode(data).sample_id for data in same}) == 1
    other = picture(5)
    other.putpixel((3, 3), 255 - other.getpixel((3, 3)))
    assert _decode(encode(other)).sample_id != _decode(same[0]).sample_id
    # The same bytes in another shape are another picture.
    flat = Image.frombytes("L", (32, 8), image.tobytes())
    assert _decode(encode(flat)).sample_id != _decode(same[0]).sample_id


def test_measures() -> None:
    values = np.zeros((10, 20), dtype=np.uint8)
    values[:, :10] = 255
    info = _decode(encode(Image.fromarray(values)))
    assert (info.width, info.height, info.brightness, info.contrast) == (20, 10, pytest.approx(0.5), pytest.approx(0.5))
    rgb = picture(6, mode="RGB")
    grey = np.asarray(rgb.convert("L")) / 255
    info = _decode(encode(rgb))
    assert (info.brightness, info.contrast) == (pytest.approx(grey.mean()), pytest.approx(grey.std()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a note, not a picture", "not an image"),
        (encode(picture(7, (64, 64)))[:1500], "damaged"),
        (_bomb(20_000, 20_000), "20000 x 20000 is more than data.max_pixels"),
        (_bomb(100, 100), "damaged"),
        (encode(picture(8, (1, 1))), "1 x 1: a side is shorter than data.min_side"),
        (encode(picture(8, (100, 3))), "100 x 3: a side is shorter"),
    ],
    ids=["empty", "text", "truncated", "bomb", "no-data", "1x1", "thin"],
)
def test_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(images.BadImage, match=reason):
        _decode(data)


def test_only_formats_that_start_no_other_program_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    postscript = encode(picture(14, mode="RGB"), "EPS")
    assert Image.open(io.BytesIO(postscript)).format == "EPS"  # Pillow itself would hand it to Ghostscript
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started a program"))
    for data in (postscript, encode(picture(15), "PCX"), encode(picture(15), "SGI")):
        with pytest.raises(images.BadImage, match="not an image of a known format"):
            _decode(data)


@pytest.mark.parametrize("format_", images.FORMATS)
def test_every_named_format_is_opened(format_: str) -> None:
    assert _decode(encode(picture(16, mode="RGB"), format_)).image.size == (16, 16)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "normalise", lambda image: pytest.fail("decoded"))
    with pytest.raises(images.BadImage, match="max_pixels"):
        _decode(_bomb(20_000, 20_000))


def test_bytes_from_a_fuzzer_never_raise_anything_else() -> None:
    whole = bytearray(encode(picture(9, (32, 32), "RGB")))
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        for place in random.integers(0, len(broken), 4):
            broken[place] = random.integers(0, 256)
        try:
            _decode(bytes(broken))
        except images.BadImage:
            refused += 1
    assert refused > 200


def test_to_array_leaves_an_image_of_the_asked_size_alone() -> None:
    image = picture(10, (16, 16), "RGB")
    array = images.to_array(image, 16, 3)
    assert (array.shape, array.dtype) == ((3, 16, 16), np.uint8)
    assert np.array_equal(array.transpose(1, 2, 0), np.asarray(image))
    assert np.array_equal(images.to_array(picture(11), 16, 1)[0], np.asarray(picture(11)))


def test_to_array_keeps_the_aspect_ratio_and_pads_with_the_border() -> None:
    image = Image.new("L", (40, 20), 90)
    assert (images.to_array(image, 16, 1) == 90).all()
    image.paste(200, (10, 5, 30, 15))  # a 2:1 box stays a 2:1 box
    bright = images.to_array(image, 16, 1)[0] > 145
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert (len(rows), len(columns)) == (4, 8)
    assert rows.mean() == columns.mean() == 7.5


def test_shrinking_averages() -> None:
    checker = Image.fromarray(((np.indices((32, 32)).sum(0) % 2) * 255).astype(np.uint8))
    assert np.abs(images.to_array(checker, 8, 1).astype(int) - 127.5).max() <= 1


def test_grey_and_colour_are_brought_to_the_asked_channels() -> None:
    assert images.to_array(picture(12), 16, 3).shape == (3, 16, 16)
    assert images.to_array(picture(13, mode="RGB"), 8, 1).shape == (1, 8, 8)
