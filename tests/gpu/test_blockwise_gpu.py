"""The fused kernels: the chunked path's bits, bitsandbytes' values, and no temporary as large as the tensor."""

import logging
from unittest import mock

import pytest
import torch

from labkit.numerics.quantize import Adam8bit, Linear4bit, QuantizeError, blockwise, kernels, quantize_blockwise

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
pytestmark = pytest.mark.gpu
SIZES = (1, 63, 64, 64 * 7 + 32, 4096, 64 * 100 + 7, 2**21 + 3)


def weights(n: int, dtype=torch.float32):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.02
    x[: n // 20] = 0
    return x.to(dtype).cuda()


@pytest.mark.parametrize("double", [False, True], ids=["", "double"])
@pytest.mark.parametrize("book", ["nf4", "fp4", "dynamic8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_give_the_bits_of_the_cpu(dtype, book, double):
    for n in SIZES:
        for block_size in (2, 64, 256, 4096):
            x = weights(n, dtype)
            here, there = (quantize_blockwise(t, book, block_size, double) for t in (x, x.cpu()))
            assert torch.equal(here.codes.cpu(), there.codes), (n, block_size)
            if not double:
                assert torch.equal(here.absmax.cpu(), there.absmax)
                assert torch.equal(here.dequantize().cpu(), there.dequantize()), (n, block_size)
            with mock.patch.object(kernels, "usable", lambda *_: False):
                chunked = here.dequantize()
            assert torch.equal(here.dequantize(), chunked), (n, block_size)


@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_to_bitsandbytes_but_for_its_reciprocal_at_the_thresholds(dtype, book):
    peer = pytest.importorskip("bitsandbytes").functional
    x = torch.randn(10_000_000, dtype=dtype, device="cuda")
    for double in (False, True):
        ours = quantize_blockwise(x, book, 64, double)
        theirs, state = peer.quantize_4bit(x, blocksize=64, quant_type=book, compress_statistics=double)
        mine, other = blockwise.unpack(ours.codes), blockwise.unpack(theirs.flatten())
        if book == "fp4":  # codes 0 and 8 are zero and minus zero
            mine, other = mine.where(mine != 8, 0), other.where(other != 8, 0)
        differ = mine != other
        # A bf16 value over a bf16 maximum is often a simple fraction, and so are FP4's thresholds.
        assert differ.float().mean() < (1e-5 if dtype == torch.float32 else 2e-3)
        assert (_from_threshold(x, ours.book)[differ] < 2**-21).all()
        # Read back from the same codes, the values are the same bits.
        same = blockwise.Quantized(theirs.flatten(), *_scales(state, ours), ours.book, 64, x.shape, dtype)
        assert torch.equal(same.dequantize(), peer.dequantize_4bit(theirs, state).flatten())


def _from_threshold(x, book):
    """How far each value, over the largest magnitude of its block of 64, lies from the nearest threshold."""
    blocks = x.double().view(-1, 64)
    scaled = (blocks / blocks.abs().amax(1, keepdim=True)).flatten()
    thresholds = book.tables(x.device)[1].double()
    upper = torch.bucketize(scaled, thresholds).clamp(1, len(thresholds) - 1)
    return torch.minimum((scaled - thresholds[upper - 1]).abs(), (thresholds[upper] - scaled).abs())


def _scales(state, ours):
    if state.offset is None:
        return state.absmax, None
    inner = ours.scales
    coded = blockwise.Quantized(state.absmax, state.state2.absmax, None, inner.book, 256, inner.shape, torch.float32)
    return coded, state.offset


def test_dynamic8_equals_bitsandbytes_exact_search():
    peer = pytest.importorskip("bitsandbytes").functional
    x = torch.randn(5_000_000, device="cuda")
    ours = quantize_blockwise(x, "dynamic8", 256)
    theirs, state = peer.quantize_blockwise(x, blocksize=256)
    assert torch.equal(ours.absmax, state.absmax)
    assert (ours.codes != theirs).float().mean() < 1e-5


@pytest.mark.parametrize("double", [False, True], ids=["nf4", "nf4+dq"])
def test_nothing_but_the_result_is_allocated(double):
    x = torch.randn(2**26, device="cuda", dtype=torch.bfloat16)
    quantize_blockwise(x[:4096], double=double).dequantize()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    quantized = quantize_blockwise(x, double=double)
    # Scales in fp32 and a few copies of them: a sixteenth of the tensor each in bf16.
    assert torch.cuda.max_memory_allocated() - before <= quantized.codes.nbytes + 5 * x.nbytes / 32
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    back = quantized.dequantize()
    assert torch.cuda.max_memory_allocated() - before <= back.nbytes + 2**20


def test_a_nan_in_any_place_is_found():
    for place in (0, 63, 64, 100_000):
        x = torch.randn(100_001, device="cuda")
        x[place] = float("nan")
        with pytest.raises(QuantizeError, match=f"from value {place // 64 * 64} on"):
            quantize_blockwise(x)


def steps(make, device, dtype, count=10):
    torch.manual_seed(5)
    parameter = torch.nn.Parameter(torch.randn(9000).to(device, dtype))
    optimizer = make([parameter], lr=3e-3, betas=(0.9, 0.99), eps=1e-7, weight_decay=0.05)
    for step in range(count):
        parameter.grad = torch.randn(9000, generator=torch.Generator().manual_seed(step)).to(device, dtype)
        optimizer.step()
    return parameter.detach().float().cpu(), optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_adam_kernel_steps_as_the_chunks_do_and_as_bitsandbytes(dtype):
    peer = pytest.importorskip("bitsandbytes").optim
    fused, optimizer = steps(Adam8bit, "cuda", dtype)
    with mock.patch.object(kernels, "usable", lambda *_: False):
        chunked, other = steps(Adam8bit, "cuda", dtype)
    library, _ = steps(peer.AdamW8bit, "cuda", dtype)
    start, _ = steps(Adam8bit, "cuda", dtype, count=0)
    way = (fused - start).abs().mean()
    # A bf16 weight moves in whole units of its last place, or not at all.
    assert (fused - chunked).abs().mean() < (2e-3 if dtype == torch.float32 else 2e-2) * way
    assert (fused - library).abs().mean() < (2e-2 if dtype == torch.float32 else 0.1) * way
    codes, again = [next(iter(o.state.values()))["exp_avg"].int() for o in (optimizer, other)]
    assert (codes != again).float().mean() < 0.01


def test_the_four_bit_layer_runs_under_autocast_with_a_gradient():
    dense = torch.nn.Linear(256, 128, device="cuda")
    layer = Linear4bit.of(dense)
    x = torch.randn(8, 256, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    expected = layer.weight.dequantize(torch.bfloat16).sum(0).float()
    torch.testing.assert_close(x.grad[0], expected, rtol=2e-2, atol=2e-2)
