"""Requests to arrays: what a served image model does with the column ``image``. Travels inside the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ssl_core.data.images import BadImage, decode
from ssl_core.models.encoder import Preprocessing

MAX_PIXELS = 50_000_000
MIN_SIDE = 1
COLUMN = "image"


def bad_request(message: str) -> MlflowException:
    """HTTP 400 with this message and nothing else: no traceback, and never a byte of what was sent."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def pixels_of(rows: pd.DataFrame, preprocessing: Preprocessing) -> np.ndarray:
    """The encoded images of column ``image`` as uint8 ``(N, C, H, W)``, through the preprocessing of training.

    Raises an ``MlflowException`` that names the row and the reason where one is not an image that can be used.
    """
    if COLUMN not in rows.columns:
        raise bad_request(f"the column '{COLUMN}' is missing: send encoded images (PNG, JPEG, ...), base64 over REST")
    pixels = np.empty((len(rows), preprocessing.channels, preprocessing.size, preprocessing.size), dtype=np.uint8)
    for number, value in enumerate(rows[COLUMN]):
        if not isinstance(value, bytes | bytearray):
            raise bad_request(f"row {number}: '{COLUMN}' must be the bytes of an encoded image, not {type(value).__name__}")
        try:
            image = decode(bytes(value), max_pixels=MAX_PIXELS, min_side=MIN_SIDE).image
        except BadImage as error:
            raise bad_request(f"row {number}: {error}") from None
        pixels[number] = preprocessing.from_image(image)
    return pixels
