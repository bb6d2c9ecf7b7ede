"""What served models answer to good and to bad rows, and that they load from what they carry."""

from __future__ import annotations

import hashlib
import io
import json
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from ssl_core.models.encoder import Preprocessing
from ssl_core.serving import package
from ssl_core.serving.image_package import PACKAGE
from ssl_core.serving.images import pixels_of

GREY = Preprocessing("image", 8, 1, (0.5,), (0.25,))
COLOUR = Preprocessing("image", 8, 3, (0.5,) * 3, (0.25,) * 3)


def png(mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 1000) + b"IDAT" + zlib.compress(bytes(1000))


def truncated() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()[:2000]


@pytest.mark.parametrize("preprocessing", [GREY, COLOUR], ids=["grey", "colour"])
def test_pixels_survive_the_way_through_a_png(preprocessing: Preprocessing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, preprocessing.channels, 8, 8), dtype=np.uint8)
    pixels[0] = 7  # in colour: three equal channels, which decoding makes grey first
    assert np.array_equal(pixels_of(PACKAGE.request({"pixels": pixels}), preprocessing), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_and_size_is_taken(mode: str) -> None:
    assert pixels_of(pd.DataFrame({"image": [png(mode, (5, 13))]}), COLOUR).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "row 1: the file is empty"),
        (b"secret: not an image", "row 1: not an image"),
        (truncated(), "row 1: the image is damaged"),
        (bomb(), "row 1: 20000 x 20000 is more than"),
        ("c2VjcmV0", "row 1: 'image' must be the bytes"),
        (None, "row 1: 'image' must be the bytes"),
    ],
    ids=["empty", "text", "truncated", "bomb", "string", "none"],
)
def test_a_bad_row_is_named_and_not_echoed(value: Any, reason: str) -> None:
    with pytest.raises(MlflowException) as caught:
        pixels_of(pd.DataFrame({"image": [png(), value]}), GREY)
    caught.value.message = f"Failed to predict data '{value!r}'"  # as MLflow's scoring server does
    assert reason in str(caught.value)
    assert caught.value.get_http_status_code() == 400
    assert "secret" not in caught.value.serialize_as_json()
    assert "c2VjcmV0" not in caught.value.serialize_as_json()
    assert "Traceback" not in caught.value.serialize_as_json()


def test_a_missing_column_is_named() -> None:
    with pytest.raises(MlflowException, match="the column 'image' is missing"):
        pixels_of(pd.DataFrame({"picture": [png()]}), GREY)


def test_requirements_are_pinned_without_build_tags() -> None:
    for line in package.requirements(PACKAGE):
        name, _, version = line.partition("==")
        assert name
        assert version[0].isdigit()
        assert "+" not in version


@pytest.mark.parametrize("kind", ["classifier", "encoder"])
def test_a_served_model_runs_on_what_it_carries_and_nothing_else(
    kind: package.Kind, tmp_path: Path, make_project: Any
) -> None:
    from tests.registry.conftest import write_classifier, write_encoder

    folder = tmp_path / "model"
    folder.mkdir()
    (write_classifier if kind == "classifier" else write_encoder)(folder, make_project(encoder={"widths": [8]}))
    carried = Path(package.carry_code(PACKAGE, tmp_path / "code"))
    script = tmp_path / "load.py"
    script.write_text(
        "import json, sys\n"
        "sys.path[:0] = json.loads(sys.argv[1])\n"
        "import mlflow, runpy\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "import ssl_core\n"
        "assert Path(ssl_core.__file__).is_relative_to(sys.argv[2]), ssl_core.__file__\n"
        "runpy.run_path(sys.argv[3])\n"
        "model = mlflow.models.model.__mlflow_model__\n"
        "model.load_context(SimpleNamespace(artifacts={'model': sys.argv[4]}))\n"
        "from safetensors.numpy import load_file\n"
        "import io, numpy, pandas\n"
        "from PIL import Image\n"
        "golden = load_file(sys.argv[4] + '/golden.safetensors')\n"
        "rows = []\n"
        "for one in golden['pixels']:\n"
        "    file = io.BytesIO(); Image.fromarray(one[0]).save(file, 'PNG'); rows.append(file.getvalue())\n"
        "answer = model.predict(None, pandas.DataFrame({'image': rows}))\n"
        "got = [list(r.values()) for r in answer['probabilities']] if 'probabilities' in answer else list(answer['embedding'])\n"
        "wanted = golden.get('probabilities', golden.get('features'))\n"
        "assert numpy.abs(numpy.asarray(got) - wanted).max() < 1e-5\n"
        "print(sorted(m for m in sys.modules if m.startswith('ssl_core')))\n"
    )
    # Without `site`, no .pth file puts the checkout on the path.
    elsewhere = [p for p in sys.path if p and not (Path(p) / "ssl_core" / "contracts.py").exists()]
    search = json.dumps([str(carried.parent), *elsewhere])
    command = [
        sys.executable,
        "-S",
        "-I",
        str(script),
        search,
        str(carried),
        str(package.source_file(PACKAGE, kind)),
        str(folder),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_served_classifier_logs_its_answers_where_it_is_asked_to(
    tmp_path: Path, make_project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.registry.conftest import write_classifier

    folder = tmp_path / "artifacts" / "model"
    folder.mkdir(parents=True)
    write_classifier(folder, make_project(encoder={"widths": [8]}))
    (tmp_path / "registered_model_meta").write_text("model_name: shapes\nmodel_version: 7\n")
    monkeypatch.setenv("SSL_PREDICTION_LOG", str(tmp_path / "log"))
    model: Any = runpy.run_path(str(package.source_file(PACKAGE, "classifier")))["ServedClassifier"]()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    answer = model.predict(None, pd.DataFrame({"image": [png(), png()]}))
    model._log.close()
    (file,) = (tmp_path / "log").rglob("7-*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["label"] for row in rows] == answer["label"].tolist()
    assert dict(rows[0]["probabilities"]) == answer["probabilities"][0]
    assert rows[0]["content"] == f"sha256:{hashlib.sha256(png()).hexdigest()}"


def test_the_signature_says_what_goes_in_and_out() -> None:
    signature = package.signature(PACKAGE, "classifier")
    assert signature.inputs.input_names() == ["image"]
    assert signature.outputs.input_names() == ["label", "confidence", "probabilities"]
    assert package.signature(PACKAGE, "encoder").outputs.input_names() == ["embedding"]
