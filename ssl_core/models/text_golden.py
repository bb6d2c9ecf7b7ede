"""Texts as arrays, for golden batches: a safetensors file holds no strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def pack(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """``texts`` uint8, the UTF-8 bytes of n texts one after the other, and ``ends`` int64 ``(n,)``, where each ends."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    return {"texts": np.frombuffer(b"".join(encoded), dtype=np.uint8).copy(), "ends": ends}


def unpack(golden: Mapping[str, np.ndarray]) -> list[str]:
    """The texts that ``pack`` was given."""
    data, ends = golden["texts"].tobytes(), golden["ends"].tolist()
    return [data[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends], ends, strict=False)]
