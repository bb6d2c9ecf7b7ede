"""The served text classifier, in MLflow's models-from-code form: MLflow runs this file to load the model.

In:  column ``text``, a string.
Out: one class a text: ``label`` (str), ``confidence`` (its probability) and ``probabilities`` (class name to probability).
     Any number of classes: ``labels`` (those at 0.5 or more) and ``probabilities``, each by itself. Numbers: ``value``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from ssl_core.models.text_classifier import load_classifier
from ssl_core.serving.prediction_log import digest, served_log
from ssl_core.serving.texts import COLUMN, texts_of


class ServedClassifier(PythonModel):
    """Weights, tokenizer and classes come from the artifact ``model``, the folder that the finetune step made."""

    def load_context(self, context: Any) -> None:
        self._model = load_classifier(Path(context.artifacts["model"]))
        self._log = served_log(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row a row; a long text is read window by window, to its end."""
        scores = self._model.predict(texts_of(model_input)).astype(float)
        answer = pd.DataFrame(self._columns(scores), index=model_input.index)
        if self._log is not None:
            self._log.add(answer, map(digest, model_input[COLUMN]))
        return answer

    def _columns(self, scores: np.ndarray) -> dict[str, Any]:
        if self._model.label_type == "number":
            return {"value": scores[:, 0]}
        classes = self._model.classes
        probabilities = [dict(zip(classes, row, strict=True)) for row in scores.tolist()]
        if self._model.label_type == "classes":
            labels = [[name for name, share in row.items() if share >= 0.5] for row in probabilities]
            return {"labels": labels, "probabilities": probabilities}
        best = [classes[k] for k in scores.argmax(axis=1)]
        return {"label": best, "confidence": scores.max(axis=1), "probabilities": probabilities}


set_model(ServedClassifier())
