"""``ssl-core embed``: files through real registered models, and every mistake that a person makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ssl_core.cli import main
from ssl_core.cli.embed import to_table
from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.models.text_classifier import load_classifier
from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_weights import load_encoder
from ssl_core.registry import register, versions
from tests.registry.conftest import World, dataset_ref, empty_database  # noqa: F401
from tests.texts import WORDS, sentences, write_classifier, write_encoder

TEXTS = ["red river", "  café 日本 😀 ", " ".join(WORDS * 4), *sentences(300)]
"""One is longer than a window, and all are more than one batch."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[World]:  # noqa: F811
    """A registry with an encoder on texts, a second version of it, and a model without an alias."""
    root = tmp_path_factory.mktemp("embed")
    shutil.copyfile(empty_database, root / "mlflow.db")
    project = ProjectConfig.model_validate(
        {"name": "tiny", "modality": "text", "data": {"source": "sample://reviews", "text": "body", "id": "key"}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # artifacts go to ./mlruns
        settings = Settings(home=root / "home", MLFLOW_TRACKING_URI=f"sqlite:///{root / 'mlflow.db'}")
        world = World(settings, project, root)
        for seed in (0, 1):
            world.put("pretrain", f"e{seed}", "encoder", lambda folder, seed=seed: write_encoder(folder, seed))
            encoder = world.register_encoder(f"e{seed}").outputs["registered_encoder"]
        report = world.put("evaluate", "v", "evaluation", lambda folder: _write(folder / "evaluation.json", "{}"))
        inputs = {"dataset": dataset_ref(), "registered_encoder": encoder, "evaluation": report}
        model = world.put("finetune", "m", "model", write_classifier)
        world.step("register", register.register_model, inputs | {"model": model})
        projects = root / "projects"
        projects.mkdir()
        _write(projects / "tiny.yaml", json.dumps(project.model_dump(mode="json", exclude_unset=True)))
        yield world


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def call(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``ssl-core embed`` in a folder of this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_HOME", str(world.settings.home))
    monkeypatch.setenv("SSL_PROJECTS_DIR", str(world.tmp / "projects"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(world.settings.mlflow_tracking_uri))

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(main, ["embed", *arguments], catch_exceptions=False)
        assert "Traceback" not in result.output
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        assert not left, "nothing half-written stays"
        return result

    return run


def weights(world: World, step: str, key: str) -> Path:
    return Path(world.store.path(f"tiny/{step}/{key}/out/{'encoder' if step == 'pretrain' else 'model'}"))


def features(world: World, key: str, texts: list[str]) -> np.ndarray:
    network, _, info, tokenizer = load_encoder(weights(world, "pretrain", key))
    return embed_texts(network, tokenizer, info.max_length, texts)


def test_lines_become_rows_by_the_newest_encoder(world: World, call: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "new.txt", "\n\n".join(TEXTS) + "\n")
    result = call("tiny", "new.txt")
    assert result.exit_code == 0, result.output
    assert "wrote new-embeddings.parquet: 303 rows of id, embedding, by tiny-encoder version 2" in result.output
    table = pq.read_table("new-embeddings.parquet")
    assert table.schema.names == ["id", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert table.schema.metadata[b"ssl.model"] == b"models:/tiny-encoder/2"
    assert table["id"].to_pylist()[:3] == ["new.txt:1", "new.txt:3", "new.txt:5"]
    got = np.asarray(table["embedding"].to_pylist(), dtype=np.float32)
    # Neighbours in a batch decide how products are rounded, and nothing else.
    np.testing.assert_allclose(got, features(world, "e1", [text.strip() for text in TEXTS]), atol=1e-5)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_rows_of_every_form_and_the_project_s_columns(call: Callable[..., Result], tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"key": ["a", "b, c", "日"], "label": ["no class", "", None], "body": TEXTS[:3]})
    path = tmp_path / f"new{ending}"
    if ending == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True, force_ascii=False), encoding="utf-8")
    elif ending == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",", encoding="utf-8")
    result = call("tiny", str(path), "--out", "e.parquet", "--version", "1")
    assert result.exit_code == 0, result.output
    assert "by tiny-encoder version 1" in result.output
    assert pq.read_table("e.parquet")["id"].to_pylist() == ["a", "b, c", "日"]


def test_another_column_and_no_project_file(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_PROJECTS_DIR", str(tmp_path))
    _write(tmp_path / "new.csv", "note,text\nfirst,red\nsecond,green\n")
    _write(tmp_path / "e.parquet", "an older one")
    for column in ("text", "note"):
        more = () if column == "text" else ("--column", column)
        assert call("tiny", "new.csv", "--out", "e.parquet", *more).exit_code == 0
        assert pq.read_table("e.parquet")["id"].to_pylist() == ["new.csv:2", "new.csv:3"]


def test_the_champion_comes_before_the_newest(world: World, call: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "new.txt", "red\n")
    versions.set_alias(world.client, "tiny-encoder", versions.CHAMPION, "1")
    try:
        assert "by tiny-encoder version 1" in call("tiny", "new.txt").output
    finally:
        versions.set_alias(world.client, "tiny-encoder", versions.CHAMPION, None)


def test_predictions_need_a_champion_or_a_version(world: World, call: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "new.txt", "\n".join(TEXTS))
    refused = call("tiny", "new.txt", "--predict")
    assert refused.exit_code == 2
    assert "'tiny' has no champion yet; its newest is version 1" in refused.output
    assert "--version 1" in refused.output
    versions.set_alias(world.client, "tiny", versions.CHAMPION, "1")
    try:
        result = call("tiny", "new.txt", "--predict", "--log", "log")
    finally:
        versions.set_alias(world.client, "tiny", versions.CHAMPION, None)
    assert result.exit_code == 0, result.output
    assert "wrote new-predictions.parquet: 303 rows of id, label, confidence, probabilities" in result.output
    rows = pq.read_table("new-predictions.parquet").to_pylist()
    model = load_classifier(weights(world, "finetune", "m"))
    wanted = model.predict([text.strip() for text in TEXTS])
    np.testing.assert_allclose(
        [[row["probabilities"][name] for name in model.classes] for row in rows], wanted, atol=1e-5
    )
    assert [row["label"] for row in rows[:9]] == [model.classes[k] for k in wanted[:9].argmax(axis=1)]
    assert rows[0]["confidence"] == pytest.approx(wanted[0].max(), abs=1e-5)
    (file,) = (tmp_path / "log").rglob("*.parquet")
    logged = pq.read_table(file).to_pylist()
    assert [row["label"] for row in logged] == [row["label"] for row in rows]
    assert {(row["model"], row["version"]) for row in logged} == {("tiny", "1")}
    assert dict(logged[0]["probabilities"]) == rows[0]["probabilities"]


@pytest.mark.parametrize(
    ("name", "content", "more", "words"),
    [
        ("no.txt", None, (), "no.txt: no such file or folder"),
        ("e.txt", "", (), "e.txt: no text in it"),
        ("e.txt", " \n\n", (), "e.txt: no text in it"),
        ("e.csv", "", (), "e.csv: an empty file"),
        ("e.csv", "body,key\n", (), "no text in it"),
        ("e.csv", "bodi,key\nred,1\n", (), "no column 'body', did you mean `bodi`? (there: bodi, key); name it with --column"),
        ("e.csv", "body,key\nred,1\n", ("--column", "text"), "no column 'text' (there: body, key); name it with --column"),
        ("e.jsonl", '{"body": "red", "key": 1}\n{"body": 7, "key": 2}\nno\n', (), "2 texts cannot be used: e.jsonl:2: 'body' is a number"),
        ("e.jsonl", '{"body": " ", "key": 1}\n', (), "1 text cannot be used: 1: there is no text in it"),
        ("e.txt", b"red\n\xff\xfe\xff red\n", (), "e.txt:2: not UTF-8 (byte 0xff)"),
        ("e.txt", b"red\nre\0d\n", (), "e.txt:2: a NUL character"),
        ("e.parquet", b"PAR1 no", (), "not a Parquet file that can be read"),
        ("e.pdf", "%PDF", (), "e.pdf: no texts there (1 other files)"),
        ("e.txt", "red", ("--version", "9"), "'tiny-encoder' has no version 9 (there: 1, 2)"),
        ("e.txt", "red", ("--version", "champion"), "'tiny-encoder' has no version champion"),
        ("e.txt", "red", ("--out", "."), "--out .: is a folder"),
        ("e.txt", "red", ("--out", "e.txt"), "would replace what is read"),
        ("e.txt", "red", ("--out", "no/such/e.parquet"), "no such folder"),
        ("e.txt", "red", ("--log", "log"), "--log: an encoder answers no labels to log"),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_leave_nothing(
    call: Callable[..., Result], tmp_path: Path, name: str, content: Any, more: tuple[str, ...], words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = call("tiny", name, *more)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ([name] if content is not None else [])


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("other", "project 'other' has no registered encoder yet"),
        ("Not a name", "no project called 'Not a name'"),
        ("no.yaml", "no.yaml: no such project file"),
    ],
)
def test_a_project_without_models_is_told(call: Callable[..., Result], project: str, words: str) -> None:
    result = call(project, "new.txt")
    assert result.exit_code == 2
    assert words in result.output
    assert "next: " in result.output


def test_many_bad_rows_are_counted_and_the_first_are_named(call: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "new.jsonl", "\n".join(['{"body": "red"}', *["[]"] * 20]))
    result = call("tiny", "new.jsonl")
    assert "20 texts cannot be used: new.jsonl:2: a list and not an object" in result.output
    assert "new.jsonl:6" in result.output
    assert "new.jsonl:7" not in result.output
    assert "and 15 more" in result.output


def test_a_folder_of_documents_is_read_as_the_project_says(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("b.txt", "a.txt"):
        _write(tmp_path / "docs" / name, "red\ngreen\n")
    assert call("tiny", "docs/").exit_code == 0
    assert pq.read_table("docs-embeddings.parquet")["id"].to_pylist() == ["a.txt", "b.txt"]


def test_answers_of_every_type_keep_their_type() -> None:
    several = to_table(["a"], pd.DataFrame({"labels": [[]], "probabilities": [{"x": 0.1, "y é": 0.2}]}))
    assert several.schema.field("labels").type == pa.list_(pa.string())
    assert several.to_pylist() == [{"id": "a", "labels": [], "probabilities": {"x": 0.1, "y é": 0.2}}]
    assert to_table(["a"], pd.DataFrame({"value": [3]})).schema.field("value").type == pa.float64()


def test_images_of_a_folder_or_one(
    settings_of_images: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_HOME", str(settings_of_images.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(settings_of_images.mlflow_tracking_uri))
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "sub/a.png"):
        Image.new("L", (9, 7), len(name)).save(folder / name)
    out = ["--out", str(tmp_path / "e.parquet")]

    def call(file: Path, *more: str) -> Result:
        return CliRunner().invoke(main, ["embed", "tiny", str(file), *out, *more], catch_exceptions=False)

    assert call(folder).exit_code == 0
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["b.png", "sub/a.png"]
    assert len(rows[0]["embedding"]) == 8
    assert call(folder / "b.png").exit_code == 0
    (alone,) = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert alone["id"] == "b.png"
    assert alone["embedding"] == pytest.approx(rows[0]["embedding"], abs=1e-5)
    (folder / "c.png").write_text("no image")
    refused = call(folder)
    assert refused.exit_code == 2
    assert "c.png: not an image" in refused.output
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 1, "the older file stays"
    assert "images have no columns" in call(folder, "--column", "x").output


@pytest.fixture
def settings_of_images(
    tmp_path: Path,
    empty_database: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    make_project: Callable[..., ProjectConfig],
) -> Settings:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    settings = Settings(home=tmp_path / "home", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")
    World(settings, make_project(encoder={"widths": [8]}), tmp_path).register_encoder()
    return settings
