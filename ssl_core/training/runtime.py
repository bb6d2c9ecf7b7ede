"""Where and how numbers are computed: ``auto`` in the configuration is resolved here, once, and stored with the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ssl_core.config.pretrain import PretrainConfig
from ssl_core.config.settings import usable_cpus
from ssl_core.errors import UserError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """Resolved device, precision and CPU threads; equal values on a CPU give equal bits."""

    device: str
    precision: Precision
    threads: int


def resolve_runtime(config: PretrainConfig) -> Runtime:
    """Resolves ``pretrain.device``, ``.precision`` and ``.threads``, and sets this process's threads.

    Raises ``UserError`` where a GPU is asked for and none can be used.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "cuda was asked for, but torch sees no GPU",
            place="pretrain.device",
            next_step="use device: auto or cpu, or install the CUDA build of torch",
        )
    precision: Precision
    if config.precision == "auto":
        precision = "bfloat16" if device == "cuda" and computes_in_bfloat16(device) else "float32"
    else:
        precision = config.precision
    threads = usable_cpus() if config.threads == "auto" else config.threads
    torch.set_num_threads(threads)
    return Runtime(device, precision, threads)


def computes_in_bfloat16(device: str) -> bool:
    """Whether the hardware does: emulated bfloat16 (old GPUs, most CPUs) is slower than float32 and loses digits for nothing."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The last one is how torch calls it on ARM.
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
