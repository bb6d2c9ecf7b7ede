"""Pretraining on texts: what the step leaves behind, that it can be interrupted anywhere, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ssl_core.config.project import TextProject
from ssl_core.contracts import ArtifactRef, DatasetRef
from ssl_core.errors import CheckFailed, TryAgain, UserError
from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_golden import unpack
from ssl_core.models.text_weights import load_encoder
from ssl_core.objectives.mlm import MLM
from ssl_core.step import Output, StepContext
from ssl_core.store import path_sha256
from ssl_core.training import pretrain, text_pretrain
from ssl_core.training.memory import keep_freed_memory
from ssl_core.training.runtime import resolve_runtime
from tests.data.text.corpora import make_version
from tests.texts import sentences, tokenizer

MakeContext = Callable[..., StepContext]
TINY: dict[str, Any] = {
    "encoder": {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 16},
    "pretrain": {"epochs": 3, "batch_tokens": 128, "threads": 1, "checkpoint_seconds": 0, "precision": "float32", "learning_rate": 5e-3},
}  # fmt: skip
TEXTS = [*sentences(40), " ".join(sentences(1, length=60))]
STEPS = 9
"""(40 texts of 5 tokens, and one of 60 in five windows, each with its 2 special tokens: 350) / 128, three times."""


class Killed(BaseException):
    """What the process would not survive: no handler, no last checkpoint."""


@pytest.fixture
def context(tmp_path: Path, make_context: MakeContext) -> MakeContext:
    count = iter(range(1000))

    def make(
        key: str = "k", *, texts: list[str] | None = None, splits: list[str] | None = None,
        objective: dict[str, Any] | None = None, encoder: dict[str, Any] | None = None, **changes: Any,
    ) -> StepContext:  # fmt: skip
        sections = {
            "encoder": TINY["encoder"] | (encoder or {}),
            "pretrain": TINY["pretrain"] | changes,
            "objective": {"name": "mlm"} | (objective or {}),
        }
        project = TextProject.model_validate({"name": "tiny", "modality": "text", "data": {"source": "x"}, **sections})
        texts = TEXTS if texts is None else texts
        splits = splits or ["train"] * (len(texts) - 8) + ["val"] * 8
        dataset = make_version(tmp_path / f"version{next(count)}", texts, splits=splits)
        ctx = make_context(project, step="pretrain", key=key)
        uri = "tiny/tokenize/t/out/tokenizer"
        folder = Path(ctx.store.path(uri))
        if not folder.exists():
            tokenizer().save(folder)
        ref = ArtifactRef(kind="tokenizer", uri=uri, sha256=path_sha256(folder), producer="tokenize/t")
        ctx.inputs = {"dataset": dataset, "tokenizer": ref}
        return ctx

    return make


def steps_of(monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> list[int]:
    """The steps that are done from here on; at ``kill_at`` the process ends."""
    done: list[int] = []
    forward = MLM.forward

    def watched(self: MLM, *arguments: Any, step: int, **more: Any) -> Any:
        if step == kill_at:
            raise Killed
        done.append(step)
        return forward(self, *arguments, step=step, **more)

    monkeypatch.setattr(MLM, "forward", watched)
    return done


# ---- the step


def test_leaves_an_encoder_a_golden_batch_and_a_report(context: MakeContext) -> None:
    ctx = context(epochs=12)
    output = pretrain.run(ctx)
    assert output.outputs == {"encoder": Output("encoder", "encoder")}
    folder = ctx.out / "encoder"
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "model.safetensors", "encoder.json", "golden.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    encoder, _, info, kept = load_encoder(folder)
    assert (info.modality, info.max_length, kept.digest) == ("text", 16, tokenizer().digest)
    golden = load_file(folder / "golden.safetensors")
    texts = unpack(golden)
    assert texts == TEXTS[:16]
    assert np.array_equal(embed_texts(encoder, kept, info.max_length, texts), golden["features"])
    document = json.loads((ctx.out / "health.json").read_text())
    assert document["healthy"]
    assert document["val_loss"] < np.log(tokenizer().size)
    assert document["resolved"] == {
        "device": "cpu", "precision": "float32", "threads": 1, "max_length": 16, "vocabulary": tokenizer().size, "train_texts": 33,
        "train_tokens": 33 * 7, "batch_tokens": 116, "hidden_tokens": 12, "parameters": document["resolved"]["parameters"], "entities": 0,
    }  # fmt: skip
    assert {
        "spread",
        "effective_rank",
        "val_loss",
        "masked_accuracy",
        "unigram_accuracy",
        "tokens_per_second",
    } <= output.metrics.keys()
    assert "33 texts (231 tokens)" in output.summary
    assert "Hidden tokens of val guessed right" in output.summary
    losses = [values["loss"] for _, values in ctx.tracker.logged_metrics if "loss" in values]  # type: ignore[attr-defined]
    assert losses[-1] < losses[0] - 0.3


def test_transformers_loads_what_is_left(context: MakeContext) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    ctx = context(epochs=1)
    pretrain.run(ctx)
    folder = ctx.out / "encoder"
    encoder, _, _, _ = load_encoder(folder)
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS[:3], padding=True, return_tensors="pt")
    plain = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    filled = batch["attention_mask"].bool()
    with torch.no_grad():
        rows = plain(**batch).last_hidden_state
    means = torch.stack([row[keep].mean(0) for row, keep in zip(rows, filled, strict=True)])
    ours = embed_texts(encoder, tokenizer(), 16, TEXTS[:3])
    assert np.allclose(ours, means.numpy(), atol=1e-5)
    assert AutoModelForMaskedLM.from_pretrained(folder).config.vocab_size == tokenizer().size


def test_equal_runs_are_equal_and_the_seed_matters(context: MakeContext) -> None:
    made = [context(key, seed=seed, epochs=1) for key, seed in (("a", 0), ("b", 0), ("c", 1))]
    for ctx in made:
        pretrain.run(ctx)
    one, again, other = (path_sha256(ctx.out / "encoder") for ctx in made)
    assert one == again != other


def test_only_training_texts_are_learned_from(context: MakeContext) -> None:
    """Texts of val and test may be others: the weights are the same."""
    half = ["train"] * 33 + ["val", "test"] * 4
    one = context("one", splits=half)
    two = context("two", splits=half, texts=[*TEXTS[:33], *sentences(8, length=9, seed=7)])
    for ctx in (one, two):
        pretrain.run(ctx)
    assert path_sha256(one.out / "encoder") == path_sha256(two.out / "encoder")


@pytest.mark.parametrize("killed_at", [(1,), (4, 4, 7)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resumed_equals_uninterrupted(
    killed_at: tuple[int, ...], dropout: float, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = ["train"] * len(TEXTS)
    whole, broken = (context(key, splits=splits, objective={"dropout": dropout}) for key in ("whole", "broken"))
    with monkeypatch.context() as patch:
        done = steps_of(patch)
        pretrain.run(whole)
        assert done == list(range(STEPS))
    for moment in killed_at:
        with monkeypatch.context() as patch:
            steps_of(patch, kill_at=moment)
            with pytest.raises(Killed):
                pretrain.run(broken)
    with monkeypatch.context() as patch:
        done = steps_of(patch)
        pretrain.run(broken)
    # Checkpoints lie at the ends of epochs (3 steps): nothing before the last one is done again.
    assert done == list(range(killed_at[-1] // 3 * 3, STEPS))
    assert path_sha256(whole.out / "encoder") == path_sha256(broken.out / "encoder")
    timeless = [json.loads((ctx.out / "health.json").read_text())["gauges"] for ctx in (whole, broken)]
    assert timeless[0] == timeless[1]


def test_told_to_stop_it_goes_on_from_the_very_step(context: MakeContext) -> None:
    whole, broken = context("whole"), context("broken")
    pretrain.run(whole)
    broken.stop = threading.Event()
    broken.stop.set()
    with pytest.raises(TryAgain):
        pretrain.run(broken)
    broken.stop = threading.Event()
    pretrain.run(broken)
    assert path_sha256(whole.out / "encoder") == path_sha256(broken.out / "encoder")


def test_a_collapsed_run_ends_with_the_report(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MLM.forward

    def spoilt(self: MLM, *arguments: Any, **more: Any) -> Any:
        last = self.encoder.layers()[-1].output.LayerNorm  # type: ignore[union-attr]
        last.weight.data.zero_()  # type: ignore[union-attr,operator]
        last.bias.data.fill_(0.1)  # type: ignore[union-attr,operator]
        return forward(self, *arguments, **more)

    monkeypatch.setattr(MLM, "forward", spoilt)
    ctx = context(warmup=0.0, learning_rate=1e-6)
    with pytest.raises(CheckFailed, match="all texts get nearly the same features") as caught:
        pretrain.run(ctx)
    assert "pretrain.batch_tokens" in str(caught.value.next_step)
    assert not json.loads((ctx.out / "health.json").read_text())["healthy"]
    assert not (ctx.out / "encoder").exists()


# ---- bad input


@pytest.mark.parametrize(
    ("texts", "splits"),
    [
        (["red tree"], ["train"]),
        (sentences(40), ["train"] * 7 + ["val"] * 33),
        (["red"] * 40, ["train"] * 40),
        (["", " "] * 40, ["train"] * 80),
    ],
    ids=["one line", "seven texts", "forty tokens", "no token"],
)
def test_too_little_text_is_the_users_error(texts: list[str], splits: list[str], context: MakeContext) -> None:
    with pytest.raises(UserError, match="pretraining needs at least 8 texts and 64 tokens") as caught:
        pretrain.run(context(texts=texts, splits=splits))
    assert "data.source" in str(caught.value.next_step)


@pytest.mark.parametrize("known", [0, 7])
def test_texts_in_a_script_that_the_tokenizer_does_not_know(known: int, context: MakeContext) -> None:
    texts = ["ሰላም ለዓለም ቋንቋ ነው"] * 300 + ["red"] * known
    with pytest.raises(UserError, match="the tokenizer knows next to none of these texts") as caught:
        pretrain.run(context(texts=texts, splits=["train"] * len(texts)))
    assert caught.value.place == "tokenizer.kind"
    assert "tokenizer.kind: bpe" in caught.value.next_step


def test_unknown_tokens_do_not_make_up_for_known_ones(context: MakeContext) -> None:
    texts = ["ሰላም ለዓለም ቋንቋ red"] * 40
    with pytest.raises(UserError, match="40 training texts with 40 tokens; pretraining needs at least"):
        pretrain.run(context(texts=texts, splits=["train"] * 40))


def test_batches_and_val_texts_without_a_known_token_do_no_harm(context: MakeContext) -> None:
    texts = [*sentences(60), *["ሰላም " * 14] * 100]
    ctx = context(texts=texts, splits=["train"] * 152 + ["val"] * 8, batch_tokens=64)
    pretrain.run(ctx)
    document = json.loads((ctx.out / "health.json").read_text())
    assert document["healthy"]
    assert document["val_loss"] > 0, "told on texts of train, as val has nothing to hide"


def test_texts_without_a_token_are_passed_over(context: MakeContext) -> None:
    ctx = context(texts=[*sentences(20), "", " ", *sentences(8)])
    pretrain.run(ctx)
    assert json.loads((ctx.out / "health.json").read_text())["resolved"]["train_texts"] == 20


def test_without_val_and_with_long_texts_alone(context: MakeContext) -> None:
    texts = [" ".join(sentences(1, length=1200, seed=seed)) for seed in range(8)]
    ctx = context(texts=texts, splits=["train"] * 8, epochs=1, batch_tokens=2048)
    pretrain.run(ctx)
    golden = load_file(ctx.out / "encoder" / "golden.safetensors")
    assert len(unpack(golden)) == 1  # all are too long to travel with a model; the shortest does
    assert golden["features"].shape == (1, 16)


# ---- which precision


@pytest.fixture
def tried(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> tuple[StepContext, DatasetRef]:
    """A run that has to choose, on hardware that has both."""
    monkeypatch.setattr(text_pretrain, "computes_in_bfloat16", lambda _: True)
    ctx = context(precision="auto")
    return ctx, ctx.input("dataset")


def test_the_trial_leaves_weights_gradients_and_random_state_alone(tried: tuple[StepContext, DatasetRef]) -> None:
    ctx, dataset = tried
    plain = text_pretrain.prepare(context_as(ctx, "float32"), dataset, resolve_runtime(ctx.project.pretrain))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = text_pretrain.prepare(ctx, dataset, resolve_runtime(ctx.project.pretrain))
    assert torch.equal(state, torch.get_rng_state())
    expected = plain.objective.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in made.objective.state_dict().items())
    assert all(parameter.grad is None for parameter in made.objective.parameters())
    trial = made.measured["precision_trial"]
    assert made.runtime is not None
    assert made.runtime.precision == trial["precision"]
    assert trial["tokens_per_second"].keys() == {"float32", "bfloat16"}
    assert "precision_trial" not in plain.measured
    for one in (plain, made):
        one.batches.close()


def context_as(ctx: StepContext, precision: str) -> StepContext:
    config = ctx.project.pretrain.model_copy(update={"precision": precision})
    return replace(ctx, project=ctx.project.model_copy(update={"pretrain": config}))


def test_the_trial_of_a_large_network_takes_a_part_of_its_batches(
    tried: tuple[StepContext, DatasetRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, dataset = tried
    made = text_pretrain.prepare(context_as(ctx, "float32"), dataset, resolve_runtime(ctx.project.pretrain))
    objective, seen = made.objective, []
    assert isinstance(objective, MLM)
    expected = sum(p.numel() for layer in objective.encoder.layers() for p in layer.parameters())
    expected += 0.15 * 16 * tokenizer().size
    assert text_pretrain._weights_a_token(objective) == pytest.approx(expected)
    monkeypatch.setattr(text_pretrain, "_TRIAL_WORK", 6 * 40 * expected)
    monkeypatch.setattr(text_pretrain, "_TRIAL_SECONDS", 0.0)
    forward = objective.forward
    objective.forward = lambda batch, **more: seen.append(batch) or forward(batch, **more)  # type: ignore[func-returns-value]
    seconds = text_pretrain.compare_precisions(objective, made.batches, "cpu")  # type: ignore[arg-type]
    assert [len(batch.ids) for batch in seen] == [pytest.approx(40, abs=7)] * 8
    assert seen[::2] == seen[1::2], "both compute the same, side by side"
    assert all(int(batch.lengths.sum()) == len(batch.ids) for batch in seen)
    assert [len(values) for values in seconds.values()] == [3, 3], "the first pair does not count"
    assert min(min(values) for values in seconds.values()) > 0
    assert objective.count == 12
    made.batches.close()


@pytest.mark.parametrize(
    ("plain", "half", "expected"),
    [
        ([1.0, 1.0, 1.0], [0.95, 0.95, 0.95], "float32"),
        ([1.0, 1.0, 1.0], [0.8, 0.8, 0.8], "bfloat16"),
        # Other work on the machine: it makes some steps slow, and none fast.
        ([3.0, 1.0, 3.0], [1.0, 1.0, 1.0], "float32"),
        ([1.0, 1.0, 1.0], [0.8, 3.0, 0.8], "bfloat16"),
        ([1.0, 1.0, 1.0], [1.5, 0.8, 1.5], "float32"),
        ([1.0], [0.8], "bfloat16"),
    ],
)
def test_half_precision_must_pay(plain: list[float], half: list[float], expected: str) -> None:
    assert text_pretrain.faster({"float32": plain, "bfloat16": half}) == expected


def test_the_trial_decides(tried: tuple[StepContext, DatasetRef], monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, _ = tried
    monkeypatch.setattr(
        text_pretrain, "compare_precisions", lambda *_: {"float32": [0.02, 0.01], "bfloat16": [0.005, 0.01]}
    )
    pretrain.run(ctx)
    document = json.loads((ctx.out / "health.json").read_text())
    assert document["resolved"]["precision"] == document["precision_trial"]["precision"] == "float32"
    assert document["precision_trial"]["tokens_per_second"] == {"float32": 100, "bfloat16": 200}


def test_hardware_without_bfloat16_needs_no_trial(
    tried: tuple[StepContext, DatasetRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, dataset = tried
    monkeypatch.setattr(text_pretrain, "computes_in_bfloat16", lambda _: False)
    monkeypatch.setattr(text_pretrain, "compare_precisions", lambda *_: pytest.fail("a trial"))
    made = text_pretrain.prepare(ctx, dataset, resolve_runtime(ctx.project.pretrain))
    made.batches.close()
    assert made.runtime is not None
    assert made.runtime.precision == "float32"
    assert made.measured["precision_trial"]["reason"] == "the hardware does not compute in bfloat16"


def test_on_another_machine_a_run_goes_on_in_the_precision_it_began_with(
    tried: tuple[StepContext, DatasetRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, _ = tried
    monkeypatch.setattr(text_pretrain, "compare_precisions", lambda *_: {"float32": [1.0], "bfloat16": [0.1]})
    with monkeypatch.context() as patch:
        steps_of(patch, kill_at=4)
        with pytest.raises(Killed):
            pretrain.run(ctx)
    # Nothing of the first machine is there but the store; and this one would take the other precision.
    monkeypatch.setattr(text_pretrain, "computes_in_bfloat16", lambda _: False)
    settings = ctx.settings.model_copy(update={"home": tmp_path / "other"})
    pretrain.run(replace(ctx, settings=settings))
    document = json.loads((ctx.out / "health.json").read_text())
    assert document["resolved"]["precision"] == "bfloat16"
    assert document["precision_trial"] == {"device": "cpu", "precision": "bfloat16", "reason": "that of the checkpoint"}


def test_the_precision_of_another_device_is_not_taken(
    tried: tuple[StepContext, DatasetRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, dataset = tried
    began = {"runtime": {"device": "cuda", "precision": "float32", "threads": 1}}
    monkeypatch.setattr(text_pretrain, "newest_record", lambda _: began)
    monkeypatch.setattr(text_pretrain, "compare_precisions", lambda *_: {"float32": [1.0], "bfloat16": [0.1]})
    made = text_pretrain.prepare(ctx, dataset, resolve_runtime(ctx.project.pretrain))
    made.batches.close()
    assert made.measured["precision_trial"]["precision"] == "bfloat16"


# ---- prior knowledge


def test_entities_reach_the_masks(tmp_path: Path, context: MakeContext) -> None:
    (tmp_path / "names.txt").write_text("house bird\nfish road\n")
    ctx = context(epochs=1, objective={"masking": {"strategy": "entity", "entities": str(tmp_path / "names.txt")}})
    pretrain.run(ctx)
    assert json.loads((ctx.out / "health.json").read_text())["resolved"]["entities"] == 2


# ---- memory


def test_freed_memory_is_kept_where_there_is_glibc() -> None:
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
