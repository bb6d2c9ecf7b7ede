"""``dvc.yaml``, written from the step table: `dvc repro` runs the same steps in the same order as everything else does.

``docs/generate.py`` writes the file and checks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ssl_core.errors import UserError
from ssl_core.pipeline import STEPS, Step, producer, steps_for

LAST = "gate"
"""No stage promotes: rebuilding what is out of date must not change which model is in use."""

DEFAULT_PROJECT = "digits"
_PROJECT_FILE = "projects/${project}.yaml"
_RESULTS = ".ssl/dvc/${project}"
_SCHEMA = "ssl_core/config"
_HEAD = """\
# Generated from the step table (ssl_core/pipeline.py) by `make docs`. To run another project, change `project` below
# (and run `make docs` where it is on something else than images); that line stays as you set it. What the rest means, and how to run it: docs/dvc.md.
"""


def stages(modality: str) -> list[Step]:
    """The rows of a modality up to the gate: what it needs, directly or through others, in the table's order."""
    needed = {"resolve", LAST}
    for step in reversed(steps_for(modality)):
        if step.name in needed:
            needed |= {producer(artifact).name for artifact in step.inputs}
    return [step for step in steps_for(modality) if step.name in needed]


def needs(step: Step) -> list[str]:
    """The steps whose results ``step`` reads, in the table's order; all but resolve read the frozen configuration."""
    if step.name == "resolve":
        return []
    makers = {producer(artifact).name for artifact in step.inputs} | {"resolve"}
    return [other.name for other in STEPS if other.name in makers]


def dvc_yaml(project: str = DEFAULT_PROJECT, modality: str = "image") -> str:
    """The text of ``dvc.yaml`` with ``project``, of ``modality``, as the one that it runs."""
    document = {"vars": [{"project": project}], "stages": {step.name: _stage(step) for step in stages(modality)}}
    return _HEAD + yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=True)


def _stage(step: Step) -> dict[str, Any]:
    first = step.name == "resolve"
    stage: dict[str, Any] = {
        "desc": step.about,
        # Without an active environment, `.venv/bin/dvc repro` still finds the command beside itself.
        "cmd": f'PATH="$PATH:.venv/bin" ssl-core step {step.name} --project {_PROJECT_FILE} --results {_RESULTS}',
        "deps": [_PROJECT_FILE, _SCHEMA] if first else [f"{_RESULTS}/{name}.json" for name in needs(step)],
    }
    if step.name == "ingest":
        # The source lies outside DVC's sight: only the step can say whether it changed.
        stage["always_changed"] = True
    # The store is the cache of steps. `persist` keeps DVC's own cache of runs out of it: that one would bring back a
    # result file whose outputs the store no longer has.
    stage["outs"] = [{f"{_RESULTS}/{step.name}.json": {"cache": False, "persist": True}}]
    return stage


def chosen_project(path: Path) -> str:
    """The project that the ``dvc.yaml`` at ``path`` runs; the default where there is no such file.

    Raises ``UserError`` where the file does not say.
    """
    if not path.exists():
        return DEFAULT_PROJECT
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["vars"][0]["project"])
    except (yaml.YAMLError, LookupError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            "does not say which project it runs",
            place=f"{path}: vars[0].project",
            next_step="remove it, then: make docs",
        ) from error
