"""The 4-bit layer: bitsandbytes' values, an exact gradient to its input, and nothing but codes kept for it."""

import logging

import pytest
import torch

from labkit import models
from labkit.ledger import saved_for_backward, storage_bytes
from labkit.numerics.quantize import Linear4bit, quantize_linears

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def layer(out: int = 96, into: int = 128, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(into, out, bias=bias)


@pytest.mark.parametrize("double", [False, True], ids=["nf4", "nf4+dq"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_forward_and_backward_are_those_of_the_weight_read_back(double, bias):
    dense = layer(bias=bias)
    ours = Linear4bit.of(dense, double=double)
    x, same = (torch.randn(4, 7, 128, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    out = ours(x)
    expected = torch.nn.functional.linear(same, ours.weight.dequantize(), dense.bias)
    assert torch.equal(out, expected)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, same.grad)
    assert [p for p in ours.parameters() if p.requires_grad] == []


def test_equal_to_bitsandbytes_layer_forward_and_backward():
    peer = pytest.importorskip("bitsandbytes").nn
    dense = layer()
    theirs = peer.Linear4bit(128, 96, quant_type="nf4", compress_statistics=False, compute_dtype=torch.float32)
    theirs.weight = peer.Params4bit(dense.weight.data.clone(), requires_grad=False, compress_statistics=False,
                                    quant_type="nf4")  # fmt: skip
    theirs.bias = dense.bias
    theirs.to("cpu")
    ours = Linear4bit.of(dense, double=False)
    x, same = (torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    a, b = ours(x), theirs(same)
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(x.grad, same.grad)


def test_autograd_keeps_no_dense_weight():
    ours = Linear4bit.of(layer(512, 512, bias=False))
    x = torch.randn(2, 512, requires_grad=True)
    with saved_for_backward(ours) as saved:
        ours(x).sum()
    assert saved["activations"] == 0
    bits = 8 * storage_bytes(ours.buffers()) / 512**2
    assert bits == pytest.approx(ours.weight.bits_per_parameter) and bits < 4.14


def test_moving_the_module_to_another_dtype_leaves_codes_and_scales_alone():
    ours = Linear4bit.of(layer())
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    ours.half().bfloat16().to(torch.float64)
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())
    x = torch.randn(3, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16


def test_a_state_dict_round_trip_gives_the_same_layer():
    first, second = Linear4bit.of(layer()), Linear4bit.of(torch.nn.Linear(128, 96))
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 128)
    assert torch.equal(first(x), second(x))


def test_a_models_linears_are_replaced_but_for_the_head():
    model = models.load("tiny")
    dense = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head")
    replaced = quantize_linears(model)
    kinds = {name: type(m) for name, m in replaced.named_modules() if isinstance(m, torch.nn.Linear | Linear4bit)}
    assert kinds.pop("lm_head") is torch.nn.Linear and set(kinds.values()) == {Linear4bit} and len(kinds) == 56
    held = sum(storage_bytes(m.buffers()) for m in replaced.modules() if isinstance(m, Linear4bit))
    assert 8 * held / dense == pytest.approx(4.127, abs=0.01)
    ids = torch.arange(12)[None]
    assert torch.isfinite(replaced(ids).logits).all()
