import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssl_core.config.encoders import ResNetConfig
from ssl_core.errors import UserError
from ssl_core.models.encoder import (
    EncoderInfo,
    Preprocessing,
    build_encoder,
    load_encoder,
    load_weights,
    measure_preprocessing,
    parameter_count,
    save_encoder,
)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    config = ResNetConfig(widths=(8, 16))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_encoder(config, 1, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_without_a_seed_the_global_generator_is_drawn_from():
    torch.manual_seed(0)
    config = ResNetConfig(widths=(8,))
    assert not torch.equal(build_encoder(config, 1).stem[0].weight, build_encoder(config, 1).stem[0].weight)


def test_parameter_count_of_a_net_counted_by_hand():
    # stem 1*8*9 + norm 16; block: two convolutions 8*8*9, two norms of 16; no shortcut
    assert parameter_count(build_encoder(ResNetConfig(widths=(8,)), 1, seed=0)) == 72 + 16 + 2 * (576 + 16)


def test_saved_and_loaded_encoder_computes_the_same_bits(tmp_path, encoder, info, pixels):
    save_encoder(tmp_path / "encoder", encoder, info)
    loaded, loaded_info = load_encoder(tmp_path / "encoder")
    assert loaded_info == info
    assert not loaded.training
    x = info.preprocessing.apply(torch.from_numpy(pixels))
    assert torch.equal(loaded(x), encoder(x))


def test_equal_encoders_are_saved_as_equal_bytes(tmp_path, encoder, info):
    for name in ("a", "b"):
        save_encoder(tmp_path / name, encoder, info)
    for file in ("encoder.safetensors", "encoder.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def _change(folder, change):
    tensors = load_file(folder / "encoder.safetensors")
    change(tensors)
    save_file(tensors, folder / "encoder.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blocks.1.conv2.weight"), "missing: blocks.1.conv2.weight"),
        (lambda t: t.update({"module.extra": torch.zeros(2)}), "unexpected: module.extra"),
        (lambda t: t.update({"stem.0.weight": torch.zeros(8, 3, 3, 3)}),
         "mismatched: stem.0.weight is float32[8, 3, 3, 3], the architecture has float32[8, 1, 3, 3]"),
        (lambda t: t.update({"stem.0.weight": t["stem.0.weight"].half()}), "mismatched: stem.0.weight is float16"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, encoder, info, change, said):
    save_encoder(tmp_path, encoder, info)
    _change(tmp_path, change)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load_encoder(tmp_path)
    assert str(tmp_path / "encoder.safetensors") in str(error.value)
    fresh = build_encoder(info.config, 1, seed=9)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(fresh, tmp_path / "encoder.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


def test_a_renamed_prefix_does_not_pass_silently_and_the_message_stays_short(tmp_path, encoder, info):
    save_encoder(tmp_path, encoder, info)
    tensors = load_file(tmp_path / "encoder.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=rf"missing: .* and {len(tensors) - 5} more") as error:
        load_encoder(tmp_path)
    assert len(str(error.value)) < 1500


def test_load_weights_says_which_tensors_arrived(tmp_path, encoder, info):
    save_encoder(tmp_path, encoder, info)
    assert load_weights(encoder, tmp_path / "encoder.safetensors") == sorted(encoder.state_dict())


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("encoder.json", None, "no encoder here"),
        ("encoder.json", b"{}", "not a description of an encoder"),
        ("encoder.json", b"not json", "not a description of an encoder"),
        ("encoder.json", b"\xff\xfe", "not a description of an encoder"),
        ("encoder.safetensors", None, "missing"),
        ("encoder.safetensors", b"cut off", "not a readable safetensors file"),
    ],
)
def test_damaged_files_are_a_users_error(tmp_path, encoder, info, file, content, said):
    save_encoder(tmp_path, encoder, info)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_encoder(tmp_path)


def test_a_newer_schema_version_and_a_wrong_width_are_refused(tmp_path, encoder, info):
    save_encoder(tmp_path, encoder, info)
    path = tmp_path / "encoder.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        load_encoder(tmp_path)
    path.write_text(json.dumps(document | {"features": 17}))
    with pytest.raises(UserError, match="17 features"):
        load_encoder(tmp_path)


def test_info_survives_json(info):
    assert EncoderInfo.from_json(info.to_json()) == info


def test_preprocessing_normalises_each_channel():
    preprocessing = Preprocessing("image", 2, 2, mean=(0.5, 0.0), std=(0.5, 0.25))
    pixels = torch.tensor([255, 0], dtype=torch.uint8).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    out = preprocessing.apply(pixels)
    torch.testing.assert_close(out, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 1, 12, 12),
        torch.zeros(1, 3, 12, 12, dtype=torch.uint8),
        torch.zeros(1, 1, 13, 12, dtype=torch.uint8),
        torch.zeros(1, 12, 12, dtype=torch.uint8),
    ],
)
def test_preprocessing_refuses_what_it_was_not_made_for(info, pixels):
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        info.preprocessing.apply(pixels)


def test_preprocessing_refuses_impossible_numbers():
    with pytest.raises(ValueError, match="3 numbers"):
        Preprocessing("image", 8, 3, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="positive"):
        Preprocessing("image", 8, 1, (0.5,), (0.0,))


def test_measured_mean_and_std_are_those_of_the_chosen_images(pixels):
    chosen = np.array([7, 2, 11])
    preprocessing = measure_preprocessing(pixels, chosen)
    sample = pixels[chosen] / 255
    assert preprocessing.mean == pytest.approx((sample.mean(),))
    assert preprocessing.std == pytest.approx((sample.std(),))
    assert measure_preprocessing(pixels, chosen[::-1]) == preprocessing
    assert (preprocessing.size, preprocessing.channels) == (12, 1)


def test_constant_images_do_not_divide_by_zero():
    preprocessing = measure_preprocessing(np.full((2, 1, 8, 8), 9, np.uint8), np.arange(2))
    assert torch.equal(preprocessing.apply(torch.full((1, 1, 8, 8), 9, dtype=torch.uint8)), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="no images"):
        measure_preprocessing(np.zeros((0, 1, 8, 8), np.uint8), np.arange(0))


def test_a_picture_of_any_mode_goes_through_the_path_of_ingest(info):
    from ssl_core.data.images import decode, to_array

    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8))
    for mode in ("L", "RGB", "RGBA", "P"):
        file = io.BytesIO()
        grey.convert(mode).save(file, "PNG")
        served = info.preprocessing.from_image(Image.open(io.BytesIO(file.getvalue())))
        stored = decode(file.getvalue(), max_pixels=10_000, min_side=4).image
        assert served.dtype == np.uint8
        np.testing.assert_array_equal(served, to_array(stored, 12, 1))
