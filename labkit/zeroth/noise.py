"""Gaussian directions that are never stored: z of any element of any tensor, from a seed, the tensor's name, its index.

A generator that runs on from tensor to tensor, as MeZO's published code has it, ties z to the order in which parameters
are registered, and to generating all of a tensor to have some of it. Here each four elements have their own number:

    key      = BLAKE2b(seed, name)                         64 bits
    x0 … x3  = Philox4x32-10(key, counter = index // 4)    four uniform integers of 32 bits
    u        = (float32(x0) + 1) / 2³²     in (0, 1]       v = float32(x1) / 2³²     in [0, 1]
    z0, z1   = √(-2 ln u) · (cos 2πv, sin 2πv)             and z2, z3 from x2, x3 alike

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11) turns a counter into random bits by
ten rounds of multiplication; Box and Muller (1958) turn two uniform numbers into two Gaussian ones. The largest |z| is
√(64 ln 2) = 6.66, beyond which lie 3 of 10¹¹ values.

The integers are the same bits on every device, and so are u and v: conversions and sums are rounded as IEEE 754 says.
Logarithm, sine and cosine are each library's own, so that z agrees between devices to some last places of fp32; on one
kind of device it is bitwise the same in every run, whatever the chunks.
"""

from __future__ import annotations

import hashlib
import math
import threading

import torch
from jaxtyping import Float, Int
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # by which the key's halves grow from round to round
ROUNDS, LANES = 10, 4
MASK = 0xFFFFFFFF
UNIT = 2.0**-32
PIECE = 2**16  # counters worked on at once: in smaller pieces starting operations costs more than they do


def key(seed: int, name: str) -> tuple[int, int]:
    """The two halves of a tensor's key: stable between processes, machines and versions of Python."""
    packed = (seed % 2**64).to_bytes(8, "little") + name.encode()
    whole = int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")
    return whole & MASK, whole >> 32


class _Scratch(threading.local):
    """Buffers of a thread, by device: allocating them anew for every piece takes longer than the arithmetic."""

    def __init__(self) -> None:
        self._kept: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Five of integers and three of fp32, PIECE values each."""
        if device not in self._kept:
            integers = torch.empty(5, PIECE, dtype=torch.int64, device=device)
            self._kept[device] = integers, torch.empty(3, PIECE, device=device)
        return self._kept[device]


_scratch = _Scratch()


def philox(counters: Int[Tensor, " n"], halves: tuple[int, int], work: Tensor | None = None) -> tuple[Tensor, ...]:
    """Four integers of 32 bits for each counter, in int64, the upper halves zero.

    A product of two 32-bit numbers may need all 64 bits; int64 wraps around and keeps them, and what a shift brings in
    at the top is masked before the next product.

    Args:
        work: int64 of [5, n], of which the result takes four; made here unless given.
    """
    work = torch.empty(5, len(counters), dtype=torch.int64, device=counters.device) if work is None else work
    c0, c1, c2, c3, high = work.unbind()
    torch.bitwise_and(counters, MASK, out=c0)
    torch.bitwise_right_shift(counters, 32, out=c1)
    c2.zero_()
    c3.zero_()
    k0, k1 = halves
    for _ in range(ROUNDS):
        c0.bitwise_and_(MASK).mul_(MULTIPLIERS[0])
        c2.bitwise_and_(MASK).mul_(MULTIPLIERS[1])
        c1.bitwise_xor_(torch.bitwise_right_shift(c2, 32, out=high)).bitwise_xor_(k0)
        c3.bitwise_xor_(torch.bitwise_right_shift(c0, 32, out=high)).bitwise_xor_(k1)
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return tuple(c.bitwise_and_(MASK) for c in (c0, c1, c2, c3))


def of_counters(counters: Int[Tensor, " n"], halves: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The four normal numbers of each counter, fp32."""
    z = torch.empty(len(counters), LANES, device=counters.device)
    integers, floats = _scratch.on(counters.device)
    for begin in range(0, len(counters), PIECE):
        piece = counters[begin : begin + PIECE]
        bits = philox(piece, halves, integers[:, : len(piece)])
        radius, angle, side = floats[:, : len(piece)].unbind()
        out = z[begin : begin + PIECE]
        for lane in (0, 2):
            radius.copy_(bits[lane]).add_(1.0).mul_(UNIT).log_().mul_(-2.0).sqrt_()
            angle.copy_(bits[lane + 1]).mul_(UNIT).mul_(2 * math.pi)
            torch.mul(radius, torch.cos(angle, out=side), out=out[:, lane])
            torch.mul(radius, angle.sin_(), out=out[:, lane + 1])
    return z


def normal(halves: tuple[int, int], start: int, count: int, device: torch.device | str = "cpu") -> Float[Tensor, " n"]:
    """z of the elements from `start` on, fp32: the same values as within any other range."""
    first = start // LANES
    counters = torch.arange(first, -(-(start + count) // LANES), device=device)
    return of_counters(counters, halves).view(-1)[start - first * LANES :][:count]


def of_rows(halves: tuple[int, int], rows: Int[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """z of some rows of a matrix of `width` columns, fp32."""
    begin = rows * width
    first = begin // LANES
    most = -(-(width + LANES - 1) // LANES)  # counters that a row can touch
    counters = first[:, None] + torch.arange(most if width % LANES else width // LANES, device=rows.device)
    z = of_counters(counters.view(-1), halves).view(len(rows), -1)
    if width % LANES == 0:
        return z
    inside = (begin - first * LANES)[:, None] + torch.arange(width, device=rows.device)
    return z.gather(1, inside)
