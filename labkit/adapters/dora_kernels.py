"""DoRA's row scales, and its backward pass's pass over the outputs, as one Triton kernel each.

A small model's step waits for launches, not for arithmetic: what torch does to a layer's [out] scales takes eleven
operations, each of some microseconds whatever its size, and here one. In the backward pass g ⊙ u summed over tokens and
g ⊙ scale read the same two matrices of [n, out]: torch writes the first product and reads it again, here both are read
once. On other devices, and without Triton, `labkit.adapters.dora` has the same formulas in torch's operations.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform
    triton = None

ROWS, COLUMNS, TOKENS = 32, 128, 16  # of a program's tiles
PROGRAMS = 264  # two for each of a large GPU's multiprocessors: into so many the tokens are cut


def usable(tensor: Tensor) -> bool:
    """Whether the kernels serve this tensor."""
    return triton is not None and tensor.is_cuda


def row_scales(
    cross: Float[Tensor, "out r"],
    gram: Float[Tensor, "r r"],
    b: Float[Tensor, "out r"],
    squares: Float[Tensor, " out"],
    m: Float[Tensor, " out"],
    scaling: float,
) -> tuple[Float[Tensor, " out"], Float[Tensor, " out"]]:
    """m / ‖·‖, and 1 / ‖·‖, in fp32; 1 and 0 where ‖·‖² is not above 0.

    Args:
        cross: W Aᵀ.
        gram: A Aᵀ.
        squares: ‖w‖² of each row of W.
    """
    count, rank = b.shape
    scale, inverse = torch.empty_like(squares), torch.empty_like(squares)
    with torch.cuda.device_of(b):
        _row_scales[(triton.cdiv(count, ROWS),)](
            cross, gram, b, squares, m, scale, inverse, float(scaling), count, rank,
            RANK=triton.next_power_of_2(rank), ROWS=ROWS,
        )  # fmt: skip
    return scale, inverse


def through_scale(
    g: Float[Tensor, "n out"],
    u: Float[Tensor, "n out"],
    scale: Float[Tensor, " out"],
) -> tuple[Float[Tensor, "n out"], Float[Tensor, " out"]]:
    """g ⊙ scale in g's dtype, and the sum of g ⊙ u over tokens in fp32."""
    g, (count, width) = g.contiguous(), u.shape
    columns = triton.cdiv(width, COLUMNS)
    chunks = max(1, min(triton.cdiv(count, TOKENS), PROGRAMS // columns))
    each = triton.cdiv(triton.cdiv(count, chunks), TOKENS) * TOKENS
    chunks = triton.cdiv(count, each)
    scaled, parts = torch.empty_like(g), torch.empty(chunks, width, device=g.device)
    with torch.cuda.device_of(g):
        _through_scale[(columns, chunks)](
            g, u, scale, scaled, parts, count, width, each, COLUMNS=COLUMNS, TOKENS=TOKENS
        )
    return scaled, parts[0] if chunks == 1 else parts.sum(0)


if triton is not None:

    @triton.jit
    def _row_scales(
        cross, gram, b, squares, m, scale, inverse, scaling, count, rank, RANK: tl.constexpr, ROWS: tl.constexpr
    ):
        rows, ranks = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, RANK)
        row_in, rank_in = rows < count, ranks < rank
        at, inside = rows[:, None] * rank + ranks[None, :], row_in[:, None] & rank_in[None, :]
        own = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        added = tl.load(cross + at, mask=inside, other=0.0).to(tl.float32) * 2.0
        for k in range(rank):
            column = tl.load(b + rows * rank + k, mask=row_in, other=0.0).to(tl.float32)
            line = tl.load(gram + k * rank + ranks, mask=rank_in, other=0.0).to(tl.float32)
            added += scaling * column[:, None] * line[None, :]
        square = tl.load(squares + rows, mask=row_in, other=1.0) + scaling * tl.sum(added * own, axis=1)
        there = ~(square <= 0.0)  # NaN stays NaN
        one_over = tl.where(there, tl.rsqrt(tl.where(there, square, 1.0)), 0.0)
        length = tl.load(m + rows, mask=row_in, other=0.0).to(tl.float32)
        tl.store(inverse + rows, one_over, mask=row_in)
        tl.store(scale + rows, tl.where(there, length * one_over, 1.0), mask=row_in)

    @triton.jit
    def _through_scale(g, u, scale, scaled, parts, count, width, each, COLUMNS: tl.constexpr, TOKENS: tl.constexpr):
        columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        column_in = columns < width
        factor = tl.load(scale + columns, mask=column_in, other=0.0).to(tl.float32)
        first = tl.program_id(1) * each
        total = tl.zeros([TOKENS, COLUMNS], dtype=tl.float32)
        for begin in range(0, each, TOKENS):
            tokens = first + begin + tl.arange(0, TOKENS)
            at = tokens.to(tl.int64)[:, None] * width + columns[None, :]
            inside = (tokens < count)[:, None] & column_in[None, :]
            gradient = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
            total += gradient * tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(scaled + at, (gradient * factor[None, :]).to(scaled.dtype.element_ty), mask=inside)
        tl.store(parts + tl.program_id(1) * width + columns, tl.sum(total, axis=0), mask=column_in)
