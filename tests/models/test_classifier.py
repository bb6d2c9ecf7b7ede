import json

import numpy as np
import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.models.classifier import build_classifier, load_classifier, save_classifier


@pytest.fixture
def model(encoder, info):
    model = build_classifier(encoder, info, ["cat", "dog", "œuf"])
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def test_probabilities_are_the_softmax_of_the_scores(model, pixels):
    probabilities = model.predict_proba(pixels, batch_size=7)
    assert probabilities.shape == (20, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        scores = model.eval()(torch.from_numpy(pixels))
    np.testing.assert_allclose(probabilities, scores.softmax(1).numpy(), rtol=1e-4, atol=1e-6)


def test_a_new_head_gives_every_class_the_same_chance(encoder, info, pixels):
    np.testing.assert_allclose(build_classifier(encoder, info, "abcd").predict_proba(pixels), 0.25)


def test_forward_takes_normalised_images_as_well(model, pixels):
    model.eval()
    batch = torch.from_numpy(pixels)
    with torch.no_grad():
        assert torch.equal(model(batch), model(model.info.preprocessing.apply(batch)))


def test_predicting_changes_neither_mode_nor_batch_statistics(model, pixels):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.predict_proba(pixels)
    assert model.training
    assert model.encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_saved_and_loaded_classifier_predicts_the_same_bits(tmp_path, model, pixels):
    save_classifier(tmp_path / "model", model)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "encoder.json", "encoder.safetensors", "head.safetensors", "model.json",
    ]  # fmt: skip
    loaded = load_classifier(tmp_path / "model")
    assert loaded.classes == ["cat", "dog", "œuf"]
    assert loaded.info == model.info
    assert not loaded.training
    np.testing.assert_array_equal(loaded.predict_proba(pixels), model.predict_proba(pixels))


def test_a_head_of_other_classes_is_refused(tmp_path, model):
    save_classifier(tmp_path, model)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": ["cat", "dog"]}))
    with pytest.raises(UserError, match="mismatched") as error:
        load_classifier(tmp_path)
    assert "head.safetensors" in str(error.value)


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"schema_version": 2, "classes": ["a", "b"]}'])
def test_a_missing_or_strange_description_is_a_users_error(tmp_path, model, content):
    save_classifier(tmp_path, model)
    if content is None:
        (tmp_path / "model.json").unlink()
    else:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.json"):
        load_classifier(tmp_path)


def test_float_or_misshapen_pixels_are_refused(model, pixels):
    with pytest.raises(ValueError, match="uint8"):
        model.predict_proba(pixels.astype(np.float32))
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        model.predict_proba(pixels[:, :, :8])
    assert model.predict_proba(pixels[:0]).shape == (0, 3)
