"""Moves of many tensors in one launch: a small model's step waits for launches, not for arithmetic.

A block of a transformer has some 10 to 16 trained tensors, most of them small, and a model hundreds. With a launch for
each, every one of them costs the host some 30 µs, in which a GPU makes the noise of 20 million values. Here a table in
the device's memory lists the tensors, once and for all: where each is read and written, and its number. What changes
from step to step is a line for each direction: the keys of all tensors for its seed, and the scale. A program finds its
tensor by its own number, and does to its tile what `labkit.zeroth.fused` does, bit for bit.

Several moves, each with a rounding of its own, go in the same launch: what would be written and read again between them
is rounded where it is. Nothing but the lines is sent to the device in a step, so that a launch never waits for the bus.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from labkit.zeroth import fused, noise

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform
    triton = None

MOST = 32  # tensors of a launch, for which every table has room
NEVER = 2**62  # the first tile of a tensor that is none
LINES, TERMS = 256, 8  # on a device, and of a launch: their numbers are bytes of one argument
SEEDS = 64  # whose keys the host keeps

Job = tuple[Tensor, Tensor, str]
"""What is read, where it is written (perhaps the same), and the name under which its noise is drawn."""
Move = tuple[Sequence[tuple[int, float]], float]
"""(seed, scale) of each direction, and the share of the weight that is kept; rounded once."""
Term = tuple[int, float, float]
"""Seed, scale, and the share that is kept before it is added."""


def takes(source: Tensor, out: Tensor) -> bool:
    """Whether a launch for many serves this tensor: what it reads and writes are whole 16 bytes."""
    return fused.usable(out) and out.numel() % 8 == 0 and not (source.data_ptr() % 16 or out.data_ptr() % 16)


@dataclass(frozen=True)
class Table:
    """Tensors of one dtype and device.

    Attributes:
        words: int64 on the device: the first tile of each tensor, then where it is read, where written, how many
            values it has, and its number in the book.
        tiles: of all of them.
        like: one of them.
    """

    words: Tensor
    tiles: int
    like: Tensor


class Book:
    """A run's tensors by name, and the lines of its directions on each device.

    Args:
        names: of all tensors that tables will hold.
    """

    def __init__(self, names: Sequence[str]):
        self._numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self._keys: dict[int, list[int]] = {}
        self._lines: dict[torch.device, _Lines] = {}

    def tables(self, jobs: Sequence[Job]) -> list[tuple[Table, Table]]:
        """Of all jobs: as they are, and from where they are written to where they are written."""
        found = []
        for _, same in groupby(jobs, lambda job: (job[1].device, job[1].dtype)):
            some = list(same)
            for begin in range(0, len(some), MOST):
                group = some[begin : begin + MOST]
                first = self._table(group)
                again = [(out, out, name) for _, out, name in group]
                found.append((first, first if all(s is o for s, o, _ in group) else self._table(again)))
        return found

    def _table(self, jobs: Sequence[Job]) -> Table:
        tiles = [-(-out.numel() // (noise.LANES * fused.TILE)) for _, out, _ in jobs]
        *begins, whole = accumulate(tiles, initial=0)
        words = [*begins, *[NEVER] * (MOST - len(jobs))]
        for source, out, name in jobs:
            words += (source.data_ptr(), out.data_ptr(), out.numel(), self._numbers[name])
        like = jobs[0][1]
        return Table(fused.sent(words, torch.int64, like.device), whole, like)

    def write(self, tables: Sequence[tuple[Table, Table]], moves: Sequence[Move]) -> None:
        """out ← the moves, one after the other, of source."""
        for first, again in tables:
            table = first
            for terms, rounds in launches(moves):
                self._launch(table, terms, rounds)
                table = again

    def _launch(self, table: Table, terms: Sequence[Term], rounds: bool) -> None:
        device = table.words.device
        if device not in self._lines:
            self._lines[device] = _Lines(len(self._numbers), device)
        lines = self._lines[device]
        numbers = lines.numbers(terms, self.keys)
        if not table.tiles:
            return
        with torch.cuda.device(device):
            _write[(table.tiles,)](
                table.like, table.words, lines.words, lines.width, numbers, len(terms),
                PLACES=MOST, ROUNDS=rounds, SIZE=fused.TILE, enable_fp_fusion=False,
            )  # fmt: skip

    def keys(self, seed: int) -> list[int]:
        """The keys of all tensors for a seed, their halves packed in signed numbers of 64 bits."""
        if seed not in self._keys:
            if len(self._keys) >= SEEDS:
                del self._keys[next(iter(self._keys))]
            packed = struct.Struct("<II")
            keys = (packed.pack(*noise.key(seed, name)) for name in self._numbers)
            self._keys[seed] = [int.from_bytes(key, "little", signed=True) for key in keys]
        return self._keys[seed]


class _Lines:
    """On a device, a line a term: the keys of all tensors, scale and share. The oldest makes room for a new one."""

    def __init__(self, count: int, device: torch.device):
        self.width = count + 1
        self.words = torch.empty(LINES, self.width, dtype=torch.int64, device=device)
        self._known: dict[Term, int] = {}
        self._whose: list[Term | None] = [None] * LINES
        self._next = 0

    def numbers(self, terms: Sequence[Term], keys: Callable[[int], list[int]]) -> int:
        """The lines of these terms, a byte each, the first one lowest; as a signed number of 64 bits."""
        while True:
            found = [self._known.get(term, -1) for term in terms]
            if -1 not in found:
                # Filled up to 64 bits: for a smaller number Triton would compile a second kernel.
                return int.from_bytes(bytes(found).ljust(TERMS, b"\x7f"), "little", signed=True)
            # Of these lines one that was there may make room for another: then it is written anew.
            for term in terms:
                if term not in self._known:
                    self._add(term, keys(term[0]))

    def _add(self, term: Term, keys: list[int]) -> None:
        share = int.from_bytes(struct.pack("<ff", *term[1:]), "little", signed=True)
        self.words[self._next].copy_(fused.sent([*keys, share], torch.int64, self.words.device))
        if (old := self._whose[self._next]) is not None:
            del self._known[old]
        self._known[term], self._whose[self._next] = self._next, term
        self._next = (self._next + 1) % LINES


def launches(moves: Sequence[Move]) -> Iterator[tuple[list[Term], bool]]:
    """The terms of each launch, and whether each of them is rounded or their sum.

    Moves of at most one term that follow each other share a launch, up to TERMS of them.
    """
    for single, some in groupby(moves, lambda move: len(move[0]) <= 1):
        each = [(terms or [(0, 0.0)], keep) for terms, keep in some]
        found = [[(seed, scale, keep if n == 0 else 1.0) for n, (seed, scale) in enumerate(t)] for t, keep in each]
        if single:
            flat = [term for terms in found for term in terms]
            yield from ((flat[begin : begin + TERMS], True) for begin in range(0, len(flat), TERMS))
        else:
            yield from ((terms, False) for terms in found)


if triton is not None:

    @triton.jit(do_not_specialize=["width", "lines", "terms"])
    def _write(like, table, book, width, lines, terms, PLACES: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
        tile = tl.program_id(0).to(tl.int64)
        begins = tl.load(table + tl.arange(0, PLACES))
        job = tl.sum((begins <= tile).to(tl.int32), axis=0) - 1
        row = table + PLACES + job * 4
        source, out = tl.load(row).to(like.dtype), tl.load(row + 1).to(like.dtype)
        source, out = tl.multiple_of(source, [16]), tl.multiple_of(out, [16])
        count = tl.multiple_of(tl.load(row + 2), [8])
        number = tl.load(row + 3)
        first = (tile - tl.load(table + job)) * SIZE
        at = first * 4 + tl.arange(0, 4 * SIZE)
        inside = at < count
        counter = first + tl.arange(0, SIZE)
        value = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        packed = lines.to(tl.int64)
        for _ in range(terms):
            line = book + (packed & 255) * width
            packed = packed >> 8
            key, share = tl.load(line + number), tl.load(line + width - 1)
            scale = share.to(tl.uint32).to(tl.float32, bitcast=True)
            keep = (share >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
            value = value * keep + fused._normals(counter, key.to(tl.uint32), (key >> 32).to(tl.uint32)) * scale
            if ROUNDS:
                value = value.to(like.dtype.element_ty).to(tl.float32)
        tl.store(out + at, value.to(like.dtype.element_ty), mask=inside)
