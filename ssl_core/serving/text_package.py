"""What travels with a registered text model; see ``serving.package.Package``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ssl_core.models.text_golden import unpack
from ssl_core.serving.package import Kind, Package
from ssl_core.serving.texts import COLUMN

if TYPE_CHECKING:
    from mlflow.types import ColSpec


class _Texts:
    """See ``Package``."""

    name = "text"
    carried = (
        "config/encoders.py",
        "data/__init__.py", "data/text/__init__.py", "data/text/checkpoint.py", "data/text/encoding.py", "data/text/sequences.py",
        "data/text/tokenizer.py", "data/text/words.py",
        "models/dense.py", "models/encoder.py", "models/heads.py", "models/resnet.py", "models/text_attention.py", "models/text_classifier.py",
        "models/text_embed.py", "models/text_encoder.py", "models/text_loading.py", "models/text_weights.py", "models/text_windows.py",
        "serving/texts.py",
    )  # fmt: skip
    required = ("transformers", "tokenizers")
    golden_input = "texts"

    def inputs(self) -> list[ColSpec]:
        from mlflow.types import ColSpec, DataType

        return [ColSpec(DataType.string, COLUMN)]

    def request(self, golden: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """``texts`` (UTF-8, one after the other) and ``ends`` (the end of each) as strings."""
        return pd.DataFrame({COLUMN: unpack(golden)})

    def answers(self, kind: Kind, label_type: str) -> list[ColSpec]:
        from mlflow.types import ColSpec, DataType
        from mlflow.types.schema import Array, Map

        from ssl_core.serving.package import class_answers, encoder_answers

        if kind == "encoder":
            return encoder_answers()
        if label_type == "number":
            return [ColSpec(DataType.double, "value")]
        if label_type == "classes":
            return [ColSpec(Array(DataType.string), "labels"), ColSpec(Map(DataType.double), "probabilities")]
        return class_answers()


PACKAGE: Package = _Texts()
