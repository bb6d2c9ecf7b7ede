"""A registry without a server (SQLite), a project whose steps can be run one by one, and tiny real models."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import (
    Approval,
    ArtifactRef,
    DatasetRef,
    GateReport,
    ModelRef,
    Ref,
    RunContext,
    RunRequest,
    StepResult,
    StepStatus,
)
from ssl_core.data.dataset import write_dataset
from ssl_core.evaluation.predictions import Predictions, make_predictions, write_predictions
from ssl_core.models.classifier import build_classifier, save_classifier
from ssl_core.models.embed import embed
from ssl_core.models.encoder import EncoderInfo, Preprocessing, build_encoder, save_encoder
from ssl_core.pipeline import get_step
from ssl_core.registry import afresh, gate, promote, register, rollback, versions
from ssl_core.registry.client import connect
from ssl_core.registry.tracking import open_run
from ssl_core.serving.image_package import to_png
from ssl_core.step import Output, StepContext
from ssl_core.store import Store, path_sha256

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's schema takes seconds to make; each test starts from a copy."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(Settings(MLFLOW_TRACKING_URI=f"sqlite:///{path}")).search_experiments()
    return path


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Platform settings with an MLflow of this test's own, without a server."""
    monkeypatch.chdir(tmp_path)  # artifacts go to ./mlruns
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return Settings(home=tmp_path / "home", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")


def dataset_ref(version: int = 1) -> DatasetRef:
    return DatasetRef(
        kind="dataset", name="tiny", tag=f"tiny@v{version}", revision="a" * 40, path="tiny/data", md5=f"{version:032x}.dir",
        remote="/remote", sha256=f"{version:064x}", producer="publish/k", rows=100, labelled=60, classes=3,
    )  # fmt: skip


TRAIN = 60


def publish_dataset(remote: Path, version: int, manifest: pd.DataFrame, pixels: np.ndarray) -> DatasetRef:
    """A dataset version of 8x8 images in a DVC remote, as ``publish`` leaves it, without Git."""
    folder = remote.parent / f"dataset-{len(list(remote.parent.glob('dataset-*')))}"
    order = manifest.sort_values(["first_version", "sample_id"]).index.to_numpy()
    rows = manifest.loc[order].reset_index(drop=True)
    write_dataset(folder, rows, lambda i: to_png(pixels[order[i]]), name="tiny", modality="image", classes=CLASSES)
    listing = []
    for path in sorted(folder.iterdir()):
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        put_object(remote, md5, path.read_bytes())
        listing.append({"md5": md5, "relpath": path.name})
    text = json.dumps(listing).encode()
    md5 = f"{hashlib.md5(text).hexdigest()}.dir"
    put_object(remote, md5, text)
    return dataset_ref(version).model_copy(update={"md5": md5, "remote": str(remote), "rows": len(rows)})


def put_object(remote: Path, md5: str, data: bytes) -> None:
    path = remote / "files" / "md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def manifest_rows(ids: list[str], split: str, first_version: np.ndarray | int = 1) -> pd.DataFrame:
    """Samples of a split as a manifest has them; labels go round the classes."""
    n = len(ids)
    return pd.DataFrame({
        "sample_id": ids, "split": split, "group": ids, "label": [CLASSES[i % 3] for i in range(n)],
        "source": [f"camera-{i % 2}/{i}.png" for i in range(n)], "arrived_at": pd.Timestamp("2026-01-01", tz="UTC"), "first_version": first_version,
        "width": 8, "height": 8, "channels": 1, "bytes": 90, "brightness": 0.5, "contrast": 0.2,
    })  # fmt: skip


def write_classifier(folder: Path, project: ProjectConfig, seed: int = 0, channels: int = 1) -> None:
    """A tiny classifier with random weights, saved as the finetune step does, with its golden batch."""
    preprocessing = Preprocessing("image", 8, channels, (0.5,) * channels, (0.25,) * channels)
    encoder = build_encoder(project.encoder, channels, seed=seed)
    info = EncoderInfo(project.encoder, preprocessing, encoder.features)
    model = build_classifier(encoder, info, CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.head.weight)
    save_classifier(folder, model.eval())
    pixels = golden_pixels(channels)
    save_file(
        {"pixels": torch.from_numpy(pixels), "probabilities": torch.from_numpy(model.predict_proba(pixels))},
        folder / "golden.safetensors",
    )
    record = {"label_budget": "all", "labels": TRAIN, "spread": False, "sample_ids": train_ids()}
    (folder / "training.json").write_text(json.dumps(record))


def train_ids() -> list[str]:
    return [f"t{i:05d}" for i in range(TRAIN)]


def write_encoder(folder: Path, project: ProjectConfig, seed: int = 0) -> None:
    preprocessing = Preprocessing("image", 8, 1, (0.5,), (0.25,))
    encoder = build_encoder(project.encoder, 1, seed=seed).eval()
    save_encoder(folder, encoder, EncoderInfo(project.encoder, preprocessing, encoder.features))
    pixels = golden_pixels(1)
    save_file(
        {"pixels": torch.from_numpy(pixels), "features": torch.from_numpy(embed(encoder, preprocessing, pixels))},
        folder / "golden.safetensors",
    )


def golden_pixels(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, channels, 8, 8), dtype=np.uint8)


def predictions_with(right: int, n: int = 200, wrong_first: bool = False) -> tuple[list[str], np.ndarray, np.ndarray]:
    """``right`` of ``n`` samples predicted right: the first ones, or the last ones."""
    labels = np.arange(n) % 3
    hit = np.arange(n) < right
    predicted = np.where(hit[::-1] if wrong_first else hit, labels, (labels + 1) % 3)
    return [f"s{i:05d}" for i in range(n)], labels, np.eye(3, dtype=np.float32)[predicted]


@dataclass
class World:
    """One project on one store and registry; each method is a step, run as the executor runs it."""

    settings: Settings
    project: ProjectConfig
    tmp: Path
    runs: int = 0
    datasets: dict[int, DatasetRef] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.settings.store_url, self.settings.cache)

    @property
    def client(self) -> Any:
        return connect(self.settings)

    def dataset(
        self, version: int = 1, n: int = 200, vault: int = 0, change: Callable[[pd.DataFrame], None] | None = None
    ) -> DatasetRef:
        """A published, validated version with ``n`` labelled test samples; those that earlier ones lack came with it."""
        if version in self.datasets:
            return self.datasets[version]
        self.sizes[version] = n
        came = np.array([min([v for v, size in self.sizes.items() if i < size], default=version) for i in range(n)])
        manifest = pd.concat(
            [
                manifest_rows(train_ids(), "train", min(self.sizes)),
                manifest_rows(predictions_with(0, n)[0], "test", came),
                manifest_rows([f"v{i:05d}" for i in range(vault)], "vault", min(self.sizes)),
            ],
            ignore_index=True,
        )
        if change is not None:
            change(manifest)
        pixels = np.random.default_rng(1).integers(0, 256, (len(manifest), 1, 8, 8), dtype=np.uint8)
        ref = publish_dataset(self.tmp / "remote", version, manifest, pixels)
        report = {"passed": True, "dataset": {"md5": ref.md5}}
        self.store.write(f"tiny/validate/v{version}/out/validation/validation.json", json.dumps(report).encode())
        self.datasets[version] = ref
        return ref

    def put(self, step: str, key: str, name: str, fill: Callable[[Path], None]) -> ArtifactRef:
        """A committed artifact in the store."""
        out = self.tmp / f"put-{step}-{key}"
        (out / name).mkdir(parents=True)
        fill(out / name)
        ref = ArtifactRef(
            kind=name, uri=f"tiny/{step}/{key}/out/{name}", sha256=path_sha256(out / name), producer=f"{step}/{key}"
        )
        self.store.publish("tiny", StepResult(step=step, key=key, status=StepStatus.DONE, outputs={name: ref}), out)
        return ref

    def step(
        self,
        name: str,
        function: Callable[[StepContext], Any],
        inputs: dict[str, Ref],
        key: str = "",
        project: ProjectConfig | None = None,
        request: RunRequest | None = None,
        **asked: Any,
    ) -> StepResult:
        self.runs += 1
        key = key or f"{name}-{self.runs}"
        run = RunContext(run_id=f"run-{self.runs}", user="tester")
        project = project or self.project
        with (
            self.store.scratch() as scratch,
            open_run(self.settings, project, get_step(name), key, run, inputs) as tracker,
        ):
            out = scratch / "out"
            out.mkdir()
            made = function(StepContext(
                project=project, settings=self.settings, inputs=inputs, run=run, key=key, out=out, store=self.store,
                checkpoints=self.store.checkpoints("tiny", name, key), tracker=tracker, request=request, **asked,
            ))  # fmt: skip
            refs = {
                title: ArtifactRef(kind=o.kind, uri=f"tiny/{name}/{key}/out/{o.path}", sha256=path_sha256(out / o.path), producer=f"{name}/{key}")
                if isinstance(o, Output) else o
                for title, o in made.outputs.items()
            }  # fmt: skip
            result = StepResult(
                step=name,
                key=key,
                status=StepStatus.DONE,
                outputs=refs,
                metrics=made.metrics,
                links=made.links,
                summary=made.summary,
                news=made.news,
                verdict=made.verdict,
            )
            self.store.publish("tiny", result, out)
        return result

    def register_encoder(self, key: str = "e1", dataset: int = 1, seed: int = 0) -> StepResult:
        encoder = self.store.result("tiny", "pretrain", key)
        ref = (
            encoder.outputs["encoder"]
            if encoder
            else self.put("pretrain", key, "encoder", lambda f: write_encoder(f, self.project, seed))
        )
        return self.step(
            "register-encoder",
            register.register_encoder,
            {"dataset": dataset_ref(dataset), "encoder": ref},
            key=f"re-{key}",
        )

    def model_inputs(
        self,
        name: str,
        right: int,
        *,
        dataset: int = 1,
        random_right: int = 60,
        seed: int | None = None,
        wrong_first: bool = False,
        n: int = 200,
        vault: int = 0,
        predictions: Predictions | None = None,
        change: Callable[[Path], None] = lambda folder: None,
    ) -> dict[str, Ref]:
        """``change`` edits the model's folder before it is kept; ``seed`` names its weights, others for each name."""
        encoder = self.register_encoder().outputs["registered_encoder"]
        seed = zlib.crc32(name.encode()) if seed is None else seed

        def evaluation(folder: Path) -> None:
            report = {
                "label_budgets": [
                    {
                        "labels": 10,
                        "classical": {"mean": 0.5, "low": 0.4, "high": 0.6},
                        "pretrained": {"mean": 0.8, "low": 0.7, "high": 0.9},
                    }
                ],
                "model": {
                    "headline": "accuracy",
                    "quality": right / n,
                    "accuracy": right / n,
                    "low": 0.1,
                    "high": 0.9,
                    "n": n,
                },
            }
            (folder / "evaluation.json").write_text(json.dumps(report))
            write_predictions(
                folder / "predictions.parquet",
                predictions or make_predictions(*predictions_with(right, n, wrong_first), CLASSES),
            )
            write_predictions(
                folder / "predictions-random-init.parquet",
                make_predictions(*predictions_with(random_right, n), CLASSES),
            )

        def model(folder: Path) -> None:
            write_classifier(folder, self.project, seed)
            change(folder)

        return {
            "dataset": self.dataset(dataset, n, vault),
            "registered_encoder": encoder,
            "model": self.put("finetune", name, "model", model),
            "evaluation": self.put("evaluate", name, "evaluation", evaluation),
        }

    def register(self, name: str, right: int, **how: Any) -> dict[str, Ref]:
        """Registers a challenger; returns what the gate takes."""
        inputs = self.model_inputs(name, right, **how)
        registered = self.step("register", register.register_model, inputs, key=f"rm-{name}").outputs[
            "registered_model"
        ]
        return {k: v for k, v in inputs.items() if k != "model"} | {"registered_model": registered}

    def gate(self, inputs: dict[str, Ref], project: ProjectConfig | None = None) -> tuple[GateReport, dict[str, Ref]]:
        """The report, and what promote takes."""
        result = self.step("gate", gate.run, inputs, project=project)
        ref = result.outputs["gate_report"]
        report = GateReport.model_validate_json(self.store.fetch(ref).read_bytes())
        assert result.verdict is report.verdict, "the result says what the report says"
        return report, {k: inputs[k] for k in ("registered_encoder", "registered_model")} | {"gate_report": ref}

    def promote(self, inputs: dict[str, Ref], approval: Approval | None = None) -> StepResult:
        return self.step("promote", promote.run, inputs, approval=approval)

    def champion(self, name: str, right: int, **how: Any) -> str:
        """Takes a challenger all the way; its version."""
        inputs = self.register(name, right, **how)
        self.promote(self.gate(inputs)[1])
        version = inputs["registered_model"].version  # type: ignore[union-attr]
        assert self.aliases()["champion"] == version
        return version

    def roll_back(self, to: str = "", reason: str = "") -> StepResult:
        return self.step("rollback", rollback.run, {}, rollback_to=to, reason=reason)

    def aliases(self, name: str = "tiny") -> dict[str, str]:
        return {alias: str(v) for alias, v in self.client.get_registered_model(name).aliases.items()}

    def versions(self, name: str = "tiny") -> list[ModelRef]:
        return self.client.search_model_versions(f"name = '{name}'")


@pytest.fixture
def real_world(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Models are asked in this process: a fresh one takes seconds, and one test pays them (``test_promote.py``)."""
    in_this_process(monkeypatch)
    return World(settings, tiny_project(), tmp_path)


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(afresh, "require_golden", lambda settings, uri, golden: versions.require_golden(uri, golden))


def tiny_project() -> ProjectConfig:
    sections = {"encoder": {"widths": [8]}, "evaluate": {"bootstrap": 500}}
    return ProjectConfig.model_validate({"name": "tiny", "data": {"source": "sample://digits"}, **sections})


def without_models(patch: pytest.MonkeyPatch) -> None:
    """No model is logged or loaded: for what is decided, not for what is served. Seconds faster."""
    patch.setattr(register, "_log", lambda ctx, kind, folder, golden, card: ("", folder.as_uri()))
    patch.setattr(versions, "replay_golden", lambda uri, golden: 0.0)
    in_this_process(patch)


@pytest.fixture
def world(real_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """``real_world`` ``without_models``."""
    without_models(monkeypatch)
    return real_world


@pytest.fixture(scope="session")
def champions(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and a registry with the champions 1, 2 and 3, one after the other, and a rejected 4; made once."""
    folder = tmp_path_factory.mktemp("champions")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_models(patch)
        shutil.copyfile(empty_database, folder / "mlflow.db")
        made = World(
            Settings(home=folder / "home", MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}"),
            tiny_project(),
            folder,
        )
        for number, right in enumerate((150, 165, 180), start=1):
            assert made.champion(f"c{number}", right, dataset=number) == str(number)
        made.promote(made.gate(made.register("c4", 90, dataset=4))[1])
        assert made.aliases() == {"champion": "3", "previous": "2"}
    return folder


@pytest.fixture
def after_three(champions: Path, world: World) -> World:
    """A world of this test's own that goes on from ``champions``."""
    shutil.copytree(champions / "home", world.settings.home, dirs_exist_ok=True)
    shutil.copyfile(champions / "mlflow.db", world.tmp / "mlflow.db")
    world.runs = 1000
    return world
