"""Text encoders started from checkpoints of others: what arrives, under whatever name, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.config.encoders import TransformerConfig
from ssl_core.config.settings import Settings
from ssl_core.data.text.pretrained import find
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.errors import UserError
from ssl_core.models.text_weights import TextInfo, build, save_encoder
from ssl_core.store import file_sha256
from tests.data.text.checkpoints import SPECIALS, WORDS, write_tokenizer
from tests.models.text_library import (
    ARCHS,
    TEXTS,
    answers,
    assert_same,
    change_tensors,
    flat,
    library,
    library_answers,
    sequences,
    small_config,
)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_masked_language_model_arrives_whole(arch: str, tmp_path: Path) -> None:
    folder = library(tmp_path / "it", arch)
    tokenizer = Tokenizer.load(folder)
    encoder, head, report = build(small_config(folder, arch=arch), tokenizer, 0, folder)
    assert_same(answers(encoder, head, tokenizer), library_answers(folder))
    assert (report.new, report.unused, report.added_rows) == ((), (), 0)
    assert (report.source, report.sha256) == (str(folder), file_sha256(folder / "model.safetensors"))
    assert len(report.loaded) == len(load_file(folder / "model.safetensors"))
    assert head.weight is encoder.network.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("arch", "unused"), [("bert", ("pooler.dense.bias", "pooler.dense.weight")), ("modernbert", ())]
)
def test_an_encoder_alone_gets_a_new_head_and_says_so(arch: str, unused: tuple[str, ...], tmp_path: Path) -> None:
    folder = library(tmp_path / "it", arch, "Model")
    tokenizer = Tokenizer.load(folder)
    encoder, head, report = build(small_config(folder, arch=arch), tokenizer, 0, folder)
    ours, _ = answers(encoder, head, tokenizer)
    assert report.unused == unused
    assert "the prediction head is new" in str(report)
    assert all(name.startswith(("cls.predictions.", "head.", "decoder.")) for name in report.new)
    assert set(json.loads(json.dumps(report.to_dict()))) == {
        "source",
        "sha256",
        "loaded",
        "new",
        "unused",
        "added_rows",
        "summary",
    }
    from transformers import AutoModel, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state[batch["attention_mask"].bool()]
    assert_same((ours, ours), (theirs, theirs))
    again = build(small_config(folder, arch=arch), tokenizer, 0, folder)[1]
    assert_same(flat(head.transform), flat(again.transform))  # the new head follows from the seed


@pytest.mark.parametrize("arch", ARCHS)
def test_a_classifiers_head_is_no_prediction_head(arch: str, tmp_path: Path) -> None:
    folder = library(tmp_path / "it", arch, "ForSequenceClassification")
    report = build(small_config(folder, arch=arch), Tokenizer.load(folder), 0, folder)[2]
    assert report.new
    assert {"classifier.weight", "classifier.bias"} <= set(report.unused)
    assert ("head.dense.weight" in report.unused) == (arch == "modernbert")  # a part of a head


def _as_authors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As google-bert's own files are named and padded out."""
    named = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in tensors.items()}  # fmt: skip
    named["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    named["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    named["cls.seq_relationship.weight"] = torch.zeros(2, 16)
    named["bert.embeddings.position_ids"] = torch.arange(24)[None]
    return named


def _as_sentence_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("bert.", "0.auto_model."): tensor for name, tensor in tensors.items()}


def _as_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [_as_authors, _as_sentence_transformers, _as_half])
def test_other_ways_to_name_and_store_the_same_tensors(change: Callable[..., Any], tmp_path: Path) -> None:
    folder = library(tmp_path / "it")
    tokenizer = Tokenizer.load(folder)
    plain = build(small_config(folder), tokenizer, 0, folder)
    change_tensors(folder, change)
    encoder, head, report = build(small_config(folder), tokenizer, 0, folder)
    assert report.new == ()
    tolerance = 0.2 if change is _as_half else 1e-6
    for one, other in zip(answers(encoder, head, tokenizer), answers(*plain[:2], tokenizer), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    expected = ("bert.embeddings.position_ids", "cls.seq_relationship.weight") if change is _as_authors else ()
    assert report.unused == expected


def test_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    folder = library(tmp_path / "it")
    tokenizer = Tokenizer.load(folder)
    before = answers(*build(small_config(folder), tokenizer, 0, folder)[:2], tokenizer)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-{i}.safetensors": dict(list(tensors.items())[i::2]) for i in (0, 1)}
    for name, part in parts.items():
        save_file(part, folder / name)
    places = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(before, answers(*build(small_config(folder), tokenizer, 0, folder)[:2], tokenizer))


def test_added_words_begin_as_the_mean_of_the_others(tmp_path: Path) -> None:
    folder = library(tmp_path / "it", vocab_size=20)  # three rows more than there are tokens, as checkpoints have them
    tokenizer = Tokenizer.load(folder)
    plain, plain_head, _ = build(small_config(folder), tokenizer, 0, folder)
    before = answers(plain, plain_head, tokenizer)
    tokenizer.add_words(["zirconium", "xenon", "argon", "neon"])
    encoder, head, report = build(small_config(folder), tokenizer, 0, folder)
    assert (tokenizer.size, encoder.config.vocab_size, report.added_rows) == (21, 21, 4)
    assert "4 added words start as the mean" in str(report)
    old = plain.network.get_input_embeddings().weight
    rows = encoder.network.get_input_embeddings().weight
    torch.testing.assert_close(rows[:17], old[:17])
    torch.testing.assert_close(rows[17:21], old[:17].mean(0).expand(4, -1))
    torch.testing.assert_close(head.bias[17:], plain_head.bias[:17].mean().expand(4))
    hidden, logits = answers(encoder, head, tokenizer)
    assert_same((hidden, logits[:, :17]), (before[0], before[1][:, :17]))
    save_encoder(tmp_path / "saved", encoder, head, TextInfo.of(small_config(folder), encoder), tokenizer)
    assert_same((hidden, logits), library_answers(tmp_path / "saved"))


# ---- what does not fit


def _drop(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if name not in key}


PLANTED: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (_drop("layer.3."), r"missing: bert.encoder.layer.3.*and 11 more"),
    (_drop("layer.1.output.dense.bias"), r"missing: bert.encoder.layer.1.output.dense.bias"),
    (lambda t: t | {"bert.encoder.layer.4.output.dense.bias": torch.zeros(16)}, r"unexpected: bert.encoder.layer.4"),
    (lambda t: t | {"bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 8)}, r"unexpected: .*distance"),
    (lambda t: t | {"bert.encoder.layer.0.output.dense.bias": torch.zeros(17)}, r"mismatched: .*is \[17\], the architecture has \[16\]"),
    (lambda t: t | {"bert.embeddings.position_embeddings.weight": torch.zeros(9, 16)}, r"mismatched: .*position_embeddings"),
    (lambda t: t | {"cls.predictions.bias": torch.zeros(16)}, r"mismatched: cls.predictions.bias"),
    (lambda t: t | {"cls.predictions.decoder.weight": torch.zeros(17, 16)}, r"differs from bert.embeddings.word_embeddings.weight"),
    (lambda t: t | {"bert.encoder.layer.0.output.dense.bias": torch.full((16,), torch.nan)}, r"not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "cause"), PLANTED)
def test_a_planted_mismatch_is_told(change: Callable[..., Any], cause: str, tmp_path: Path) -> None:
    folder = library(tmp_path / "it")
    change_tensors(folder, change)
    with pytest.raises(UserError, match=cause) as error:
        build(small_config(folder), Tokenizer.load(folder), 0, folder)
    assert error.value.place.startswith(str(folder))
    assert error.value.next_step


@pytest.mark.parametrize(
    ("asked", "place", "cause"),
    [
        ({"layers": 3}, "encoder.layers", "layers is 3, but the checkpoint .* has 4"),
        ({"hidden": 32}, "encoder.hidden", "has 16"),
        ({"heads": 4}, "encoder.heads", "has 2"),
        ({"intermediate": 64}, "encoder.intermediate", "has 16"),
        ({"arch": "modernbert"}, "encoder.arch", "arch is modernbert, but the checkpoint .* has bert"),
        ({"max_length": 25}, "encoder.max_length", "sequence longer than positions: max_length is 25.*knows 24"),
    ],
)
def test_a_project_that_contradicts_its_checkpoint(
    asked: dict[str, Any], place: str, cause: str, tmp_path: Path
) -> None:
    folder = library(tmp_path / "it")
    with pytest.raises(UserError, match=cause) as error:
        build(small_config(folder, **asked), Tokenizer.load(folder), 0, folder)
    assert error.value.place == place
    agreeing = small_config(folder, layers=4, hidden=16, heads=2, intermediate=16)
    build(agreeing, Tokenizer.load(folder), 0, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "nope"},
        {"hidden_act": 7},
        {"hidden_dropout_prob": "much"},
        {"layer_norm_eps": None},
        {"pad_token_id": 99},
    ],
)
def test_a_config_value_that_the_library_refuses(change: dict[str, Any], tmp_path: Path) -> None:
    folder = library(tmp_path / "it")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as error:
        build(small_config(folder), Tokenizer.load(folder), 0, folder)
    assert error.value.place == str(path)


def test_another_tokenizer_than_the_checkpoints(tmp_path: Path) -> None:
    folder = library(tmp_path / "it")
    other = write_tokenizer(tmp_path / "other", SPECIALS + tuple(reversed(WORDS)))
    with pytest.raises(UserError, match=r"not the one that the checkpoint \(17\) was trained with: 12 tokens"):
        build(small_config(folder), other, 0, folder)
    write_tokenizer(folder, (*SPECIALS, *WORDS, "more"))
    with pytest.raises(UserError, match="tokenizer has 18 tokens, but its embedding table only 17 rows"):
        build(small_config(folder), Tokenizer.load(folder), 0, folder)


# ---- the bundled checkpoint

_PARAPHRASES = [
    ("The film was wonderful.", "A great movie."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("It is raining heavily outside.", "There is a downpour out there."),
    ("The company's profits fell last year.", "Earnings of the firm declined in the previous year."),
]


@pytest.mark.e2e
def test_minilm_out_of_its_wheel_knows_a_paraphrase(settings: Settings, tmp_path: Path) -> None:
    folder = find("sample://minilm", settings)
    tokenizer = Tokenizer.load(folder)
    config = TransformerConfig(init_from="sample://minilm", max_length=512)
    encoder, head, report = build(config, tokenizer, 0, folder)
    assert (encoder.features, encoder.config.num_hidden_layers, tokenizer.size) == (384, 6, 30_522)
    assert len(report.loaded) == 101
    assert all(name.startswith("cls.predictions.") for name in report.new)
    assert set(report.unused) == {"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"}
    assert len(tokenizer.encode(["word " * 300])[0]) == 300  # its file says: cut at 128, pad to 128

    texts = [text for pair in _PARAPHRASES for text in pair]
    batch = sequences(tokenizer, texts)
    with torch.no_grad():
        features = torch.nn.functional.normalize(encoder.eval()(batch), dim=1)
    likeness = features[0::2] @ features[1::2].T
    assert (likeness.argmax(dim=1) == torch.arange(len(_PARAPHRASES))).all()
    own = likeness.diagonal()
    others = likeness[~torch.eye(len(own), dtype=torch.bool)]
    assert own.min() > others.max() + 0.1

    save_encoder(tmp_path / "saved", encoder, head, TextInfo.of(config, encoder), tokenizer)
    assert_same(answers(encoder, head, tokenizer), library_answers(tmp_path / "saved"))
