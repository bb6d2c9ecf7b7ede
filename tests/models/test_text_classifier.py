"""The text classifier: what it answers, and that what was saved is what is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.models.text_classifier import TextClassifier, build_classifier, load_classifier, save_classifier
from ssl_core.models.text_embed import embed_texts, embed_tokens
from ssl_core.models.text_windows import offsets_of
from tests.texts import WORDS, encoder, sentences, tokenizer

TEXTS = [*sentences(5), "red", " ".join(WORDS * 4)]
"""The last one is longer than a window."""


def classifier(label_type: Any = "class", classes: Any = ("ant", "bee", "œuf")) -> TextClassifier:
    network, head, info = encoder()
    model = build_classifier(network, info, tokenizer(), classes, label_type, 4, head)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    return model.eval()


def reference(model: TextClassifier, text: str) -> np.ndarray:
    """One text at a time, by the library's own padded forward."""
    ids = tokenizer().encode([text])[0]
    room = 14
    count = max(1, -(-(len(ids) - 4) // (room - 4)))
    starts = [i * max(len(ids) - room, 0) // max(count - 1, 1) for i in range(count)]
    rows = []
    for start in starts:
        whole = torch.tensor([[tokenizer().cls_id, *ids[start : start + room], tokenizer().sep_id]])
        with torch.no_grad():
            logits = model.head(model.encoder.network(whole).last_hidden_state.mean(dim=1))
        rows.append({"class": logits.softmax(1), "classes": logits.sigmoid(), "number": logits}[model.label_type])
    return torch.cat(rows).mean(dim=0).numpy()


@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
def test_answers_equal_a_slow_reference(label_type: str) -> None:
    model = classifier(label_type, [] if label_type == "number" else ("ant", "bee", "œuf"))
    answers = model.predict(TEXTS)
    assert answers.dtype == np.float32
    wanted = np.stack([reference(model, text) for text in TEXTS])
    np.testing.assert_allclose(answers, wanted, rtol=1e-5, atol=1e-6)
    if label_type == "class":
        np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-5)


def test_strings_and_stored_tokens_give_the_same_answers() -> None:
    model = classifier()
    ids, lengths = tokenizer().encode_flat(TEXTS)
    stored = ids.astype(np.uint16)
    positions = np.array([6, 0, 3])
    np.testing.assert_allclose(
        model.predict_tokens(stored, offsets_of(lengths), positions),
        model.predict(TEXTS)[positions],
        rtol=1e-5,
        atol=1e-6,
    )
    assert model.predict([]).shape == (0, 3)
    assert model.predict_tokens(stored, offsets_of(lengths), positions[:0]).shape == (0, 3)


def test_predicting_leaves_the_mode_and_draws_nothing() -> None:
    model = classifier().train()
    model.dropout.p = 0.5
    assert np.array_equal(model.predict(TEXTS), model.predict(TEXTS))
    assert model.training
    assert model.encoder.training


def test_a_new_head_prefers_nothing() -> None:
    network, _, info = encoder()
    np.testing.assert_allclose(build_classifier(network, info, tokenizer(), "abcd", "class", 0).predict(TEXTS), 0.25)
    np.testing.assert_allclose(build_classifier(network, info, tokenizer(), "ab", "classes", 0).predict(TEXTS), 0.5)
    assert (build_classifier(network, info, tokenizer(), [], "number", 0).predict(TEXTS) == 0).all()


def test_windows_share_at_most_half_of_themselves() -> None:
    network, _, info = encoder()
    model = build_classifier(network, info, tokenizer(), "ab", "class", 1000)
    assert (model.room, model.stride) == (14, 7)


def test_saved_and_loaded_answers_the_same_bits(tmp_path: Path) -> None:
    model = classifier()
    with torch.no_grad():  # as after fine-tuning: the prediction head has to follow
        model.encoder.network.get_input_embeddings().weight.add_(0.01)
    save_classifier(tmp_path / "model", model)
    loaded = load_classifier(tmp_path / "model")
    assert (loaded.classes, loaded.label_type, loaded.stride) == (["ant", "bee", "œuf"], "class", 4)
    assert loaded.info == model.info
    assert not loaded.training
    assert np.array_equal(loaded.predict(TEXTS), model.predict(TEXTS))
    save_classifier(tmp_path / "again", loaded)
    for name in sorted(path.name for path in (tmp_path / "model").iterdir()):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = classifier()
    save_classifier(tmp_path, model)
    network, reader = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    batch = reader(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        features = network(**batch).last_hidden_state.mean(dim=1).numpy()
    np.testing.assert_allclose(embed_texts(model.encoder, tokenizer(), 16, TEXTS[:1]), features, rtol=1e-4, atol=1e-5)


def test_without_its_prediction_head_nothing_is_saved(tmp_path: Path) -> None:
    network, _, info = encoder()
    with pytest.raises(ValueError, match="prediction head"):
        save_classifier(tmp_path, build_classifier(network, info, tokenizer(), "ab", "class", 0))


@pytest.mark.parametrize(
    "change",
    [
        None, {"classes": ["ant", "bee"]}, {"schema_version": 2}, {"task": "image-classification"}, {"label_type": "number"},
        {"label_type": "colour"}, {"stride": "many"}, {"stride": -1}, {"classes": 3},
    ],
    ids=str,
)  # fmt: skip
def test_files_that_do_not_fit_are_a_users_error(tmp_path: Path, change: dict[str, Any] | None) -> None:
    save_classifier(tmp_path, classifier())
    path = tmp_path / "model.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"model\.json|head\.safetensors"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_a_strange_description_is_a_users_error(tmp_path: Path, content: str) -> None:
    save_classifier(tmp_path, classifier())
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.json"):
        load_classifier(tmp_path)


def test_embeddings_of_strings_and_of_tokens_are_the_same() -> None:
    network, _, _ = encoder()
    ids, lengths = tokenizer().encode_flat(TEXTS)
    features = embed_texts(network, tokenizer(), 16, TEXTS)
    assert features.shape == (7, 16)
    again = embed_tokens(network, tokenizer(), 16, ids, offsets_of(lengths), np.array([6, 1]))
    np.testing.assert_allclose(again, features[[6, 1]], rtol=1e-5, atol=1e-6)
    assert embed_texts(network, tokenizer(), 16, []).shape == (0, 16)
