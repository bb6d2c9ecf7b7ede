"""What a checkpoint's folder must be before anything of it is read: every fault is told with its file and the way out."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssl_core.data.text.checkpoint import inspect
from ssl_core.errors import UserError
from tests.data.text.checkpoints import TABLES, sizes, write_checkpoint

TABLE = np.zeros((17, 8), np.float32)


def _refused(folder: Path, cause: str) -> UserError:
    with pytest.raises(UserError, match=cause) as error:
        inspect(folder)
    assert error.value.place.startswith(str(folder))
    assert error.value.next_step
    return error.value


@pytest.mark.parametrize("arch", ["bert", "modernbert"])
def test_a_sound_folder_says_what_it_holds(tmp_path: Path, arch: str) -> None:
    found = inspect(write_checkpoint(tmp_path, arch))
    assert (found.arch, found.vocabulary, found.config["hidden_size"]) == (arch, 17, 8)
    assert found.shapes == {TABLES[arch]: (17, 8)}
    assert found.files == (tmp_path / "model.safetensors",)


@pytest.mark.parametrize("prefix", ["bert.", "", "0.auto_model."])
def test_the_encoder_is_found_under_each_known_prefix(tmp_path: Path, prefix: str) -> None:
    write_checkpoint(tmp_path, tensors={prefix + "embeddings.word_embeddings.weight": TABLE})
    assert inspect(tmp_path).prefix == prefix


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "no such folder")
    assert "config.json" in _refused(tmp_path, "no model.safetensors").next_step


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    error = _refused(tmp_path, r"only pickled weights \(pytorch_model.bin\)")
    assert "save_pretrained" in error.next_step
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "pytorch_model.bin").write_bytes(b"not looked at")
    assert inspect(tmp_path).files == (tmp_path / "model.safetensors",)


def test_without_config(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "config.json").unlink()
    _refused(tmp_path, "no config.json")


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "gpt2", "", None, 7])
def test_another_architecture(tmp_path: Path, kind: object) -> None:
    write_checkpoint(tmp_path, config={**sizes(), "model_type": kind})
    error = _refused(tmp_path, "not supported|does not say which architecture")
    assert "bert or modernbert" in error.next_step


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"model_type": "bert"', "\x00", '{"a": "' + "x" * 1_100_000]
)
def test_a_config_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    _refused(write_checkpoint(tmp_path, config=text), "not readable as JSON|not a JSON object|MB of JSON")


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
)
@pytest.mark.parametrize("value", [0, -1, 10**12, True, 2.0, "8", [8], None])
def test_a_size_of_the_wrong_type_or_beyond_measure(tmp_path: Path, name: str, value: object) -> None:
    write_checkpoint(tmp_path, config=sizes(**{name: value}))
    _refused(tmp_path, f"{name} is .* not a whole number|there is no {name}")


def test_heads_that_do_not_divide_the_width(tmp_path: Path) -> None:
    _refused(write_checkpoint(tmp_path, config=sizes(num_attention_heads=3)), "multiple of num_attention_heads")


@pytest.mark.parametrize(
    ("arch", "change"),
    [
        ("bert", {"is_decoder": True}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("modernbert", {"decoder_bias": False}),
        ("modernbert", {"tie_word_embeddings": False}),
        ("bert", {"quantization_config": {"bits": 4}}),
    ],
)
def test_a_choice_that_would_be_run_wrongly(tmp_path: Path, arch: str, change: dict[str, object]) -> None:
    write_checkpoint(tmp_path, arch, config=sizes(arch, **change))
    _refused(tmp_path, "not supported|quantised")


@pytest.mark.parametrize("pad", [17, -1, "0", True])
def test_a_padding_that_is_no_token(tmp_path: Path, pad: object) -> None:
    _refused(write_checkpoint(tmp_path, config=sizes(pad_token_id=pad)), "pad_token_id is .*, no token")


def test_names_of_remote_code_are_dropped(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config=sizes(auto_map={"AutoModel": "evil.Model"}))
    assert "auto_map" not in inspect(tmp_path).config


def test_another_vocabulary_size(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config=sizes(vocab_size=18))
    _refused(tmp_path, re.escape("is [17, 8], but config.json says [18, 8]"))


def test_weights_of_something_else(tmp_path: Path) -> None:
    _refused(write_checkpoint(tmp_path, tensors={"conv.weight": TABLE}), "no bert encoder among its 1 tensors")
    both = {"bert.embeddings.word_embeddings.weight": TABLE, "embeddings.word_embeddings.weight": TABLE}
    _refused(write_checkpoint(tmp_path, tensors=both), "more than one bert encoder")
    _refused(write_checkpoint(tmp_path, tensors={TABLES["bert"]: TABLE.astype(np.int8)}), "I8, not floating-point")


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "huge header"])
def test_damaged_safetensors(tmp_path: Path, damage: str) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-9], "noise": bytes(range(256)) * 9, "empty": b"", "huge header": b"\xff" * 8 + whole[8:]}[
            damage
        ]
    )
    assert _refused(tmp_path, "not a readable safetensors file").place == str(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder, outside = write_checkpoint(tmp_path / "it"), tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert "cp -rL" in _refused(folder, "link that leads out").next_step


def test_links_within_the_folder_and_to_the_folder_are_fine(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "it")
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    (tmp_path / "link").symlink_to(folder)
    assert inspect(tmp_path / "link").vocabulary == 17


def test_several_files_with_an_index(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    save_file({TABLES["bert"]: TABLE}, tmp_path / "model-1.safetensors")
    save_file({"bert.x": TABLE}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {TABLES["bert"]: "model-1.safetensors", "bert.x": "model-2.safetensors"}})
    )
    assert set(inspect(tmp_path).shapes) == {TABLES["bert"], "bert.x"}
    for name in ("../model-1.safetensors", "/etc/passwd", "gone.safetensors", "config.json"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        _refused(tmp_path, "which is not here")
    index.write_text("{}")
    _refused(tmp_path, "no list of weight files")
    save_file({TABLES["bert"]: TABLE}, tmp_path / "model-2.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    _refused(tmp_path, "in two files")


def test_a_text_file_beyond_measure(tmp_path: Path) -> None:
    with (write_checkpoint(tmp_path) / "tokenizer.json").open("r+b") as file:
        file.truncate(300_000_000)  # a hole: it takes no room on the disk
    assert _refused(tmp_path, "300 MB").place.endswith("tokenizer.json")
