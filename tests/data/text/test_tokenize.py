"""The step: learned from train alone, figures by hand, and a checkpoint's tokenizer with words added."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssl_core.config.project import TextProject
from ssl_core.config.settings import Settings
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.tokenize import Fit, fingerprint, measure, run
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.tokens import open_tokens
from ssl_core.data.text.training import train
from ssl_core.errors import TryAgain, UserError
from ssl_core.step import StepContext
from tests.data.text.bars import Bars
from tests.data.text.corpora import PROSE, make_version


def project(**sections: Any) -> TextProject:
    return TextProject.model_validate({"name": "tiny", "modality": "text", "data": {"source": "x"}, **sections})


@pytest.fixture
def context(tmp_path: Path, make_context: Callable[..., StepContext]) -> Callable[..., StepContext]:
    def make(
        texts: list[str], splits: list[str] | None = None, *, more: dict[str, Any] | None = None, **sections: Any
    ) -> StepContext:
        ref = make_version(tmp_path, texts, splits=splits)
        return make_context(project(**sections), step="tokenize", inputs={"dataset": ref}, **(more or {}))

    return make


def test_figures_by_hand(tmp_path: Path, settings: Settings) -> None:
    tokenizer = train(["play plays red"] * 9 + ["s e d z"], TokenizerConfig(min_frequency=9), size=110)
    texts = ["plays red zoo", "play", "", "red 药药 red", "red red red red red red red"]
    splits = ["train", "train", "val", "val", "test"]
    ref = make_version(tmp_path, texts, splits=splits)
    tokens = open_tokens(ref, settings, tokenizer)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(["plays", "zoo", "药"])] == ["plays", "", ""]
    fits = measure(tokens, tokenizer, max_length=4)
    # "plays red zoo": plays, red, unknown; "play": one token. Three of four words in train are known.
    assert fits["train"] == Fit(
        texts=2, words=4, tokens=4, fertility=1.0, unknown_rate=0.25, spelled_rate=0, longest=3, windowed=1
    )
    # A Chinese character is a word: red, unknown, unknown, red.
    assert fits["val"] == Fit(
        texts=2, words=4, tokens=4, fertility=1.0, unknown_rate=0.5, spelled_rate=0, longest=4, windowed=1
    )
    assert set(fits) == {"train", "val"}


def test_fertility_counts_tokens_a_word_and_bytes_are_told_apart(tmp_path: Path, settings: Settings) -> None:
    tokenizer = train(PROSE, TokenizerConfig(kind="unigram", size=1000))
    ref = make_version(tmp_path, ["药", "the"], splits=["val", "train"])
    fits = measure(open_tokens(ref, settings, tokenizer), tokenizer, max_length=128)
    assert fits["val"].tokens == 4  # the space mark and three bytes
    assert (fits["val"].fertility, fits["val"].spelled_rate, fits["val"].unknown_rate) == (4.0, 0.75, 0.0)
    assert fits["train"].spelled_rate == 0


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_step_learns_from_train_alone(kind: str, context: Callable[..., StepContext]) -> None:
    texts = PROSE * 10 + ["zyzzyva quokka"] * 20 + ["val text quokka"] * 5
    splits = ["train"] * 40 + ["test", "vault"] * 10 + ["val"] * 5
    bars = Bars()
    ctx = context(texts, splits, tokenizer={"kind": kind, "size": 400, "added": ["acting"]}, more={"progress": bars})
    output = run(ctx)
    folder = ctx.out / output.outputs["tokenizer"].path  # type: ignore[union-attr]
    tokenizer = Tokenizer.load(folder)
    expected = train(PROSE * 10, TokenizerConfig(kind=kind, size=400, added=("acting",)))  # type: ignore[arg-type]
    assert tokenizer.digest == expected.digest
    report = json.loads((folder / "report.json").read_text())
    assert (report["kind"], report["size"], report["digest"]) == (kind, tokenizer.size, tokenizer.digest)
    assert report["advised"] is False
    assert set(report["splits"]) == {"train", "val"}
    assert report["splits"]["train"]["texts"] == 40
    # WordPiece makes one unknown token of a word with letters it never saw; the others spell it.
    worse = "unknown_rate" if kind == "wordpiece" else "fertility"
    assert report["splits"]["val"][worse] > report["splits"]["train"][worse]
    assert output.metrics["fertility_val"] == report["splits"]["val"]["fertility"]
    assert output.metrics["size"] == tokenizer.size
    assert "tokens a word" in output.summary
    assert kind in output.summary
    assert bars.sums["read texts"] == bars.sums["tokenize"] == (65, 65)
    assert ctx.tracker.logged_params["resolved"]["size"] == tokenizer.size  # type: ignore[attr-defined]
    assert ctx.tracker.logged_artifacts == ["report.json"]  # type: ignore[attr-defined]


def test_size_auto_says_why(context: Callable[..., StepContext]) -> None:
    output = run(ctx := context(PROSE * 4, ["train"] * 12 + ["val"] * 4))
    report = json.loads((ctx.out / "tokenizer/report.json").read_text())
    assert report["advised"] is True
    assert report["wanted_size"] == 1000
    assert report["size"] < 1000
    assert "was advised" in output.summary
    assert f"had only {report['size']} tokens to teach" in output.summary


def test_one_line_is_a_corpus(context: Callable[..., StepContext]) -> None:
    output = run(context(["one line"]))
    assert output.metrics["fertility_val"] == 0
    assert output.metrics["fertility_train"] >= 1


@pytest.mark.parametrize(("texts", "splits"), [([], []), (["x"], ["test"]), (["", " "], ["train", "train"])])
def test_nothing_to_learn_from(texts: list[str], splits: list[str], context: Callable[..., StepContext]) -> None:
    with pytest.raises(UserError, match="no text to learn"):
        run(context(texts, splits))


def test_many_unknown_words_are_told(context: Callable[..., StepContext]) -> None:
    output = run(context([*PROSE, "药药药 药药"], ["train"] * 4 + ["val"]))
    assert "bpe" in output.summary


def test_told_to_stop(context: Callable[..., StepContext]) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(TryAgain, match="stopped"):
        run(context(PROSE, more={"stop": stop}))


def checkpoint(folder: Path, tokenizer: Tokenizer) -> Path:
    """A folder in Hugging Face form: just as much of a checkpoint as its tokenizer needs."""
    tokenizer.save(folder)
    config = {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": tokenizer.size, "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    table = np.zeros((tokenizer.size, 16), np.float32)
    save_file({"bert.embeddings.word_embeddings.weight": table}, folder / "model.safetensors")
    return folder


def test_a_checkpoint_s_tokenizer_is_taken_and_words_are_added_at_its_end(
    tmp_path: Path, context: Callable[..., StepContext]
) -> None:
    original = train(["completely other words"] * 5, TokenizerConfig(size=300))
    folder = checkpoint(tmp_path / "checkpoint", original)
    ctx = context(
        PROSE * 3,
        tokenizer={"added": ["acting", "words"], "kind": "bpe"},
        encoder={"init_from": str(folder), "max_length": 16},
    )
    output = run(ctx)
    tokenizer = Tokenizer.load(ctx.out / "tokenizer")
    assert tokenizer.size == original.size + 1  # "words" was known
    assert tokenizer.encode(["other"]) == original.encode(["other"])
    assert tokenizer.encode(["acting"]) == [[original.size]]
    report = json.loads((ctx.out / "tokenizer/report.json").read_text())
    assert (report["source"], report["new_tokens"], report["kind"]) == (str(folder), 1, "wordpiece")
    assert "taken from" in output.summary


def test_the_fingerprint_follows_a_local_checkpoint_s_tokenizer(tmp_path: Path) -> None:
    assert fingerprint(project()) == ""
    folder = checkpoint(tmp_path / "checkpoint", train(PROSE, TokenizerConfig(size=300)))
    config = project(encoder={"init_from": str(folder)})
    first = fingerprint(config)
    assert first
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint(config) == first
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("[PAD]", "[UNK]"))
    assert fingerprint(config) != first
    assert fingerprint(project(encoder={"init_from": str(tmp_path / "none")})) != first
