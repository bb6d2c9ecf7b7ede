"""A registry without a server (SQLite), a project whose steps can be run one by one, and tiny real models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssl_core.config.project import ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.contracts import (
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
from ssl_core.evaluation.predictions import make_predictions, write_predictions
from ssl_core.models.classifier import build_classifier, save_classifier
from ssl_core.models.embed import embed
from ssl_core.models.encoder import EncoderInfo, Preprocessing, build_encoder, save_encoder
from ssl_core.pipeline import get_step
from ssl_core.registry import gate, promote, register, versions
from ssl_core.registry.client import connect
from ssl_core.registry.tracking import open_run
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
    (folder / "training.json").write_text(json.dumps({"label_budget": "all", "labels": 60, "spread": False}))


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
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.settings.store_url, self.settings.cache)

    @property
    def client(self) -> Any:
        return connect(self.settings)

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
                checkpoints=self.store.checkpoints("tiny", name, key), tracker=tracker, request=request,
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
        seed: int = 0,
        wrong_first: bool = False,
        n: int = 200,
    ) -> dict[str, Ref]:
        encoder = self.register_encoder().outputs["registered_encoder"]

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
                folder / "predictions.parquet", make_predictions(*predictions_with(right, n, wrong_first), CLASSES)
            )
            write_predictions(
                folder / "predictions-random-init.parquet",
                make_predictions(*predictions_with(random_right, n), CLASSES),
            )

        model = self.put("finetune", name, "model", lambda f: write_classifier(f, self.project, seed))
        return {
            "dataset": dataset_ref(dataset),
            "registered_encoder": encoder,
            "model": model,
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

    def promote(self, inputs: dict[str, Ref]) -> StepResult:
        return self.step("promote", promote.run, inputs)

    def aliases(self, name: str = "tiny") -> dict[str, str]:
        return {alias: str(v) for alias, v in self.client.get_registered_model(name).aliases.items()}

    def versions(self, name: str = "tiny") -> list[ModelRef]:
        return self.client.search_model_versions(f"name = '{name}'")


@pytest.fixture
def real_world(settings: Settings, make_project: Callable[..., ProjectConfig], tmp_path: Path) -> World:
    project = make_project(encoder={"widths": [8]}, evaluate={"bootstrap": 500})
    return World(settings, project, tmp_path)


@pytest.fixture
def world(real_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """``real_world``, but no model is logged or loaded: for what is decided, not for what is served. Seconds faster."""
    monkeypatch.setattr(register, "_log", lambda ctx, kind, folder, golden, card: ("", folder.as_uri()))
    monkeypatch.setattr(versions, "replay_golden", lambda uri, golden: 0.0)
    return real_world
