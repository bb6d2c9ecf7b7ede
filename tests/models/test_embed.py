import numpy as np
import pytest
import torch

from ssl_core.config.encoders import ResNetConfig
from ssl_core.models.embed import embed, random_encoder
from ssl_core.models.encoder import EncoderInfo, build_encoder, measure_preprocessing


def test_features_follow_the_positions_and_not_the_batches(encoder, info, pixels):
    positions = np.array([5, 0, 19, 5])
    together = embed(encoder, info.preprocessing, pixels)
    chosen = embed(encoder, info.preprocessing, pixels, positions, batch_size=3)
    assert chosen.dtype == np.float32
    np.testing.assert_allclose(chosen, together[positions], rtol=1e-5, atol=1e-6)


def test_equal_calls_give_equal_bits_and_batch_statistics_stay(encoder, info, pixels):
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first, second = (embed(encoder, info.preprocessing, pixels) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    np.testing.assert_array_equal(first, embed(encoder.eval(), info.preprocessing, pixels))


def test_a_memory_map_reads_like_an_array(tmp_path, encoder, info, pixels):
    pixels.tofile(tmp_path / "pixels.u8")
    mapped = np.memmap(tmp_path / "pixels.u8", np.uint8, "r", shape=pixels.shape)
    expected = embed(encoder, info.preprocessing, pixels, np.arange(4))
    np.testing.assert_array_equal(embed(encoder, info.preprocessing, mapped, np.arange(4)), expected)


def test_no_positions_give_no_rows(encoder, info, pixels):
    assert embed(encoder, info.preprocessing, pixels, np.array([], dtype=np.int64)).shape == (0, 16)


def test_bfloat16_is_close_and_other_precisions_are_refused(encoder, info, pixels):
    full = embed(encoder, info.preprocessing, pixels)
    half = embed(encoder, info.preprocessing, pixels, precision="bfloat16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()
    with pytest.raises(ValueError, match="float64"):
        embed(encoder, info.preprocessing, pixels, precision="float64")


def test_the_mode_is_restored_when_a_batch_fails(encoder, info, pixels):
    encoder.train()
    with pytest.raises(ValueError, match="expected uint8"):
        embed(encoder, info.preprocessing, pixels.astype(np.float32))
    assert encoder.training


def test_a_random_encoder_has_untrained_weights_and_the_statistics_of_the_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
    train = np.arange(64)
    info = EncoderInfo(ResNetConfig(widths=(4, 8)), measure_preprocessing(pixels, train), 8)
    plain, fair = build_encoder(info.config, 1, seed=3), random_encoder(info, 3, pixels, train, batch_size=64)
    assert not fair.training
    for (name, a), (_, b) in zip(plain.named_parameters(), fair.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    with torch.no_grad():
        batch = info.preprocessing.apply(torch.from_numpy(pixels))
        as_trained = fair.train()(batch)  # one batch's own statistics
        assert torch.allclose(random_encoder(info, 3, pixels, train, batch_size=64)(batch), as_trained, atol=0.05)
        assert not torch.allclose(plain.eval()(batch), as_trained, atol=0.05)
