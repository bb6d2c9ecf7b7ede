"""The served text encoder, in MLflow's models-from-code form: MLflow runs this file to load the model.

In:  column ``text``, a string.
Out: column ``embedding``, a list of D numbers: what neighbours, clusters and probes are computed on.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from ssl_core.models.text_embed import embed_texts
from ssl_core.models.text_weights import load_encoder
from ssl_core.serving.texts import texts_of


class ServedEncoder(PythonModel):
    """Weights and tokenizer come from the artifact ``model``, the folder that the pretrain step made."""

    def load_context(self, context: Any) -> None:
        self._encoder, _, self._info, self._tokenizer = load_encoder(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row a row; a long text is read window by window, to its end."""
        features = embed_texts(self._encoder, self._tokenizer, self._info.max_length, texts_of(model_input))
        return pd.DataFrame({"embedding": features.astype(float).tolist()}, index=model_input.index)


set_model(ServedEncoder())
