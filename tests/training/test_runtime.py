from __future__ import annotations

import os

import pytest
import torch

from ssl_core.config.pretrain import ImagePretrainConfig
from ssl_core.errors import UserError
from ssl_core.training.runtime import computes_in_bfloat16, resolve_runtime


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_on_a_cpu_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime = resolve_runtime(ImagePretrainConfig())
    assert (runtime.device, runtime.precision, runtime.threads) == ("cpu", "float32", len(os.sched_getaffinity(0)))
    assert torch.get_num_threads() == runtime.threads


@pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_only_where_the_gpu_computes_in_it(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    runtime = resolve_runtime(ImagePretrainConfig())
    assert (runtime.device, runtime.precision) == ("cuda", precision)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for capabilities, expected in (
        ({"avx2": True, name: True}, True),
        ({"avx2": True, name: False}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert computes_in_bfloat16("cpu") is expected


def test_what_is_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    runtime = resolve_runtime(ImagePretrainConfig(device="cpu", precision="bfloat16", threads=1))
    assert (runtime.device, runtime.precision, runtime.threads) == ("cpu", "bfloat16", 1)
    assert torch.get_num_threads() == 1


def test_omp_num_threads_lowers_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert resolve_runtime(ImagePretrainConfig()).threads == 1


def test_cuda_without_a_gpu_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    with pytest.raises(UserError, match=r"pretrain\.device"):
        resolve_runtime(ImagePretrainConfig(device="cuda"))
