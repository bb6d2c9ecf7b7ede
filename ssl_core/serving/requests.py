"""What a served model says to a request that it cannot answer. Travels inside the model."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class BadRequest(MlflowException):
    """HTTP 400 with this message and nothing else: no traceback, and never a byte of what was sent.

    MLflow's scoring server puts the request's data before the message of an error; this one's message stays as it is.
    """

    def __init__(self, message: str) -> None:
        self._said = message
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return self._said

    @message.setter
    def message(self, value: str) -> None:
        pass
