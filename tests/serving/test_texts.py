"""What served text models answer to good and to bad rows, and that they load from what they carry and require."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_schema as enforce
from packaging.requirements import Requirement

from ssl_core.models.text_golden import pack, unpack
from ssl_core.serving import package
from ssl_core.serving.text_package import PACKAGE
from ssl_core.serving.texts import MAX_CHARACTERS, texts_of
from tests.texts import write_classifier, write_encoder

HOSTILE = ["", " ", "a\0b", "e\u0301", "日本語 😀", "line\nline", "x" * 1000, "\ud800", "\udc80"]


def test_texts_survive_the_way_through_a_golden_batch() -> None:
    golden = pack(HOSTILE)
    assert golden["texts"].dtype == np.uint8
    assert golden["ends"].dtype == np.int64
    assert unpack(golden) == HOSTILE
    assert unpack(pack([])) == []
    asked = HOSTILE[:-2]  # pandas holds no halves of surrogate pairs; nor does ingest let any into a dataset
    assert PACKAGE.request(pack(asked))["text"].tolist() == asked


def test_a_golden_batch_of_texts_is_known_by_its_input() -> None:
    assert package.package_of(pack(["a"])) is PACKAGE


def test_texts_are_taken_as_training_saw_its_own() -> None:
    """Unicode NFC without space around it, as ingest stores them: a decomposed letter would be other tokens."""
    assert texts_of(pd.DataFrame({"text": ["  cafe\u0301\n", "日本語 😀"]})) == ["café", "日本語 😀"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "row 1: the text is empty"),
        (" \n\t", "row 1: the text is empty"),
        (None, "row 1: 'text' must be a string, not NoneType"),
        (float("nan"), "row 1: 'text' must be a string, not float"),
        (7, "row 1: 'text' must be a string, not int"),
        (["secret"], "row 1: 'text' must be a string, not list"),
        (b"secret", "row 1: 'text' must be a string, not bytes"),
        ("secret \ud800", "row 1: the text holds half of a surrogate pair"),
        ("secret " * MAX_CHARACTERS, f"row 1: 7,000,000 characters, and at most {MAX_CHARACTERS:,}"),
    ],
    ids=["empty", "blank", "none", "nan", "number", "list", "bytes", "surrogate", "long"],
)
def test_a_bad_row_is_named_and_not_echoed(value: Any, reason: str) -> None:
    with pytest.raises(MlflowException) as caught:
        texts_of(pd.DataFrame({"text": pd.Series(["fine", value], dtype=object)}))
    caught.value.message = f"Failed to predict data '{value!r}'"[:1000]  # as MLflow's scoring server does
    assert reason in str(caught.value)
    assert caught.value.get_http_status_code() == 400
    said = caught.value.serialize_as_json()
    assert "secret" not in said
    assert "Traceback" not in said


def test_a_missing_column_is_named() -> None:
    with pytest.raises(MlflowException, match="the column 'text' is missing") as caught:
        texts_of(pd.DataFrame({"review": ["a"]}))
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("kind", "label_type", "columns"),
    [
        ("encoder", "class", ["embedding"]),
        ("encoder", "number", ["embedding"]),
        ("classifier", "class", ["label", "confidence", "probabilities"]),
        ("classifier", "classes", ["labels", "probabilities"]),
        ("classifier", "number", ["value"]),
    ],
)
def test_the_signature_says_what_goes_in_and_out(kind: package.Kind, label_type: str, columns: list[str]) -> None:
    signature = package.signature(PACKAGE, kind, label_type)
    assert signature.inputs.input_names() == ["text"]
    assert signature.outputs.input_names() == columns


def test_the_signature_takes_strings_and_nothing_else() -> None:
    schema = package.signature(PACKAGE, "encoder").inputs
    assert enforce(pd.DataFrame({"text": ["a", "日本"]}), schema)["text"].tolist() == ["a", "日本"]
    for wrong in (pd.DataFrame({"text": [1, 2]}), pd.DataFrame({"review": ["a"]})):
        with pytest.raises(MlflowException):
            enforce(wrong, schema)


def test_answers_become_arrays_in_the_order_of_the_classes() -> None:
    answer = pd.DataFrame({"probabilities": [{"a": 0.25, "b": 0.75}], "label": ["b"]})
    assert package.answer_array("classifier", answer, ["b", "a"]).tolist() == [[0.75, 0.25]]
    assert package.answer_array("classifier", pd.DataFrame({"value": [2.0, 3.0]})).tolist() == [[2.0], [3.0]]


def required(names: list[str]) -> set[str]:
    """What ``pip install`` of these brings, by the requirements of what is installed here; optional extras left out."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        try:
            one: Distribution = distribution(name)
        except PackageNotFoundError:
            continue
        key = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        if key in found:
            continue
        found.add(key)
        for line in one.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                left.append(need.name)
    return found


def site_of(folder: Path, names: set[str]) -> Path:
    """A folder of links to what these distributions installed, and to nothing else."""
    folder.mkdir()
    for name in names:
        one = distribution(name)
        for top in {Path(str(file)).parts[0] for file in one.files or []} - {"..", "__pycache__"}:
            link, target = folder / top, Path(str(one.locate_file(top)))
            if not link.exists() and target.exists():
                link.symlink_to(target)
    return folder


SCRIPT = """
import json, runpy, sys
site, code, models = json.loads(sys.argv[1])
sys.path[:0] = [code, site]
import mlflow, numpy, pandas
from pathlib import Path
from types import SimpleNamespace
import ssl_core
assert Path(ssl_core.__file__).is_relative_to(code), ssl_core.__file__
from safetensors.numpy import load_file
for source, folder in models:
    runpy.run_path(source)
    model = mlflow.models.model.__mlflow_model__
    model.load_context(SimpleNamespace(artifacts={"model": folder}))
    golden = load_file(folder + "/golden.safetensors")
    data, starts = golden["texts"].tobytes(), [0, *golden["ends"].tolist()]
    texts = [data[a:b].decode() for a, b in zip(starts, starts[1:])]
    answer = model.predict(None, pandas.DataFrame({"text": texts}, index=range(5, 5 + len(texts))))
    assert answer.index[0] == 5
    columns = list(answer)
    if "value" in columns:
        got = [[value] for value in answer["value"]]
    elif "embedding" in columns:
        got = list(answer["embedding"])
    else:
        got = [list(row.values()) for row in answer["probabilities"]]
    wanted = golden.get("probabilities", golden.get("features"))
    assert numpy.abs(numpy.asarray(got) - wanted).max() < 1e-5, folder
    print(json.dumps(columns))
"""


def test_served_models_run_on_what_they_carry_and_require_and_nothing_else(tmp_path: Path) -> None:
    """One process for all of them: most of its time goes by with imports."""
    models = []
    for kind in ("encoder", "class", "classes", "number"):
        folder = tmp_path / kind
        write_encoder(folder) if kind == "encoder" else write_classifier(folder, kind)  # type: ignore[arg-type]
        source = package.source_file(PACKAGE, "encoder" if kind == "encoder" else "classifier")
        models.append((str(source), str(folder)))
    code = Path(package.carry_code(PACKAGE, tmp_path / "code")).parent
    needs = required([line.partition("==")[0] for line in package.requirements(PACKAGE)] + ["mlflow-skinny"])
    assert "ssl-core" not in needs
    assert "peft" not in needs
    site = site_of(tmp_path / "site", needs)
    (tmp_path / "load.py").write_text(SCRIPT)
    # Without `site` and isolated, nothing of this environment is on the path but what is linked.
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(tmp_path / "load.py"), json.dumps([str(site), str(code), models])],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["embedding"], ["label", "confidence", "probabilities"], ["labels", "probabilities"], ["value"],
    ]  # fmt: skip


def test_requirements_name_the_libraries_of_texts() -> None:
    lines = package.requirements(PACKAGE)
    assert {"transformers", "tokenizers", "torch"} <= {line.partition("==")[0] for line in lines}
    assert not [line for line in lines if "+" in line]
