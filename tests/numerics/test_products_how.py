"""Which products a kernel computes and which are emulated, on each kind of machine."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabError
from labkit.numerics.products import EMULATED, KERNEL, how, products_in


def test_how_says_what_runs():
    assert how("fp32", "cpu") == KERNEL and how("tf32", "cpu") == EMULATED
    for fmt, asked in (("bf16", "_is_mkldnn_bf16_supported"), ("fp16", "_is_mkldnn_fp16_supported")):
        there = torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, asked)()
        assert how(fmt, "cpu") == (KERNEL if there else EMULATED)
        with products_in(fmt, "cpu") as said:
            assert said == how(fmt, "cpu")
    for call in (how, lambda fmt, device: products_in(fmt, device).__enter__()):
        with pytest.raises(LabError, match=r"Known: fp32, tf32, bf16, fp16"):
            call("fp17", "cpu")


@pytest.mark.parametrize("supported", [True, False])
def test_how_follows_the_processor(monkeypatch, supported):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: supported)
    expected = KERNEL if supported else EMULATED
    assert [how(fmt, "cpu") for fmt in ("bf16", "fp16", "tf32")] == [expected, expected, EMULATED]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert how("bf16", "cpu") == EMULATED


def test_how_on_a_gpu_asks_its_capability():
    from labkit.machine import Gpu, Machine

    def machine(*capability: int) -> Machine:
        return Machine("Linux", "CPU", 4, 2**34, 2**34, "3.12", (Gpu("GPU", 2**34, capability),))

    with Machine.override(machine(7, 5)):
        assert [how(fmt, "cuda") for fmt in ("fp32", "tf32", "fp16")] == [KERNEL, EMULATED, KERNEL]
    with Machine.override(machine(9, 0)):
        assert [how(fmt, "cuda") for fmt in ("fp32", "tf32", "bf16", "fp16")] == [KERNEL] * 4


def test_on_a_gpu_fp32_and_tf32_set_torchs_switch_and_set_it_back(monkeypatch):
    from labkit.numerics import products

    monkeypatch.setattr(products, "how", lambda fmt, device: KERNEL)
    before = torch.get_float32_matmul_precision()
    for fmt, setting in (("tf32", "high"), ("fp32", "highest")):
        with pytest.raises(ZeroDivisionError), products_in(fmt, "cuda"):
            assert torch.get_float32_matmul_precision() == setting
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == before
