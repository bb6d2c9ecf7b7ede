"""The served image classifier, in MLflow's models-from-code form: MLflow runs this file to load the model.

In:  column ``image``, encoded image bytes (base64 over REST).
Out: columns ``label`` (str), ``confidence`` (its probability) and ``probabilities`` (class name to probability).
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from ssl_core.models.classifier import load_classifier
from ssl_core.serving.images import COLUMN, pixels_of
from ssl_core.serving.prediction_log import digest, served_log


class ServedClassifier(PythonModel):
    """Weights and preprocessing come from the artifact ``model``, the folder that the finetune step made."""

    def load_context(self, context: Any) -> None:
        self._model = load_classifier(Path(context.artifacts["model"]))
        self._log = served_log(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row a row; probabilities sum to 1."""
        model = self._model
        scores = model.predict_proba(pixels_of(model_input, model.info.preprocessing)).astype(float)
        best = scores.argmax(axis=1)
        answer = pd.DataFrame(
            {
                "label": [model.classes[k] for k in best],
                "confidence": scores.max(axis=1),
                "probabilities": [dict(zip(model.classes, row, strict=True)) for row in scores.tolist()],
            },
            index=model_input.index,
        )
        if self._log is not None:
            self._log.add(answer, map(digest, model_input[COLUMN]))
        return answer


set_model(ServedClassifier())
