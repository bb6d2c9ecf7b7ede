"""What DAG files may import, and what importing them costs: Airflow does it again and again, for each file and each task."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.dags.conftest import REPOSITORY

DAGS = REPOSITORY / "dags"
HEAVY = ("torch", "transformers", "mlflow", "pandas", "numpy", "great_expectations", "dvc")
OURS = (
    "ssl_dags",
    "ssl_core.contracts",
    "ssl_core.config",
    "ssl_core.pipeline",
    "ssl_core.errors",
    "ssl_core.__version__",
)
OTHERS = ("airflow", "pydantic", "attrs", "docker")  # docker comes with Airflow's provider
# As Airflow does it: the bundle, the plugin, then a DAG file. Heavy packages need not be there to be noticed.
WATCH = f"""
import json, sys, time
sought = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            sought.append(name)
sys.meta_path.insert(0, Watch())
"""
PARSE = f"""
import airflow.sdk
sought.clear()
begin = time.process_time()
import ssl_dags.bundle, ssl_dags.templates, ssl_dags.runners.local
sys.path.insert(0, {str(DAGS / "plugins")!r})
import mlflow_link
dags = ssl_dags.templates.render({str(REPOSITORY / "projects" / "digits.yaml")!r})
took = time.process_time() - begin
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"took": took, "sought": sought, "loaded": loaded, "dags": list(dags)}}))
"""


def watched(code: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code],
        env={**os.environ, "PYTHONPATH": str(DAGS)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_dag_file_is_light_and_quick():
    for _ in range(3):  # the best of three: the machine may have had something else to do
        found = watched(PARSE)
        assert found["dags"] == [
            f"digits.{template}" for template in ("ingest", "pretrain", "finetune", "monitor", "rollback", "fire-drill")
        ]
        assert found["sought"] == []
        assert found["loaded"] == []
        print(f"beyond `import airflow.sdk`: {found['took']:.2f} s of CPU")
        if found["took"] < 1:
            break
    assert found["took"] < 1


def test_a_heavy_import_would_be_noticed():
    """Where the package is not installed as well, and where its absence is caught."""
    code = "try:\n    import torch.nn\nexcept ImportError:\n    pass\nprint(json.dumps({'sought': sought}))"
    assert "torch" in watched(code)["sought"]


@pytest.mark.parametrize("file", sorted(DAGS.rglob("*.py")), ids=lambda file: str(file.relative_to(DAGS)))
def test_only_airflow_the_standard_library_and_the_light_half_are_imported(file):
    """import-linter forbids what is known to be heavy; this allows what is known to be light."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "ssl_core" else {node.module}
            )
    for name in found:
        allowed = name.partition(".")[0] in (*sys.stdlib_module_names, *OTHERS) or any(
            name == module or name.startswith(f"{module}.") for module in OURS
        )
        assert allowed, name
