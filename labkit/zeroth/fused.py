"""w ← c w + Σ aᵢ zᵢ on a GPU in one Triton kernel: every weight is read once and written once, z is never in memory.

Of n 16-bit weights that is 4n bytes, whatever the number of directions; with z made by one kernel and added by another
it would be 4n for z in fp32 written and read, and each direction would round the weight anew. Arithmetic, not memory,
sets the time, so instructions are counted. Of what ptxas makes for one value of a large fp16 tensor on a Hopper GPU,
30 are left: ten rounds of Philox take 5 products of 32 × 32 to 64 bits and 5 exclusive ors of three, Box and Muller's
formulas some 10, and where a tensor's rows begin at a whole counter, 8 values are read and written at once.

The integers are those of `labkit.zeroth.noise` bit for bit. Multiplications and additions are not fused but where
written so (`enable_fp_fusion=False`), so that from the same z the same weights come out. Logarithm, root, sine and
cosine are the hardware's approximations: z differs from a CPU's by at most 5 10⁻⁶ (PTX ISA, section 9.7.3: 2⁻²² for
lg2, 2⁻²⁰·⁵ for sin and cos, times a radius of at most 6.7). On one kind of GPU it is the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.zeroth import noise

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform: the chunked path serves every device
    triton = None

TILE = 512  # counters of a program, four values each
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def usable(tensor: Tensor) -> bool:
    """Whether the kernel serves this tensor."""
    return triton is not None and tensor.is_cuda and tensor.dtype in DTYPES


def _signed(half: int) -> int:
    """The same 32 bits as a signed number: Triton takes larger ones for 64-bit and would compile a second kernel."""
    return half - 2**32 if half >= 2**31 else half


def sent(numbers: list, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on the device, without waiting for what the device does: from pinned memory."""
    return torch.tensor(numbers, dtype=dtype).pin_memory().to(device, non_blocking=True)


def write(
    source: Tensor,
    out: Tensor,
    name: str,
    terms: Sequence[tuple[int, float]],
    keep: float,
    start: int,
    rows: Tensor | None = None,
) -> None:
    """Fill `out`; see `labkit.zeroth.perturb.write`, and `rows` there for rows of a matrix."""
    count = source.shape[-1] if rows is not None else source.numel()
    aligned = (count if rows is not None else start) % noise.LANES == 0  # a value's lane is its place in a tile
    tiles = -(-(count + (0 if aligned else 2 * (noise.LANES - 1))) // (noise.LANES * TILE))
    grid = (tiles * (len(rows) if rows is not None else 1),)
    keys = [[_signed(half) for half in noise.key(seed, name)] for seed, _ in terms]
    rest = sent(keys[1:], torch.int32, out.device) if len(keys) > 1 else out
    scales = sent([s for _, s in terms[1:]], torch.float32, out.device) if len(keys) > 1 else out
    first = (*keys[0], terms[0][1]) if keys else (0, 0, 0.0)
    with torch.cuda.device(out.device):
        _write[grid](
            source, out, rows if rows is not None else out, *first, rest, scales, float(keep), start, count, tiles,
            TERMS=len(terms), ROWS=rows is not None, ALIGNED=aligned, SIZE=TILE, enable_fp_fusion=False,
        )  # fmt: skip


def bits(counters: int, halves: tuple[int, int], start: int, device: torch.device | str) -> Tensor:
    """The integers of `counters` counters from `start` on, int64 of [counters, 4], as `noise.philox` makes them."""
    out = torch.empty(counters, noise.LANES, dtype=torch.int64, device=device)
    with torch.cuda.device(out.device):
        _bits[(-(-counters // TILE),)](out, *map(_signed, halves), start, counters, SIZE=TILE)
    return out


if triton is not None:

    @triton.jit
    def _integers(counter, k0, k1):
        c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
        c2, c3 = c0 * 0, c0 * 0
        k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
        for _ in tl.static_range(10):
            # As products of 64 bits, each is one instruction; tl.philox asks for both halves apart.
            a, b = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
            c0, c2 = (b >> 32).to(tl.uint32) ^ c1 ^ k0, (a >> 32).to(tl.uint32) ^ c3 ^ k1
            c1, c3 = b.to(tl.uint32), a.to(tl.uint32)
            k0 += 0x9E3779B9
            k1 += 0xBB67AE85
        return c0, c1, c2, c3

    @triton.jit
    def _fast(x, NAME: tl.constexpr):
        text: tl.constexpr = NAME + ".approx.ftz.f32 $0, $1;"
        return tl.inline_asm_elementwise(text, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)

    @triton.jit
    def _pair(x, y):
        u = (x.to(tl.float32) + 1.0) * 2.3283064365386963e-10  # 2 ** -32
        w = 1.0 - u
        # Close to 1 the logarithm is small, and lg2's error is not: there the series of -2 ln(1 - w).
        near = w * tl.fma(w, tl.fma(w, 0.6666667, 1.0), 2.0)
        square = tl.where(w < 0.015625, near, _fast(u, "lg2") * -1.3862943611198906)
        radius = _fast(square, "sqrt")
        angle = y.to(tl.float32) * 1.4629180792671596e-09  # 2 π 2 ** -32
        return radius * _fast(angle, "cos"), radius * _fast(angle, "sin")

    @triton.jit
    def _normals(counter, k0, k1):
        x0, x1, x2, x3 = _integers(counter, k0, k1)
        z0, z1 = _pair(x0, x1)
        z2, z3 = _pair(x2, x3)
        return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))

    @triton.jit(do_not_specialize=["k0", "k1", "start"])
    def _write(
        source, out, rows, k0, k1, scale, rest, scales, keep, start, count, tiles,
        TERMS: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr, SIZE: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0).to(tl.int64)
        tile, begin = program, start.to(tl.int64)
        if ROWS:
            tile = program % tiles
            row = program // tiles
            begin = tl.load(rows + row).to(tl.int64) * count
            source += begin
            out += row * count
        first = begin // 4 + tile * SIZE
        if ALIGNED:  # without a remainder in `at`, Triton sees that several values can be read at once
            at = tile * (4 * SIZE) + tl.arange(0, 4 * SIZE)
            inside = at < count
        else:
            at = first * 4 - begin + tl.arange(0, 4 * SIZE)
            inside = (at >= 0) & (at < count)
        value = tl.load(source + at, mask=inside, other=0.0).to(tl.float32) * keep
        counter = first + tl.arange(0, SIZE)
        if TERMS > 0:
            value += _normals(counter, k0, k1) * scale
        if TERMS > 1:
            for term in range(TERMS - 1):
                key0, key1 = tl.load(rest + 2 * term), tl.load(rest + 2 * term + 1)
                value += _normals(counter, key0, key1) * tl.load(scales + term)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["k0", "k1", "start"])
    def _bits(out, k0, k1, start, counters, SIZE: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        x0, x1, x2, x3 = _integers(start.to(tl.int64) + at, k0, k1)
        inside = at < counters
        tl.store(out + 4 * at, x0.to(tl.int64), mask=inside)
        tl.store(out + 4 * at + 1, x1.to(tl.int64), mask=inside)
        tl.store(out + 4 * at + 2, x2.to(tl.int64), mask=inside)
        tl.store(out + 4 * at + 3, x3.to(tl.int64), mask=inside)
