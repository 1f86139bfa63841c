"""What travels between device and host: pieces of parameters, gathered in buckets, worked on in chunks.

AdamW is elementwise, so pieces in any order give what whole tensors give, to the bit, as long as a cut falls on a
multiple of `GRAIN`: torch's CPU kernel (aten/src/ATen/native/cpu/FusedAdamKernel.cpp) rounds the values left over by
its vectors a little differently, and a cut elsewhere would make other values be left over.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from labkit.memory.lanes import Ticket

GRAIN = 64
MIB = 2**20


def bucket_values(count: int, dtype: torch.dtype, bucket_mib: float) -> int:
    """Values of `dtype` in a bucket of `bucket_mib` MiB, no more than `count` values need; a multiple of GRAIN."""
    wanted = min(int(bucket_mib * MIB) // dtype.itemsize, count + GRAIN - 1)
    return max(GRAIN, wanted // GRAIN * GRAIN)


@dataclass
class Piece:
    """Values `begin` to `end` of parameter number `index`, from place `at` in the staging buffer on."""

    index: int
    group: int
    begin: int
    end: int
    at: int

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass
class Bucket:
    """What travels in one copy, and how far it has come.

    Attributes:
        slot: the device buffer that it is gathered in, [values].
        begin, end: its stretch of the staging buffer.
        arrived: passed when the gradients are on the host.
        settings: a parameter group's lr, betas, eps and weight_decay each, as they were at this step.
        factor: what clipping multiplies gradients by, a host scalar, and when it is there.
        todo: chunks that no thread has taken yet.
        left: how many are not done.
        uploaded: promises the ticket of the way back, or a worker's exception.
    """

    name: str
    slot: int
    begin: int
    end: int
    pieces: list[Piece] = field(default_factory=list)
    arrived: Ticket = field(default_factory=Ticket)
    settings: list[dict[str, Any]] = field(default_factory=list)
    factor: tuple[Tensor, Ticket] | None = None
    todo: list[list[Piece]] = field(default_factory=list)
    left: int = 0
    uploaded: Future = field(default_factory=Future)


def chunks(pieces: list[Piece], most: int) -> Iterator[list[Piece]]:
    """Neighbouring pieces of at most `most` values together, cut on multiples of GRAIN where one is larger.

    Args:
        most: a multiple of GRAIN.
    """
    chunk: list[Piece] = []
    room = most
    for piece in pieces:
        begin = piece.begin
        while begin < piece.end:
            end = piece.end if piece.end - begin <= room else begin + room // GRAIN * GRAIN
            if end > begin:
                chunk.append(replace(piece, begin=begin, end=end, at=piece.at + begin - piece.begin))
            room, begin = room - (end - begin), end
            if begin < piece.end or room == 0:
                yield chunk
                chunk, room = [], most
    if chunk:
        yield chunk
