"""The served image encoder, in MLflow's models-from-code form: MLflow runs this file to load the model.

In:  column ``image``, encoded image bytes (base64 over REST).
Out: column ``embedding``, a list of D numbers: what neighbours, clusters and probes are computed on.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from ssl_core.models.embed import embed
from ssl_core.models.encoder import load_encoder
from ssl_core.serving.images import pixels_of


class ServedEncoder(PythonModel):
    """Weights and preprocessing come from the artifact ``model``, the folder that the pretrain step made."""

    def load_context(self, context: Any) -> None:
        self._encoder, self._info = load_encoder(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row a row."""
        pixels = pixels_of(model_input, self._info.preprocessing)
        features = embed(self._encoder, self._info.preprocessing, pixels)
        return pd.DataFrame({"embedding": list(features.astype(float).tolist())}, index=model_input.index)


set_model(ServedEncoder())
