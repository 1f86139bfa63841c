"""LLM.int8() on a GPU: its integer units, and bitsandbytes' kernels."""

from __future__ import annotations

import logging

import pytest
import torch

from labkit.numerics.quantize.int8 import Linear8bit, int8_matmul, quantize_absmax

pytestmark = pytest.mark.gpu


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 64, 8), (16, 576, 192), (300, 5000, 64), (4, 30, 7), (17, 2052, 24)])
def test_the_integer_product_is_exact(m, k, n):
    draw = torch.Generator().manual_seed(m)
    a, b = (torch.randint(-127, 128, (rows, k), generator=draw, dtype=torch.int8) for rows in (m, n))
    expected = (a.long() @ b.long().t()).int()
    assert torch.equal(int8_matmul(a.cuda(), b.cuda()).cpu(), expected)


def test_the_layer_is_the_same_on_both_devices():
    x, w, b = normal(64, 576), normal(192, 576, seed=1) * 0.05, normal(192, seed=2)
    x[:, 9] *= 30
    layer = Linear8bit(w, b)
    there = layer(x).cpu()
    here = layer.to("cpu")(x.cpu())
    torch.testing.assert_close(there, here, rtol=2**-9, atol=2**-7)


@pytest.mark.parametrize("threshold", [None, 6.0])
def test_the_layer_equals_linear8bitlt(threshold):
    bnb = pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    x, w, b = normal(64, 576), normal(192, 576, seed=1) * 0.05, normal(192, seed=2)
    x[:, 9] *= 30
    theirs = bnb.nn.Linear8bitLt(576, 192, has_fp16_weights=False, threshold=threshold or 0.0)
    theirs.weight.data, theirs.bias.data = w.cpu(), b.cpu()
    theirs = theirs.to("cuda").eval()
    ours = Linear8bit(w, b, threshold)
    differ = (ours.codes != theirs.weight.data).double().mean().item()
    # its kernel divides approximately: a value in the middle between two codes may go to the other one
    assert differ < 1e-3 and (ours.codes - theirs.weight.data).abs().max() <= 1
    torch.testing.assert_close(ours(x), theirs(x.clone()), rtol=2**-8, atol=2**-5)


def test_quantizing_equals_the_cpu():
    w = normal(192, 576)
    for per in ("tensor", "row", "block"):
        there, here = quantize_absmax(w, per), quantize_absmax(w.cpu(), per)
        assert torch.equal(there.codes.cpu(), here.codes) and torch.equal(there.absmax.cpu(), here.absmax)
