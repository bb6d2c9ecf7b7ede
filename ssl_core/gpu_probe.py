"""``python -m ssl_core.gpu_probe``: which GPUs a process sees here, and whether its torch can use them.

Runs inside the training image before a step is given GPUs, so it answers within a second: it asks the driver itself and
reads torch's build from its package, without importing torch.
"""

from __future__ import annotations

import ctypes
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def probe() -> dict[str, Any]:
    """``{"devices": 2, "cuda": "13.0", "torch": "2.13.0"}``; ``cuda`` is None where torch is built for the CPU."""
    torch, cuda = _torch()
    return {"devices": _devices(), "cuda": cuda, "torch": torch}


def _devices() -> int:
    """How many GPUs the NVIDIA driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def _torch() -> tuple[str | None, str | None]:
    """Version and CUDA of the installed torch, from the file that its build writes."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None, None
    found: dict[str, Any] = {}
    for line in (Path(spec.submodule_search_locations[0]) / "version.py").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and (key := name.partition(":")[0].strip()) in ("__version__", "cuda"):
            found[key] = value.strip().strip("'\"")
    cuda = found.get("cuda")
    return found.get("__version__"), None if cuda in (None, "None") else cuda


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
