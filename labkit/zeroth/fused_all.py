"""Moves of many tensors in one launch: a small model's step waits for launches, not for arithmetic.

A block of a transformer has some 10 to 16 trained tensors, most of them small, and a model hundreds. With a launch for
each, every one of them costs the host some 40 µs, in which a GPU makes the noise of 30 million values. Here a table in
the device's memory lists the tensors: where each begins and ends, and its keys. A program finds its tensor by its
number, and does to its tile what `labkit.zeroth.fused` does, bit for bit.

Several moves, each with a rounding of its own, go in the same launch: what would be written and read again between them
is rounded where it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from labkit.zeroth import fused, noise

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform
    triton = None

LARGE = 2**25  # values from which a tensor has a launch of its own: it takes longer than the host needs for one
MOST = 256  # tensors of a launch
LEAST = 16
NEVER = 2**62  # the first tile of a tensor that is none

Job = tuple[Tensor, Tensor, str]
"""What is read, where it is written (perhaps the same), and the name under which its noise is drawn."""
Move = tuple[Sequence[tuple[int, float]], float]
"""(seed, scale) of each direction, and the share of the weight that is kept; rounded once."""


def takes(source: Tensor, out: Tensor) -> bool:
    """Whether a launch for many serves this tensor: not too large, and read and written in whole 16 bytes."""
    count, places = out.numel(), (source.data_ptr(), out.data_ptr())
    return fused.usable(out) and count < LARGE and count % 8 == 0 and not any(place % 16 for place in places)


def write(jobs: Sequence[Job], moves: Sequence[Move]) -> None:
    """out ← the moves, one after the other, of source; see `labkit.zeroth.perturb.write_all`."""
    for _, same in groupby(jobs, lambda job: (job[1].device, job[1].dtype)):
        found = list(same)
        for begin in range(0, len(found), MOST):
            _write_some(found[begin : begin + MOST], moves)


def _write_some(jobs: Sequence[Job], moves: Sequence[Move]) -> None:
    for terms, rounds in launches(moves):
        _launch(jobs, terms, rounds)
        jobs = [(out, out, name) for _, out, name in jobs]


def launches(moves: Sequence[Move]) -> Iterator[tuple[list[tuple[int, float, float]], bool]]:
    """(seed, scale, keep) of the terms of each launch, and whether each term is rounded or their sum.

    Moves of at most one term that follow each other share a launch.
    """
    for single, some in groupby(moves, lambda move: len(move[0]) <= 1):
        each = [(terms or [(0, 0.0)], keep) for terms, keep in some]
        found = [[(seed, scale, keep if n == 0 else 1.0) for n, (seed, scale) in enumerate(t)] for t, keep in each]
        if single:
            yield [term for terms in found for term in terms], True
        else:
            yield from ((terms, False) for terms in found)


def _launch(jobs: Sequence[Job], terms: Sequence[tuple[int, float, float]], rounds: bool) -> None:
    tiles = [-(-out.numel() // (noise.LANES * fused.TILE)) for _, out, _ in jobs]
    *begins, whole = accumulate(tiles, initial=0)
    if not whole:
        return
    places = max(LEAST, 1 << (len(jobs) - 1).bit_length())
    words = [*begins, *[NEVER] * (places - len(jobs))]
    for source, out, name in jobs:
        words += (source.data_ptr(), out.data_ptr(), out.numel())
        words += (_word(*noise.key(seed, name)) for seed, _, _ in terms)
    words += (int.from_bytes(struct.pack("<ff", scale, keep), "little", signed=True) for _, scale, keep in terms)
    like = jobs[0][1]
    table = torch.tensor(words, dtype=torch.int64).pin_memory().to(like.device, non_blocking=True)
    with torch.cuda.device(like.device):
        _write[(whole,)](
            like, table, len(jobs), len(terms), PLACES=places, ROUNDS=rounds, SIZE=fused.TILE, enable_fp_fusion=False
        )


def _word(low: int, high: int) -> int:
    """Two halves as a signed number of 64 bits."""
    return int.from_bytes(struct.pack("<II", low, high), "little", signed=True)


if triton is not None:

    @triton.jit(do_not_specialize=["jobs", "terms"])
    def _write(like, table, jobs, terms, PLACES: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
        tile = tl.program_id(0).to(tl.int64)
        begins = tl.load(table + tl.arange(0, PLACES))
        job = tl.sum((begins <= tile).to(tl.int32), axis=0) - 1
        row = table + PLACES + job * (3 + terms)
        source, out = tl.load(row).to(like.dtype), tl.load(row + 1).to(like.dtype)
        source, out = tl.multiple_of(source, [16]), tl.multiple_of(out, [16])
        count = tl.multiple_of(tl.load(row + 2), [8])
        first = (tile - tl.load(table + job)) * SIZE
        at = first * 4 + tl.arange(0, 4 * SIZE)
        inside = at < count
        counter = first + tl.arange(0, SIZE)
        value = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        shares = table + PLACES + jobs * (3 + terms)
        for term in range(terms):
            key = tl.load(row + 3 + term)
            share = tl.load(shares + term)
            scale = share.to(tl.uint32).to(tl.float32, bitcast=True)
            keep = (share >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
            value = value * keep + fused._normals(counter, key.to(tl.uint32), (key >> 32).to(tl.uint32)) * scale
            if ROUNDS:
                value = value.to(like.dtype.element_ty).to(tl.float32)
        tl.store(out + at, value.to(like.dtype.element_ty), mask=inside)
