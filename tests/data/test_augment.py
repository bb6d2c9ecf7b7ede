"""Views: what each change does to an image, and what the random draws may depend on."""

import math

import pytest
import torch
from PIL import Image, ImageFilter

from ssl_core.config.objectives import ImageAugmentConfig
from ssl_core.data import augment as module
from ssl_core.data.augment import ImageAugment

OFF = {
    "crop_scale": (1.0, 1.0), "rotate": 0, "translate": 0, "shear": 0, "flip": False, "brightness": 0, "contrast": 0,
    "noise": 0, "blur": 0, "cutout": 0,
}  # fmt: skip
EVERYTHING = ImageAugmentConfig(flip=True, rotate=30, blur=0.7)


def only(**changes):
    return ImageAugment(ImageAugmentConfig.model_validate(OFF | changes))


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def blob():
    """64 grey images of one off-centre blob on black."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    return torch.exp(-((x - 14) ** 2 + (y - 11) ** 2) / 12).expand(64, 1, 24, 24).contiguous()


def centroid(images):
    """(x, y) of the mass of each image, pixels from the centre."""
    size = images.shape[-1]
    axis = torch.arange(size) - (size - 1) / 2
    mass = images.sum((1, 2, 3))
    return (images.sum((1, 2)) * axis).sum(1) / mass, (images.sum((1, 3)) * axis).sum(1) / mass


# ---- what draws depend on


def test_everything_off_returns_the_image(images):
    torch.testing.assert_close(only()(images, 1, 2, 0), images.float() / 255, atol=1e-5, rtol=0)


def test_equal_arguments_give_equal_bits_and_each_number_matters(images):
    augment = ImageAugment(EVERYTHING)
    view = augment(images, 1, 2, 0)
    assert torch.equal(view, augment(images, 1, 2, 0))
    for seed, step, number in ((2, 2, 0), (1, 3, 0), (1, 2, 1), (2, 1, 0)):
        assert (augment(images, seed, step, number) - view).abs().mean() > 0.01


def test_neither_torchs_generator_nor_the_input_is_touched(images):
    before, state = images.clone(), torch.random.get_rng_state()
    ImageAugment(EVERYTHING)(images, 1, 2, 0)
    floats = images.float() / 255
    kept = floats.clone()
    ImageAugment(EVERYTHING)(floats, 1, 2, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images, before)
    assert torch.equal(floats, kept)


def test_a_part_of_the_batch_gets_the_same_bits_as_in_the_whole(images):
    augment, positions = ImageAugment(EVERYTHING), torch.arange(64)
    whole = augment(images, 1, 2, 0, positions)
    assert torch.equal(whole, augment(images, 1, 2, 0))
    for part in (slice(0, 7), slice(7, 64), slice(63, 64), slice(0, 64, 2)):
        assert torch.equal(augment(images[part], 1, 2, 0, positions[part]), whole[part])


def test_permuting_samples_with_their_positions_permutes_the_views(images):
    augment, order = ImageAugment(EVERYTHING), torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(images[order], 1, 2, 0, order), augment(images, 1, 2, 0)[order])


def test_the_thread_count_changes_no_bit(images):
    many, augment, threads = images.repeat(40, 1, 1, 1), ImageAugment(EVERYTHING), torch.get_num_threads()
    views = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            views.append(augment(many, 1, 2, 0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*views)


def test_bytes_and_floats_of_the_same_image_get_the_same_view(images):
    augment = ImageAugment(EVERYTHING)
    assert torch.equal(augment(images, 1, 2, 0), augment(images.float() / 255, 1, 2, 0))


def test_draws_are_uniform_and_independent():
    n = 20_000
    columns = []
    for seed, step, view in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        key = module._key(seed, step, view)
        hashes = module._mix(torch.arange(n, dtype=torch.int32) * module._signed(0x9E3779B1) + module._signed(key))
        counters = torch.arange(module._DRAWS, dtype=torch.int32)
        columns.append(module._uniform(module._combine(hashes[:, None], counters, key >> 32)))
    u = torch.cat(columns, dim=1).double()
    assert u.min() >= 0
    assert u.max() < 1
    histogram = torch.stack([torch.histc(column, 10, 0, 1) for column in u.T])
    # Chi-squared with 9 degrees of freedom: 40 is beyond the 99.999th percentile, here over 64 columns.
    assert ((histogram - n / 10) ** 2 / (n / 10)).sum(1).max() < 40
    correlation = torch.corrcoef(u.T) - torch.eye(u.shape[1])
    assert correlation.abs().max() < 6 / math.sqrt(n)
    neighbours = torch.stack([torch.corrcoef(torch.stack((c[1:], c[:-1])))[0, 1] for c in u.T])
    assert neighbours.abs().max() < 6 / math.sqrt(n)


# ---- what each change does


def test_full_size_rotation_turns_the_blob_by_at_most_the_angle(blob):
    x0, y0 = (c[0] for c in centroid(blob))
    x, y = centroid(only(rotate=40)(blob, 0, 0, 0))
    turned = torch.rad2deg(torch.atan2(y, x) - torch.atan2(y0, x0))
    assert turned.abs().max() <= 40.5
    assert turned.max() > 30
    assert turned.min() < -30
    torch.testing.assert_close(torch.hypot(x, y), torch.hypot(x0, y0).expand(64), atol=0.15, rtol=0)


def test_shift_stays_within_its_share_of_the_side(blob):
    x0, y0 = (c[0] for c in centroid(blob))
    for moved in (c - c0 for c, c0 in zip(centroid(only(translate=0.1)(blob, 0, 0, 0)), (x0, y0), strict=True)):
        assert moved.abs().max() <= 0.1 * 24 + 0.05
        assert moved.max() > 1.5
        assert moved.min() < -1.5


def test_crop_enlarges_by_the_root_of_its_area(blob):
    """The mass of a blob that stays inside grows by 1 / share."""
    centred = blob.roll((-3, 0), dims=(3, 2))
    growth = only(crop_scale=(0.5, 0.5))(centred, 0, 0, 0).sum((1, 2, 3)) / centred.sum((1, 2, 3))
    torch.testing.assert_close(growth.median(), torch.tensor(2.0), atol=0.1, rtol=0)


def test_crop_shows_only_what_lies_inside_the_image():
    """A ramp stays a ramp, less steep; anything from outside would break it (but for half a pixel at the edge)."""
    ramp = torch.linspace(0.1, 0.9, 16).expand(64, 1, 16, 16).contiguous()
    slope = only(crop_scale=(0.1, 0.9))(ramp, 0, 0, 0)[:, :, 1:-1, 1:-1].diff(dim=3)
    assert slope.diff(dim=3).abs().max() < 1e-4
    share = (slope.mean((1, 2, 3)) * 15 / 0.8) ** 2
    assert 0.09 < share.min() < 0.2
    assert 0.8 < share.max() < 0.91


def test_flip_mirrors_about_half_of_the_samples(images):
    flipped = only(flip=True)(images, 0, 0, 0)
    source = images.float() / 255
    same = (flipped - source).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (flipped - source.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (same | mirrored).all()
    assert 20 < int(mirrored.sum()) < 44


def test_shear_slants_a_vertical_line(blob):
    line = torch.zeros(64, 1, 25, 25)
    line[:, :, 3:22, 12] = 1
    sheared = only(shear=30)(line, 0, 0, 0)
    columns = (sheared[:, 0] * torch.arange(25.0)).sum(2) / sheared[:, 0].sum(2).clamp_min(1e-6)
    slope = torch.rad2deg(torch.atan((columns[:, 18] - columns[:, 6]) / 12))
    assert slope.abs().max() <= 31
    assert slope.max() > 20
    assert slope.min() < -20


def test_brightness_scales_and_contrast_stretches_around_the_mean():
    image = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    brighter = only(brightness=0.3)(image, 0, 0, 0)
    gain = brighter.mean((1, 2, 3)) / image.mean((1, 2, 3))
    torch.testing.assert_close(brighter, image * gain[:, None, None, None], atol=1e-5, rtol=0)
    assert 0.69 < gain.min() < 0.8
    assert 1.2 < gain.max() < 1.31
    stretched = only(contrast=0.4)(image, 0, 0, 0)
    torch.testing.assert_close(stretched.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-5, rtol=0)
    ratio = stretched.std((1, 2, 3)) / image.std((1, 2, 3))
    assert 0.59 < ratio.min() < 0.75
    assert 1.25 < ratio.max() < 1.41


def test_noise_is_normal_with_a_spread_of_each_samples_own():
    grey = torch.full((64, 1, 48, 48), 0.5)
    noise = only(noise=0.1)(grey, 0, 0, 0) - 0.5
    spread = noise.std((1, 2, 3))
    assert 0.09 < spread.max() <= 0.105
    assert spread.min() < 0.01
    loud = noise[spread > 0.03].flatten(1)
    scaled = loud / loud.std(1, keepdim=True)
    assert scaled.mean().abs() < 0.01
    assert abs((scaled**4).mean().item() - 3) < 0.1  # the kurtosis of a normal distribution
    assert abs((scaled.abs() < 1).double().mean().item() - 0.6827) < 0.01
    assert (scaled[0] * scaled[1]).mean().abs() < 0.08


def test_blur_is_pillows_gaussian_in_the_middle_and_keeps_constants():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 1, 56, 56), generator=generator, dtype=torch.uint8)
    many = image.repeat(64, 1, 1, 1)
    blurred = only(blur=1.0)(many, 0, 0, 0)
    constant = torch.full((4, 3, 20, 20), 77, dtype=torch.uint8)
    torch.testing.assert_close(only(blur=1.0)(constant, 0, 0, 0), constant.float() / 255, atol=1e-6, rtol=0)
    spread = blurred.std((1, 2, 3))
    sample = int(spread.argmin())  # the largest sigma, close to 2
    picture = Image.fromarray(image[0, 0].numpy())
    distance = []
    for sigma in (0.5, 1.0, 1.9, 3.0):
        expected = torch.tensor(list(picture.filter(ImageFilter.GaussianBlur(sigma)).getdata())).view(56, 56) / 255
        distance.append((blurred[sample, 0] - expected)[8:-8, 8:-8].abs().mean().item())
    assert distance[2] == min(distance)
    assert distance[2] < 0.02


def test_blur_happens_with_its_probability(images):
    changed = (only(blur=0.5)(images, 0, 0, 0) - images.float() / 255).abs().amax((1, 2, 3)) > 1e-3
    assert 16 < int(changed.sum()) < 48


def test_cutout_covers_one_square_with_the_border_colour():
    images = torch.rand(64, 1, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5
    images[:, :, 0] = images[:, :, -1] = images[:, :, :, 0] = images[:, :, :, -1] = 0.25
    covered = only(cutout=0.5)(images, 0, 0, 0)
    inner = covered[:, 0, 1:-1, 1:-1]
    hidden = (inner - 0.25).abs() < 1e-5
    torch.testing.assert_close(inner[~hidden], images[:, 0, 1:-1, 1:-1][~hidden], atol=1e-5, rtol=0)
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    torch.testing.assert_close(hidden.sum((1, 2)), rows * columns)  # one rectangle
    assert max(int(rows.max()), int(columns.max())) <= 11
    assert int(rows.max()) >= 7


def test_what_comes_in_from_outside_is_the_border_colour_not_black():
    white = torch.full((32, 1, 16, 16), 255, dtype=torch.uint8)
    white[:, :, 6:10, 6:10] = 0
    shifted = only(translate=0.4, rotate=45)(white, 0, 0, 0)
    assert (shifted < 0.9).flatten(1).sum(1).max() <= 36  # the centre of 16 pixels and its soft edge


def test_views_stay_in_range_and_finite_for_any_shape():
    for shape in ((3, 1, 8, 8), (1, 3, 9, 17), (2, 3, 96, 96)):
        view = ImageAugment(EVERYTHING)(torch.randint(0, 256, shape, dtype=torch.uint8), 0, 0, 0)
        assert view.shape == shape
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1
