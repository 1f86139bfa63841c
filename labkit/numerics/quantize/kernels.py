"""Fused block-wise quantization on a GPU, in Triton: every value is read once and written once.

Quantizing n bf16 values to 4 bits must move 2n + n/2 bytes, reading them back n/2 + 2n; both kernels do that and little
more: 100 M values take 250 MB, about 0.06 ms at the 4 TB/s that a copy reaches on an H200. Thresholds and numbers are
tables of 16 or 256 entries, which stay in the first-level cache; a code is found by bisection in 4 or 8 look-ups.

Multiplications and additions are not fused (`enable_fp_fusion=False`), so that values equal those of the chunked path
and of bitsandbytes bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform: the chunked path serves every device
    triton = None

if TYPE_CHECKING:
    from labkit.numerics.quantize.blockwise import Quantized
    from labkit.numerics.quantize.codebooks import CodeBook

# Values a program takes: the fastest of 1,024 … 8,192 on an H200.
QUANTIZE_TILE, DEQUANTIZE_TILE = 2048, 1024
MAX_BLOCK = 8192


def usable(tensor: Tensor, block_size: int) -> bool:
    """Whether the kernels serve this tensor: on a CUDA device, with a block size that is a power of two."""
    power = block_size >= 2 and block_size & (block_size - 1) == 0
    return triton is not None and tensor.is_cuda and power and block_size <= MAX_BLOCK


def quantize(flat: Tensor, book: CodeBook, block_size: int, codes: Tensor, absmax: Tensor) -> None:
    """Fill `codes` and `absmax` from a flat tensor. A block with NaN gets the scale NaN."""
    _, thresholds, order = book.tables(flat.device)
    rows = max(1, QUANTIZE_TILE // block_size)
    grid = (-(-len(absmax) // rows),)
    with torch.cuda.device(flat.device):
        _quantize[grid](
            flat, thresholds, order, codes, absmax, len(flat), SMALLEST=torch.finfo(torch.float32).tiny,
            BLOCK=block_size, ROWS=rows, BITS=book.bits, enable_fp_fusion=False,
        )  # fmt: skip


def dequantize(quantized: Quantized, out: Tensor) -> None:
    """Fill the flat tensor `out` with the values read back; quantized scales are read back on the way."""
    from labkit.numerics.quantize.blockwise import Quantized

    numbers = quantized.book.tables(out.device)[0]
    scales: Any = quantized.scales
    double = isinstance(scales, Quantized)
    inner = (scales.codes, scales.scales, scales.book.tables(out.device)[0], quantized.offset) if double else (out,) * 4
    with torch.cuda.device(out.device):
        _dequantize[(-(-len(out) // DEQUANTIZE_TILE),)](
            quantized.codes, scales.scales if double else scales, *inner, numbers, out, len(out),
            BLOCK=quantized.block_size, INNER=scales.block_size if double else 1,
            TILE=DEQUANTIZE_TILE, BITS=quantized.book.bits, DOUBLE=double, enable_fp_fusion=False,
        )  # fmt: skip


def adam8bit(
    weights: Tensor, gradient: Tensor, state: dict, books: tuple[CodeBook, ...], group: dict, block_size: int
) -> None:
    """One AdamW step on a flat parameter and its 8-bit moments, all in place: each byte is read and written once."""
    (beta1, beta2), lr, step = group["betas"], group["lr"], state["step"]
    tables = [table for book in books for table in book.tables(weights.device)[:2]]
    rows = max(1, DEQUANTIZE_TILE // block_size)
    blocks = len(state["exp_avg_scale"])
    with torch.cuda.device(weights.device):
        _adam8bit[(-(-blocks // rows),)](
            weights, gradient, state["exp_avg"], state["exp_avg_scale"], state["exp_avg_sq"],
            state["exp_avg_sq_scale"], *tables, len(weights), beta1, 1 - beta1, beta2, 1 - beta2, group["eps"],
            1 - lr * group["weight_decay"], lr / (1 - beta1**step), (1 - beta2**step) ** 0.5,
            SMALLEST=torch.finfo(torch.float32).tiny, BLOCK=block_size, ROWS=rows, enable_fp_fusion=False,
        )  # fmt: skip


if triton is not None:

    @triton.jit
    def _rank(scaled, thresholds, BITS: tl.constexpr):
        """How many thresholds lie below each value, by bisection."""
        rank = (scaled * 0).to(tl.int32)
        for bit in tl.static_range(BITS):
            above = scaled > tl.load(thresholds + rank + ((1 << (BITS - 1 - bit)) - 1))
            rank += tl.where(above, 1 << (BITS - 1 - bit), 0)
        return rank

    @triton.jit
    def _quantize(
        x, thresholds, order, codes, absmax, n, SMALLEST: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
        BITS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        values = tl.load(x + at, mask=at < n, other=0).to(tl.float32)
        top = tl.max(tl.abs(values), 1)
        # A maximum passes NaN over; the scale must not.
        broken = tl.max((values != values).to(tl.int32), 1)
        scale = tl.where(broken > 0, float("nan"), tl.where(top < SMALLEST, 0.0, top))
        tl.store(absmax + row, scale, mask=row * BLOCK < n)
        scaled = values * tl.div_rn(1.0, tl.maximum(top, SMALLEST))[:, None]
        code = tl.load(order + _rank(scaled, thresholds, BITS))
        if BITS == 8:
            tl.store(codes + at, code, mask=at < n)
        else:
            high, low = tl.split(tl.reshape(code, (ROWS, BLOCK // 2, 2)))
            half = row[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
            tl.store(codes + half, (high << 4) | low, mask=2 * half < n)

    @triton.jit
    def _dequantize(
        codes, scales, inner_codes, inner_scales, inner_numbers, offset, numbers, out, n, BLOCK: tl.constexpr,
        INNER: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr, DOUBLE: tl.constexpr,
    ):  # fmt: skip
        start = tl.program_id(0).to(tl.int64) * TILE
        at = start + tl.arange(0, TILE)
        if BITS == 8:
            code = tl.load(codes + at, mask=at < n, other=0).to(tl.int32)
        else:
            half = start // 2 + tl.arange(0, TILE // 2)
            packed = tl.load(codes + half, mask=2 * half < n, other=0).to(tl.int32)
            code = tl.interleave(packed >> 4, packed & 15)
        block = at // BLOCK
        if DOUBLE:
            coded = tl.load(inner_codes + block, mask=at < n, other=0).to(tl.int32)
            scale = tl.load(inner_numbers + coded) * tl.load(inner_scales + block // INNER, mask=at < n, other=0)
            scale = scale + tl.load(offset)
        else:
            scale = tl.load(scales + block, mask=at < n, other=0)
        tl.store(out + at, tl.load(numbers + code) * scale, mask=at < n)

    @triton.jit
    def _requantize(moment, codes, scales, thresholds, at, row, n, SMALLEST: tl.constexpr, BLOCK: tl.constexpr):
        """Write a moment's 8-bit codes and scales; its code book is ascending."""
        top = tl.max(tl.abs(moment), 1)
        broken = tl.max((moment != moment).to(tl.int32), 1)
        scale = tl.where(broken > 0, float("nan"), tl.where(top < SMALLEST, 0.0, top))
        tl.store(scales + row, scale, mask=row * BLOCK < n)
        scaled = moment * tl.div_rn(1.0, tl.maximum(top, SMALLEST))[:, None]
        tl.store(codes + at, _rank(scaled, thresholds, 8).to(tl.uint8), mask=at < n)

    @triton.jit
    def _adam8bit(
        weights, gradient, m_codes, m_scales, v_codes, v_scales, m_numbers, m_thresholds, v_numbers, v_thresholds, n,
        beta1, rest1, beta2, rest2, eps, decay, step_size, correction, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
        ROWS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside, whole = at < n, row * BLOCK < n
        g = tl.load(gradient + at, mask=inside, other=0).to(tl.float32)
        m = tl.load(m_numbers + tl.load(m_codes + at, mask=inside, other=0).to(tl.int32))
        v = tl.load(v_numbers + tl.load(v_codes + at, mask=inside, other=0).to(tl.int32))
        m = m * tl.load(m_scales + row, mask=whole, other=0)[:, None] * beta1 + rest1 * g
        v = v * tl.load(v_scales + row, mask=whole, other=0)[:, None] * beta2 + rest2 * (g * g)
        w = tl.load(weights + at, mask=inside, other=0).to(tl.float32) * decay
        w -= step_size * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), correction) + eps)
        tl.store(weights + at, w, mask=inside)
        _requantize(m, m_codes, m_scales, m_thresholds, at, row, n, SMALLEST, BLOCK)
        _requantize(v, v_codes, v_scales, v_thresholds, at, row, n, SMALLEST, BLOCK)
