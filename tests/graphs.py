"""The graph of ``dvc.yaml``, read without DVC: Airflow's environment compares its DAGs with it."""

from __future__ import annotations

from pathlib import Path

import yaml


def dvc_stages(path: Path) -> list[str]:
    """The stages of a ``dvc.yaml``, in its order."""
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"])


def dvc_edges(path: Path) -> set[tuple[str, str]]:
    """``(stage that writes a file, stage that reads it)``; files that no stage writes are no edge."""
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    makers = {out: name for name, stage in stages.items() for entry in stage["outs"] for out in entry}
    return {(makers[dep], name) for name, stage in stages.items() for dep in stage["deps"] if dep in makers}
