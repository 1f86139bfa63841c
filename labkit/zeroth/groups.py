"""Tensors that make their moves together, where they lie: on a GPU in few launches, elsewhere one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.zeroth import fused_all, perturb
from labkit.zeroth.fused_all import Book, Job, Move, Table
from labkit.zeroth.perturb import Terms, Weight

SMALL = 2**16  # bytes
SLOT_SHARE, SLOT_MIN, SLOT_MOST = 64, 2**18, 2**28
PLACES = 16  # where a group's tensors are written, whose tables it keeps
ALIGNED = 512  # bytes, as torch's own allocator aligns: matrix products choose their kernel by alignment too


@dataclass(frozen=True)
class Pass:
    """w ← round(keep w + Σ scale · z): one move of all weights, with one rounding.

    Attributes:
        terms, keep: of tensors that decay acts on.
        plain: the terms of the others, of which all is kept.
    """

    terms: Terms
    keep: float
    plain: Terms


class Group:
    """Whole tensors that are written again and again.

    Args:
        weights: the tensors; they stay where they are.
        book: of the run, which knows their names.
        outs: where each is written; in place where none are given.

    Attributes:
        found: where each is written, by `id` of its parameters.
    """

    def __init__(self, weights: Sequence[Weight], book: Book, outs: Sequence[Tensor] | None = None):
        self.weights, self._book = weights, book
        self._outs = [w.tensor for w in weights] if outs is None else outs
        self._split: dict[tuple[bool | None, int], tuple[list[tuple[Table, Table]], list[Job]]] = {}
        self.found = {alias: out for w, out in zip(weights, self._outs, strict=True) for alias in w.aliases}

    def make(self, passes: Sequence[Pass]) -> None:
        """The passes in order, each rounded."""
        if all(one.keep == 1.0 and one.terms == one.plain for one in passes):
            self.write([(one.terms, 1.0) for one in passes])
            return
        self.write([(one.terms, one.keep) for one in passes], True)
        self.write([(one.plain, 1.0) for one in passes], False)

    def write(self, moves: Sequence[Move], decayed: bool | None = None) -> None:
        """The moves in order, each rounded; those that change nothing are left out.

        Args:
            moves: terms and keep of each.
            decayed: of all tensors, or only of those that decay acts on, or does not.
        """
        real = [([(seed, scale) for seed, scale in terms if scale], keep) for terms, keep in moves]
        real = [(terms, keep) for terms, keep in real if terms or keep != 1.0]
        if not real or not self.weights:
            return
        tables, rest = self._jobs(decayed)
        if max(len(terms) for terms, _ in real) > fused_all.TERMS:
            tables, rest = [], [*self._some(decayed)]
        self._book.write(tables, real)
        for source, out, name in rest:
            for terms, keep in real:
                perturb.write(source, out, name, terms, keep)
                source = out

    def _some(self, decayed: bool | None) -> list[Job]:
        pairs = zip(self.weights, self._outs, strict=True)
        return [(w.tensor, out, w.name) for w, out in pairs if decayed in (None, w.decayed)]

    def _jobs(self, decayed: bool | None) -> tuple[list[tuple[Table, Table]], list[Job]]:
        key = decayed, self._outs[0].data_ptr()  # the room that they are written to may have been given back
        if key not in self._split:
            if len(self._split) >= PLACES:
                self._split.clear()
            jobs = self._some(decayed)
            many = [fused_all.takes(source, out) for source, out, _ in jobs]
            tables = self._book.tables([job for job, taken in zip(jobs, many, strict=True) if taken])
            self._split[key] = tables, [job for job, taken in zip(jobs, many, strict=True) if not taken]
        return self._split[key]

    def held(self, own: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """For modules: parameters that lie where these are written; what is none of the group's stays."""
        return [nn.Parameter(self.found[id(p)], False) if id(p) in self.found else p for p in own]


def book_of(weights: Sequence[Weight]) -> Book:
    """For groups of these weights."""
    return Book([w.name for w in weights])


def slot_of(weights: Sequence[Weight]) -> int:
    """Bytes of the slot for perturbed rows: 1/64 of the weights' bytes, between 256 KiB and 256 MiB."""
    whole = sum(w.tensor.numel() * w.tensor.element_size() for w in weights)
    return min(SLOT_MOST, max(SLOT_MIN, whole // SLOT_SHARE))


def small_of(weights: Sequence[Weight], most: int) -> list[Weight]:
    """Small tensors, of `most` bytes in all, where a launch for each would cost more than its work; else none."""
    found, total = [], 0
    for w in weights:
        size = w.tensor.numel() * w.tensor.element_size()
        if fused_all.takes(w.tensor, w.tensor) and size <= SMALL and total + size <= most:
            found.append(w)
            total += size
    return found


def copies_of(weights: Sequence[Weight], flat: Tensor | None = None) -> list[Tensor]:
    """Room for a copy of each, within `flat` (uint8) where it is given: see `bytes_of`."""
    if flat is None:
        return [torch.empty_like(w.tensor) for w in weights]
    found, offset = [], 0
    for w in weights:
        size = w.tensor.numel() * w.tensor.element_size()
        found.append(flat[offset : offset + size].view(w.tensor.dtype).view(w.tensor.shape))
        offset += _whole(size)
    return found


def bytes_of(weights: Sequence[Weight]) -> int:
    """That `copies_of` needs."""
    return sum(_whole(w.tensor.numel() * w.tensor.element_size()) for w in weights)


def _whole(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
