"""Text encoders from scratch, saved and loaded. The transformers library is the reference for all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssl_core.config.encoders import TransformerConfig
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.errors import UserError
from ssl_core.models.text_loading import library_config
from ssl_core.models.text_weights import TextInfo, build, load_encoder, random_encoder, read_info, save_encoder
from ssl_core.store import path_sha256
from tests.data.text.checkpoints import write_tokenizer
from tests.models.text_library import ARCHS, answers, assert_same, change_tensors, flat, library_answers, small_config


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return write_tokenizer(tmp_path / "tokenizer")


# ---- from scratch


@pytest.mark.parametrize("arch", ARCHS)
def test_from_scratch_has_the_documented_sizes(arch: str, tokenizer: Tokenizer) -> None:
    encoder, head, report = build(TransformerConfig(arch=arch, max_length=40), tokenizer, seed=0)
    config = encoder.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 128, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (512, 40, tokenizer.size)
    assert config.pad_token_id == tokenizer.pad_id
    assert (config._attn_implementation, encoder.features) == ("sdpa", 128)
    assert head.weight is encoder.network.get_input_embeddings().weight
    assert report.source == ""
    assert "all random" in str(report)
    if arch == "modernbert":
        assert (config.local_attention, config.layer_types) == (128, ["full_attention", "sliding_attention"])
        assert (config.cls_token_id, config.sep_token_id) == (tokenizer.cls_id, tokenizer.sep_id)


@pytest.mark.parametrize("arch", ARCHS)
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator(arch: str, tokenizer: Tokenizer) -> None:
    state = torch.get_rng_state()
    first, again, other = (build(small_config(arch=arch), tokenizer, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert_same(flat(first), flat(again))
    assert not torch.equal(flat(first)[0], flat(other)[0])
    build(small_config(arch=arch), tokenizer, None)
    assert not torch.equal(state, torch.get_rng_state())


def test_a_start_from_a_checkpoint_without_its_folder_is_no_start_from_scratch(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"pretrained\.find"):
        build(TransformerConfig(init_from="sample://minilm"), tokenizer, 0)


def test_rotary_positions_need_even_heads() -> None:
    with pytest.raises(UserError, match=r"a/config\.json: 18 features in 2 heads: .* even width of each head"):
        library_config("modernbert", {"hidden_size": 18, "num_attention_heads": 2}, "a/config.json")


# ---- saved and loaded


@pytest.fixture(params=ARCHS)
def saved(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A random encoder of ours with biases and norms that are not constants, saved."""
    config = small_config(arch=request.param, pooling="cls")
    encoder, head, _ = build(config, tokenizer, 3)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        for parameter in {*encoder.parameters(), *head.parameters()}:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "saved"
    save_encoder(folder, encoder, head, TextInfo.of(config, encoder), tokenizer)
    return folder


def test_transformers_finds_all_that_it_looks_for(saved: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    arch = AutoConfig.from_pretrained(saved).model_type
    found = AutoModelForMaskedLM.from_pretrained(saved, output_loading_info=True)[1]
    assert not any(found.values()), found
    # Nothing of the encoder is missing; the head has no place there, and a pooler was never pretrained.
    bare = {"add_pooling_layer": False} if arch == "bert" else {}
    found = AutoModel.from_pretrained(saved, output_loading_info=True, **bare)[1]
    assert not found["missing_keys"]
    assert not found["mismatched_keys"]
    assert all(name.startswith(("cls.predictions.", "head.", "decoder.")) for name in found["unexpected_keys"])


def test_a_saved_folder_answers_alike_here_and_in_transformers(saved: Path) -> None:
    encoder, head, info, tokenizer = load_encoder(saved)
    assert (encoder.training, head.training) == (False, False)
    assert head.weight is encoder.network.get_input_embeddings().weight
    assert (info.modality, info.max_length, info.pooling, info.features, info.vocabulary) == ("text", 16, "cls", 16, 17)
    assert (info.config.layers, info.config.init_from, encoder.pooling) == (2, None, "cls")
    assert_same(answers(encoder, head, tokenizer), library_answers(saved))


def test_equal_tensors_give_equal_bytes(saved: Path, tmp_path: Path) -> None:
    encoder, head, info, tokenizer = load_encoder(saved)
    save_encoder(tmp_path / "again", encoder.bfloat16().float(), head, info, tokenizer)
    encoder, head, info, tokenizer = load_encoder(saved)
    save_encoder(tmp_path / "again", encoder, head, info, tokenizer)
    assert path_sha256(tmp_path / "again") == path_sha256(saved)
    names = load_file(saved / "model.safetensors")
    assert not any(name.endswith("decoder.weight") for name in names)  # one copy of what is tied


def test_pretraining_goes_on_from_a_saved_folder(saved: Path) -> None:
    encoder, head, info, tokenizer = load_encoder(saved)
    config = TransformerConfig(arch=info.config.arch, max_length=12, init_from=str(saved))
    further, further_head, report = build(config, tokenizer, 0, saved)
    assert (report.new, report.unused) == ((), ())
    assert_same(answers(further, further_head, tokenizer), answers(encoder, head, tokenizer))
    assert TextInfo.of(config, further).max_length == 12


def test_a_random_encoder_has_the_same_shape_and_other_weights(saved: Path) -> None:
    encoder, _, info, tokenizer = load_encoder(saved)
    for source in (saved, info):
        other = random_encoder(source, tokenizer, 0)
        assert {n: p.shape for n, p in other.named_parameters()} == {n: p.shape for n, p in encoder.named_parameters()}
        assert (other.pooling, other.training) == ("cls", False)
        assert_same(flat(other), flat(random_encoder(source, tokenizer, 0)))
        assert not torch.equal(flat(other)[0], flat(random_encoder(source, tokenizer, 1))[0])
        assert not torch.equal(flat(other)[0], flat(encoder)[0])


def test_a_description_survives_json(saved: Path) -> None:
    info = read_info(saved)
    assert TextInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize(
    ("file", "change", "cause"),
    [
        ("encoder.json", None, "no encoder here"),
        ("encoder.json", {"schema_version": 2}, "schema version 2"),
        ("encoder.json", {"modality": "image"}, "modality image"),
        ("encoder.json", {"features": 32}, "says 32 features, but config.json 16"),
        ("encoder.json", {"vocabulary": 18}, "says 18 tokens"),
        ("encoder.json", {"config": {"arch": "resnet"}}, "not a description"),
        ("config.json", None, "no config.json"),
        ("config.json", {"num_hidden_layers": 3}, "layers is 2, but the checkpoint .* has 3"),
        ("model.safetensors", None, "no model.safetensors"),
        ("tokenizer.json", None, "no tokenizer.json"),
    ],
)
def test_a_folder_whose_files_do_not_fit(saved: Path, file: str, change: dict[str, Any] | None, cause: str) -> None:
    path = saved / file
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=cause):
        load_encoder(saved)


@pytest.mark.parametrize("planted", ["head missing", "tensor too many"])
def test_a_saved_folder_is_all_or_nothing(saved: Path, planted: str) -> None:
    if planted == "head missing":
        change_tensors(
            saved, lambda t: {k: v for k, v in t.items() if k not in ("cls.predictions.bias", "decoder.bias")}
        )
    else:
        change_tensors(saved, lambda t: t | {"classifier.weight": torch.zeros(2, 16)})
    with pytest.raises(UserError, match=r"missing: .*bias|unexpected: classifier\.weight"):
        load_encoder(saved)
