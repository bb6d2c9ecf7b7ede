"""Requests to arrays: what a served image model does with the column ``image``. Travels inside the model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ssl_core.data.images import BadImage, decode
from ssl_core.models.encoder import Preprocessing
from ssl_core.serving.requests import BadRequest

MAX_PIXELS = 50_000_000
MIN_SIDE = 1
COLUMN = "image"


def pixels_of(rows: pd.DataFrame, preprocessing: Preprocessing) -> np.ndarray:
    """The encoded images of column ``image`` as uint8 ``(N, C, H, W)``, through the preprocessing of training.

    Raises ``BadRequest`` that names the row and the reason where one is not an image that can be used.
    """
    if COLUMN not in rows.columns:
        raise BadRequest(f"the column '{COLUMN}' is missing: send encoded images (PNG, JPEG, ...), base64 over REST")
    pixels = np.empty((len(rows), preprocessing.channels, preprocessing.size, preprocessing.size), dtype=np.uint8)
    for number, value in enumerate(rows[COLUMN]):
        if not isinstance(value, bytes | bytearray):
            raise BadRequest(
                f"row {number}: '{COLUMN}' must be the bytes of an encoded image, not {type(value).__name__}"
            )
        try:
            image = decode(bytes(value), max_pixels=MAX_PIXELS, min_side=MIN_SIDE).image
        except BadImage as error:
            raise BadRequest(f"row {number}: {error}") from None
        pixels[number] = preprocessing.from_image(image)
    return pixels
