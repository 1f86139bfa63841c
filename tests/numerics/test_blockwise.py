"""Block-wise quantization: the same codes, bytes and values as bitsandbytes, bits counted, bad input refused."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UnknownNameError
from labkit.numerics.quantize import (
    CODE_BOOKS,
    CodeBook,
    QuantizeError,
    codebook,
    dynamic8,
    fp4,
    nf4,
    pack,
    quantize_blockwise,
    unpack,
)

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
peer = pytest.importorskip("bitsandbytes").functional

SIZES = (1, 5, 64, 64 * 7 + 32, 64 * 100 + 7, 2**21 + 3)


def weights(n: int, dtype=torch.float32, seed: int = 0):
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def test_code_books_are_the_librarys_bit_for_bit():
    assert torch.equal(nf4().values, peer.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(fp4().values, peer.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(dynamic8().values, peer.create_dynamic_map(signed=True))
    assert torch.equal(dynamic8(signed=False).values, peer.create_dynamic_map(signed=False))


def test_nf4_has_an_exact_zero_and_is_not_symmetric():
    values = nf4().values.tolist()
    assert values == sorted(values) and values.count(0.0) == 1
    assert (sum(v < 0 for v in values), sum(v > 0 for v in values)) == (7, 8)
    assert (values[0], values[-1]) == (-1.0, 1.0) and values[1] != -values[-2]


@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_four_bits_equal_bitsandbytes_in_packed_bytes_and_values(n, dtype, book):
    x = weights(n, dtype, seed=n)
    ours = quantize_blockwise(x, book, 64)
    theirs, state = peer.quantize_4bit(x, blocksize=64, quant_type=book)
    assert torch.equal(ours.codes, theirs.flatten()) and torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.dequantize(), peer.dequantize_4bit(theirs, state).flatten()[:n])
    assert ours.dequantize().dtype == dtype


def on_the_grid(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """x with x/absmax moved to the 65,536 steps of bitsandbytes' CPU look-up."""
    padded = torch.nn.functional.pad(x, (0, -len(x) % block_size)).view(-1, block_size)
    top = padded.abs().amax(1, keepdim=True)
    step = ((padded * (1 / top) + 1) * 0.5 * 65535 + 0.5).floor()
    return step.div(65535).mul(2).sub(1)


@pytest.mark.parametrize("n", [256, 1000, 100_003])
def test_eight_bits_equal_bitsandbytes_but_for_the_grid_of_its_cpu_kernel(n):
    x = weights(n, seed=n)
    ours = quantize_blockwise(x, "dynamic8", 256)
    theirs, state = peer.quantize_blockwise(x, blocksize=256)
    assert torch.equal(ours.absmax, state.absmax)
    assert (ours.codes != theirs).float().mean() < 0.004
    thresholds, order = dynamic8().tables(x.device)[1:]
    looked_up = order[torch.bucketize(on_the_grid(x, 256), thresholds)].flatten()[:n]
    assert (looked_up != theirs).float().mean() < 1e-4
    # Without its fast kernel (it has none for float64) the library searches exactly.
    exact, _ = torch.ops.bitsandbytes.quantize_blockwise(x.double(), dynamic8().values, 256)
    assert torch.equal(ours.codes, exact)


@pytest.mark.parametrize("book", ["nf4", "fp4"])
def test_double_quantization_takes_the_mean_off_and_codes_the_rest_in_eight_bits(book):
    x = weights(64 * 1000 + 7)
    plain, ours = quantize_blockwise(x, book), quantize_blockwise(x, book, double=True)
    theirs, state = peer.quantize_4bit(x, blocksize=64, quant_type=book, compress_statistics=True)
    assert torch.equal(ours.codes, theirs.flatten()) and torch.equal(ours.offset, state.offset)
    assert torch.equal(ours.scales.scales, state.state2.absmax) and ours.scales.codes.dtype == torch.uint8
    differ = ours.scales.codes != state.absmax
    assert differ.float().mean() < 0.01, "beyond the grid of the library's 8-bit CPU kernel"
    assert (ours.absmax - plain.absmax).abs().max() < 0.04 * plain.absmax.max()
    untouched = ~differ.repeat_interleave(64)[: len(x)]
    assert torch.equal(ours.dequantize()[untouched], peer.dequantize_4bit(theirs, state)[untouched])


@pytest.mark.parametrize(
    ("book", "block_size", "double", "bits"),
    [("nf4", 64, False, 4.5), ("nf4", 64, True, 4.127), ("fp4", 128, False, 4.25), ("dynamic8", 256, False, 8.125)],
)
def test_bits_per_parameter_are_counted_on_what_is_stored(book, block_size, double, bits):
    quantized = quantize_blockwise(weights(2**22), book, block_size, double)
    assert quantized.bits_per_parameter == pytest.approx(bits, abs=5e-4)
    stored = [quantized.codes, *([quantized.absmax] if not double else [quantized.scales.codes, quantized.offset])]
    total = sum(t.untyped_storage().nbytes() for t in stored)
    assert quantized.bytes == total + (quantized.scales.scales.nbytes if double else 0)


@given(st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(lambda codes: len(codes) % 2 == 0))
def test_packing_is_undone_and_puts_the_first_code_high(codes):
    codes = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(codes)
    assert torch.equal(unpack(packed), codes) and len(packed) * 2 == len(codes)
    assert int(packed[0]) >> 4 == int(codes[0])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(1, 700), st.sampled_from(sorted(CODE_BOOKS)), st.sampled_from([1, 3, 64, 100]),
    st.sampled_from([1e-30, 1.0, 1e30]),
)  # fmt: skip
def test_every_value_goes_to_the_nearest_number_of_its_block(seed, n, name, block_size, size):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * size
    book = codebook(name)
    ours = quantize_blockwise(x, book, block_size)
    top = ours.absmax.repeat_interleave(block_size)[:n]
    distance = ((x / top)[:, None] - book.values).abs().amin(1)
    error = (ours.dequantize() / top - x / top).abs()
    assert (error <= distance + 2e-7).all()


def test_a_block_of_zeros_comes_back_as_zeros_and_spoils_no_other():
    x = torch.cat([torch.zeros(64), weights(64), torch.full((64,), 1e-42)])
    quantized = quantize_blockwise(x)
    back = quantized.dequantize()
    assert torch.equal(back[:64], torch.zeros(64)) and torch.equal(back[128:], torch.zeros(64))
    assert torch.equal(quantized.absmax == 0, torch.tensor([True, False, True]))
    assert torch.equal(back[64:128], quantize_blockwise(x[64:128]).dequantize())


def test_shapes_views_and_block_sizes_that_divide_nothing_are_kept():
    x = weights(30 * 7).view(30, 7).t()
    quantized = quantize_blockwise(x, "nf4", 100)
    assert quantized.dequantize().shape == x.shape and len(quantized.absmax) == 3
    assert torch.equal(quantized.dequantize(), quantize_blockwise(x.contiguous(), "nf4", 100).dequantize())


def test_no_temporary_is_as_large_as_the_tensor():
    x = torch.randn(2**25, dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        quantized = quantize_blockwise(x, double=True)
        back = quantized.dequantize(torch.bfloat16)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert largest <= max(back.nbytes, quantized.codes.nbytes), "an allocation beyond the results themselves"
    peak, now = 0, 0
    for event in sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
                        key=lambda e: e.start_ns()):  # fmt: skip
        now += event.nbytes()
        peak = max(peak, now)
    assert peak <= back.nbytes + quantized.bytes + 0.5 * x.nbytes


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x.index_fill(0, torch.tensor(70), float("nan")), "from value 64 on"),
        (lambda x: x.index_fill(0, torch.tensor(0), float("-inf")), "1 of 3 blocks hold NaN or infinity"),
        (lambda x: x[:0], "is empty"),
        (lambda x: x.int(), "torch.int32"),
        (lambda x: x.double(), "torch.float64"),
    ],
    ids=["nan", "inf", "empty", "integers", "float64"],
)
def test_what_cannot_be_quantized_is_refused(spoil, words):
    with pytest.raises(QuantizeError, match=words):
        quantize_blockwise(spoil(weights(150)))


def test_unknown_books_and_impossible_blocks_are_named():
    with pytest.raises(UnknownNameError, match="nf4"):
        quantize_blockwise(weights(10), "nf5")
    for block_size in (0, -64, 6.5):
        with pytest.raises(QuantizeError, match="block of"):
            quantize_blockwise(weights(10), "nf4", block_size)
    with pytest.raises(QuantizeError, match="values for 4 bits"):
        CodeBook("mine", torch.linspace(-1, 1, 8), 4)
    with pytest.raises(QuantizeError, match=r"leaves \[-1, 1\]"):
        CodeBook("mine", torch.linspace(-2, 2, 16), 4)
