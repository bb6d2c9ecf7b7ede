"""``sample://digits``: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

Alpaydin and Kaynak 1998, UCI Machine Learning Repository; part of an installed package, so nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.data.layout import Item
from ssl_core.data.samples.pictures import picture_items

_CLASSES = tuple(str(digit) for digit in range(10))


def version() -> str:
    return f"scikit-learn-{importlib.metadata.version('scikit-learn')}"


def items(cache: Path) -> list[Item]:
    return picture_items(cache, f"digits-{version()}", _load, _CLASSES, "digit", 4)


def _load(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
